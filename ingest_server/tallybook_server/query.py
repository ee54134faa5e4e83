"""
Questions to a snapshot, as SQL to DuckDB: exact sums and counts.

Nothing is a float. A value is ``mantissa / 10**scale``; DuckDB adds mantissas of equal
scale into 128 bits, which is exact, and Python adds the few sums of different scales
and the mantissas beyond 63 bits. (DuckDB's own decimals become floats when they are
divided or averaged.)

Time windows come from `tallybook_server.window` as integers. They are cut into equal
slots, as long as the greatest length that divides each of them (an hour, for days with a
change of the clock among them), and an event finds its window by the number of its slot.
Measured on 10 million events and 90 days: 0.42 s; an ASOF join 2.0 s.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import gcd
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb

from tallybook.event import format_value
from tallybook.limits import VALUE_DECIMALS_MAX
from tallybook_server.arrow import numbers, rows
from tallybook_server.ledger import TooManyRows
from tallybook_server.limits import WINDOW_SLOTS_MAX, WINDOWS_MAX
from tallybook_server.question import UsageQuery, UsageRow
from tallybook_server.segment import Segment, quoted, tag_value
from tallybook_server.snapshot import Part, Snapshot
from tallybook_server.tables import Tables
from tallybook_server.window import edges

__all__ = ["Values", "aggregate", "files"]

_SCALES: Final = VALUE_DECIMALS_MAX + 1
_Tag = Callable[[str], str]  # Says how the value of a tag key is written in SQL.


class Values:
    """The values of an SQL text: it holds their numbers, never themselves."""

    def __init__(self) -> None:
        self.list: list[Any] = []

    def __call__(self, value: object) -> str:
        """*value* as a parameter in SQL."""
        self.list.append(value)
        return f"${len(self.list)}"


def files(directory: Path, segments: Sequence[Segment]) -> str:
    """The SQL that reads *segments*, by column name."""
    # Names are the engine's own, digits and a dash; the directory is the operator's.
    names = ", ".join(quoted(str(directory / segment.name)) for segment in segments)
    return f"read_parquet([{names}], union_by_name = true)"


def aggregate(
    tables: Tables, directory: Path, snapshot: Snapshot, query: UsageQuery
) -> list[UsageRow]:
    """
    The rows that answer *query*, as of *snapshot*.

    Args:
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        snapshot: Held by the caller.
        query: The question.

    Raises:
        TooManyRows: More rows than ``query.limit``, or more windows than `WINDOWS_MAX`.
        ValueError: The query asks for windows without a start and an end.
        ZoneInfoNotFoundError: No such time zone.
    """
    tables.load(snapshot.tail)
    windows = _windows(query)
    totals: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    counts: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    with tables.cursor() as cursor:
        for *group, scale, mantissa, count in _ask(cursor, tables, directory, snapshot, query):
            totals[tuple(group)] += (mantissa or 0) * 10 ** (VALUE_DECIMALS_MAX - scale)
            counts[tuple(group)] += count
            if len(counts) > query.limit:
                raise _too_many(query.limit)
        for *group, scale, mantissa in _ask_wides(cursor, tables, directory, snapshot, query):
            totals[tuple(group)] += int(mantissa) * 10 ** (VALUE_DECIMALS_MAX - scale)
    return [
        _row(query, windows, group, totals[group], counts[group])
        for group in sorted(counts, key=_order)
    ]


def _too_many(limit: int) -> TooManyRows:
    return TooManyRows(f"more than {limit} rows; ask for less time, or slice by fewer tags")


def _order(group: tuple[Any, ...]) -> tuple[Any, ...]:
    # Absent comes before every text.
    return (group[0], *((part is not None, part or "") for part in group[1:]))


def _row(
    query: UsageQuery, windows: list[int], group: tuple[Any, ...], total: int, events: int
) -> UsageRow:
    window: int
    window, tenant, *texts = group
    (dimension,) = query.dimensions
    start, end = query.start, query.end
    if windows:
        start, end = windows[window], windows[window + 1]
    tags = {key: text for key, text in zip(query.by_tags, texts, strict=True) if text is not None}
    summed = _summed(query)
    value = format_value(total, VALUE_DECIMALS_MAX) if summed else str(events)
    return UsageRow(start, end, dimension, tenant, tags, value, events)


def _summed(query: UsageQuery) -> bool:
    return query.aggregation in (None, "sum")


# -- windows -------------------------------------------------------------------------------


def _windows(query: UsageQuery) -> list[int]:
    """The edges of the query's windows, or none: it has only one."""
    if query.window == "none":
        return []
    if query.start is None or query.end is None:
        raise ValueError(f"a window of one {query.window} needs a start and an end")
    if query.end <= query.start:
        return [query.start, query.start]
    try:
        return edges(
            query.start,
            query.end,
            query.window,
            query.time_zone,
            month_day=query.month_day,
            windows_max=WINDOWS_MAX,
        )
    except ValueError as error:
        raise TooManyRows(str(error)) from None


