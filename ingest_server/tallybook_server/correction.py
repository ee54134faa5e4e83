"""
Corrections: later entries that add to a sum, or take events back. Pure.

Nothing is updated. An *adjustment* is a signed quantity beside the events. A *void* takes
back what it names: events, an adjustment, or another void, whose events then count again.
What is in force depends on the position that is asked about, and on nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Adjustment", "Corrections", "InForce", "Run", "Void"]


class Run(NamedTuple):
    """
    Neighbouring events of one entry.

    Attributes:
        entry: Its position.
        first: The first event's place in it, from 0.
        last: The last one's.
    """

    entry: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Adjustment:
    """
    A signed quantity that belongs to a sum.

    Attributes:
        id: The caller's; the same one again is the same adjustment.
        dimension: Whose sum.
        value: ``(mantissa, scale)``; may be negative.
        tenant: Whose usage; None: nobody's.
        time: When, in microseconds since 1970 UTC: the window that it falls into.
        tags: As those of an event.
        reason: Why, in words.
        given: Whether the caller gave the time, rather than the clock.
        position: The entry that says so.
        recorded_at: When that was recorded, in microseconds since 1970 UTC.
    """

    id: str
    dimension: str
    value: tuple[int, int]
    tenant: str | None
    time: int
    tags: dict[str, str]
    reason: str
    given: bool = True
    position: int = 0
    recorded_at: int = 0


@dataclass(frozen=True, slots=True)
class Void:
    """
    Something that is taken back.

    Attributes:
        id: The caller's; the same one again is the same void.
        reason: Why, in words.
        runs: The events, rising; empty if `corrects` is set.
        corrects: The position of an adjustment or a void; 0 if events are taken back.
        selection: The filter that chose the events, as JSON; "" where one was named.
        position: The entry that says so.
        recorded_at: When that was recorded, in microseconds since 1970 UTC.
    """

    id: str
    reason: str
    runs: tuple[Run, ...] = ()
    corrects: int = 0
    selection: str = ""
    position: int = 0
    recorded_at: int = 0

    @property
    def events(self) -> int:
        """How many events it takes back."""
        return sum(run.last - run.first + 1 for run in self.runs)


@dataclass(frozen=True, slots=True)
class InForce:
    """
    What has to be heeded at one position.

    Attributes:
        adjustments: Those that were not taken back, in the ledger's order.
        voided: The events that do not count; rising, without overlaps.
        positions: Of every correction in force.
    """

    adjustments: tuple[Adjustment, ...] = ()
    voided: tuple[Run, ...] = ()
    positions: frozenset[int] = frozenset()

    def takes_back(self, entry: int, index: int) -> bool:
        """Whether the event at this place does not count."""
        at = bisect_right(self.voided, (entry, index), key=_begin) - 1
        return at >= 0 and _holds(self.voided[at], entry, index)


def _begin(run: Run) -> tuple[int, int]:
    return run.entry, run.first


def _holds(run: Run, entry: int, index: int) -> bool:
    return run.entry == entry and run.first <= index <= run.last


class Corrections:
    """Every correction, in the ledger's order. Never changes; `with_` makes another one."""

    def __init__(self, corrections: Iterable[Adjustment | Void] = ()) -> None:
        self._all = tuple(corrections)
        self._positions = [one.position for one in self._all]
        self._in_force: dict[int, InForce] = {}

    def __len__(self) -> int:
        return len(self._all)

    def with_(self, correction: Adjustment | Void) -> Corrections:
        """These corrections and one more, which is later than all of them."""
        return Corrections((*self._all, correction))

    def all(self, position: int | None = None) -> tuple[Adjustment | Void, ...]:
        """Every one up to *position*, in the ledger's order."""
        upto = len(self._all) if position is None else bisect_right(self._positions, position)
        return self._all[:upto]

    def at(self, position: int) -> InForce:
        """What is in force at *position*."""
        upto = bisect_right(self._positions, position)
        known = self._in_force.get(upto)
        if known is None:
            known = self._in_force[upto] = _in_force(self._all[:upto])
        return known

    def void_of(self, entry: int, index: int, position: int) -> Void | None:
        """The first void in force at *position* that takes this event back, or None."""
        if not self.at(position).takes_back(entry, index):
            return None
        return next(
            one
            for one in _not_taken_back(self.all(position))[::-1]
            if isinstance(one, Void) and any(_holds(run, entry, index) for run in one.runs)
        )


def _not_taken_back(corrections: tuple[Adjustment | Void, ...]) -> list[Adjustment | Void]:
    """Those in force, the newest first."""
    # A void names what is earlier than itself. So from the newest to the oldest, whether one
    # is in force is known before it is needed.
    taken_back: set[int] = set()
    in_force: list[Adjustment | Void] = []
    for one in reversed(corrections):
        if one.position in taken_back:
            continue
        in_force.append(one)
        if isinstance(one, Void) and one.corrects:
            taken_back.add(one.corrects)
    return in_force


def _in_force(corrections: tuple[Adjustment | Void, ...]) -> InForce:
    in_force = _not_taken_back(corrections)
    adjustments = [one for one in reversed(in_force) if isinstance(one, Adjustment)]
    runs = [run for one in in_force if isinstance(one, Void) for run in one.runs]
    positions = frozenset(one.position for one in in_force)
    return InForce(tuple(adjustments), _joined(runs), positions)


def _joined(runs: list[Run]) -> tuple[Run, ...]:
    """The same events, rising, without overlaps."""
    joined: list[Run] = []
    for run in sorted(runs):
        before = joined[-1] if joined else None
        if before is not None and before.entry == run.entry and run.first <= before.last + 1:
            joined[-1] = before._replace(last=max(before.last, run.last))
        else:
            joined.append(run)
    return tuple(joined)
