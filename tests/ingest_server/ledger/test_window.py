"""Windows in a time zone, against clocks that were set forward, back, and over a whole day."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook_server.window import Step, edges, tzdata_version

HOUR = 3_600_000_000


def at(text: str) -> int:
    """Microseconds of an ISO time in UTC."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def lengths(start: str, end: str, step: Step, zone: str) -> list[float]:
    """How long each window is, in hours."""
    found = edges(at(start), at(end), step, zone, windows_max=10_000)
    return [(after - before) / HOUR for before, after in pairwise(found)]


def test_days_in_utc_have_24_hours() -> None:
    """Three whole days."""
    assert lengths("2026-01-01", "2026-01-04", "day", "UTC") == [24, 24, 24]


def test_day_is_23_hours_in_spring_and_25_in_autumn() -> None:
    """Berlin, 2026."""
    assert lengths("2026-03-28T23:00", "2026-03-30T22:00", "day", "Europe/Berlin") == [23, 24]
    assert lengths("2026-10-24T22:00", "2026-10-26T23:00", "day", "Europe/Berlin") == [25, 24]


def test_outermost_windows_are_cut() -> None:
    """What was asked for is tiled, not more."""
    assert lengths("2026-01-01T18:00", "2026-01-02T06:00", "day", "UTC") == [6, 6]


def test_hour_that_is_shown_twice_is_two_windows() -> None:
    """New York, 2026-11-01: 01:00 is shown twice."""
    assert lengths("2026-11-01T04:00", "2026-11-01T08:00", "hour", "America/New_York") == [1] * 4


def test_day_whose_midnight_is_skipped_begins_with_its_first_instant() -> None:
    """Santiago set its clocks forward at midnight of 2022-09-11."""
    found = lengths("2022-09-10T04:00", "2022-09-12T03:00", "day", "America/Santiago")
    assert found == [24, 23]


def test_day_that_never_was_is_no_window() -> None:
    """Apia went from 29 to 31 December 2011."""
    found = lengths("2011-12-29T10:00", "2011-12-31T10:00", "day", "Pacific/Apia")
    assert found == [24, 24]


def test_half_hour_change_moves_the_hours() -> None:
    """Lord Howe sets its clocks back by 30 minutes: one hour is one and a half long."""
    found = lengths("2026-04-04T13:00", "2026-04-04T17:30", "hour", "Australia/Lord_Howe")
    assert sum(found) == 4.5
    assert 0.5 in found or 1.5 in found


def test_hours_follow_a_half_hour_offset() -> None:
    """In Kolkata hours begin at half past, by UTC."""
    assert lengths("2026-01-01T00:00", "2026-01-01T02:00", "hour", "Asia/Kolkata") == [0.5, 1, 0.5]


@pytest.mark.parametrize("step", ["hour", "day"])
def test_too_many_windows_are_an_error(step: Step) -> None:
    """Nobody lists the hours of ten thousand years."""
    with pytest.raises(ValueError, match="more than 100 windows"):
        edges(at("0001-01-01"), at("9999-12-31"), step, "UTC", windows_max=100)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_ends_of_the_calendar_are_no_error(zone: str) -> None:
    """The first and the last day that an event may have."""
    assert len(edges(at("0001-01-01"), at("0001-01-02"), "day", zone, windows_max=10)) >= 2
    assert len(edges(at("9999-12-30"), at("9999-12-31"), "day", zone, windows_max=10)) >= 2


@given(
    zone=st.sampled_from(sorted(available_timezones())),
    start=st.integers(at("1900-01-01"), at("2100-01-01")),
    days=st.integers(1, 20),
    step=st.sampled_from(["hour", "day"]),
)
def test_windows_tile_and_begin_on_the_hour_or_day(
    zone: str, start: int, days: int, step: Step
) -> None:
    """In every zone: rising edges, and each inner one begins an hour or day on the wall."""
    end = start + days * 24 * HOUR
    found = edges(start, end, step, zone, windows_max=10_000)
    assert (found[0], found[-1]) == (start, end)
    assert all(before < after for before, after in pairwise(found))
    rules = ZoneInfo(zone)
    for edge in found[1:-1]:
        wall = datetime.fromtimestamp(edge / 1e6, UTC).astimezone(rules)
        before = datetime.fromtimestamp(edge / 1e6 - 1, UTC).astimezone(rules)
        whole = wall.minute == wall.second == 0 and (step == "hour" or wall.hour == 0)
        assert whole or wall.utcoffset() != before.utcoffset()


def test_version_of_the_rules_has_a_name() -> None:
    """An answer names it."""
    assert tzdata_version()
