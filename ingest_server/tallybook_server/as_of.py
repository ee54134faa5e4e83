"""
As of: the position that an earlier answer held for.
"""

from __future__ import annotations

from bisect import bisect_right

from tallybook_server.journal import Journal
from tallybook_server.ledger import Position, PositionUnknown
from tallybook_server.lineage import Lineage

__all__ = ["check_position", "position_at"]


def check_position(asked: Position, head: Position, lineage: Lineage) -> None:
    """
    See that the ledger has been at *asked*.

    Raises:
        PositionUnknown: It is beyond the *head*, before the beginning, or was lost in a restore.
    """
    if not lineage.holds(asked) or asked.n > head.n:
        raise PositionUnknown(asked, head)


def position_at(journal: Journal, time: int) -> int:
    """
    The last entry that was recorded by *time*, in microseconds since 1970 UTC; 0: none was.

    Recording times never fall, so 30 entries are read of a billion.
    """
    return bisect_right(
        range(1, journal.head.position + 1),
        time,
        key=lambda position: journal.entry(position).recorded_at,
    )
