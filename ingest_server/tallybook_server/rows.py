"""
Events of a snapshot one by one, in the ledger's order.

A page is the first so many events behind a place that pass a filter. Segments whose
entries overlap are read together, and those behind them only if the page is not full.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from tallybook_server.event_filter import EVERY_EVENT, EventFilter, Place
from tallybook_server.segment import Segment, identifier
from tallybook_server.snapshot import Part, Snapshot
from tallybook_server.source import Values, files
from tallybook_server.tables import Tables

__all__ = [
    "Cluster",
    "CountedEvent",
    "Selection",
    "clusters",
    "counted_after",
    "keyed_events",
    "row_at",
    "sealed_events",
    "select",
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


class Cluster(NamedTuple):
    """
    Segments whose entries overlap, directly or by others between them.

    Attributes:
        first: The first entry that one of them covers.
        last: The last one.
        segments: At least one.
    """

    first: int
    last: int
    segments: tuple[Segment, ...]


def counted_after(
    tables: Tables,
    directory: Path,
    snapshot: Snapshot,
    after: tuple[int, int],
    limit: int,
    *,
    keyed: bool = False,
) -> list[CountedEvent]:
    """At most *limit* events behind (entry, index), in the ledger's order."""
    return select(tables, directory, snapshot, Selection(after, limit, keyed=keyed))


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
        for cluster in clusters(snapshot, wanted.chosen, first, last):
            found += _sealed(cursor, directory, cluster, wanted, wanted.limit - len(found))
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


def clusters(snapshot: Snapshot, chosen: EventFilter, first: int, last: int) -> list[Cluster]:
    """The segments that can hold what is asked for in these entries, in the ledger's order."""
    found: list[Cluster] = []
    able = [one for one in snapshot.segments if can_hold(one, chosen, first, last)]
    for segment in sorted(able, key=lambda one: (one.first, one.last)):
        before = found[-1] if found else None
        if before is not None and segment.first <= before.last:
            end = max(before.last, segment.last)
            found[-1] = Cluster(before.first, end, (*before.segments, segment))
        else:
            found.append(Cluster(segment.first, segment.last, (segment,)))
    return found


def keyed_events(
    tables: Tables, directory: Path, snapshot: Snapshot, page: int
) -> Iterator[list[CountedEvent]]:
    """Every event that has a key or an id, once, at most *page* at a time."""
    for segment in snapshot.segments:
        wanted = Selection((0, -1), segment.rows, keyed=True)
        sql, values = _select_sealed(directory, [segment], wanted, segment.rows)
        with tables.cursor() as cursor:
            cursor.execute(sql, values.list)
            while rows := cursor.fetchmany(page):
                yield [_sealed_event(segment.tags, bool(segment.more), row) for row in rows]
    unsealed, after = replace(snapshot, segments=()), (0, -1)
    while found := select(tables, directory, unsealed, Selection(after, page, keyed=True)):
        yield found
        after = found[-1].entry, found[-1].place


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
    chosen = EventFilter(upto=place)
    wanted = Selection((place.position, place.at - 1), 1, chosen)
    with tables.cursor() as cursor:
        for cluster in clusters(snapshot, chosen, place.position, place.position):
            for segment in cluster.segments:
                alone = cluster._replace(segments=(segment,))
                for row in _sealed(cursor, directory, alone, wanted, 1):
                    return row, segment.name
    unsealed = select(tables, directory, replace(snapshot, segments=()), wanted)
    return (unsealed[0], None) if unsealed else None


# -- segments ------------------------------------------------------------------------------

_COLUMNS: Final = (
    'e.entry, e."index", {s}.dimension, {s}.tenant, e."time", e."value", e.scale, {w}.wide, '
    '{x}."key", {x}.id, e.given'
)
_FIXED: Final = 11


def _sealed(
    cursor: duckdb.DuckDBPyConnection,
    directory: Path,
    cluster: Cluster,
    wanted: Selection,
    limit: int,
) -> list[CountedEvent]:
    # Of segments with other columns each gives its first ones, and the first of all count.
    alike: defaultdict[tuple[tuple[str, ...], bool], list[Segment]] = defaultdict(list)
    for segment in cluster.segments:
        alike[segment.tags, bool(segment.more)].append(segment)
    found: list[CountedEvent] = []
    for (tags, more), segments in alike.items():
        sql, values = _select_sealed(directory, segments, wanted, limit)
        rows = cursor.execute(sql, values.list).fetchall()
        found += [_sealed_event(tags, more, row) for row in rows]
    if len(alike) > 1:
        found.sort(key=lambda row: row[:2])
    return found[:limit]


def _select_sealed(
    directory: Path, segments: list[Segment], wanted: Selection, limit: int
) -> tuple[str, Values]:
    values = Values()
    like = segments[0]

    def tag(key: str) -> str:
        if key in like.tags:
            return f"e.{identifier(f'tag:{key}')}"
        return f"e.more_tags[{values(key)}]" if like.more else "NULL::VARCHAR"

    columns = _COLUMNS.format(s="e", w="e", x="e")
    columns += "".join(f", e.{identifier(f'tag:{key}')}" for key in like.tags)
    columns += ", e.more_tags" if like.more else ""
    chosen = wanted.chosen
    conditions = [
        *of_event(chosen, wanted.after, values, entries=wanted.entries is not None),
        *of_user(chosen, values),
        *of_tags(chosen, tag, values),
        *of_identity(chosen, values, keyed=wanted.keyed),
    ]
    sql = (
        f"SELECT {columns} FROM {files(directory, segments)} AS e "
        f'WHERE {" AND ".join(conditions)} ORDER BY e.entry, e."index" LIMIT {values(limit)}'
    )
    return sql, values


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
