"""
What a ledger was told, and which of it stands: events, corrections, declarations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tallybook.errors import TallybookError
from tallybook.event import Event
from tallybook_server.catalogue import Declaration, UnknownDimension
from tallybook_server.correction import Adjustment, Void
from tallybook_server.ledger import AlreadyVoided, NothingToVoid, UnfitCorrection


class Counted(NamedTuple):
    """An event that counts, and its place: the entry that holds it, and the place in it."""

    entry: int
    place: int
    event: Event


@dataclass(frozen=True)
class Facts:
    """Everything that a ledger was told, in its own order."""

    events: tuple[Counted, ...] = ()
    corrections: tuple[Adjustment | Void, ...] = ()
    declarations: tuple[Declaration, ...] = ()

    def at(self, position: int) -> Facts:
        """What it had been told by then."""
        return Facts(
            tuple(one for one in self.events if one.entry <= position),
            tuple(one for one in self.corrections if one.position <= position),
            tuple(one for one in self.declarations if one.position <= position),
        )

    def knows(self, dimension: str) -> bool:
        """Whether anything was ever recorded of it, or it was declared."""
        names = {one.event.dimension for one in self.events}
        return dimension in names | {one.name for one in self.declarations}

    def rule(self, dimension: str, time: int) -> Declaration:
        """How usage of that time is computed: as was declared last, or as a sum."""
        rule = Declaration(dimension)
        for one in self.declarations:
            if one.name == dimension and (one.start is None or one.start <= time):
                rule = one
        return rule

    def refusal(self, correction: Adjustment | Void) -> type[TallybookError] | None:
        """Why a correction would not be taken."""
        if isinstance(correction, Adjustment):
            if not self.knows(correction.dimension):
                return UnknownDimension
            rule = self.rule(correction.dimension, correction.time)
            return None if rule.aggregation == "sum" else UnfitCorrection
        if correction.corrects:
            (voided,) = (one for one in self.corrections if one.position == correction.corrects)
            return None if in_force(voided, self.corrections) else AlreadyVoided
        if not correction.runs:
            return NothingToVoid
        there = {(one.entry, one.place) for one in standing(self)}
        here = {(run.entry, run.first) for run in correction.runs}
        return None if here <= there else AlreadyVoided


def in_force(correction: Adjustment | Void, corrections: Sequence[Adjustment | Void]) -> bool:
    """A correction is in force unless a void that is itself in force takes it back."""
    return not any(
        other.corrects == correction.position and in_force(other, corrections)
        for other in corrections
        if isinstance(other, Void)
    )


def standing(facts: Facts) -> list[Counted]:
    """The events that no void takes back."""
    voids = [
        one
        for one in facts.corrections
        if isinstance(one, Void) and in_force(one, facts.corrections)
    ]
    return [
        one
        for one in facts.events
        if not any(
            run.entry == one.entry and run.first <= one.place <= run.last
            for void in voids
            for run in void.runs
        )
    ]


def adjustments(facts: Facts) -> list[Adjustment]:
    """The adjustments that no void takes back."""
    return [
        one
        for one in facts.corrections
        if isinstance(one, Adjustment) and in_force(one, facts.corrections)
    ]
