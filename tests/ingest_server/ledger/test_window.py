"""Windows in a time zone, against clocks that were set forward, back, and over a whole day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Final

import pytest

from tallybook.event import TIME_MAX, TIME_MIN
from tallybook_server.question import WINDOWS, Window
from tallybook_server.window import TooManyWindows, edges, tzdata_version

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def at(text: str) -> int:
    """Microseconds of an ISO time in UTC."""
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) // MICROSECOND


def begins(
    start: str, end: str, window: Window, zone: str = "UTC", *, month_day: int = 1
) -> list[str]:
    """When the windows within a time begin, the first one aside, in UTC."""
    found = edges(at(start), at(end), window, zone, month_day=month_day, windows_max=10_000)
    assert (found[0], found[-1]) == (at(start), at(end))
    return [
        (EPOCH + edge * MICROSECOND).replace(tzinfo=None).isoformat(timespec="minutes")
        for edge in found[1:-1]
    ]


def minutes(start: str, end: str, window: Window, zone: str) -> list[Fraction]:
    """How long each window is."""
    found = edges(at(start), at(end), window, zone, windows_max=10_000)
    return [Fraction(after - before, 60_000_000) for before, after in pairwise(found)]


def hours(start: str, end: str, window: Window, zone: str) -> list[Fraction]:
    """How long each window is."""
    return [length / 60 for length in minutes(start, end, window, zone)]


# -- days ------------------------------------------------------------------------------------


def test_days_in_utc_have_24_hours() -> None:
    """Three whole days."""
    assert hours("2026-01-01", "2026-01-04", "day", "UTC") == [24, 24, 24]


def test_day_is_23_hours_in_spring_and_25_in_autumn() -> None:
    """Berlin, 2026."""
    assert hours("2026-03-28T23:00", "2026-03-30T22:00", "day", "Europe/Berlin") == [23, 24]
    assert hours("2026-10-24T22:00", "2026-10-26T23:00", "day", "Europe/Berlin") == [25, 24]


def test_outermost_windows_are_cut() -> None:
    """What was asked for is tiled, not more."""
    assert hours("2026-01-01T18:00", "2026-01-02T06:00", "day", "UTC") == [6, 6]


@pytest.mark.parametrize(
    ("zone", "before", "after", "begun"),
    [
        ("America/Santiago", "2022-09-10T04:00", "2022-09-12T03:00", "2022-09-11T04:00"),
        ("America/Sao_Paulo", "2018-11-03T03:00", "2018-11-05T02:00", "2018-11-04T03:00"),
        ("Asia/Beirut", "2022-03-25T22:00", "2022-03-27T21:00", "2022-03-26T22:00"),
    ],
)
def test_day_without_a_midnight_begins_with_its_first_instant(
    zone: str, before: str, after: str, begun: str
) -> None:
    """Clocks went forward at midnight: 23:59 was followed by 01:00."""
    assert hours(before, after, "day", zone) == [24, 23]
    assert begins(before, after, "day", zone) == [begun]


def test_day_that_ends_twice_has_25_hours() -> None:
    """Sao Paulo set its clocks back from midnight to 23:00: that midnight was never shown."""
    found = hours("2018-02-17T02:00", "2018-02-19T03:00", "day", "America/Sao_Paulo")
    assert found == [25, 24]


def test_midnight_that_is_shown_twice_begins_one_day() -> None:
    """Havana sets its clocks back from 01:00 to midnight: the first midnight is the one."""
    found = begins("2025-11-01T05:00", "2025-11-04T00:00", "day", "America/Havana")
    assert found == ["2025-11-02T04:00", "2025-11-03T05:00"]


def test_day_into_which_clocks_are_set_back_does_not_begin_again() -> None:
    """St. John's set its clocks back from 00:01 to 23:01, until 2011."""
    found = begins("2010-11-06T03:00", "2010-11-09T00:00", "day", "America/St_Johns")
    assert found == ["2010-11-07T02:30", "2010-11-08T03:30"]


