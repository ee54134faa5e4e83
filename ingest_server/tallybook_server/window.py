"""
Windows of time: where the minutes, days, weeks and months of a time zone begin. Pure.

A window is half-open, ``[start, end)``, in integer microseconds since 1970 UTC. Windows
tile the time that was asked for: no instant is in two of them, none in between.

The edges follow the clock on the wall, which is UTC plus the zone's offset. A window begins
at the instant at which the wall clock shows its first moment or jumps over it, and ends where
the next one begins. So:

- A day has 23 hours when the clocks go forward, 25 when they go back.
- What is skipped begins when the clock jumps: a day without a midnight begins with its first
  instant. Of windows that are skipped whole, as 30 December 2011 in Apia, there is none: the
  jump begins the one that the clock lands in.
- What is shown twice: a minute or an hour begins each time. A day and whatever is longer
  begins once, the first time; a day that is lived twice is one window of 48 hours.
- Clocks set back into the middle of a window begin none: the one that is on goes on.

So they nest, too: where a day begins, an hour and a minute do; where a month begins, a day.

A week begins on Monday, as in ISO 8601. A month begins on its first day, or as a billing
month on a later one; in a month that lacks that day, on its last: the 31st is 28 February.

The rules are zoneinfo's and nobody else's: DuckDB has its own zone tables, and two tables are
one too many for an invoice. But to ask zoneinfo about every edge is slow, and between two
changes of the offset minutes, hours and days are equally long. So the changes are looked
for, at the price of one question a day, and what lies between them is counted in integers:
the minutes of a month in 2 ms and not in 450.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from functools import lru_cache
from importlib import metadata
from itertools import chain, count, dropwhile, islice
from pathlib import Path
from typing import Final, NamedTuple
from zoneinfo import TZPATH, ZoneInfo

from tallybook.event import TIME_MAX, TIME_MIN
from tallybook_server.question import WINDOWS, Window

__all__ = ["TooManyWindows", "edges", "tzdata_version"]

_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND

_LENGTHS: Final[dict[Window, int]] = {"minute": 60 * _SECOND, "hour": 3_600 * _SECOND, "day": _DAY}
"""On the wall clock, in microseconds."""

_MONTHS: Final[dict[Window, int]] = {"month": 1, "quarter": 3, "year": 12}

_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_MONDAY: Final = 4
"""1970-01-05, in days since 1970."""


class TooManyWindows(ValueError):
    """The time that was asked for has more windows than the caller allows."""


def edges(
    start: int,
    end: int,
    window: Window,
    time_zone: str,
    *,
    month_day: int = 1,
    windows_max: int,
) -> list[int]:
    """
    The edges of the windows that tile ``[start, end)``: window *i* is ``[edges[i], edges[i+1])``.

    Args:
        start: Microseconds since 1970 UTC, within the years 1 to 9999.
        end: Likewise, later than *start*.
        window: How long a window is on the wall clock; not ``"none"``.
        time_zone: An IANA name.
        month_day: On which day a ``month`` begins, 1 to 31; 1 for every other window.
        windows_max: More windows than this are an error. They are not made first.

    Returns:
        At least two edges, rising; the first is *start* and the last is *end*, so the
        outermost windows may be cut short.

    Raises:
        TooManyWindows: There are more than *windows_max*.
        ValueError: *end* is not later than *start*; there is no such window or day of a month.
        ZoneInfoNotFoundError: No such time zone.
    """
    _check(start, end, window, month_day)
    zone = ZoneInfo(time_zone)
    if window not in _LENGTHS:
        begins = _dates(start, end, window, month_day, zone)
    elif (end - start) // (2 * _LENGTHS[window]) <= windows_max:
        begins = chain.from_iterable(_runs(start, end, window, zone))
    else:
        # Clocks that are set back lengthen a window, but not all of them to twice their length.
        # Without this, the days of ten thousand years would be looked through first.
        raise _too_many(window, windows_max)
    found = [start, *islice(dropwhile(lambda begin: begin <= start, begins), windows_max)]
    if len(found) > windows_max:
        raise _too_many(window, windows_max)
    return [*found, end]


def _too_many(window: Window, windows_max: int) -> TooManyWindows:
    return TooManyWindows(
        f"more than {windows_max} windows of one {window}; ask for less time or longer windows"
    )


def _check(start: int, end: int, window: Window, month_day: int) -> None:
    if end <= start:
        raise ValueError(f"a time from {start} to {end} is empty; expected an end after the start")
    if window == "none" or window not in WINDOWS:
        known = ", ".join(WINDOWS[1:])
        raise ValueError(f"there are no windows of one {window!r}; expected one of {known}")
    if not 1 <= month_day <= 31:
        raise ValueError(f"a month cannot begin on day {month_day}; expected 1 to 31")
    if month_day != 1 and window != "month":
        raise ValueError(f"a {window} does not begin on day {month_day}; only a month may")


# -- minutes, hours, days --------------------------------------------------------------------


def _runs(start: int, end: int, window: Window, zone: ZoneInfo) -> Iterator[Iterable[int]]:
    """Where minutes, hours or days begin, rising: all in (start, end), and some before."""
    length = _LENGTHS[window]
    # An offset is less than a day, so two days earlier no clock has shown what is shown at
    # *start* or later: what was not passed since was never passed.
    first = start - 2 * _DAY
    passed = first + _offset(first, zone)
    for stretch in _stretches(first, end, zone):
        shown = stretch.start + stretch.offset
        if window != "day":
            passed = min(passed, shown)  # What is shown again begins again.
        wall = -(-passed // length) * length
        if wall < shown:
            yield (stretch.start,)
            wall = shown - shown % length + length
        yield range(wall - stretch.offset, stretch.end, length)
        passed = max(passed, stretch.end + stretch.offset)


# -- weeks, months, quarters, years ----------------------------------------------------------


def _dates(start: int, end: int, window: Window, month_day: int, zone: ZoneInfo) -> Iterator[int]:
    """Where weeks or months begin, rising: all in (start, end), and one or two before."""
    for day in _days(start // _DAY, window, month_day):
        edge = _first(day * _DAY, zone)
        if edge >= end:
            return
        yield edge


def _days(day: int, window: Window, month_day: int) -> Iterator[int]:
    """
    The days on which windows begin, in days since 1970, without end.

    Args:
        day: The first is on this one or before it. In no zone can what begins on an earlier
            one lie behind any moment of this day by UTC: offsets are shorter than a day.
        window: Week, month, quarter or year.
        month_day: Of a month.
    """
    if window == "week":
        yield from count(day - (day - _MONDAY) % 7, 7)
    today = date.fromordinal(day + _EPOCH_ORDINAL)
    month = today.year * 12 + today.month - 1
    months = _MONTHS[window]
    for begun in count(month - month % months, months):
        yield _day(begun, month_day)


def _day(month: int, month_day: int) -> int:
    """
    A day of a month, or its last one if it lacks that, in days since 1970.

    Args:
        month: Counted from January of the year 0.
        month_day: 1 to 31.
    """
    year, month = divmod(month, 12)
    # The calendar repeats after 400 years, and so the year 10000, which begins within 9999 in
    # the east, needs no `date` of its own.
    cycles, year = divmod(year, 400)
    last = monthrange(2000 + year, month + 1)[1]
    day = date(2000 + year, month + 1, min(month_day, last))
    return day.toordinal() - _EPOCH_ORDINAL + (cycles - 5) * 146_097


def _first(wall: int, zone: ZoneInfo) -> int:
    """The first instant at which the wall clock shows *wall* or more."""
    # An offset is less than a day: a day earlier the clock shows less, a day later more.
    return next(
        max(stretch.start, wall - stretch.offset)
        for stretch in _stretches(wall - _DAY, wall + _DAY, zone)
        if wall < stretch.end + stretch.offset
    )


# -- offsets ---------------------------------------------------------------------------------


class _Stretch(NamedTuple):
    """A time ``[start, end)`` through which the zone's offset from UTC is the same."""

    start: int
    end: int
    offset: int


