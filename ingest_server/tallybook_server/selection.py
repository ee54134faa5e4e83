"""
The selection: which parts of a snapshot a question is about, and what each is asked. Pure.

An event is in exactly one part: a segment or a generation of the tail. A part that cannot
hold anything that is asked for is not read, and each of the others gets only the
conditions that can tell its events apart: to ask for what was known earlier, or to leave out
what was taken back, costs where there is some of it and nowhere else.

Nothing here relies on the order of segments, nor on each covering entries of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from tallybook_server.correction import Run
from tallybook_server.question import TagFilter
from tallybook_server.segment import Segment
from tallybook_server.snapshot import Snapshot
from tallybook_server.tail import Generation

__all__ = ["Needs", "Scope", "Sealed", "Selection", "Unsealed", "select"]


class Scope(NamedTuple):
    """
    Which events are asked about.

    Attributes:
        dimensions: At least one.
        tenants: Only these; None among them is "unattributed". None instead: all.
        filters: Only events that pass every one.
        start: Microseconds since 1970 UTC, or None: from the beginning.
        end: The first microsecond that no longer counts, or None: to the end.
        position: The last entry that counts.
    """

    dimensions: tuple[str, ...]
    tenants: tuple[str | None, ...] | None
    filters: tuple[TagFilter, ...]
    start: int | None
    end: int | None
    position: int


class Needs(NamedTuple):
    """Which conditions the events of a part need; the others hold for all of them."""

    dimension: bool
    start: bool
    end: bool
    entry: bool
    voids: bool


class Sealed(NamedTuple):
    """A segment that could hold something."""

    segment: Segment
    needs: Needs


class Unsealed(NamedTuple):
    """
    A generation that could hold something.

    Attributes:
        number: Of its tables.
        wides: Whether it has values beyond 63 bits.
        needs: Which conditions its events need.
    """

    number: int
    wides: bool
    needs: Needs


class Selection(NamedTuple):
    """
    What is read for a scope.

    Attributes:
        scope: What is asked about.
        sealed: The segments.
        unsealed: The generations.
        voided: The events that do not count; empty if no part can hold one.
    """

    scope: Scope
    sealed: tuple[Sealed, ...]
    unsealed: tuple[Unsealed, ...]
    voided: tuple[Run, ...]

    @property
    def wides(self) -> bool:
        """Whether there may be values beyond 63 bits."""
        return any(part.segment.wides for part in self.sealed) or any(
            part.wides for part in self.unsealed
        )


def select(snapshot: Snapshot, scope: Scope, has_wides: Callable[[Generation], bool]) -> Selection:
    """
    What is read for *scope*.

    Args:
        snapshot: Held by the caller.
        scope: What is asked about; its position is the snapshot's or an earlier one.
        has_wides: Whether a generation of the snapshot has values beyond 63 bits.
    """
    voided = snapshot.corrections.at(scope.position).voided
    sealed = tuple(
        Sealed(segment, _needs(segment, scope, voided))
        for segment in snapshot.segments
        if _concerns(segment, scope)
    )
    behind = snapshot.position + 1
    firsts = [*(part.generation.first for part in snapshot.tail), behind]
    unsealed = tuple(
        Unsealed(
            part.generation.number,
            has_wides(part.generation),
            Needs(True, True, True, True, _any_voided(voided, first, then - 1)),
        )
        for part, (first, then) in zip(snapshot.tail, pairwise(firsts), strict=True)
        if first <= scope.position
    )
    needs = (*(part.needs for part in sealed), *(part.needs for part in unsealed))
    if not any(one.voids for one in needs):
        voided = ()
    return Selection(scope, sealed, unsealed, voided)


def _concerns(segment: Segment, scope: Scope) -> bool:
    """Whether *segment* could hold something."""
    return (
        segment.time_min is not None
        and segment.time_max is not None
        and (scope.start is None or segment.time_max >= scope.start)
        and (scope.end is None or segment.time_min < scope.end)
        and segment.first <= scope.position
        and not set(scope.dimensions).isdisjoint(segment.dimensions)
    )


def _needs(segment: Segment, scope: Scope, voided: tuple[Run, ...]) -> Needs:
    return Needs(
        dimension=not set(scope.dimensions).issuperset(segment.dimensions),
        start=scope.start is not None and (segment.time_min or 0) < scope.start,
        end=scope.end is not None and (segment.time_max or 0) >= scope.end,
        entry=segment.last > scope.position,
        voids=_any_voided(voided, segment.first, segment.last),
    )


def _any_voided(voided: tuple[Run, ...], first: int, last: int) -> bool:
    """Whether an event of the entries *first* to *last* was taken back."""
    at = bisect_left(voided, (first,))
    return at < len(voided) and voided[at].entry <= last
