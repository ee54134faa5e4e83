"""
Windows tile time, in every zone there is: against a slow walk along the clock on the wall.

`walk` is the definition, step by step, and shares nothing with the code that it judges. What
both rest on, that no change of an offset is taken back within a day, is read from the rules.
Instants are seconds since 1970 UTC here; wall times likewise, as if the wall were in UTC.
"""

from __future__ import annotations

import struct
from calendar import monthrange
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple
from zoneinfo import TZPATH, ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallybook_server.question import WINDOWS, Window
from tallybook_server.window import edges

ZONES: Final = sorted(available_timezones())
FIRST_YEAR: Final = 1993
"""With Kwajalein's lost day."""

YEARS: Final = 34
HOUR: Final = 3_600
DAY: Final = 24 * HOUR
LENGTHS: Final[dict[Window, int]] = {"minute": 60, "hour": HOUR, "day": DAY}


def at(year: int, month: int = 1, day: int = 1) -> int:
    """The beginning of a day in UTC."""
    return int(datetime(year, month, day, tzinfo=UTC).timestamp())


# -- the definition --------------------------------------------------------------------------


class Tick(NamedTuple):
    """The instant *now* at which the wall clock shows or jumps over *wall*, a whole unit."""

    now: int
    wall: int


def walk(start: int, end: int, zone: ZoneInfo, *, unit: Window) -> Iterator[Tick]:
    """Each minute or hour that the wall clock passes until *end*, and each day the first time."""
    length = LENGTHS[unit]
    now = start - 2 * DAY if unit == "day" else start - 1
    wall = farthest = show(now, zone)
    while now < end:
        # Big strides, but where the clock is set, small ones up to the very second.
        for stride in (6 * HOUR, HOUR, 60, 1):
            then, shown = now + stride, show(now + stride, zone)
            if shown - wall == stride:
                break
        # Set back, the clock passes nothing, but it may land where something begins.
        after = min(wall, shown - 1)
        for tick in range(after - after % length + length, shown + 1, length):
            if unit != "day" or tick > farthest:
                yield Tick(now + (tick - wall) if shown - wall == stride else then, tick)
        now, wall, farthest = then, shown, max(farthest, shown)


def show(now: int, zone: ZoneInfo) -> int:
    """What the wall clock shows."""
    offset = datetime.fromtimestamp(now, zone).utcoffset() or timedelta()
    return now + offset // timedelta(seconds=1)


def is_beginning(wall: int, window: Window, month_day: int) -> bool:
    """Whether a window begins when the wall clock shows *wall*, a whole minute, hour or day."""
    if window in LENGTHS:
        return True
    day = datetime.fromtimestamp(wall, UTC)
    match window:
        case "week":
            return day.isoweekday() == 1
        case "month":
            return day.day == min(month_day, monthrange(day.year, day.month)[1])
        case "quarter":
            return day.day == 1 and day.month in (1, 4, 7, 10)
        case _:
            return (day.month, day.day) == (1, 1)


# -- the two side by side --------------------------------------------------------------------


def check(
    start: int, end: int, zone: str, asked: Iterable[tuple[Window, int]], *, unit: Window
) -> None:
    """
    Fail unless the windows of a time are those of the walk, tiling it.

    Args:
        start: Where the time begins.
        end: And where it ends.
        zone: An IANA name.
        asked: Each a window and the day of a month: all that begin on a whole *unit*.
        unit: Minute, hour or day.
    """
    passed = list(walk(start, end, ZoneInfo(zone), unit=unit))
    first, last = start * 1_000_000, end * 1_000_000
    for window, month_day in asked:
        found = edges(first, last, window, zone, month_day=month_day, windows_max=1_000_000)
        begun = [now for now, wall in passed if is_beginning(wall, window, month_day)]
        # What a clock jumps over together begins at once, and of that there is one window.
        inner = [now * 1_000_000 for now in dict.fromkeys(begun) if start < now < end]
        assert found == [first, *inner, last], (window, month_day)
        assert all(before < after for before, after in pairwise(found))


def check_all_windows(zone: str, start: int, end: int) -> None:
    """Fail unless every kind of window tiles a time; minutes, around changes of the clock."""
    check(start, end, zone, [("hour", 1)], unit="hour")
    months: list[tuple[Window, int]] = [("month", day) for day in (1, 2, 28, 29, 30, 31)]
    dates: list[tuple[Window, int]] = [("day", 1), ("week", 1), ("quarter", 1), ("year", 1)]
    check(start, end, zone, [*months, *dates], unit="day")
    for change in changes(zone):
        if start <= change < end:
            check(change - 3 * HOUR, change + 3 * HOUR, zone, [("minute", 1)], unit="minute")


@settings(deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    start=st.integers(at(1840), at(2100)),
    window=st.sampled_from(WINDOWS[1:]),
    portion=st.integers(1, 1_000),
    month_day=st.integers(1, 31),
)
@example("America/Juneau", at(1867, 10, 17), "hour", 200, 1)
@example("Asia/Manila", at(1844, 12, 29), "day", 20, 1)
@example("Africa/Monrovia", at(1972, 1, 6), "minute", 900, 1)
def test_windows_begin_where_the_wall_clock_says(
    zone: str, start: int, window: Window, portion: int, month_day: int
) -> None:
    """Any zone, time and window, through the centuries: as a walk along the clock finds them."""
    unit: Window = window if window in LENGTHS else "day"
    end = start + {"minute": 2, "hour": 30}.get(window, 3_000) * DAY * portion // 1_000
    check(start, end, zone, [(window, month_day if window == "month" else 1)], unit=unit)


