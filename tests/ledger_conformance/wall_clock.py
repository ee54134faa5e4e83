"""
Where windows begin, by looking at the clock on the wall at one moment after the other.

A minute or an hour begins at a moment at which the wall shows its beginning, or has just
jumped over it. A day begins at the first moment at which the wall shows its date or a later
one, and a longer window begins with its first day. That is all there is to it, for every
zone and through every change of the clock.
"""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from tallybook_server.question import Window

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND, MINUTE, DAY = timedelta(microseconds=1), timedelta(minutes=1), timedelta(days=1)
# The zones of the tests change their clocks at quarters of an hour, and no window of theirs
# that is longer than an hour begins between two.
QUARTER_HOUR = timedelta(minutes=15)


@lru_cache(maxsize=1_024)
def edges(
    start: int, end: int, window: Window, month_day: int, time_zone: str
) -> tuple[tuple[int, int], ...]:
    """The windows of [start, end), in microseconds since 1970: each [from, to), in order."""
    if window == "none":
        return ((start, end),)
    first, last = instant(start), instant(end)
    days = dates(first - 2 * DAY, last + 2 * DAY)
    if window in ("minute", "hour"):
        found = {moment for day in days for moment in begun(day, window, time_zone)}
    else:
        found = {
            day_begun(day, time_zone) for day in days if beginning(day, window, month_day) == day
        }
    between = ((moment - EPOCH) // MICROSECOND for moment in found if first < moment < last)
    return tuple(pairwise([start, *sorted(between), end]))


def day_begun(date: datetime, time_zone: str) -> datetime:
    """The first moment at which the wall shows *date* or a later one."""
    zone, earlier = ZoneInfo(time_zone), date.replace(tzinfo=UTC) - DAY
    quarters = range(2 * DAY // QUARTER_HOUR)
    at = bisect_left(quarters, date, key=lambda at: wall(earlier + at * QUARTER_HOUR, zone))
    return earlier + at * QUARTER_HOUR


@lru_cache(maxsize=1_024)
def begun(date: datetime, window: Window, time_zone: str) -> list[datetime]:
    """The moments of a date in UTC at which minutes or hours begin; what is shown twice, twice."""
    step = MINUTE if window == "minute" else QUARTER_HOUR
    zone, moment = ZoneInfo(time_zone), date.replace(tzinfo=UTC)
    before = wall(moment - step, zone)
    found: list[datetime] = []
    for _ in range(DAY // step):
        now = wall(moment, zone)
        its_beginning = beginning(now, window)
        jumped_over = before + step <= its_beginning < now
        if its_beginning == now or jumped_over:
            found.append(moment)
        moment, before = moment + step, now
    return found


def beginning(now: datetime, window: Window, month_day: int = 1) -> datetime:
    """When the window that the clock on the wall is in began, by that clock."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "minute":
        return now.replace(second=0, microsecond=0)
    if window == "hour":
        return now.replace(minute=0, second=0, microsecond=0)
    if window == "week":
        return day - timedelta(days=day.weekday())
    if window == "month":
        last_of_the_month_before = day.replace(day=1) - DAY
        this, before = on_day(day, month_day), on_day(last_of_the_month_before, month_day)
        return this if this <= day else before
    if window == "quarter":
        return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
    if window == "year":
        return day.replace(month=1, day=1)
    return day


def on_day(month: datetime, month_day: int) -> datetime:
    """That day of the month, or its last one."""
    return month.replace(day=min(month_day, monthrange(month.year, month.month)[1]))


def dates(first: datetime, last: datetime) -> list[datetime]:
    """The dates from *first* to *last*, as their midnights on some wall."""
    day = first.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    return [day + at * DAY for at in range((last - first) // DAY + 2)]


def wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """What the clock on the wall shows."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def instant(microseconds: int) -> datetime:
    """Microseconds since 1970 as a moment."""
    return EPOCH + microseconds * MICROSECOND
