"""
Levels weighted by time: seats and gigabytes, held until the next report, in unit-hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tallybook_server.catalogue import Declaration
from tallybook_server.ledger import TooManyRows
from tallybook_server.question import UnanswerableQuestion, UsageQuery, UsageRow
from tests.ingest_server.ledger.conftest import START, Desk, block, event, fill

MINUTE = 60_000_000
HOUR = 60 * MINUTE
HUGE = 10**37


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A ledger in which ``seats`` are a level."""
    desk = Desk(tmp_path / "book")
    desk.clock.advance(400 * 86_400)
    seats = Declaration("seats", unit="seat", aggregation="time_weighted")
    desk.ledger.declare(seats).result(timeout=0)
    yield desk
    desk.ledger.close()


def seats(at: int, value: int | str, tenant: str = "acme", **tags: str) -> Any:
    """From *at* microseconds after the start on, so many seats."""
    return event(value, dimension="seats", tenant=tenant, time=START + at, tags=tags)


def rows(desk: Desk, start: int | None, end: int, **query: Any) -> list[UsageRow]:
    """The rows from *start* to *end*, in microseconds after the start."""
    begin = None if start is None else START + start
    return desk.ledger.aggregate(UsageQuery(("seats",), start=begin, end=START + end, **query)).rows


def short(found: list[UsageRow]) -> list[tuple[str | None, int]]:
    return [(row.value, row.events) for row in found]


