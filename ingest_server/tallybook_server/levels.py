"""
Levels: what is held over time, as seats or stored gigabytes, in unit-hours.

A *series* is a dimension, a tenant and all tags. What one of its events reports is its level
from then on, until the next one; the last one holds until the end of what is asked about. Of
the events before the start only the last one of a series matters, for what it leaves behind:
so a history of any length is looked through, and neither sorted nor kept. (Measured with
300,000 events of 2,000 series, the last day: 64 ms; with the history sorted: 244 ms.) Of events
at the same microsecond, the one that is later in the ledger holds.

A level is integrated by its changes. An event puts its value on top of its group's level when
it comes, and takes it off again when the next event of its series comes. So a row needs two
sums only, whatever the number of windows over which a level stands still:

    changes = sum(+-value)      area = sum(+-value * (end - moment))

and the integral over a window follows from the level with which it begins, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tallybook.event import TIME_MIN
from tallybook.limits import VALUE_DECIMALS_MAX
from tallybook_server.figure import QUOTIENT_DECIMALS, Figure, Figures, Group, billionths, quotient
from tallybook_server.reading import Reading
from tallybook_server.source import Values
from tallybook_server.tiling import Tiling

__all__ = ["time_weighted"]

_HOUR: Final = 3_600_000_000
"""Microseconds."""

_LIMB_BITS: Final = 32
"""
A value is cut into pieces of so many bits. One times the longest time that there is, 58 bits,
leaves room in 128 bits for the sum of 10**11 of them; a whole value would leave none.
"""


class _Change:
    """
    What happens to a group's level in one window.

    Attributes:
        changes: The sum of what is added and taken away, in billionths.
        area: Likewise, each times the microseconds from its moment to the end of the pass.
        events: How many events came.
    """

    __slots__ = ("area", "changes", "events")

    def __init__(self) -> None:
        self.changes = self.area = self.events = 0


def time_weighted(reading: Reading) -> Figures:
    """
    The integral of each group's level over each window, in unit-hours.

    A group has a figure in every window from the one in which its first level begins, also
    where nothing is reported. The pass has an end, and a history if it has a start.

    Raises:
        TooManyRows: More than `QUERY_GROUPS_MAX` groups.
    """
    figures = Figures()
    changes: dict[Group, dict[int, _Change]] = {}
    values = Values()
    wides = reading.selection.wides or (reading.history is not None and reading.history.wides)
    limbs = 4 if wides else 2
    rows = reading.rows(_sql(reading, limbs, values), values)
    for (window, dimension, tenant, tags), (scale, events, *sums) in rows:
        group = (0, dimension, tenant, tags)
        if group not in changes:
            figures.check_room((len(changes) + 1) * reading.tiling.count)
        change = changes.setdefault(group, {}).setdefault(window, _Change())
        change.changes += billionths(_joined(sums[:limbs]), scale)
        change.area += billionths(_joined(sums[limbs:]), scale)
        change.events += events
    for (_, dimension, tenant, tags), of_group in changes.items():
        for window, figure in _integrate(reading.tiling, of_group):
            figures[window, dimension, tenant, tags] = figure
    return figures


def _integrate(tiling: Tiling, changes: Mapping[int, _Change]) -> Iterator[tuple[int, Figure]]:
    """Per window from the first level on, the figure."""
    level = 0
    none = _Change()
    for window in range(min(changes), tiling.count):
        start, end = tiling.bounds(window)
        change = changes.get(window, none)
        # The area reaches to the end of the pass: what lies behind the window is taken off.
        area = change.area - change.changes * ((tiling.end or 0) - (end or 0))
        if level:
            area += level * ((end or 0) - (start or 0))
        level += change.changes
        value = quotient(area, _HOUR * 10**VALUE_DECIMALS_MAX)
        yield window, Figure(value, QUOTIENT_DECIMALS, change.events)


def _joined(limbs: Sequence[int]) -> int:
    return sum(limb << (at * _LIMB_BITS) for at, limb in enumerate(limbs))


def _sql(reading: Reading, limbs: int, values: Values) -> str | None:
    """The SQL of a scale, events, and the limbs of changes and areas, per window and group."""
    tags = "".join(f", g{at}" for at in range(len(reading.by_tags)))
    events = " UNION ALL ".join((*_inside(reading, tags, values), *_before(reading, tags, values)))
    if not events:
        return None
    end = f"{values(reading.tiling.end)}::BIGINT"
    start = f"{values(TIME_MIN if reading.tiling.start is None else reading.tiling.start)}::BIGINT"
    # Of equal times, the last one in the ledger holds and the others hold for no time at all.
    held = (
        f'SELECT dimension, tenant{tags}, scale, "value", "time" AS came, lead("time", 1, {end}) '
        'OVER (PARTITION BY dimension, tenant, series ORDER BY "time", entry, "index") AS went '
        f"FROM ({events})"
    )
    who = f'dimension, tenant{tags}, scale, "value"'
    changes = (
        f"WITH held AS MATERIALIZED (SELECT * FROM ({held}) "
        f"WHERE went > {start} OR came >= {start}) "
        f"SELECT {who}, greatest(came, {start}) AS moment, (came >= {start})::INTEGER AS came, "
        f"1 AS sign FROM held UNION ALL "
        f"SELECT {who}, went, 0, -1 FROM held WHERE went < {end}"
    )
    pieces = [
        f'(sign * (("value" >> {at * _LIMB_BITS}) & {2**_LIMB_BITS - 1}))::HUGEINT'
        for at in range(limbs)
    ]
    sums = [
        "sum(came)::BIGINT",
        *(f"sum({piece})" for piece in pieces),
        *(f"sum({piece} * ({end} - moment))" for piece in pieces),
    ]
    return reading.grouped(f"scale, {', '.join(sums)}", changes, values, time="moment")


_EVENT: Final = '"time", entry, "index", scale, "value"'


def _inside(reading: Reading, tags: str, values: Values) -> Iterator[str]:
    """The SELECT of every event within the pass."""
    events = reading.events(values, number="any", series=True)
    if events is not None:
        yield f"SELECT dimension, tenant{tags}, series, {_EVENT} FROM ({events})"


def _before(reading: Reading, tags: str, values: Values) -> Iterator[str]:
    """The SELECT of the last event that each series had before the pass."""
    if reading.history is None:
        return
    events = reading.events(values, number="any", series=True, selection=reading.history)
    if events is not None:
        who = f"dimension, tenant{tags}, series"
        # Rows are compared from left to right; no two events have one place.
        fields = ", ".join(f"{name} := {name}" for name in _EVENT.split(", "))
        yield (
            f"SELECT {who}, last.* FROM (SELECT {who}, max(struct_pack({fields})) AS last "
            f"FROM ({events}) GROUP BY {who})"
        )