@settings(deadline=None)
@given(data=st.data(), zone=st.sampled_from(ZONES), window=st.sampled_from(sorted(LENGTHS)))
def test_windows_begin_where_the_wall_clock_says_around_its_changes(
    data: st.DataObject, zone: str, window: Window
) -> None:
    """Likewise, where it is hard: the time begins and ends within 30 hours of a change."""
    change = data.draw(st.sampled_from(changes(zone) or [at(FIRST_YEAR)]))
    start = data.draw(st.integers(change - 30 * HOUR, change + 30 * HOUR))
    end = data.draw(st.integers(start + 1, change + 31 * HOUR))
    check(start, end, zone, [(window, 1)], unit=window)


@settings(deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    start=st.integers(at(1840) * 1_000_000, at(2100) * 1_000_000),
    length=st.integers(1, 100 * DAY * 1_000_000),
    cut=st.integers(1, 999),
    window=st.sampled_from(WINDOWS[2:]),
)
def test_where_the_time_is_cut_moves_no_edge(
    zone: str, start: int, length: int, cut: int, window: Window
) -> None:
    """To the microsecond: the windows of two halves are those of the whole, cut once more."""
    end = start + length
    middle = start + length * cut // 1_000
    if not start < middle < end:
        return
    whole = edges(start, end, window, zone, windows_max=10_000)
    before = edges(start, middle, window, zone, windows_max=10_000)
    after = edges(middle, end, window, zone, windows_max=10_000)
    assert sorted({*whole, middle}) == [*before, *after[1:]]


@settings(deadline=None)
@given(
    data=st.data(),
    zone=st.sampled_from(ZONES),
    longer=st.sampled_from(WINDOWS[2:]),
    month_day=st.integers(1, 31),
)
def test_windows_nest(data: st.DataObject, zone: str, longer: Window, month_day: int) -> None:
    """Around a change: where a longer window begins, so does a shorter one."""
    within: dict[Window, Window] = {"hour": "minute", "day": "hour", "quarter": "month"}
    change = data.draw(st.sampled_from(changes(zone) or [at(FIRST_YEAR)])) * 1_000_000
    days = {"hour": 2, "day": 5}.get(longer, 400)
    start = change - data.draw(st.integers(1, days * DAY * 1_000_000))
    end = change + data.draw(st.integers(1, days * DAY * 1_000_000))
    day = month_day if longer == "month" else 1
    of_longer = edges(start, end, longer, zone, month_day=day, windows_max=10_000)
    of_shorter = edges(start, end, within.get(longer, "day"), zone, windows_max=10_000)
    assert set(of_longer) <= set(of_shorter)


@pytest.mark.parametrize("number", range(0, len(ZONES), 20))
def test_windows_tile_a_year_of_some_zones(number: int) -> None:
    """One zone in twenty, each in another year: no gap, no overlap, each edge where it should."""
    year = FIRST_YEAR + number // 20 % YEARS
    check_all_windows(ZONES[number], at(year), at(year + 1))


@pytest.mark.prove
@pytest.mark.parametrize("zone", ZONES)
def test_windows_tile_all_years_of_all_zones(zone: str) -> None:
    """
    Every zone, 34 years: no gap, no overlap, each edge where it should be.

    One in four is another name of a zone, with the same rules: of that, the last year.
    """
    years = YEARS if zone == names_of_rules()[compiled(zone)][0] else 1
    check_all_windows(zone, at(FIRST_YEAR + YEARS - years), at(FIRST_YEAR + YEARS))


# -- what the rules are trusted to be --------------------------------------------------------


def changes(zone: str) -> list[int]:
    """When the offset changes, as the compiled rules list it (RFC 8536, version 2 and later)."""
    rules = compiled(zone)
    isut, isstd, leaps, times, types, letters = struct.unpack(">6l", rules[20:44])
    old = 44 + times * 5 + types * 6 + letters + leaps * 8 + isstd + isut
    *_, times, types, letters = struct.unpack(">6l", rules[old + 20 : old + 44])
    place = old + 44
    instants = struct.unpack(f">{times}q", rules[place : place + times * 8])
    kinds = rules[place + times * 8 : place + times * 9]
    place += times * 9
    offsets = [
        struct.unpack(">l", rules[place + n * 6 : place + n * 6 + 4])[0] for n in range(types)
    ]
    pairs = pairwise([0, *kinds])
    return [
        instant
        for instant, (before, after) in zip(instants, pairs, strict=True)
        if offsets[before] != offsets[after]
    ]


@cache
def names_of_rules() -> dict[bytes, list[str]]:
    """The zones that have the same rules, in order, by these."""
    names: defaultdict[bytes, list[str]] = defaultdict(list)
    for zone in ZONES:
        names[compiled(zone)].append(zone)
    return names


def compiled(zone: str) -> bytes:
    """The file of *zone*, found where zoneinfo looks."""
    for folder in TZPATH:
        if (path := Path(folder) / zone).is_file():
            return path.read_bytes()
    return (resources.files("tzdata") / "zoneinfo" / zone).read_bytes()


def test_no_zone_changes_its_offset_twice_in_two_days() -> None:
    """Offsets are looked for once a day: a change taken back sooner would be overlooked."""
    for zone in ZONES:
        for before, after in pairwise(changes(zone)):
            assert after - before > 2 * DAY, (zone, before)
