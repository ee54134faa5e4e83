"""
Events of a snapshot one by one, in the ledger's order.

A page is the first so many events behind a place that pass a filter. A segment is in the
order of tenants, and several may cover the same entries, each event being in one of them.
So the ledger is read by *stretches*, entries that the same segments cover, until the page
is full. Where several segments cover one, the places are read first, which are two columns of
numbers and those that are filtered by; then the rest, of the segments that are on the page.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb

from tallybook.errors import InvariantBroken
from tallybook.event import Event
from tallybook_server.arrow import numbers
from tallybook_server.arrow import rows as arrow_rows
from tallybook_server.conditions import (
    CHOSEN,
    can_hold,
    of_event,
    of_identity,
    of_tags,
    of_user,
    range_of,
)
from tallybook_server.event_filter import EVERY_EVENT, INDEX_MAX, EventFilter, Place
from tallybook_server.segment import Segment, identifier
from tallybook_server.snapshot import Part, Snapshot
from tallybook_server.source import Values, files
from tallybook_server.tables import Tables

__all__ = [
    "CountedEvent",
    "Selection",
    "Stretch",
    "keyed_events",
    "row_at",
    "sealed_events",
    "select",
    "stretches",
]


class CountedEvent(NamedTuple):
    """
    An event that counts, and its place.

    Attributes:
        entry: The position of its entry.
        place: Its place in the entry.
        event: The event, its time as corrected.
    """

    entry: int
    place: int
    event: Event


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Which events are wanted.

    Attributes:
        after: Only those behind this (entry, index).
        limit: So many at most: the first ones.
        chosen: Only those that pass. Of producer and source the events themselves say
            nothing: the entries do, see `entries`.
        entries: Only those of these entries, rising; None: of any.
        keyed: Only those with a key or an id.
    """

    after: tuple[int, int]
    limit: int
    chosen: EventFilter = EVERY_EVENT
    entries: Sequence[int] | None = None
    keyed: bool = False


class Stretch(NamedTuple):
    """
    Entries that the same segments cover.

    Attributes:
        first: The first entry.
        last: The last one.
        segments: At least one.
    """

    first: int
    last: int
    segments: tuple[Segment, ...]


def keyed_events(
    tables: Tables, directory: Path, snapshot: Snapshot, page: int
) -> Iterator[list[CountedEvent]]:
    """Every event that has a key or an id, once, in no order, at most *page* at a time."""
    wanted = Selection((0, -1), page, keyed=True)
    with tables.cursor() as cursor:
        for segment in snapshot.segments:
            sql, values = _whole(directory, [segment], wanted)
            cursor.execute(sql, values.list)
            while rows := cursor.fetchmany(page):
                yield [_sealed_event(segment.tags, bool(segment.more), row) for row in rows]
    tail = replace(snapshot, segments=())
    while found := select(tables, directory, tail, wanted):
        yield found
        wanted = replace(wanted, after=found[-1][:2])


def select(
    tables: Tables, directory: Path, snapshot: Snapshot, wanted: Selection
) -> list[CountedEvent]:
    """
    The events that are wanted, in the ledger's order.

    Args:
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        snapshot: Held by the caller.
        wanted: Which.
    """
    first, last = _entries(wanted, snapshot.position)
    if wanted.limit <= 0 or first > last:
        return []
    found: list[CountedEvent] = []
    with tables.cursor() as cursor:
        if wanted.entries is not None:
            column = numbers(array("q", wanted.entries))
            cursor.register(CHOSEN, arrow_rows({"entry": column}))
        for stretch in stretches(snapshot, wanted.chosen, first, last):
            rest = replace(wanted, limit=wanted.limit - len(found))
            found += _sealed(cursor, directory, stretch, rest)
            if len(found) == wanted.limit:
                return found
        if last > snapshot.sealed_upto:
            tables.load(snapshot.tail)
            for part in snapshot.tail:
                if len(found) < wanted.limit and part.generation.first <= last:
                    found += _unsealed(
                        cursor, tables, part, snapshot, wanted, wanted.limit - len(found)
                    )
    return found


def _entries(wanted: Selection, head: int) -> tuple[int, int]:
    """The first and the last entry that can hold what is wanted."""
    first, last = range_of(wanted.chosen, wanted.after, head)
    if wanted.entries is None:
        return first, last
    if not wanted.entries:
        return 1, 0
    return max(first, wanted.entries[0]), min(last, wanted.entries[-1])