def test_day_that_began_before_the_time_does_not_begin_again_in_it() -> None:
    """Likewise, asked from 23:30 on, when it was already the 7th for the second time."""
    found = begins("2010-11-07T03:00", "2010-11-08T03:00", "day", "America/St_Johns")
    assert found == []


def test_summer_time_of_one_week_is_seen() -> None:
    """Recife gave up its summer time of 2000 after seven days, in the night to 15 October."""
    found = hours("2000-10-01T03:00", "2000-10-31T03:00", "day", "America/Recife")
    assert [day for day, length in enumerate(found, 1) if length != 24] == [8, 14]


@pytest.mark.parametrize(
    ("zone", "before", "after"),
    [
        ("Pacific/Apia", "2011-12-29T10:00", "2011-12-31T10:00"),
        ("Pacific/Kwajalein", "1993-08-20T12:00", "1993-08-22T12:00"),
    ],
)
def test_day_that_never_was_is_no_window(zone: str, before: str, after: str) -> None:
    """Apia went from 29 to 31 December 2011; Kwajalein from 20 to 22 August 1993."""
    assert hours(before, after, "day", zone) == [24, 24]


def test_day_that_was_lived_twice_is_one_window() -> None:
    """Juneau went from Russia's side of the date line to America's on 19 October 1867."""
    found = hours("1867-10-16T12:00", "1867-10-22T12:00", "day", "America/Juneau")
    assert sorted(found[1:-1]) == [24, 24, 24, 48]


# -- hours and minutes -----------------------------------------------------------------------


def test_hour_that_is_shown_twice_is_two_windows() -> None:
    """New York, 2026-11-01: 01:00 is shown twice."""
    assert hours("2026-11-01T04:00", "2026-11-01T08:00", "hour", "America/New_York") == [1] * 4


def test_hour_that_is_skipped_is_no_window() -> None:
    """Berlin, 2026-03-29: 01:00 is followed by 03:00, and so by one edge."""
    assert hours("2026-03-29T00:00", "2026-03-29T03:00", "hour", "Europe/Berlin") == [1] * 3


def test_time_that_ends_where_the_clock_jumps_ends_once() -> None:
    """Berlin, 2026-03-29, to 01:00 in UTC: what begins there is no longer asked for."""
    assert hours("2026-03-29T00:00", "2026-03-29T01:00", "hour", "Europe/Berlin") == [1]


def test_hour_grows_or_shrinks_by_half_of_one() -> None:
    """Lord Howe: back from 02:00 to 01:30, forward from 02:00 to 02:30."""
    zone = "Australia/Lord_Howe"
    assert minutes("2026-04-04T13:00", "2026-04-04T16:30", "hour", zone) == [60, 90, 60]
    assert minutes("2026-10-03T14:30", "2026-10-03T17:00", "hour", zone) == [60, 30, 60]


def test_hour_is_one_minute_where_clocks_go_forward_at_one_past() -> None:
    """St. John's, 2010-03-14: 00:01 was 01:01, and what is left of that hour is 59 minutes."""
    found = minutes("2010-03-14T02:30", "2010-03-14T05:30", "hour", "America/St_Johns")
    assert found == [60, 1, 59, 60]


def test_hours_go_on_where_clocks_go_back_at_one_past() -> None:
    """St. John's, 2010-11-07: 00:01 was 23:01, in the middle of an hour; midnight came twice."""
    found = begins("2010-11-07T02:00", "2010-11-07T05:00", "hour", "America/St_Johns")
    assert found == ["2010-11-07T02:30", "2010-11-07T03:30", "2010-11-07T04:30"]


@pytest.mark.parametrize(
    ("zone", "minute"), [("Asia/Kolkata", "30"), ("Asia/Kathmandu", "15"), ("Asia/Tokyo", "00")]
)
def test_hours_follow_the_offset(zone: str, minute: str) -> None:
    """In Kolkata hours begin at half past, by UTC; in Kathmandu at a quarter past."""
    found = begins("2026-01-01T00:01", "2026-01-01T02:01", "hour", zone)
    assert [begin[14:] for begin in found] == [minute, minute]


