"""
The tiling: each time is in one window, and each edge is the beginning of one.
"""

from __future__ import annotations

import pytest

from tallybook_server.question import UsageQuery
from tallybook_server.tiling import Tiling, tile

WHOLE = Tiling(3, 30, (3, 10, 20, 30))


@pytest.mark.parametrize(
    ("time", "window"), [(2, None), (3, 0), (9, 0), (10, 1), (20, 2), (29, 2), (30, None)]
)
def test_each_time_is_in_one_window(time: int, window: int | None) -> None:
    """At an edge, in the later one; before the start and from the end on, in none."""
    assert WHOLE.at(time) == window


@pytest.mark.parametrize(("time", "window"), [(3, 0), (4, None), (20, 2), (30, None), (31, None)])
def test_a_window_begins_at_each_edge_but_the_last(time: int, window: int | None) -> None:
    """Where the time that is asked about ends, none does."""
    assert WHOLE.beginning(time) == window


def test_a_part_has_the_windows_asked_for_and_their_bounds() -> None:
    """A level is carried into it from before its own start."""
    assert WHOLE.part(1, 3) == Tiling(10, 30, (10, 20, 30))
    assert WHOLE.part(0, 1).bounds(0) == (3, 10)


def test_no_time_has_no_window() -> None:
    """An end that is not behind the start asks about nothing, however far before it lies."""
    for end in (7, 6, -7):
        assert tile(UsageQuery(("a",), start=7, end=end, window="day")).count == 0
        assert tile(UsageQuery(("a",), start=7, end=end)).count == 0
