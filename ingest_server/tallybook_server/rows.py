"""
Events of a snapshot one by one: in the ledger's order, those of one entry, or all with a key.

A segment is in the order of tenants, and several may cover the same entries. So the ledger
is read by *stretches*: entries that the same segments cover. In most there is one large
segment, or a few, and small ones of late events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from tallybook.errors import InvariantBroken
from tallybook.event import Event
from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.query import Values, files
from tallybook_server.segment import Segment, identifier
from tallybook_server.snapshot import Part, Snapshot
from tallybook_server.tables import Tables

__all__ = ["CountedEvent", "counted_after", "keyed_events", "sealed_events"]


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


_COLUMNS: Final = (
    'e.entry, e."index", {s}.dimension, {s}.tenant, e."time", {value}, e.scale, {w}.wide, '
    '{x}."key", {x}.id, e.given'
)


def counted_after(
    tables: Tables, directory: Path, snapshot: Snapshot, after: tuple[int, int], limit: int
) -> list[CountedEvent]:
    """At most *limit* events behind (entry, index), in the ledger's order."""
    found: list[CountedEvent] = []
    sealed = [segment for segment in snapshot.segments if segment.last >= after[0] and segment.rows]
    for first, last in _stretches(sealed):
        if last >= after[0] and len(found) < limit:
            behind = max(after, (first, -1))
            found += _of_stretch(tables, directory, sealed, behind, last, limit - len(found))
    tables.load(snapshot.tail)
    for part in snapshot.tail:
        if len(found) < limit:
            found += _unsealed(tables, part, snapshot.position, after, limit - len(found))
    return found


def keyed_events(
    tables: Tables, directory: Path, snapshot: Snapshot, page: int
) -> Iterator[list[CountedEvent]]:
    """Every event that has a key or an id, once, in no order, at most *page* at a time."""
    for segment in snapshot.segments:
        sql = _select(directory, segment, '(e."key" IS NOT NULL OR e.id IS NOT NULL)')
        with tables.cursor() as cursor:
            cursor.execute(sql)
            while rows := cursor.fetchmany(page):
                yield [_sealed_event(segment, row) for row in rows]
    tables.load(snapshot.tail)
    for part in snapshot.tail:
        after = (0, -1)
        while events := _unsealed(tables, part, snapshot.position, after, page, keyed=True):
            yield events
            after = events[-1][:2]


def sealed_events(
    tables: Tables, directory: Path, snapshot: Snapshot, entry: int, indices: Sequence[int]
) -> dict[int, Event]:
    """The counted events at *indices* of a sealed entry; one that does not count is not there."""
    covering = [one for one in snapshot.segments if one.first <= entry <= one.last]
    if not covering:
        raise InvariantBroken(f"entry {entry} has no block, and no segment holds it")
    if not indices:
        return {}
    lower, upper = (entry, min(indices) - 1), (entry, max(indices))
    wanted = set(indices)
    return {
        row.place: row.event
        for segment in _holding(tables, directory, covering, lower, upper)
        for row in _sealed(tables, directory, segment, lower, upper)
        if row.place in wanted
    }


_Place = tuple[int, int]  # Entry and index.


def _stretches(segments: Sequence[Segment]) -> Iterator[tuple[int, int]]:
    """First and last entry of each stretch that the same segments cover, in order."""
    edges = {one.first for one in segments} | {one.last + 1 for one in segments}
    for first, end in pairwise(sorted(edges)):
        yield first, end - 1


def _of_stretch(
    tables: Tables,
    directory: Path,
    segments: Sequence[Segment],
    after: _Place,
    last: int,
    limit: int,
) -> list[CountedEvent]:
    """At most *limit* sealed events behind *after*, up to the entry *last*, in order."""
    covering = [one for one in segments if one.first <= last and one.last >= after[0]]
    if not covering:
        return []
    # First the places alone, which are two columns of numbers: so each segment is asked
    # only for rows that are going to be returned, and most are not asked at all.
    values = Values()
    where = _within(after, (last, _INDEX_MAX), values)
    with tables.cursor() as cursor:
        places = cursor.execute(
            f'SELECT e.entry, e."index", e.filename FROM {files(directory, covering)} AS e '
            f'WHERE {where} ORDER BY e.entry, e."index" LIMIT {values(limit)}',
            values.list,
        ).fetchall()
    names = {Path(name).name for _, _, name in places}
    rows = [
        row
        for one in covering
        if one.name in names
        for row in _sealed(tables, directory, one, after, places[-1][:2])
    ]
    return sorted(rows, key=lambda row: (row.entry, row.place))


