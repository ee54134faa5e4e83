"""
Which segments are merged next, and into what. Pure.

A seal makes a segment of whatever has arrived, so one late event in each makes every segment
reach back over months. A compaction takes some segments and puts rows to their months:

- *Sealed segments* wait until there are `Policy.fan_in` of them, or enough rows for a large
  segment. They are merged and divided by the month (UTC) of the events' times. A month that
  gets late events gets a segment of its own for them; nothing else of it is touched.
- *Segments of a month* of about the same size are merged once there are `fan_in` of them.
  A size is `fan_in` times the one before; so what is merged comes out at least one size up,
  and no row is written more often than there are sizes.
- *Mixed segments* hold what is too little for a segment: events of months that have fewer
  than `Policy.rows_min` in a compaction, all of them together. Once there are `fan_in` that
  were merged equally often, they are merged and divided again.

What has ``rows_max / fan_in`` rows is large, and stays as it is for ever. So a row is written
once by its seal; once when it is put to its month; and then at most once per size. In a large
ledger a seal makes a large segment of its month at once, and nearly every row is written
twice. A row that is late, or in a small ledger, is written at most once per size and level,
and these are logarithms of the ledger's length.

Each step takes rows one level or one size up, and there are only so many: it ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tallybook.event import TIME_MAX
from tallybook_server.limits import (
    COMPACTION_MONTHS_MAX,
    COMPACTION_SEGMENTS,
    SEGMENT_ROWS_MAX,
    SEGMENT_ROWS_MIN,
)
from tallybook_server.segment import Segment

__all__ = ["Policy", "choose", "choose_months", "month_edges", "month_of"]


@dataclass(frozen=True, slots=True)
class Policy:
    """
    When segments are merged.

    Attributes:
        fan_in: So many of one kind and size, at least 2.
        rows_min: Rows of a month that are worth a segment, at least 1.
        rows_max: Rows of a merged segment, at most.
        months_max: Months that one compaction makes segments of, at least 1.
    """

    fan_in: int = COMPACTION_SEGMENTS
    rows_min: int = SEGMENT_ROWS_MIN
    rows_max: int = SEGMENT_ROWS_MAX
    months_max: int = COMPACTION_MONTHS_MAX


def choose(segments: Iterable[Segment], policy: Policy) -> tuple[Segment, ...] | None:
    """
    What to merge next, or None: everything is as it should be.

    Args:
        segments: All that there are, by the first entry that they cover.
        policy: When.

    Returns:
        Neighbours of one kind. Either none of them has a month, and they are to be divided
        by it; or all have the same one. Their rows are at most ``policy.rows_max``, or it
        is one segment alone, sealed with more.
    """
    mixed: defaultdict[int, list[Segment]] = defaultdict(list)
    monthly: defaultdict[tuple[int, int], list[Segment]] = defaultdict(list)
    for segment in segments:
        small = segment.rows * policy.fan_in <= policy.rows_max
        if segment.month is not None and small:
            monthly[_size(segment.rows, policy.fan_in), segment.month].append(segment)
        elif segment.month is None and (small or segment.level == 0):
            mixed[segment.level].append(segment)
    # Without a month first: these are in the way of every question about any month.
    if sum(segment.rows for segment in mixed[0]) * policy.fan_in >= policy.rows_max:
        return _fitting(mixed[0][: policy.fan_in], policy.rows_max)
    kinds = [*(mixed[level] for level in sorted(mixed)), *(monthly[of] for of in sorted(monthly))]
    for kind in kinds:
        if len(kind) >= policy.fan_in:
            return _fitting(kind[: policy.fan_in], policy.rows_max)
    return None


def _size(rows: int, fan_in: int) -> int:
    """The greatest power of *fan_in* that is not more than *rows*."""
    size = 0
    while rows >= fan_in:
        rows //= fan_in
        size += 1
    return size


def _fitting(segments: Sequence[Segment], rows_max: int) -> tuple[Segment, ...]:
    """The first ones that have at most *rows_max* rows together, and one at least."""
    upto, rows = 1, segments[0].rows
    while upto < len(segments) and rows + segments[upto].rows <= rows_max:
        rows += segments[upto].rows
        upto += 1
    return tuple(segments[:upto])


# -- months --------------------------------------------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def choose_months(rows: Mapping[int, int], policy: Policy) -> tuple[int, ...]:
    """
    The months that get a segment of their own, rising.

    Args:
        rows: How many rows each month has.
        policy: How many it takes, and how many months there may be; the largest are chosen.
    """
    enough = [month for month, count in rows.items() if count >= policy.rows_min]
    largest = sorted(enough, key=lambda month: (-rows[month], month))
    return tuple(sorted(largest[: policy.months_max]))


def month_of(time: int) -> int:
    """The month of a time in microseconds since 1970 UTC: 0 is the January of the year 0."""
    moment = _EPOCH + timedelta(microseconds=time)
    return moment.year * 12 + moment.month - 1


def month_edges(month: int) -> tuple[int, int]:
    """Where a month begins and ends, half-open, in microseconds since 1970 UTC."""
    end = TIME_MAX + 1 if month == _LAST_MONTH else _begin(month + 1)
    return _begin(month), end


def _begin(month: int) -> int:
    return (datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND


_LAST_MONTH: Final = month_of(TIME_MAX)
