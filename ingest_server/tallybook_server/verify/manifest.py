"""
The manifest: each segment's row against its entry and against its file.

A query leaves out the segments that, by the manifest, can hold nothing that is asked for.
So a wrong word there loses events from answers without a sound, and none is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from tallybook.errors import TallybookError
from tallybook_server.compaction import month_edges
from tallybook_server.ledger import Finding
from tallybook_server.segment import (
    Segment,
    file_digest,
    merged_name,
    quoted,
    read_name,
    segment_name,
)
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.verify.progress import Progress, Report
from tallybook_server.verify.record import Record
from tallybook_server.verify.unread import Unread

__all__ = ["check_manifest"]


def check_manifest(
    record: Record,
    snapshot: Snapshot,
    tables: Tables,
    directory: Path,
    unread: Unread,
    report: Report,
) -> Iterator[Finding]:
    """
    The manifest's words.

    Args:
        record: What the entries say; whole.
        snapshot: Held by the caller.
        tables: To read the files with.
        directory: Of the segments.
        unread: Gets the segments that cannot be read.
        report: Told how many rows were read.
    """
    named = dict(record.segments)
    done, total = 0, sum(one.rows for one in snapshot.segments)
    with tables.cursor() as cursor:
        for segment in snapshot.segments:
            for words in _wrong(segment, named.pop(segment.name, None), record.levels):
                yield Finding("segment", _where(segment), words)
            try:
                for words in _file(cursor, directory / segment.name, segment):
                    yield Finding("segment", _where(segment), words)
            except _Unreadable as error:
                unread.add(segment.name)
                yield Finding("segment", _where(segment), str(error))
            done += segment.rows
            report(Progress("segments", done, total, "events"))
    for name in named:
        yield Finding("segment", f"segments/{name}", "has an entry, but is not in the manifest")


def _where(segment: Segment) -> str:
    return f"segments/{segment.name}"


# -- by the entries ------------------------------------------------------------------------


def _wrong(segment: Segment, said: list[Any] | None, levels: dict[str, int]) -> Iterator[str]:
    """What the manifest says of a segment otherwise than the entries."""
    is_so = [segment.name, segment.sha256, segment.rows, segment.first, segment.last]
    if said != is_so:
        yield "the manifest does not say what its entry says"
        return
    if segment.level != levels.get(segment.name):
        yield f"the manifest says level {segment.level}, its entries {levels.get(segment.name)}"
    if segment.name != _name(segment):
        yield f"the manifest says month {segment.month}, which is not that of its name"
    if segment.month is not None and segment.time_min is not None and segment.time_max is not None:
        begin, end = month_edges(segment.month)
        if not begin <= segment.time_min <= segment.time_max < end:
            yield f"the manifest says month {segment.month}, and times that are not of it"


def _name(segment: Segment) -> str:
    """What a segment like this is called."""
    if not segment.level:
        return segment_name(segment.first, segment.last) if segment.month is None else ""
    named = read_name(segment.name)
    begun = 0 if named is None else named.begun
    return merged_name(segment.first, segment.last, begun, segment.month)


# -- by the file ---------------------------------------------------------------------------


class _Unreadable(TallybookError):
    """Of a file, nothing more can be said."""


def _file(cursor: duckdb.DuckDBPyConnection, path: Path, segment: Segment) -> Iterator[str]:
    """
    What the manifest says of a segment otherwise than its file.

    Raises:
        _Unreadable: The file is not there, or is not the one that was sealed.
    """
    if read_name(segment.name) is None:
        raise _Unreadable("this is no segment's name")
    try:
        digest = file_digest(path)
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error}") from None
    if digest != (segment.sha256, segment.bytes):
        # Nor is it read: DuckDB takes a file's word for how much memory its pages need.
        raise _Unreadable("the file's SHA-256 or length is not what was sealed")
    try:
        found = _found(cursor, path)
    except duckdb.Error as error:
        raise _Unreadable(f"cannot be read: {error}") from None
    for name, value in found.items():
        said = getattr(segment, name)
        if said != value:
            yield f"the manifest says {name} {_short(said)}, the file has {_short(value)}"


def _found(cursor: duckdb.DuckDBPyConnection, path: Path) -> dict[str, Any]:
    """What the manifest should say of a file, by attribute of `Segment`."""
    file = f"read_parquet({quoted(str(path))})"
    columns = [row[0] for row in cursor.execute(f"DESCRIBE SELECT * FROM {file}").fetchall()]
    totals = cursor.execute(
        f'SELECT count(*), min("time"), max("time"), count(wide) FROM {file}'
    ).fetchall()
    rows, time_min, time_max, wides = totals[0]
    more: tuple[str, ...] = ()
    if "more_tags" in columns:
        more = _texts(cursor, f"SELECT DISTINCT unnest(map_keys(more_tags)) FROM {file}")
    return {
        "rows": rows,
        "time_min": time_min,
        "time_max": time_max,
        "wides": wides,
        "tags": tuple(sorted(name[4:] for name in columns if name.startswith("tag:"))),
        "more": more,
        "dimensions": _texts(cursor, f"SELECT DISTINCT dimension FROM {file}"),
    }


def _texts(cursor: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, ...]:
    return tuple(sorted(text for (text,) in cursor.execute(sql).fetchall()))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