_INDEX_MAX: Final = BLOCK_EVENTS_MAX


def _holding(
    tables: Tables, directory: Path, segments: Sequence[Segment], after: _Place, upto: _Place
) -> list[Segment]:
    """Those of the *segments* that have a row in between."""
    values = Values()
    with tables.cursor() as cursor:
        found = cursor.execute(
            f"SELECT DISTINCT e.filename FROM {files(directory, segments)} AS e "
            f"WHERE {_within(after, upto, values)}",
            values.list,
        ).fetchall()
    names = {Path(name).name for (name,) in found}
    return [one for one in segments if one.name in names]


def _within(after: _Place, upto: _Place, values: Values) -> str:
    """The condition: behind the one place, and not behind the other."""
    conditions = [
        # Said of the entry alone, too, so that DuckDB skips the row groups of others.
        f"e.entry >= {values(after[0])}",
        f"e.entry <= {values(upto[0])}",
        f'(e.entry > {values(after[0])} OR e."index" > {values(after[1])})',
        f'(e.entry < {values(upto[0])} OR e."index" <= {values(upto[1])})',
    ]
    return " AND ".join(conditions)


def _sealed(
    tables: Tables, directory: Path, segment: Segment, after: _Place, upto: _Place
) -> list[CountedEvent]:
    values = Values()
    sql = _select(directory, segment, _within(after, upto, values))
    with tables.cursor() as cursor:
        rows = cursor.execute(sql, values.list).fetchall()
    return [_sealed_event(segment, row) for row in rows]


def _select(directory: Path, segment: Segment, where: str) -> str:
    columns = _COLUMNS.format(s="e", value='e."value"', w="e", x="e")
    tags = "".join(f", e.{identifier(f'tag:{key}')}" for key in segment.tags)
    more = ", e.more_tags" if segment.more else ""
    return f"SELECT {columns}{tags}{more} FROM {files(directory, [segment])} AS e WHERE {where}"


def _sealed_event(segment: Segment, row: tuple[Any, ...]) -> CountedEvent:
    upto = _FIXED + len(segment.tags)
    texts = zip(segment.tags, row[_FIXED:upto], strict=True)
    tags = {key: text for key, text in texts if text is not None}
    if segment.more:
        tags |= row[upto] or {}
    return _event(row, tags)


def _unsealed(
    tables: Tables,
    part: Part,
    position: int,
    after: tuple[int, int],
    limit: int,
    *,
    keyed: bool = False,
) -> list[CountedEvent]:
    values = Values()
    n = part.generation.number
    columns = _COLUMNS.format(s="u", value='e."value"', w="w", x="x")
    entry, index = values(after[0]), values(after[1])
    behind = f'(e.entry > {entry} OR (e.entry = {entry} AND e."index" > {index}))'
    extras = "JOIN" if keyed else "LEFT JOIN"
    sql = (
        f"SELECT {columns}, t.tags FROM events_{n} AS e "
        f"JOIN users_{n} AS u ON u.number = e.of_user "
        f"JOIN tagsets_{n} AS t ON t.number = e.of_tagset "
        f'LEFT JOIN wides_{n} AS w ON w.entry = e.entry AND w."index" = e."index" '
        f'{extras} extras_{n} AS x ON x.entry = e.entry AND x."index" = e."index" '
        f"WHERE e.entry <= {values(position)} AND {behind} "
        f'ORDER BY e.entry, e."index" LIMIT {values(limit)}'
    )
    with tables.cursor() as cursor:
        rows = cursor.execute(sql, values.list).fetchall()
    return [_event(row, row[_FIXED] or {}) for row in rows]


_FIXED: Final = 11


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