def test_a_level_is_held_until_the_next_one(desk: Desk, where: str) -> None:
    """Three seats for two hours, then five for half an hour: 8.5 seat-hours."""
    fill(desk, where, block(1, seats(0, 3)), block(2, seats(2 * HOUR, 5)))
    assert short(rows(desk, 0, 2 * HOUR + HOUR // 2)) == [("8.5", 2)]


def test_a_level_carries_over_the_edges_of_windows(desk: Desk, where: str) -> None:
    """An hour in which nothing is reported has a row, and what was reported before counts."""
    fill(desk, where, block(1, seats(HOUR // 2, 4)), block(2, seats(3 * HOUR + HOUR // 4, "0.5")))
    found = rows(desk, 0, 5 * HOUR, window="hour")
    assert short(found) == [("2", 1), ("4", 0), ("4", 0), ("1.375", 1), ("0.5", 0)]
    assert [row.start for row in found] == [START + at * HOUR for at in range(5)]


def test_a_level_from_before_the_start_counts(desk: Desk, where: str) -> None:
    """However long ago it was reported; a group that only carries one has a row."""
    fill(desk, where, block(1, seats(-300 * 24 * HOUR, 7)), block(2, seats(-HOUR, 2, "b")))
    assert short(rows(desk, 0, 10 * HOUR, by_tenant=True)) == [("70", 0), ("20", 0)]
    assert short(rows(desk, -2 * HOUR, 0, by_tenant=True)) == [("14", 0), ("2", 1)]


def test_a_level_from_the_last_microsecond_before_the_start_counts(desk: Desk, where: str) -> None:
    """And one that begins with the start takes its place, as if it had never been."""
    fill(
        desk,
        where,
        block(1, seats(-2, 7), seats(-1, 3, "b")),
        block(3, seats(-1, 5), seats(0, 4, "b")),
    )
    assert short(rows(desk, 0, HOUR, by_tenant=True)) == [("5", 0), ("4", 1)]


def test_a_level_begins_with_its_first_event(desk: Desk, where: str) -> None:
    """Windows before it have no row, unless they are filled up: with nothing, which is 0."""
    fill(desk, where, block(1, seats(2 * HOUR + 15 * MINUTE, 4)), block(2, seats(4 * HOUR, 0)))
    assert short(rows(desk, 0, 5 * HOUR, window="hour")) == [("3", 1), ("4", 0), ("0", 1)]
    assert short(rows(desk, 0, 5 * HOUR, window="hour", fill=True)) == [
        ("0", 0),
        ("0", 0),
        ("3", 1),
        ("4", 0),
        ("0", 1),
    ]
    assert short(rows(desk, None, 5 * HOUR)) == [("7", 2)]


def test_each_series_holds_its_own_level(desk: Desk, where: str) -> None:
    """Tags that are not asked about still tell series apart; their levels are added."""
    fill(
        desk,
        where,
        block(1, seats(0, 3, plan="pro", region="eu"), seats(0, 4, plan="pro", region="us")),
        block(3, seats(0, 5, plan="free"), seats(HOUR, 1, region="us", plan="pro")),
    )
    assert short(rows(desk, 0, 2 * HOUR)) == [("21", 4)]
    found = rows(desk, 0, 2 * HOUR, by_tags=("plan",))
    assert [(row.tags, row.value) for row in found] == [
        ({"plan": "free"}, "10"),
        ({"plan": "pro"}, "11"),
    ]


def test_a_series_is_the_same_wherever_its_tags_are_stored(desk: Desk) -> None:
    """As a column, in the map of a segment with too many keys, and in the tail."""
    many = {f"key{at:03d}": "x" for at in range(30)}
    desk.send(block(1, seats(0, 1, **many), seats(0, 8)))
    desk.seal()
    others = [
        event(1, tags={f"key{at:03d}": "y" for at in range(first, first + 30)})
        for first in range(30, 300, 30)
        for _ in range(2)
    ]
    desk.send(block(3, seats(HOUR, 2, **many), seats(HOUR, 16), *others))
    desk.seal()
    assert desk.ledger.snapshots.current.segments[-1].more
    desk.send(block(4 + len(others) + 1, seats(2 * HOUR, 4, **many), seats(2 * HOUR, 32)))
    assert short(rows(desk, 0, 3 * HOUR)) == [("63", 6)]


def test_of_equal_times_the_later_in_the_ledger_holds(desk: Desk, where: str) -> None:
    """All of them are events of the row; only the last one is a level."""
    fill(desk, where, block(1, seats(0, 9), seats(0, 8)), block(3, seats(0, 2), seats(HOUR, 0)))
    assert short(rows(desk, 0, 3 * HOUR)) == [("2", 4)]


def test_levels_are_exact_beyond_any_width(desk: Desk, where: str) -> None:
    """38 digits beside a billionth, for an hour and a microsecond; rounded once, at the end."""
    fill(
        desk,
        where,
        block(1, seats(0, HUGE, a="1"), seats(0, "0.000000001", a="2")),
        block(3, seats(0, 2**63 - 1, a="3"), seats(0, 1, a="4")),
    )
    assert short(rows(desk, 0, HOUR)) == [(f"{HUGE + 2**63}.000000001", 4)]
    (row,) = rows(desk, HOUR, HOUR + 1)
    micro = ((HUGE + 2**63) * 10**9 + 1) * 10**9  # In units of 10**-18.
    assert row.value is not None
    units, _, digits = row.value.partition(".")
    assert int(units) * 10**18 + int(digits.ljust(18, "0")) == round_half_even(micro, 3_600_000_000)


def round_half_even(dividend: int, divisor: int) -> int:
    whole, rest = divmod(dividend, divisor)
    return whole + (rest * 2 > divisor or (rest * 2 == divisor and whole % 2))


def test_a_level_of_centuries_does_not_overflow(desk: Desk, where: str) -> None:
    """The greatest level that fits a column, from the year 1 to today."""
    first = -62_135_596_800_000_000
    many = [seats(first - START, 2**63 - 1, a=str(at)) for at in range(400)]
    fill(desk, where, block(1, *many[:200]), block(201, *many[200:]))
    hours = (START - first) // HOUR
    assert short(rows(desk, None, 0)) == [(str(400 * (2**63 - 1) * hours), 400)]


def test_a_level_needs_an_end(desk: Desk) -> None:
    """Else the last one would hold for ever."""
    desk.send(block(1, seats(0, 3)))
    with pytest.raises(UnanswerableQuestion, match="its last level holds until the end") as error:
        desk.ledger.aggregate(UsageQuery(("seats",), start=START))
    assert error.value.field == "end"


def test_levels_of_too_many_windows_are_an_error(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level has a row in each of them."""
    desk.send(block(1, seats(0, 1, "a"), seats(0, 1, "b")))
    monkeypatch.setattr("tallybook_server.figure.QUERY_GROUPS_MAX", 9)
    assert len(rows(desk, 0, 4 * HOUR, window="hour", by_tenant=True)) == 8
    with pytest.raises(TooManyRows):
        rows(desk, 0, 5 * HOUR, window="hour", by_tenant=True)
