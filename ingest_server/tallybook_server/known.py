"""
Which dimensions there are: those that were declared, and those of which anything was recorded.

Most questions are about what was sealed long ago, and the manifest knows that. What is not
in it needs a search only if it is not in the answer either.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tallybook_server.catalogue import UnknownDimension
from tallybook_server.selection import Scope, select
from tallybook_server.snapshot import Snapshot
from tallybook_server.source import Source, Values
from tallybook_server.tables import Tables

__all__ = ["check_known", "check_recorded", "undeclared"]


def check_known(
    tables: Tables, directory: Path, snapshot: Snapshot, position: int, names: Iterable[str]
) -> None:
    """
    See that at *position* there was each of the dimensions *names*.

    Args:
        tables: They hold the snapshot's tail.
        directory: Of the segments.
        snapshot: Held by the caller.
        position: The snapshot's or an earlier one.
        names: The dimensions.

    Raises:
        UnknownDimension: Of the first one that there was not.
    """
    check_recorded(tables, directory, snapshot, position, undeclared(snapshot, position, names))


def undeclared(snapshot: Snapshot, position: int, names: Iterable[str]) -> list[str]:
    """Those of *names* that at *position* neither a declaration nor a segment tells of."""
    sealed = {
        name
        for segment in snapshot.segments
        if segment.last <= position
        for name in segment.dimensions
    }
    return [
        name
        for name in names
        if name not in sealed and not snapshot.catalogue.history(name, position)
    ]


def check_recorded(
    tables: Tables, directory: Path, snapshot: Snapshot, position: int, names: Iterable[str]
) -> None:
    """
    See that by *position* something was recorded of each of *names*, which are `undeclared`.

    Raises:
        UnknownDimension: Of the first one of which nothing was.
    """
    for name in names:
        if not _recorded(tables, directory, snapshot, position, name):
            raise UnknownDimension(name, tables.dimensions(snapshot))


def _recorded(
    tables: Tables, directory: Path, snapshot: Snapshot, position: int, name: str
) -> bool:
    """Whether there is an event of *name*, taken back or not. (Adjustments need one.)"""
    # Taken back is recorded all the same, so corrections stay out of what is read.
    scope = Scope((name,), None, (), None, None, position)
    plain = Snapshot(snapshot.position, snapshot.segments, snapshot.tail)
    values = Values()
    events = Source(select(plain, scope, tables.has_wides), directory).sql(values)
    if events is None:
        return False
    with tables.cursor() as cursor:
        found = cursor.execute(f"SELECT 1 FROM ({events}) LIMIT 1", values.list).fetchone()
    return found is not None
