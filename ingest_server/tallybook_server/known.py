"""
Which dimensions there are: those that were declared, and those of which anything was recorded.
"""

from __future__ import annotations

from pathlib import Path

from tallybook_server.catalogue import UnknownDimension
from tallybook_server.selection import Scope, select
from tallybook_server.snapshot import Snapshot
from tallybook_server.source import Source, Values
from tallybook_server.tables import Tables

__all__ = ["check_known"]


def check_known(
    tables: Tables, directory: Path, snapshot: Snapshot, position: int, names: tuple[str, ...]
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
    sealed = {
        name
        for segment in snapshot.segments
        if segment.last <= position
        for name in segment.dimensions
    }
    for name in names:
        # What costs least first: most questions are about what was sealed long ago.
        if name in sealed or snapshot.catalogue.history(name, position):
            continue
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
