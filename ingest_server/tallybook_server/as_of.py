"""
As of: the position that an earlier answer held for.
"""

from __future__ import annotations

from bisect import bisect_right

from tallybook_server.journal import Journal
from tallybook_server.ledger import Position, PositionUnknown

__all__ = ["check_position", "position_at"]


def check_position(asked: Position, head: Position) -> None:
    """
    See that the ledger has been at *asked*.

    Raises:
        PositionUnknown: It is beyond the *head*, or before the beginning.
    """
    if asked.incarnation > head.incarnation or not 0 <= asked.n <= head.n:
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
