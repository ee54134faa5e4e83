"""
What a query sees: segments and generations of the tail, up to one position.

A snapshot never changes. The writer makes the next one and swaps one reference; who
holds an older one keeps seeing exactly that, seals and compactions in between included.
What a snapshot has in memory and in files goes when neither the current one nor a held
one needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock
from typing import NamedTuple

from tallybook_server.catalogue import Catalogue, Declaration
from tallybook_server.change import Change
from tallybook_server.correction import Corrections
from tallybook_server.segment import Segment
from tallybook_server.tail import Generation

__all__ = ["Part", "Snapshot", "Snapshots"]


class Part(NamedTuple):
    """
    A generation as far as a snapshot reaches into it.

    Attributes:
        generation: It may go on growing.
        chunks: How many of its chunks the snapshot sees.
    """

    generation: Generation
    chunks: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    The counted events up to one position, each in exactly one of the parts.

    Attributes:
        position: The last entry that it holds for.
        segments: The sealed parts, by the first entry that they cover. Segments of
            different months may cover the same entries; each event is in one of them.
        tail: The parts that are not sealed, in the ledger's order; the last one grows.
        corrections: Every correction up to there.
        catalogue: Every declaration up to there.
    """

    position: int
    segments: tuple[Segment, ...]
    tail: tuple[Part, ...]
    corrections: Corrections = field(default_factory=Corrections)
    catalogue: Catalogue = field(default_factory=Catalogue)

    def with_change(self, change: Change) -> Snapshot:
        """This snapshot and a change that was entered at its position."""
        if isinstance(change, Declaration):
            return replace(self, catalogue=self.catalogue.with_(change))
        return replace(self, corrections=self.corrections.with_(change))

    @property
    def growing(self) -> Generation:
        """The generation that new events go into."""
        return self.tail[-1].generation

    @property
    def frozen(self) -> Part | None:
        """The oldest part of the tail that does not grow any more, if there is one."""
        return self.tail[0] if len(self.tail) > 1 else None

    @property
    def sealed_upto(self) -> int:
        """The last entry that the segments cover."""
        return max((segment.last for segment in self.segments), default=0)


class Snapshots:
    """The current snapshot, and who holds which. For any number of threads."""

    def __init__(self, first: Snapshot, retire: Callable[[Generation], None]) -> None:
        """
        Begin with *first*.

        Args:
            first: The first snapshot.
            retire: Called once with each generation that nobody needs any more.
        """
        self._current = first
        self._retire = retire
        self._lock = Lock()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._numbers = count()
        self._held: dict[int, Snapshot] = {}
        self._leaving: dict[int, Generation] = {}
        self._replaced: dict[str, Segment] = {}

    @property
    def current(self) -> Snapshot:
        """The newest snapshot. Who reads parts of it holds it instead."""
        return self._current

    def swap(self, snapshot: Snapshot) -> None:
        """Make *snapshot* the current one."""
        with self._lock:
            staying = {part.generation.number for part in snapshot.tail}
            for part in self._current.tail:
                if part.generation.number not in staying:
                    self._leaving[part.generation.number] = part.generation
            # Nearly every swap brings rows and leaves the segments as they were.
            if snapshot.segments is not self._current.segments:
                self._replaced |= {one.name: one for one in self._current.segments}
                for segment in snapshot.segments:
                    self._replaced.pop(segment.name, None)
            self._current = snapshot
        self._let_go()
        for heard in self._listeners:
            heard()

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        """
        Have *heard* called behind each swap, on the thread that swaps; what ends it.

        It must return at once and raise nothing: the next commit waits for it.
        """
        with self._lock:
            self._listeners = (*self._listeners, heard)

        def end() -> None:
            with self._lock:
                self._listeners = tuple(one for one in self._listeners if one is not heard)

        return end

    @contextmanager
    def hold(self) -> Generator[Snapshot]:
        """The current snapshot, kept whole until the block ends: rows and files."""
        with self._lock:
            snapshot = self._current
            number = next(self._numbers)
            self._held[number] = snapshot
        try:
            yield snapshot
        finally:
            with self._lock:
                del self._held[number]
            self._let_go()

    def take_replaced(self) -> list[Segment]:
        """The segments that no snapshot has any more, each once: their files can go."""
        with self._lock:
            held = {one.name for snapshot in self._held.values() for one in snapshot.segments}
            names = [name for name in self._replaced if name not in held]
            return [self._replaced.pop(name) for name in names]

    def _let_go(self) -> None:
        with self._lock:
            if not self._leaving:
                return
            held = {
                part.generation.number for snapshot in self._held.values() for part in snapshot.tail
            }
            free = [number for number in self._leaving if number not in held]
            generations = [self._leaving.pop(number) for number in free]
        for generation in generations:
            self._retire(generation)