def stretches(snapshot: Snapshot, chosen: EventFilter, first: int, last: int) -> list[Stretch]:
    """Where sealed events can be that are asked for, in the entries *first* to *last*; in order."""
    able = [one for one in snapshot.segments if can_hold(one, chosen, first, last)]
    edges = {max(first, one.first) for one in able} | {min(last, one.last) + 1 for one in able}
    found: list[Stretch] = []
    for begin, end in pairwise(sorted(edges)):
        covering = tuple(one for one in able if one.first <= begin and end <= one.last + 1)
        if covering:
            found.append(Stretch(begin, end - 1, covering))
    return found


def sealed_events(
    tables: Tables, directory: Path, snapshot: Snapshot, entry: int, indices: Sequence[int]
) -> dict[int, Event]:
    """The counted events at *indices* of a sealed entry; one that does not count is not there."""
    if not any(one.first <= entry <= one.last for one in snapshot.segments):
        raise InvariantBroken(f"entry {entry} has no block, and no segment holds it")
    if not indices:
        return {}
    # The segments alone: of what they do not hold, the journal has the block.
    sealed = Snapshot(snapshot.sealed_upto, snapshot.segments, ())
    chosen = EventFilter(upto=Place(entry, max(indices)))
    size = max(indices) - min(indices) + 1
    wanted = Selection((entry, min(indices) - 1), size, chosen)
    found = {row.place: row.event for row in select(tables, directory, sealed, wanted)}
    return {index: found[index] for index in indices if index in found}


def row_at(
    tables: Tables, directory: Path, snapshot: Snapshot, place: Place
) -> tuple[CountedEvent, str | None] | None:
    """
    The counted event at *place*, and the name of its segment; None: there is none.

    The name is None where the tail holds it.
    """
    wanted = Selection((place.position, place.at - 1), 1, EventFilter(upto=place))
    with tables.cursor() as cursor:
        for stretch in stretches(snapshot, wanted.chosen, place.position, place.position):
            for *_, name in _places(cursor, directory, stretch, wanted):
                holding = tuple(one for one in stretch.segments if one.name == name)
                alone = stretch._replace(segments=holding)
                return _sealed(cursor, directory, alone, wanted)[0], name
    unsealed = select(tables, directory, replace(snapshot, segments=()), wanted)
    return (unsealed[0], None) if unsealed else None


# -- segments ------------------------------------------------------------------------------

_COLUMNS: Final = (
    'e.entry, e."index", {s}.dimension, {s}.tenant, e."time", e."value", e.scale, {w}.wide, '
    '{x}."key", {x}.id, e.given'
)
_FIXED: Final = 11
_FIRST_ONES: Final = 'ORDER BY e.entry, e."index" LIMIT'


def _sealed(
    cursor: duckdb.DuckDBPyConnection, directory: Path, stretch: Stretch, wanted: Selection
) -> list[CountedEvent]:
    having = stretch.segments
    within = _within(stretch, wanted)
    if len(having) > 1:
        # So that each segment is asked only for what is on the page, and most are not at all.
        places = _places(cursor, directory, stretch, wanted)
        names = {name for *_, name in places}
        having = tuple(one for one in having if one.name in names)
        if places:
            upto = Place(*places[-1][:2])
            within = replace(within, chosen=replace(within.chosen, upto=upto))
    found: list[CountedEvent] = []
    for segments in _alike(having):
        sql, values = _whole(directory, segments, within)
        rows = cursor.execute(f"{sql} {_FIRST_ONES} {values(wanted.limit)}", values.list).fetchall()
        found += [_sealed_event(segments[0].tags, bool(segments[0].more), row) for row in rows]
    return sorted(found, key=lambda row: row[:2])


def _places(
    cursor: duckdb.DuckDBPyConnection, directory: Path, stretch: Stretch, wanted: Selection
) -> list[tuple[int, int, str]]:
    """Entry, index and segment of the events of a stretch that are wanted, in order."""
    within = _within(stretch, wanted)
    found: list[tuple[int, int, str]] = []
    for segments in _alike(stretch.segments):
        values = Values()
        sql = (
            f'SELECT e.entry, e."index", e.filename FROM {files(directory, segments)} AS e '
            f"WHERE {_conditions(segments[0], within, values)} "
            f"{_FIRST_ONES} {values(wanted.limit)}"
        )
        rows = cursor.execute(sql, values.list).fetchall()
        found += [(entry, index, Path(name).name) for entry, index, name in rows]
    return sorted(found)[: wanted.limit]


def _within(stretch: Stretch, wanted: Selection) -> Selection:
    """What is wanted of a stretch; its segments may go on in front of it and behind it."""
    last = Place(stretch.last, INDEX_MAX)
    return replace(
        wanted,
        after=max(wanted.after, (stretch.first, -1)),
        chosen=replace(wanted.chosen, upto=min(last, wanted.chosen.upto or last)),
    )


