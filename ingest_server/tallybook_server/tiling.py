"""
The tiling of a question: the time that it asks about, cut into windows. Pure.

Every row of an answer belongs to one window, by its number. Without windows there is one,
which may be open at either side.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tallybook_server.ledger import TooManyRows
from tallybook_server.limits import WINDOWS_MAX
from tallybook_server.question import UnanswerableQuestion, UsageQuery
from tallybook_server.window import TooManyWindows, edges

__all__ = ["Tiling", "tile"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """
    Windows side by side.

    Attributes:
        start: Where the first one begins, in microseconds since 1970 UTC; None: open.
        end: The first microsecond behind the last one; None: open.
        edges: Where each begins, and `end`; empty: there is one window.
    """

    start: int | None
    end: int | None
    edges: Sequence[int] = ()

    @property
    def count(self) -> int:
        """How many windows there are."""
        if self.start is not None and self.end is not None and self.start >= self.end:
            return 0
        return max(1, len(self.edges) - 1)

    def bounds(self, number: int) -> tuple[int | None, int | None]:
        """Where window *number* begins and ends."""
        if not self.edges:
            return self.start, self.end
        return self.edges[number], self.edges[number + 1]

    def at(self, time: int) -> int | None:
        """The number of the window that *time* lies in, or None: in none."""
        if self.start is not None and time < self.start:
            return None
        if self.end is not None and time >= self.end:
            return None
        return max(0, bisect_right(self.edges, time) - 1)

    def beginning(self, time: int) -> int | None:
        """The number of the window that begins at *time*; None: none does."""
        number = bisect_left(self.edges, time)
        begins = number < len(self.edges) - 1 and self.edges[number] == time
        return number if begins else None

    def part(self, first: int, behind: int) -> Tiling:
        """The windows from number *first* to the one before *behind*."""
        if not self.edges:
            return self
        cut = self.edges[first : behind + 1]
        return Tiling(cut[0], cut[-1], cut)


def tile(query: UsageQuery) -> Tiling:
    """
    The windows that *query* asks for.

    Raises:
        UnanswerableQuestion: Windows without a start and an end, or of months that begin on no
            day of theirs.
        TooManyRows: More than `WINDOWS_MAX`.
        ZoneInfoNotFoundError: No such time zone.
    """
    start, end = query.start, query.end
    if query.window == "none":
        return Tiling(start, end)
    if start is None or end is None:
        raise UnanswerableQuestion(
            "start" if start is None else "end",
            f"windows of one {query.window} need a start and an end; there is no "
            f"{'start' if start is None else 'end'}",
        )
    if end <= start:
        return Tiling(start, start)
    try:
        found = edges(
            start,
            end,
            query.window,
            query.time_zone,
            month_day=query.month_day,
            windows_max=WINDOWS_MAX,
        )
    except TooManyWindows as error:
        raise TooManyRows(str(error)) from None
    except ValueError as error:
        raise UnanswerableQuestion("month_day", str(error)) from None
    return Tiling(start, end, found)
