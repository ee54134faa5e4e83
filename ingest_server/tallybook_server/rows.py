"""
Events of a snapshot one by one: in the ledger's order, or those of one entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tallybook.errors import InvariantBroken
from tallybook.event import Event
from tallybook_server.segment import Segment, identifier
from tallybook_server.snapshot import Part, Snapshot
from tallybook_server.source import Values, files
from tallybook_server.tables import Tables

__all__ = ["CountedEvent", "counted_after", "keyed_after", "sealed_events"]


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
    tables: Tables,
    directory: Path,
    snapshot: Snapshot,
    after: tuple[int, int],
    limit: int,
    *,
    keyed: bool = False,
) -> list[CountedEvent]:
    """At most *limit* events behind (entry, index), in the ledger's order."""
    found: list[CountedEvent] = []
    for segment in snapshot.segments:
        if len(found) < limit and segment.last >= after[0] and segment.rows:
            values = Values()
            where = _behind(after, values)
            if keyed:
                where += ' AND (e."key" IS NOT NULL OR e.id IS NOT NULL)'
            found += _sealed(tables, directory, segment, where, values, limit - len(found))
    tables.load(snapshot.tail)
    for part in snapshot.tail:
        if len(found) < limit:
            found += _unsealed(
                tables, part, snapshot.position, after, limit - len(found), keyed=keyed
            )
    return found


def keyed_after(
    tables: Tables, directory: Path, snapshot: Snapshot, after: tuple[int, int], limit: int
) -> list[CountedEvent]:
    """Like `counted_after`, but only events that have a key or an id."""
    return counted_after(tables, directory, snapshot, after, limit, keyed=True)


def sealed_events(
    tables: Tables, directory: Path, snapshot: Snapshot, entry: int, indices: Sequence[int]
) -> dict[int, Event]:
    """The counted events at *indices* of a sealed entry; one that does not count is not there."""
    segment = next((s for s in snapshot.segments if s.first <= entry <= s.last), None)
    if segment is None:
        raise InvariantBroken(f"entry {entry} has no block, and no segment holds it")
    if not indices:
        return {}
    values = Values()
    where = (
        f'e.entry = {values(entry)} AND e."index" >= {values(min(indices))} '
        f'AND e."index" <= {values(max(indices))}'
    )
    wanted = set(indices)
    rows = _sealed(tables, directory, segment, where, values, max(indices) - min(indices) + 1)
    return {row.place: row.event for row in rows if row.place in wanted}


def _behind(after: tuple[int, int], values: Values) -> str:
    entry, index = values(after[0]), values(after[1])
    return f'(e.entry > {entry} OR (e.entry = {entry} AND e."index" > {index}))'


def _sealed(
    tables: Tables, directory: Path, segment: Segment, where: str, values: Values, limit: int
) -> list[CountedEvent]:
    columns = _COLUMNS.format(s="e", value='e."value"', w="e", x="e")
    tags = "".join(f", e.{identifier(f'tag:{key}')}" for key in segment.tags)
    more = ", e.more_tags" if segment.more else ""
    sql = (
        f"SELECT {columns}{tags}{more} FROM {files(directory, [segment])} AS e "
        f'WHERE {where} ORDER BY e.entry, e."index" LIMIT {values(limit)}'
    )
    with tables.cursor() as cursor:
        rows = cursor.execute(sql, values.list).fetchall()
    return [_sealed_event(segment, row) for row in rows]


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
    keyed: bool,
) -> list[CountedEvent]:
    values = Values()
    n = part.generation.number
    columns = _COLUMNS.format(s="u", value='e."value"', w="w", x="x")
    behind = _behind(after, values)
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