def test_minute_follows_an_offset_with_seconds() -> None:
    """Monrovia was 44 minutes and 30 seconds behind until 7 January 1972, and skipped those."""
    found = minutes("1972-01-07T00:42:30", "1972-01-07T00:46:00", "minute", "Africa/Monrovia")
    assert found == [1, 1, Fraction(1, 2), 1]


def test_minutes_go_through_a_change() -> None:
    """The clock that shows 02:00 or 03:00 changes nothing about its minutes."""
    found = minutes("2026-03-28T00:00", "2026-03-30T00:00", "minute", "Europe/Berlin")
    assert found == [1] * 2880


# -- weeks, months, quarters, years ----------------------------------------------------------


def test_weeks_begin_on_monday_through_the_ends_of_years() -> None:
    """2020 had 53 weeks by ISO 8601; the year's first of January begins none."""
    assert begins("2020-12-20", "2021-01-12", "week") == [
        "2020-12-21T00:00",
        "2020-12-28T00:00",
        "2021-01-04T00:00",
        "2021-01-11T00:00",
    ]
    assert begins("2025-12-24", "2026-01-06", "week") == ["2025-12-29T00:00", "2026-01-05T00:00"]


def test_week_that_lacks_a_day_has_six() -> None:
    """Apia, 26 December 2011 to 2 January 2012."""
    found = hours("2011-12-20T10:00", "2012-01-03T10:00", "week", "Pacific/Apia")
    assert found[1] == 144


def test_months_in_a_zone_take_the_change_of_the_clock_with_them() -> None:
    """March and October in Berlin have one hour less and one more."""
    assert hours("2026-02-28T23:00", "2026-04-30T22:00", "month", "Europe/Berlin") == [743, 720]
    assert hours("2026-09-30T22:00", "2026-11-30T23:00", "month", "Europe/Berlin") == [745, 720]


@pytest.mark.parametrize(
    ("year", "month_day", "days"),
    [
        (2026, 28, ["01-28", "02-28", "03-28", "04-28"]),
        (2026, 29, ["01-29", "02-28", "03-29", "04-29"]),
        (2026, 30, ["01-30", "02-28", "03-30", "04-30"]),
        (2026, 31, ["01-31", "02-28", "03-31", "04-30"]),
        (2028, 29, ["01-29", "02-29", "03-29", "04-29"]),
        (2028, 30, ["01-30", "02-29", "03-30", "04-30"]),
        (2028, 31, ["01-31", "02-29", "03-31", "04-30"]),
        (1900, 29, ["01-29", "02-28", "03-29", "04-29"]),
        (2000, 29, ["01-29", "02-29", "03-29", "04-29"]),
    ],
)
def test_billing_month_begins_on_its_day_or_the_last(
    year: int, month_day: int, days: list[str]
) -> None:
    """February's last day stands for what it lacks; March has its own again."""
    found = begins(f"{year}-01-15", f"{year}-05-15", "month", month_day=month_day)
    assert found == [f"{year}-{day}T00:00" for day in days]


def test_billing_month_whose_day_was_skipped_begins_with_the_next() -> None:
    """Apia had no 30 December 2011."""
    found = begins("2011-12-10", "2012-01-10", "month", "Pacific/Apia", month_day=30)
    assert found == ["2011-12-30T10:00"]
    assert begins("2011-12-30T09:00", "2011-12-30T11:00", "day", "Pacific/Apia") == found


def test_billing_month_begins_where_its_last_day_does() -> None:
    """In New York 31 January begins at 05:00 in UTC, on the same day."""
    found = begins(
        "2026-01-31T04:00", "2026-02-28T06:00", "month", "America/New_York", month_day=31
    )
    assert found == ["2026-01-31T05:00", "2026-02-28T05:00"]


