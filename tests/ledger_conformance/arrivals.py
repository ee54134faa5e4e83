"""
Which of the events that arrive count: two dictionaries, asked event by event.

An event is itself by its producer and sequence, and by its id and key within its source. Of
several with one identity the first counts, whatever the others say.
"""

from __future__ import annotations

from collections.abc import Sequence

from tallybook.event import Event
from tests.ledger_conformance.facts import Counted


class Arrivals:
    """
    What has arrived.

    Attributes:
        counted: The events that count, in the ledger's order.
    """

    def __init__(self) -> None:
        self.counted: list[Counted] = []
        self._held: set[tuple[bytes, int]] = set()
        self._taken: set[tuple[str | None, str, str]] = set()

    def copy(self) -> Arrivals:
        """The same, to go on with apart from this one."""
        other = Arrivals()
        other.counted = list(self.counted)
        other._held, other._taken = set(self._held), set(self._taken)
        return other

    def block(
        self, producer: bytes, first: int, source: str | None, events: Sequence[Event], entry: int
    ) -> list[Counted]:
        """A block that the ledger has put into *entry*, or has known before: what is new in it."""
        before = len(self.counted)
        for index, event in enumerate(events):
            if (producer, first + index) not in self._held:
                self._held.add((producer, first + index))
                self.event(event, source, entry, index)
        return self.counted[before:]

    def event(self, event: Event, source: str | None, entry: int, index: int) -> None:
        """An event that no sequence was seen of before."""
        wanted = {
            (source, scope, name)
            for scope, name in (("", event.id), (event.dimension, event.key))
            if name is not None
        }
        if not wanted & self._taken:
            self._taken |= wanted
            self.counted.append(Counted(entry, index, event))
