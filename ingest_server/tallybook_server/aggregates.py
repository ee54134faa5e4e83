"""
The aggregations: what the events of a group come to. docs/explanation/answers.md.

Nothing is a float. A value is ``mantissa / 10**scale``; DuckDB adds and compares mantissas
of equal scale as integers, and Python puts the few results of different scales together.
(DuckDB's own decimals become floats when they are divided or averaged, and its quantiles
take their rank from a float.)

What depends on the order of events, a level held over time, is `tallybook_server.levels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from tallybook.limits import VALUE_DECIMALS_MAX
from tallybook_server.figure import QUOTIENT_DECIMALS, Figure, Figures, billionths, quotient
from tallybook_server.levels import time_weighted
from tallybook_server.plan import How
from tallybook_server.question import Aggregation, read_percentile
from tallybook_server.reading import Reading
from tallybook_server.source import Values

__all__ = ["compute"]


def compute(reading: Reading, how: How) -> Figures:
    """
    What the events of each group come to.

    Raises:
        TooManyRows: More than `QUERY_GROUPS_MAX` groups.
    """
    return _COMPUTE[how.aggregation](reading, how)


# -- quantities ----------------------------------------------------------------------------

_BILLIONTHS: Final = (
    "CASE scale "
    + " ".join(f"WHEN {at} THEN {10 ** (VALUE_DECIMALS_MAX - at)}" for at in range(10))
    + " END::HUGEINT"
)
"""What makes billionths of a mantissa of each scale."""

_HALF: Final = 10**19
"""38 digits are cut here: 10**19 rows of either half can be added in 128 bits."""


def _sum(reading: Reading, _: How) -> Figures:
    figures = Figures()
    values = Values()
    inner = reading.grouped(
        'scale, sum("value")::HUGEINT AS total, count(*) AS events',
        reading.events(values, number="narrow"),
        values,
    )
    # 18 billion of the largest narrow values fit; beyond that DuckDB raises, and never wraps.
    # As text, because it makes Python's integers of a HUGEINT four times as slowly.
    sql = inner and (
        f"SELECT {reading.names}, sum(coalesce(total, 0) * {_BILLIONTHS})::HUGEINT::VARCHAR, "
        f"sum(events)::BIGINT FROM ({inner}) GROUP BY ALL ORDER BY ALL"
    )
    for group, (total, events) in reading.rows(sql, values):
        figures[group] = Figure(int(total), VALUE_DECIMALS_MAX, events)
    figures.check_room(0)
    if reading.selection.wides:
        # Their events are counted already; they are few, and only they are read again.
        for group, (scale, high, low) in reading.ask(
            f'scale, sum("value" // {_HALF}), sum("value" % {_HALF})', number="wide"
        ):
            figure = figures[group]
            figure.mantissa = (figure.mantissa or 0) + billionths(high * _HALF + low, scale)
    return figures


def _avg(reading: Reading, how: How) -> Figures:
    figures = _sum(reading, how)
    for figure in figures.values():
        total = figure.mantissa or 0
        figure.mantissa = quotient(total, figure.events * 10**VALUE_DECIMALS_MAX)
        figure.scale = QUOTIENT_DECIMALS
    return figures


def _count(reading: Reading, _: How) -> Figures:
    figures = Figures()
    for group, (events,) in reading.ask("count(*)"):
        figure = figures.of(group)
        figure.mantissa = figure.events = events
    return figures


def _min(reading: Reading, _: How) -> Figures:
    return _extreme(reading, "min", min)


def _max(reading: Reading, _: How) -> Figures:
    return _extreme(reading, "max", max)


def _extreme(reading: Reading, name: str, better: Callable[[int, int], int]) -> Figures:
    figures = Figures()
    for group, (scale, mantissa, events) in reading.ask(
        f'scale, {name}("value"), count(*)', number="any"
    ):
        figure = figures.of(group, VALUE_DECIMALS_MAX)
        found = billionths(mantissa, scale)
        figure.mantissa = found if figure.mantissa is None else better(figure.mantissa, found)
        figure.events += events
    return figures


def _last(reading: Reading, _: How) -> Figures:
    figures = Figures()
    # Rows are compared from left to right; no two events have one place.
    latest = 'max(row("time", entry, "index", "value", scale))'
    for group, ((*_place, mantissa, scale), events) in reading.ask(
        f"{latest}, count(*)", number="any"
    ):
        figure = figures.of(group, scale)
        figure.mantissa, figure.events = mantissa, events
    return figures


# -- different values ----------------------------------------------------------------------

_POWER: Final = (
    "CASE scale " + " ".join(f"WHEN {at} THEN {10**at}" for at in range(10)) + " END::BIGINT"
)
_UNIT: Final = 10**VALUE_DECIMALS_MAX
_WHOLE: Final = f'"value" // {_POWER}'
_PART: Final = f'("value" % {_POWER}) * ({_UNIT} // {_POWER})'
"""
A value as two integers, the whole units and the billionths of one: the same for equal
values whatever their scale, and ordered like them.
"""


def _unique(reading: Reading, how: How) -> Figures:
    values = Values()
    if how.unique_of is None:
        events = reading.events(values, number="any")
        key = f"{_WHOLE} AS units, {_PART} AS parts"
        different = "count(*)"
    else:
        events = reading.events(values, extra=(how.unique_of,))
        key = f"g{len(reading.by_tags)} AS text"
        different = "count(text)"  # Not of the events that lack the tag.
    inner = reading.grouped(f"{key}, count(*) AS events", events, values)
    sql = inner and (
        f"SELECT {reading.names}, {different}, sum(events)::BIGINT FROM ({inner}) GROUP BY ALL"
    )
    figures = Figures()
    for group, (mantissa, events) in reading.rows(sql, values):
        figure = figures.of(group)
        figure.mantissa, figure.events = mantissa, events
    return figures


def _percentile(reading: Reading, how: How) -> Figures:
    part, whole = read_percentile(how.percentile or "")
    values = Values()
    events = reading.events(values, number="any")
    inner = reading.grouped(
        f"{_WHOLE} AS units, {_PART} AS parts, count(*) AS events", events, values
    )
    # Nearest rank: the first value at which so many events are reached.
    sql = inner and (
        f"SELECT {reading.names}, units, parts, total::BIGINT FROM ("
        f"SELECT *, sum(events) OVER (PARTITION BY {reading.names}) AS total, "
        f"sum(events) OVER (PARTITION BY {reading.names} ORDER BY units, parts) AS reached "
        f"FROM ({inner})) "
        f"WHERE reached * {whole} >= total * {part} "
        f"AND (reached - events) * {whole} < total * {part}"
    )
    figures = Figures()
    for group, (units, parts, events) in reading.rows(sql, values):
        figure = figures.of(group, VALUE_DECIMALS_MAX)
        figure.mantissa, figure.events = units * _UNIT + parts, events
    return figures


_COMPUTE: Final[Mapping[Aggregation, Callable[[Reading, How], Figures]]] = MappingProxyType(
    {
        "sum": _sum,
        "count": _count,
        "min": _min,
        "max": _max,
        "avg": _avg,
        "last": _last,
        "unique": _unique,
        "percentile": _percentile,
        "time_weighted": lambda reading, _: time_weighted(reading),
    }
)
