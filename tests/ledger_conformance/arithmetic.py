"""
Each aggregation, by its definition: the events of one row go in, a number comes out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from tallybook_server.catalogue import Declaration
from tallybook_server.question import Aggregation
from tests.ledger_conformance.facts import Counted

HOUR = 3_600_000_000  # microseconds


def quantity(value: tuple[int, int]) -> Fraction:
    """The number that a mantissa and a scale stand for."""
    mantissa, scale = value
    return Fraction(mantissa, 10**scale)


def quantities(events: Iterable[Counted]) -> list[Fraction]:
    """The numbers of events, rising."""
    return sorted(quantity(one.event.value) for one in events)


def least(events: Sequence[Counted], rule: Declaration) -> Fraction | None:
    return min(quantities(events), default=None)


def greatest(events: Sequence[Counted], rule: Declaration) -> Fraction | None:
    return max(quantities(events), default=None)


def count(events: Sequence[Counted], rule: Declaration) -> Fraction | None:
    return Fraction(len(events))


def average(events: Sequence[Counted], rule: Declaration) -> Fraction | None:
    return sum(quantities(events), Fraction()) / len(events) if events else None


def last(events: Sequence[Counted], rule: Declaration) -> Fraction | None:
    """The value of the latest event; of several at one time, the one that came last."""
    if not events:
        return None
    return quantity(max(events, key=when).event.value)


def unique(events: Sequence[Counted], rule: Declaration) -> Fraction | None:
    """How many different values, of a tag or of the quantity."""
    if rule.unique_of is None:
        return Fraction(len(set(quantities(events))))
    texts = {one.event.tags.get(rule.unique_of) for one in events}
    return Fraction(len(texts - {None}))


def percentile(events: Sequence[Counted], rule: Declaration) -> Fraction | None:
    """The smallest value such that at least p percent of all values are at most it."""
    share = Fraction(rule.percentile or 0) / 100
    values = quantities(events)
    for value in values:
        if sum(other <= value for other in values) >= share * len(values):
            return value
    return None


def when(one: Counted) -> tuple[int, int, int]:
    """An event's place in time; at one time, its place in the ledger."""
    return one.event.time, one.entry, one.place


def held(series: Sequence[Counted], start: int, end: int) -> Fraction:
    """
    A level, integrated over [start, end), in unit-hours.

    Args:
        series: Every event of one series, from the beginning of time.
    """
    rising = sorted(series, key=when)
    total = Fraction()
    for at, one in enumerate(rising):
        until = rising[at + 1].event.time if at + 1 < len(rising) else end
        began, ended = max(one.event.time, start), min(until, end)
        if began < ended:
            total += quantity(one.event.value) * Fraction(ended - began, HOUR)
    return total


def by_series(events: Iterable[Counted]) -> list[list[Counted]]:
    """The events of each series: one dimension, one tenant, the same tags."""
    series: defaultdict[object, list[Counted]] = defaultdict(list)
    for one in events:
        event = one.event
        series[event.dimension, event.tenant, tuple(sorted(event.tags.items()))].append(one)
    return list(series.values())


OF_EVENTS: dict[Aggregation, Callable[[Sequence[Counted], Declaration], Fraction | None]] = {
    "count": count,
    "min": least,
    "max": greatest,
    "avg": average,
    "last": last,
    "unique": unique,
    "percentile": percentile,
}
"""What needs no more than the events of a row. Sum has adjustments, a level has a past."""