def _stretches(start: int, end: int, zone: ZoneInfo) -> Iterator[_Stretch]:
    """
    The time from *start* to *end*, split where the offset changes.

    A change that is taken back within a day would be overlooked. The shortest on record is
    of four days: Freetown, September 1939. A test looks through all zones.
    """
    begun = known = start
    offset = _offset(start, zone)
    for probe in chain(range(start + _DAY, end - 1, _DAY), (end - 1,)):
        while _offset(probe, zone) != offset:
            change = _change(known, probe, offset, zone)
            yield _Stretch(begun, change, offset)
            begun = known = change
            offset = _offset(change, zone)
        known = probe
    yield _Stretch(begun, end, offset)


def _change(before: int, after: int, offset: int, zone: ZoneInfo) -> int:
    """An instant in (before, after] at which the offset becomes another than *offset*."""
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(middle, zone) == offset:
            before = middle
        else:
            after = middle
    return after


def _offset(instant: int, zone: ZoneInfo) -> int:
    """What the wall clock is ahead of UTC by, in microseconds."""
    # At the ends of the calendar the wall clock's date may lie outside of it. No zone changes
    # its offset there, so a day's distance makes no difference.
    instant = min(max(instant, TIME_MIN + _DAY), TIME_MAX - _DAY)
    offset = datetime.fromtimestamp(instant // _SECOND, zone).utcoffset() or timedelta()
    return (offset.days * 86_400 + offset.seconds) * _SECOND


# -- rules -----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def tzdata_version() -> str:
    """
    The version of the time zone rules in use, such as ``"2026a"``.

    zoneinfo prefers the machine's files to the tzdata package, and so does this. It is
    ``"unknown"`` where the machine's files do not say what they are.
    """
    for folder in map(Path, TZPATH):
        if not (folder / "UTC").exists():
            continue
        for name in ("tzdata.zi", "+VERSION"):
            try:
                first = (folder / name).read_text(encoding="utf-8").split("\n", 1)[0]
            except OSError:
                continue
            return first.removeprefix("# version ").strip()
        return "unknown"
    try:
        return metadata.version("tzdata")
    except metadata.PackageNotFoundError:
        return "unknown"