class _Slots(NamedTuple):
    """
    Windows as numbered slots of equal length.

    Attributes:
        begin: Where slot 0 begins: the end of the first window.
        length: Of each slot, in microseconds.
        window: Per slot, its window. Slot -1 is the first window; the last one is the last.
    """

    begin: int
    length: int
    window: array[int]


def _slots(windows: list[int]) -> _Slots | None:
    """The slots, or None where they would be too many."""
    inner = windows[1:-1]  # The outermost windows are cut wherever the query says.
    length = gcd(*(edge - inner[0] for edge in inner)) or 1
    if (inner[-1] - inner[0]) // length > WINDOW_SLOTS_MAX:
        return None
    window = array("i", [0])
    for at, edge in enumerate(inner[:-1]):
        window.extend(array("i", [at + 1]) * ((inner[at + 1] - edge) // length))
    window.append(len(windows) - 2)
    return _Slots(inner[0], length, window)


def _join_windows(
    cursor: duckdb.DuckDBPyConnection, windows: list[int], values: Values
) -> tuple[str, str]:
    """The SQL of the window's number, and of the join that brings it."""
    if len(windows) <= 2:
        return "0", ""
    slots = _slots(windows)
    if slots is None:
        starts = numbers(array("q", windows[:-1]))
        places = numbers(array("i", range(len(windows) - 1)))
        cursor.register("windows", rows({"start": starts, "number": places}))
        return "windows.number", 'ASOF JOIN windows ON part."time" >= windows.start'
    count = len(slots.window)
    cursor.register(
        "windows",
        rows(
            {
                "slot": numbers(array("q", range(-1, count - 1))),
                "number": numbers(slots.window),
            }
        ),
    )
    begin, length = values(slots.begin), values(slots.length)
    # The division cuts towards zero, which would put the time before `begin` into slot 0.
    slot = (
        f'CASE WHEN part."time" < {begin} THEN -1 '
        f'ELSE least((part."time" - {begin}) // {length}, {values(count - 2)}) END'
    )
    return "windows.number", f"JOIN windows ON windows.slot = {slot}"


# -- SQL -----------------------------------------------------------------------------------


def _ask(
    cursor: duckdb.DuckDBPyConnection,
    tables: Tables,
    directory: Path,
    snapshot: Snapshot,
    query: UsageQuery,
) -> list[tuple[Any, ...]]:
    """Window, tenant, tags, scale, sum of mantissas and count, per group and scale."""
    values = Values()
    parts = _parts(directory, snapshot, query, values)
    if not parts:
        return []
    window, join = _join_windows(cursor, _windows(query), values)
    tags = "".join(f", g{at}" for at in range(len(query.by_tags)))
    tenant = "tenant" if query.by_tenant else "NULL::VARCHAR"
    rows_max = values((query.limit + 1) * _SCALES)
    return cursor.execute(
        f"SELECT {window} AS w, {tenant} AS t{tags}, scale, sum(value)::HUGEINT, count(*) "
        f"FROM ({' UNION ALL '.join(parts)}) AS part {join} GROUP BY ALL LIMIT {rows_max}",
        values.list,
    ).fetchall()


def _ask_wides(
    cursor: duckdb.DuckDBPyConnection,
    tables: Tables,
    directory: Path,
    snapshot: Snapshot,
    query: UsageQuery,
) -> list[tuple[Any, ...]]:
    """Window, tenant, tags, scale and mantissa of each event beyond 63 bits."""
    tail = tuple(part for part in snapshot.tail if tables.has_wides(part.generation))
    segments = tuple(segment for segment in snapshot.segments if segment.wides)
    if not _summed(query) or not (tail or segments):
        return []
    values = Values()
    few = Snapshot(snapshot.position, segments, tail)
    parts = _parts(directory, few, query, values, wides=True)
    if not parts:
        return []
    window, join = _join_windows(cursor, _windows(query), values)
    tags = "".join(f", g{at}" for at in range(len(query.by_tags)))
    tenant = "tenant" if query.by_tenant else "NULL::VARCHAR"
    return cursor.execute(
        f"SELECT {window} AS w, {tenant} AS t{tags}, scale, value "
        f"FROM ({' UNION ALL '.join(parts)}) AS part {join}",
        values.list,
    ).fetchall()


def _parts(
    directory: Path, snapshot: Snapshot, query: UsageQuery, values: Values, *, wides: bool = False
) -> list[str]:
    """One SELECT per group of segments, and one per generation, of the events that count."""
    sql = _Sql(query, values)
    return [
        *(sql.sealed(directory, like, wides=wides) for like in _alike(snapshot.segments, query)),
        *(sql.tail(part, snapshot.position, wides=wides) for part in snapshot.tail),
    ]


def _alike(segments: Sequence[Segment], query: UsageQuery) -> list[list[Segment]]:
    """The segments that can hold what is asked for, in groups that one SELECT can read."""
    groups: defaultdict[tuple[str, ...], list[Segment]] = defaultdict(list)
    keys = (*query.by_tags, *(one.key for one in query.filters))
    for segment in segments:
        if segment.time_min is None or segment.time_max is None:
            continue
        if query.start is not None and segment.time_max < query.start:
            continue
        if query.end is not None and segment.time_min >= query.end:
            continue
        groups[tuple(tag_value(key, segment, str) for key in keys)].append(segment)
    return list(groups.values())


class _Sql:
    """The SELECTs of one query. A value is numbered where it is used: DuckDB refuses spare ones."""

    def __init__(self, query: UsageQuery, values: Values) -> None:
        self._query = query
        self._values = values

    def sealed(self, directory: Path, segments: list[Segment], *, wides: bool) -> str:
        def tag(key: str) -> str:
            return tag_value(key, segments[0], self._values)

        value = "wide" if wides else '"value"'
        conditions = [*self._of_user(), *self._of_tags(tag), *self._of_event("")]
        if wides:
            conditions.append("wide IS NOT NULL")
        return (
            f'SELECT tenant, "time", scale, {value} AS value{self._groups(tag)} '
            f"FROM {files(directory, segments)} WHERE {' AND '.join(conditions)}"
        )

    def tail(self, part: Part, position: int, *, wides: bool) -> str:
        def tag(key: str) -> str:
            return f"tags[{self._values(key)}]"

        number = part.generation.number
        groups = "".join(f", t.g{at}" for at in range(len(self._query.by_tags)))
        table, value = (f"wides_{number}", "wide") if wides else (f"events_{number}", '"value"')
        conditions = [f"e.entry <= {position}", *self._of_event("e.")]
        # Users and tagsets are few; what is asked of them is asked once of each.
        return (
            f'SELECT u.tenant, e."time", e.scale, e.{value} AS value{groups} FROM {table} AS e '
            f"JOIN (SELECT number, tenant FROM users_{number} "
            f"WHERE {' AND '.join(self._of_user())}) AS u ON u.number = e.of_user "
            f"{self._join_tagsets(number, tag)}WHERE {' AND '.join(conditions)}"
        )

    def _join_tagsets(self, number: int, tag: _Tag) -> str:
        """The join that brings and chooses the tags, if any are asked for."""
        if not (self._query.by_tags or self._query.filters):
            return ""
        where = " AND ".join(("true", *self._of_tags(tag)))
        return (
            f"JOIN (SELECT number{self._groups(tag)} FROM tagsets_{number} WHERE {where}) AS t "
            "ON t.number = e.of_tagset "
        )

    def _groups(self, tag: _Tag) -> str:
        return "".join(f", {tag(key)} AS g{at}" for at, key in enumerate(self._query.by_tags))

    def _of_user(self) -> list[str]:
        query, values = self._query, self._values
        (dimension,) = query.dimensions
        conditions = [f"dimension = {values(dimension)}"]
        for tenant in query.tenants or ():
            is_it = "tenant IS NULL" if tenant is None else f"tenant = {values(tenant)}"
            conditions.append(is_it)
        return conditions

    def _of_tags(self, tag: _Tag) -> list[str]:
        return [
            f"{tag(one.key)} = {self._values(text)}"
            for one in self._query.filters
            for text in one.values
        ]

    def _of_event(self, prefix: str) -> list[str]:
        conditions: list[str] = []
        if self._query.start is not None:
            conditions.append(f'{prefix}"time" >= {self._values(self._query.start)}')
        if self._query.end is not None:
            conditions.append(f'{prefix}"time" < {self._values(self._query.end)}')
        return conditions
