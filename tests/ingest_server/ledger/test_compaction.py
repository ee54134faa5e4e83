"""
The policy of compaction, on numbers alone: what is merged, what it costs, and that it ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.event import TIME_MAX, TIME_MIN
from tallybook_server.compaction import Policy, choose, choose_months, month_edges, month_of
from tallybook_server.segment import Segment, merged_name, read_name, segment_name

Months = Counter[int]


class Shelf:
    """
    Segments without files: of each, how many rows of which month it has.

    Attributes:
        contents: By segment.
        written: Rows that compactions have written.
        sealed: Rows that seals have written.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.contents: dict[Segment, Months] = {}
        self.written = 0
        self.sealed = 0
        self._positions = count(1)

    def seal(self, rows: Months) -> None:
        """One more segment with *rows* per month."""
        at = next(self._positions)
        self.contents[_segment(segment_name(at, at), at, at, rows)] = rows
        self.sealed += rows.total()

    def compact(self) -> bool:
        """What one compaction does."""
        inputs = choose(self.contents, self.policy)
        if inputs is None:
            return False
        rows = _sum(self.contents.pop(one) for one in inputs)
        self.written += rows.total()
        months = choose_months(rows, self.policy)
        pieces = {month: Counter({month: rows.pop(month)}) for month in months}
        first, last = min(one.first for one in inputs), max(one.last for one in inputs)
        begun = next(self._positions)
        for month, content in [*pieces.items(), *([(None, rows)] if rows or not months else [])]:
            level = max(one.level for one in inputs) + 1
            name = merged_name(first, last, begun, month)
            self.contents[_segment(name, first, last, content, month, level)] = content
        self.contents = dict(sorted(self.contents.items(), key=lambda item: item[0].first))
        return True

    def read_for(self, month: int) -> int:
        """Rows of the segments that a question about *month* reads."""
        return sum(rows.total() for rows in self.contents.values() if rows[month])


def _sum(some: Iterable[Months]) -> Months:
    return sum(some, Months())


def _segment(
    name: str, first: int, last: int, rows: Months, month: int | None = None, level: int = 0
) -> Segment:
    total = rows.total()
    return Segment(name, b"", 0, total, first, last, None, None, 0, (), (), (), month, level)


POLICIES = st.builds(
    Policy,
    fan_in=st.integers(2, 4),
    rows_min=st.integers(1, 20),
    rows_max=st.integers(1, 200),
    months_max=st.integers(1, 5),
)
SEALS = st.lists(
    st.dictionaries(st.integers(0, 8), st.integers(1, 40), max_size=6).map(Counter), max_size=40
)


@given(policy=POLICIES, seals=SEALS)
def test_policy_ends_keeps_every_row_and_leaves_little_to_merge(
    policy: Policy, seals: list[Months]
) -> None:
    """Whatever arrives: a bounded number of steps, the same rows, and fewer than asked for."""
    shelf = Shelf(policy)
    steps = 0
    for rows in seals:
        shelf.seal(rows.copy())
        while shelf.compact():
            steps += 1
    # Per seal: once out of level 0, and what comes of it is merged by at least 2 each time.
    assert steps <= len(seals) * (2 + policy.months_max)
    assert _sum(shelf.contents.values()) == _sum(seals)
    names = [one.name for one in shelf.contents]
    assert len(set(names)) == len(names)
    small = Counter(
        (one.month, one.level if one.month is None else _size(one.rows, policy.fan_in))
        for one in shelf.contents
        if one.rows * policy.fan_in <= policy.rows_max or one.level == 0
    )
    assert all(number < policy.fan_in for number in small.values())


def _size(rows: int, fan_in: int) -> int:
    return max((power for power in range(64) if fan_in**power <= rows), default=0)


@given(policy=POLICIES, seals=SEALS)
def test_no_merged_segment_exceeds_the_bound(policy: Policy, seals: list[Months]) -> None:
    """But for one that is made of a single seal which did so itself."""
    shelf = Shelf(policy)
    largest = max((rows.total() for rows in seals), default=0)
    for rows in seals:
        shelf.seal(rows.copy())
        while shelf.compact():
            assert all(
                one.rows <= max(policy.rows_max, largest) for one in shelf.contents if one.level
            )


def test_a_month_with_just_enough_rows_gets_a_segment() -> None:
    """And one with a row less waits with others."""
    assert choose_months({5: 3, 6: 2, 7: 4}, Policy(rows_min=3)) == (5, 7)