def _whole(directory: Path, segments: Sequence[Segment], wanted: Selection) -> tuple[str, Values]:
    """The SELECT of all that there is of the events of *segments* that are wanted."""
    values, like = Values(), segments[0]
    columns = _COLUMNS.format(s="e", w="e", x="e")
    columns += "".join(f", e.{identifier(f'tag:{key}')}" for key in like.tags)
    columns += ", e.more_tags" if like.more else ""
    conditions = _conditions(like, wanted, values)
    return f"SELECT {columns} FROM {files(directory, segments)} AS e WHERE {conditions}", values


def _alike(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments in groups with the same columns, which one SELECT can read."""
    groups: defaultdict[tuple[tuple[str, ...], bool], list[Segment]] = defaultdict(list)
    for segment in segments:
        groups[segment.tags, bool(segment.more)].append(segment)
    return list(groups.values())


def _conditions(like: Segment, wanted: Selection, values: Values) -> str:
    """What is asked of the rows of segments that have the columns of *like*."""

    def tag(key: str) -> str:
        if key in like.tags:
            return f"e.{identifier(f'tag:{key}')}"
        return f"e.more_tags[{values(key)}]" if like.more else "NULL::VARCHAR"

    chosen = wanted.chosen
    return " AND ".join(
        (
            *of_event(chosen, wanted.after, values, entries=wanted.entries is not None),
            *of_user(chosen, values),
            *of_tags(chosen, tag, values),
            *of_identity(chosen, values, keyed=wanted.keyed),
        )
    )


def _sealed_event(keys: tuple[str, ...], more: bool, row: tuple[Any, ...]) -> CountedEvent:
    upto = _FIXED + len(keys)
    texts = zip(keys, row[_FIXED:upto], strict=True)
    tags = {key: text for key, text in texts if text is not None}
    if more:
        tags |= row[upto] or {}
    return _event(row, tags)


# -- tail ----------------------------------------------------------------------------------


def _unsealed(
    cursor: duckdb.DuckDBPyConnection,
    tables: Tables,
    part: Part,
    snapshot: Snapshot,
    wanted: Selection,
    limit: int,
) -> list[CountedEvent]:
    values, chosen = Values(), wanted.chosen
    n = part.generation.number
    conditions = [
        f"e.entry <= {values(snapshot.position)}",
        *of_event(chosen, wanted.after, values, entries=wanted.entries is not None),
    ]
    if users := of_user(chosen, values):
        conditions.append(_among("e.of_user", f"users_{n}", "number", users))
    if tags := of_tags(chosen, lambda key: f"tags[{values(key)}]", values):
        conditions.append(_among("e.of_tagset", f"tagsets_{n}", "number", tags))
    if extras := of_identity(chosen, values, keyed=wanted.keyed):
        if not tables.has_extras(part.generation):
            return []
        conditions.append(_among('(e.entry, e."index")', f"extras_{n}", '(entry, "index")', extras))
    columns = _COLUMNS.format(s="u", w="w", x="x")
    # First which ones: their texts are looked up for the few that are on the page.
    sql = (
        f"SELECT {columns}, t.tags FROM (SELECT * FROM events_{n} AS e "
        f"WHERE {' AND '.join(conditions)} "
        f'ORDER BY e.entry, e."index" LIMIT {values(limit)}) AS e '
        f"JOIN users_{n} AS u ON u.number = e.of_user "
        f"JOIN tagsets_{n} AS t ON t.number = e.of_tagset "
        f'LEFT JOIN wides_{n} AS w ON w.entry = e.entry AND w."index" = e."index" '
        f'LEFT JOIN extras_{n} AS x ON x.entry = e.entry AND x."index" = e."index" '
        'ORDER BY e.entry, e."index"'
    )
    rows = cursor.execute(sql, values.list).fetchall()
    return [_event(row, row[_FIXED] or {}) for row in rows]


def _among(what: str, table: str, column: str, conditions: Sequence[str]) -> str:
    return f"{what} IN (SELECT {column} FROM {table} WHERE {' AND '.join(conditions)})"


def _event(row: tuple[Any, ...], tags: dict[str, str]) -> CountedEvent:
    entry, index, dimension, tenant, time, value, scale, wide, key, id_, given = row[:_FIXED]
    event = Event(
        dimension=dimension,
        tenant=tenant,
        tags=tags,
        value=(value if wide is None else int(wide), scale),
        time=time,
        key=key,
        id=id_,
        given=bool(given),
    )
    return CountedEvent(entry, index, event)
