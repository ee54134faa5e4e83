"""Waiting: it grows, it is capped, it is spread, and it never ends by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tallybook.backoff import wait_seconds
from tallybook.limits import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, RETRY_AFTER_SECONDS_MAX


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_between_nothing_and_the_cap(failures: int, fraction: float) -> None:
    """However often it failed."""
    assert 0 <= wait_seconds(failures, fraction) <= BACKOFF_SECONDS_MAX


def test_waits_double_up_to_the_cap() -> None:
    """From a fifth of a second to half a minute."""
    waits = [wait_seconds(failures, 0.999999) for failures in range(1, 12)]
    assert waits == sorted(waits)
    assert waits[0] < BACKOFF_SECONDS_MIN
    assert waits[-1] > 0.99 * BACKOFF_SECONDS_MAX


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 300))
def test_retry_after_is_a_floor(fraction: float, asked: float) -> None:
    """The server is not asked before it said, and not by all at the same moment."""
    assert wait_seconds(1, fraction, asked) >= asked


@given(st.one_of(st.floats(301, 1e300), st.just(float("inf"))))
def test_a_garbled_retry_after_stops_nobody_for_a_year(asked: float) -> None:
    """It is taken as the limit."""
    assert wait_seconds(1, 0.5, asked) <= RETRY_AFTER_SECONDS_MAX + BACKOFF_SECONDS_MAX


def test_a_negative_retry_after_is_none() -> None:
    """A date in the past."""
    assert wait_seconds(1, 0.5, -5.0) == wait_seconds(1, 0.5)
