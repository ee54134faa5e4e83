"""Each event that counts is there, once: in one segment, or in the tail."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Final

import duckdb

from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.entry import Entry
from tallybook_server.ledger import Finding
from tallybook_server.segment import Segment, quoted
from tallybook_server.snapshot import Part, Snapshot
from tallybook_server.tables import Tables
from tallybook_server.tail import UNCOUNTED
from tallybook_server.verify.progress import Progress, Report
from tallybook_server.verify.record import MARKS, Record
from tallybook_server.verify.unread import Unread

__all__ = ["check_events"]

_ROWS: Final = 10_000
_MARK: Final = 'hash("index", $1::UBIGINT)'

_Held = list[tuple[int, int, int]]
"""Entries, how many events of each there are, and the sum of their marks."""


def check_events(
    record: Record,
    snapshot: Snapshot,
    tables: Tables,
    directory: Path,
    unread: Unread,
    report: Report,
) -> Iterator[Finding]:
    """
    Every event that counts, and no other.

    Args:
        record: What the entries say; whole.
        snapshot: Held by the caller.
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        unread: What cannot be read; its events are left out.
        report: Told how many events were seen, of how many that count; once at least.
    """
    tables.load(snapshot.tail)
    marks = _marks(tables, record.seed)
    missing = record.counted[:]
    missed = array("Q", (marks[count] for count in missing))
    for at, entry in record.odd.items():
        missed[at] = _counted_marks(entry, marks)
    done, total = 0, sum(missing)
    for source, rows in _held(record.seed, unread.rest(), tables, directory):
        for at, count, marked in rows:
            if not 0 < at < len(missing) or count > missing[at]:
                yield Finding("sum", f"entry {at} in {source}", f"{count} that do not count here")
                continue
            missing[at] -= count
            missed[at] = (missed[at] - marked) % MARKS
            done += count
        report(Progress("events", done, total, "events"))
    report(Progress("events", done, total, "events"))
    for at, (count, marked) in enumerate(zip(missing, missed, strict=True)):
        if (count or marked) and unread.may_hold(at):
            continue
        if count:
            yield Finding("sum", f"entry {at}", f"{count} events that count are nowhere")
        elif marked:
            yield Finding("sum", f"entry {at}", "an event twice, or one that does not count")


def _marks(tables: Tables, seed: int) -> list[int]:
    """By count: the sum of the marks of the indices below it."""
    with tables.cursor() as cursor:
        rows = cursor.execute(
            f'SELECT {_MARK} FROM (SELECT unnest(range($2))::INTEGER AS "index")',
            [seed, BLOCK_EVENTS_MAX],
        ).fetchall()
    return [total % MARKS for total in accumulate((mark for (mark,) in rows), initial=0)]


def _counted_marks(entry: Entry, marks: list[int]) -> int:
    """The sum of the marks of an entry's events that count."""
    count: int = entry.detail[2]
    total = marks[count]
    for run in entry.verdicts:
        if run.verdict in UNCOUNTED:
            total -= marks[run.last + 1] - marks[run.first]
    return total % MARKS


def _held(
    seed: int, snapshot: Snapshot, tables: Tables, directory: Path
) -> Iterator[tuple[str, _Held]]:
    """What each segment and the tail hold."""
    with tables.cursor() as cursor:
        for segment in snapshot.segments:
            for rows in _of(cursor, seed, _sealed(directory, segment)):
                yield f"segments/{segment.name}", rows
        for part in snapshot.tail:
            for rows in _of(cursor, seed, _unsealed(part, snapshot.position)):
                yield "the tail", rows


def _sealed(directory: Path, segment: Segment) -> str:
    return f"read_parquet({quoted(str(directory / segment.name))})"


def _unsealed(part: Part, position: int) -> str:
    return f"(SELECT * FROM events_{part.generation.number} WHERE entry <= {position})"


def _of(cursor: duckdb.DuckDBPyConnection, seed: int, table: str) -> Iterator[_Held]:
    cursor.execute(
        f"SELECT entry, count(*), sum({_MARK})::HUGEINT FROM {table} GROUP BY entry", [seed]
    )
    while rows := cursor.fetchmany(_ROWS):
        yield rows
