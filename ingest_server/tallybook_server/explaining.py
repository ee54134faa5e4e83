"""
Explaining: what was read for an answer. Counted only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from tallybook_server.question import Explanation
from tallybook_server.segment import Segment
from tallybook_server.selection import Selection
from tallybook_server.source import Source, Values
from tallybook_server.tables import Tables

__all__ = ["explain"]


def explain(
    tables: Tables,
    directory: Path,
    segments: Sequence[Segment],
    selections: Sequence[Selection],
    adjustments: int,
) -> Explanation:
    """
    What was read, but for how long it took.

    Args:
        tables: They hold the snapshot's tail.
        directory: Of the segments.
        segments: All that there are.
        selections: What each pass has read.
        adjustments: How many applied.
    """
    rows = {part.segment.name: part.segment.rows for one in selections for part in one.sealed}
    tail = {part.number: one.scope.position for one in selections for part in one.unsealed}
    with tables.cursor() as cursor:
        return Explanation(
            segments=tuple(sorted(rows)),
            segments_skipped=len(segments) - len(rows),
            segment_rows=sum(rows.values()),
            tail_rows=sum(_tail_rows(cursor, *generation) for generation in tail.items()),
            voided=sum(_voided(cursor, directory, one) for one in selections),
            adjustments=adjustments,
            seconds=0.0,
        )


def _tail_rows(cursor: duckdb.DuckDBPyConnection, number: int, position: int) -> int:
    sql = f"SELECT count(*) FROM events_{number} WHERE entry <= $1"
    return _count(cursor, sql, [position])


def _voided(cursor: duckdb.DuckDBPyConnection, directory: Path, selection: Selection) -> int:
    """How many events of *selection* were taken back."""
    values = Values()
    source = Source(selection, directory, voided=True)
    events = source.sql(values)
    if events is None:
        return 0
    source.register(cursor)
    return _count(cursor, f"SELECT count(*) FROM ({events})", values.list)


def _count(cursor: duckdb.DuckDBPyConnection, sql: str, values: list[object]) -> int:
    ((count,),) = cursor.execute(sql, values).fetchall()  # To its end, or the cursor is busy.
    return int(count)
