"""The bounds of each field of an event, and the exactness of its value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.errors import InvalidEvent
from tallybook.event import (
    TIME_MAX,
    TIME_MIN,
    check_dimension,
    check_key,
    check_source,
    check_tags,
    check_tenant,
    format_time,
    format_value,
    plain,
    read_time,
    read_value,
)


@pytest.mark.parametrize(
    ("value", "pair"),
    [
        (0, (0, 0)),
        pytest.param(10**38 - 1, (10**38 - 1, 0), id="longest-int"),
        (1.5, (15, 1)),
        (0.1, (1, 1)),
        (1e-9, (1, 9)),
        (1e22, (10**22, 0)),
        (-0.0, (0, 0)),
        (Decimal("1.50"), (15, 1)),
        (Decimal("1E+3"), (1000, 0)),
        (Decimal("0E-50"), (0, 0)),
        ("0012.500", (125, 1)),
        ("12e-3", (12, 3)),
    ],
)
def test_a_value_is_a_scaled_integer(value: Any, pair: tuple[int, int]) -> None:
    """Exact, by the smallest scale; a float is what its shortest repr says."""
    assert read_value(value) == pair


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "negative"),
        (Decimal("-0.1"), "negative"),
        pytest.param(10**38, "too_many_digits", id="39-digits"),
        pytest.param(-(10**5000), "too_many_digits", id="long-int"),
        (Decimal("1e-10"), "too_many_decimals"),
        (0.1 + 0.2, "too_many_decimals"),
        (Decimal("1e1000000"), "too_many_digits"),
        pytest.param(Decimal("9" * 1000), "too_many_digits", id="long-decimal"),
        ("1e3000000", "too_many_digits"),
        pytest.param("9" * 100_000, "too_many_digits", id="long-text"),
        (float("inf"), "not_finite"),
        (Decimal("sNaN"), "not_finite"),
        (True, "type"),
        (None, "type"),
        ("", "not_a_number"),
        ("1_000", "not_a_number"),
        ("٣", "not_a_number"),
        (" 1", "not_a_number"),
    ],
)
def test_a_value_out_of_bounds_is_refused(value: Any, reason: str) -> None:
    """With a stable word for the bound, and in no time however long it is."""
    with pytest.raises(InvalidEvent) as raised:
        read_value(value)
    assert (raised.value.field, raised.value.reason) == ("value", reason)


@given(st.decimals(0, 10**29 - 1, places=9))
def test_a_decimal_is_kept_exactly(value: Decimal) -> None:
    """What is read and shown again is the same quantity."""
    mantissa, scale = read_value(value)
    assert Decimal(format_value(mantissa, scale)) == value
    assert scale == 0 or mantissa % 10


@given(st.integers(0, 10**38 - 1), st.integers(0, 9))
def test_equal_quantities_are_equal_pairs(mantissa: int, scale: int) -> None:
    """However a value was written, it is one pair."""
    shown = format_value(mantissa, scale)
    pair = read_value(shown)
    assert read_value(shown + ("0" if "." in shown else ".0")) == pair
    assert format_value(*pair) == shown


@pytest.mark.parametrize("dimension", ["a", "tokens.output", "a_b-c.9", "x" * 128])
def test_a_dimension_within_its_bounds(dimension: str) -> None:
    """1 to 128 of a-z 0-9 _ . -."""
    check_dimension(dimension)


@pytest.mark.parametrize("dimension", ["", "A", "a b", "ä", "x" * 129, "a\n", None, b"a", 5, ["a"]])
def test_a_dimension_out_of_bounds_is_refused(dimension: object) -> None:
    """And nothing else is raised."""
    with pytest.raises(InvalidEvent):
        check_dimension(dimension)


@pytest.mark.parametrize("check", [check_tenant, check_key, check_source])
def test_texts_are_bounded_in_bytes(check: Any) -> None:
    """In UTF-8, not in characters; never empty, never half a surrogate pair."""
    check(None)
    check("é" * 64)
    for wrong in ("", "é" * 128, "\ud800", 5, b"x"):
        with pytest.raises(InvalidEvent):
            check(wrong)


def test_tags_become_text() -> None:
    """Numbers and bools as they are written; a text is left as it is, empty too."""
    tags = {"a": True, "b": 5, "c": 0.5, "d": Decimal("1.50"), "e": ""}
    assert check_tags(tags) == {"a": "true", "b": "5", "c": "0.5", "d": "1.50", "e": ""}
    assert check_tags(None) == {}


@pytest.mark.parametrize(
    "tags",
    [
        {"a": None},
        {"a": b"x"},
        {"a": float("nan")},
        {"a": "x\x00"},
        {"a": "x\x85"},
        {"a\x7f": "x"},
        {"x" * 65: "y"},
        {"a": "x" * 257},
        {"a": "\udfff"},
        {None: "x"},
        {f"{number}": "" for number in range(33)},
        ["a"],
    ],
)
def test_tags_out_of_bounds_are_refused(tags: Any) -> None:
    """One word for the field, whatever tag it is; the message names the tag."""
    with pytest.raises(InvalidEvent) as raised:
        check_tags(tags)
    assert raised.value.field == "tags"


def test_a_time_is_aware_or_microseconds() -> None:
    """To the microsecond, in any zone."""
    zone = timezone(timedelta(hours=2))
    assert read_time(datetime(1970, 1, 1, 2, 0, 1, 5, zone)) == 1_000_005
    assert read_time(-1) == -1
    assert read_time(TIME_MAX) == TIME_MAX
    assert format_time(1_000_005) == "1970-01-01T00:00:01.000005Z"


@pytest.mark.parametrize(
    "time",
    [
        datetime(2026, 1, 1),  # noqa: DTZ001
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12))),
        TIME_MAX + 1,
        TIME_MIN - 1,
        pytest.param(10**5000, id="long-int"),
        True,
        1.5,
        "2026-01-01T00:00:00Z",
    ],
)
def test_a_time_out_of_bounds_is_refused(time: object) -> None:
    """Naive, outside of the years that a ledger has, or another type."""
    with pytest.raises(InvalidEvent) as raised:
        read_time(time)
    assert raised.value.field == "time"


def test_the_bounds_of_time_are_the_years_1_to_9999() -> None:
    """In UTC, both ends included."""
    assert read_time(datetime(1, 1, 1, tzinfo=UTC)) == TIME_MIN
    assert read_time(datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)) == TIME_MAX


def test_a_plain_text_is_the_text_itself() -> None:
    """Whatever its subclass shows."""

    class Loud(str):
        def __str__(self) -> str:
            return "LOUD"

    found = plain(Loud("quiet"))
    assert (found, type(found)) == ("quiet", str)