def test_quarters_and_years_begin_on_the_first() -> None:
    """January, April, July, October; and January."""
    assert begins("2024-02-10", "2025-02-10", "quarter") == [
        "2024-04-01T00:00",
        "2024-07-01T00:00",
        "2024-10-01T00:00",
        "2025-01-01T00:00",
    ]
    found = begins("2024-02-10", "2026-02-10", "year", "Asia/Tokyo")
    assert found == ["2024-12-31T15:00", "2025-12-31T15:00"]


@pytest.mark.parametrize("window", WINDOWS[1:])
def test_start_on_an_edge_begins_one_window(window: Window) -> None:
    """Monday, 1 January 2024, is where all of them begin: it is no edge twice."""
    found = edges(at("2024-01-01"), at("2024-01-01T00:01"), window, "UTC", windows_max=10)
    assert found == [at("2024-01-01"), at("2024-01-01T00:01")]


# -- the ends of the calendar ----------------------------------------------------------------


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
@pytest.mark.parametrize("window", WINDOWS[1:])
def test_ends_of_the_calendar_are_no_error(zone: str, window: Window) -> None:
    """The first and the last hours that an event may have, in the far east and west."""
    for start, end in ((TIME_MIN, TIME_MIN + 10**11), (TIME_MAX - 10**11, TIME_MAX)):
        found = edges(start, end, window, zone, windows_max=10_000)
        assert (found[0], found[-1]) == (start, end)
        assert all(before < after for before, after in pairwise(found))


@pytest.mark.parametrize("window", ["hour", "day", "month", "quarter", "year"])
def test_year_1_begins_later_in_the_west(window: Window) -> None:
    """In Honolulu the clock was 10:31:26 behind: year 1 began at that time of UTC."""
    found = edges(TIME_MIN, at("0001-01-03"), window, "Pacific/Honolulu", windows_max=100)
    assert at("0001-01-01T10:31:26") in found


@pytest.mark.parametrize("window", ["hour", "day", "month", "quarter", "year"])
def test_year_10000_begins_within_the_calendar_in_the_east(window: Window) -> None:
    """On Kiritimati the clock is 14 hours ahead."""
    found = edges(at("9999-12-30"), TIME_MAX, window, "Pacific/Kiritimati", windows_max=100)
    assert at("9999-12-31T10:00") in found


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS[1:])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_too_many_windows_are_refused_before_they_are_made(window: Window, zone: str) -> None:
    """Nobody lists the minutes of ten thousand years: that would not end within this test."""
    with pytest.raises(TooManyWindows, match="more than 100 windows of one"):
        edges(TIME_MIN, TIME_MAX, window, zone, windows_max=100)


@pytest.mark.parametrize("window", WINDOWS[1:])
def test_limit_of_windows_is_exact(window: Window) -> None:
    """As many windows as are allowed, and not one more."""
    start, end = at("2025-11-30T22:00"), at("2026-12-31T23:00")
    if window in ("minute", "hour"):
        start = at("2026-12-25T23:00")
    found = edges(start, end, window, "Europe/Berlin", windows_max=20_000)
    windows = len(found) - 1
    assert edges(start, end, window, "Europe/Berlin", windows_max=windows) == found
    with pytest.raises(TooManyWindows):
        edges(start, end, window, "Europe/Berlin", windows_max=windows - 1)


@pytest.mark.parametrize(
    ("end", "window", "month_day", "message"),
    [
        (0, "day", 1, "from 0 to 0 is empty"),
        (1, "none", 1, "no windows of one 'none'; expected one of minute, hour"),
        (1, "fortnight", 1, "no windows of one 'fortnight'"),
        (1, "month", 0, "on day 0; expected 1 to 31"),
        (1, "month", 32, "on day 32; expected 1 to 31"),
        (1, "quarter", 15, "a quarter does not begin on day 15"),
    ],
)
def test_what_makes_no_sense_is_an_error(
    end: int, window: Window, month_day: int, message: str
) -> None:
    """It says what was seen and what was expected."""
    with pytest.raises(ValueError, match=message):
        edges(0, end, window, "UTC", month_day=month_day, windows_max=10)


def test_version_of_the_rules_has_a_name() -> None:
    """An answer names it."""
    assert tzdata_version()