@pytest.mark.parametrize(("rows_max", "merged"), [(11, 2), (10, 2), (9, 1)])
def test_as_much_is_merged_as_the_bound_allows(rows_max: int, merged: int) -> None:
    """To the last row: of two segments of five rows each, both for ten, and one for nine."""
    shelf = Shelf(Policy(fan_in=2, rows_min=1, rows_max=rows_max))
    for _ in range(2):
        shelf.seal(Counter({0: 5}))
    inputs = choose(shelf.contents, shelf.policy)
    assert inputs is not None
    assert len(inputs) == merged


@given(policy=POLICIES, seals=SEALS)
def test_no_row_is_written_more_often_than_there_are_sizes_and_levels(
    policy: Policy, seals: list[Months]
) -> None:
    """A segment's level is how often it was written anew, and it is bounded by logarithms."""
    shelf = Shelf(policy)
    for rows in seals:
        shelf.seal(rows.copy())
        while shelf.compact():
            pass
    sizes = _size(max(policy.rows_max // policy.fan_in, 1), policy.fan_in) + 1
    # A group may be cut short by `rows_max`, so a level of mixed ones needs at least 2 seals.
    levels = 1 + max(len(seals), 1).bit_length()
    assert all(one.level <= levels + sizes for one in shelf.contents if one.month is not None)


def _year(seals: int, rows: int, late_per_mille: int) -> Shelf:
    """A year of equal seals; so many of a thousand events are of any earlier month of it."""
    shelf = Shelf(Policy())
    for at in range(seals):
        late = rows * late_per_mille // 1000
        month = at * 12 // seals
        content = Counter({month: rows - late})
        for earlier in range(12):
            content[earlier] += late // 12
        shelf.seal(content)
        while shelf.compact():
            pass
    return shelf


@pytest.mark.parametrize(
    ("seals", "rows", "percent"),
    [
        pytest.param(100, 1_000_000, 105, id="100 million events a year"),
        pytest.param(365, 86_400, 350, id="an event a second"),
        pytest.param(365, 2_740, 450, id="a million events a year"),
    ],
)
def test_each_event_is_written_anew_a_few_times(seals: int, rows: int, percent: int) -> None:
    """What compaction writes, in percent of what the seals have written; 1 % come late."""
    shelf = _year(seals, rows, 10)
    print(f"{shelf.sealed} events, written anew: {100 * shelf.written // shelf.sealed} %")
    assert 100 * shelf.written <= percent * shelf.sealed


@pytest.mark.parametrize(("seals", "rows"), [(100, 1_000_000), (365, 86_400)])
def test_question_about_a_month_reads_little_but_that_month(seals: int, rows: int) -> None:
    """With a year behind it and late events in every seal: 1.1 times its own rows."""
    shelf = _year(seals, rows, 10)
    for month in range(1, 11):
        own = sum(content[month] for content in shelf.contents.values())
        assert shelf.read_for(month) * 10 <= own * 11


def test_year_of_a_hundred_million_events_is_a_hundred_files() -> None:
    """And not one for each seal and each month that its late events reach."""
    assert len(_year(100, 1_000_000, 10).contents) <= 140


@given(time=st.integers(TIME_MIN, TIME_MAX))
def test_months_tile_time(time: int) -> None:
    """Each moment that an event may have lies in one month, also before 1970 and in 9999."""
    begin, end = month_edges(month_of(time))
    assert begin <= time < end
    assert month_of(begin) == month_of(end - 1)
    if end <= TIME_MAX:
        assert month_of(end) == month_of(time) + 1


@pytest.mark.parametrize(
    ("name", "begun"),
    [
        (segment_name(1, 9), 0),
        (merged_name(1, 9, 12, 24_311), 12),
        (merged_name(1, 9, 12, None), 12),
    ],
)
def test_name_says_what_is_covered_and_when_it_was_begun(name: str, begun: int) -> None:
    """So that what a crash has left can be told from what somebody else put there."""
    assert read_name(name) == (1, 9, begun)


def test_name_of_a_merged_segment_says_its_month() -> None:
    """For people; nothing reads it."""
    assert merged_name(1, 9, 12, month_of(0)).endswith("-1970-01.parquet")


@pytest.mark.parametrize(
    "name",
    ["1-2.parquet", "0000000000000001-0000000000000002", "writing-0000000000000001.parquet"],
)
def test_other_names_are_not_taken_for_segments(name: str) -> None:
    """What is not ours is left alone."""
    assert read_name(name) is None
