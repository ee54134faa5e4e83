"""
Aggregations, each by an example that can be checked by hand: from the tail, from segments, from
both; with values of different scales and beyond 63 bits.
"""

from __future__ import annotations

from typing import Any

import pytest

from tallybook.block import Columns, encode_block
from tallybook.frame import encode_series
from tallybook_server.catalogue import Declaration
from tallybook_server.figure import QUOTIENT_DECIMALS, quotient
from tallybook_server.question import UnanswerableQuestion, UsageQuery, UsageRow
from tests.ingest_server.ledger.conftest import START, TWO, Desk, block, event, fill

HOUR = 3_600_000_000
HUGE = 10**37  # 38 digits; their sum and their billionths need more than 128 bits.


def rows(desk: Desk, aggregation: str | None = None, **query: Any) -> list[UsageRow]:
    """The rows of a query for ``api.calls``."""
    asked: Any = aggregation
    return desk.ledger.aggregate(UsageQuery(("api.calls",), aggregation=asked, **query)).rows


def value(desk: Desk, aggregation: str, **query: Any) -> str | None:
    """The value of the one row that there is."""
    (row,) = rows(desk, aggregation, **query)
    return row.value


def test_least_and_greatest_are_compared_by_quantity(desk: Desk, where: str) -> None:
    """0.9 is less than 1, and 5 less than 38 digits, whatever their mantissas."""
    fill(desk, where, block(1, event("0.9"), event(5)), block(3, event(1), event(HUGE)))
    assert value(desk, "min") == "0.9"
    assert value(desk, "max") == str(HUGE)


def test_greatest_without_a_wide_value_is_not_taken_for_zero(desk: Desk, where: str) -> None:
    """A wide value has a 0 beside it where it is stored; that is nobody's least value."""
    fill(desk, where, block(1, event(HUGE), event("7.5")), block(3, event(HUGE)))
    assert value(desk, "min") == "7.5"


def test_average_is_rounded_once_half_to_even(desk: Desk, where: str) -> None:
    """1 / 3 with 18 digits; and exact wherever it can be."""
    fill(
        desk,
        where,
        block(1, event("0.5", tenant="a"), event("0.25", tenant="a"), event(0, tenant="a")),
        block(4, event(1, tenant="b"), event(2, tenant="b"), event(2, tenant="b")),
        block(7, event(HUGE, tenant="c"), event(HUGE + 1, tenant="c")),
    )
    assert [row.value for row in rows(desk, "avg", by_tenant=True)] == [
        "0.25",
        "1.666666666666666667",
        f"{HUGE}.5",
    ]


@pytest.mark.parametrize(
    ("dividend", "rounded"), [(-3, -2), (-1, 0), (1, 0), (2, 1), (3, 2), (5, 2), (7, 4)]
)
def test_a_half_is_rounded_to_the_even_neighbour(dividend: int, rounded: int) -> None:
    """Halves of the last digit that is kept."""
    assert quotient(dividend, 2 * 10**QUOTIENT_DECIMALS) == rounded


def test_last_is_by_time_and_then_by_place_in_the_ledger(desk: Desk, where: str) -> None:
    """What came last does not matter, unless it happened in the same microsecond."""
    fill(
        desk,
        where,
        block(1, event(1, time=START), event("2.50", time=START + 9), event(3, time=START + 9)),
        block(4, event(HUGE, time=START + 5, tenant="b"), event(8, time=START)),
    )
    desk.ledger.declare(Declaration("api.calls", aggregation="last")).result(timeout=0)
    found = rows(desk, by_tenant=True)
    assert [(row.tenant, row.value, row.events) for row in found] == [
        ("acme", "3", 4),
        ("b", str(HUGE), 1),
    ]
    assert rows(desk, end=START + 1)[0].value == "8"


def test_unique_values_are_quantities(desk: Desk, where: str) -> None:
    """1.5 and 1.50 are one value, also from a producer that writes both; so are wide ones."""
    columns = Columns(
        version=1,
        source=None,
        series=[encode_series("api.calls", None, {})],
        of=[0, 0, 0, 0],
        times=[START, 0, 0, 0],
        mantissas=[15, 150, 0, 0],
        scales=[1, 2, 0, 3],
        wides=[(2, str(10**20)), (3, str(10**23))],
        keys=[],
        ids=[],
        given=[],
    )
    fill(desk, where, encode_block(columns, producer=TWO, first=1), block(1, event(15)))
    (row,) = rows(desk, "unique")
    assert (row.value, row.events) == ("3", 5)


def test_unique_tags_are_counted_where_there_is_one(desk: Desk, where: str) -> None:
    """Events that lack the tag are in the row, and not among its different values."""
    fill(
        desk,
        where,
        block(1, event(1, tags={"user": "ann"}), event(1, tags={"user": ""}), event(1)),
        block(4, event(1, tags={"user": "ann"}), event(1, tenant="b")),
    )
    found = rows(desk, "unique", unique_of="user", by_tenant=True)
    assert [(row.tenant, row.value, row.events) for row in found] == [
        ("acme", "2", 4),
        ("b", "0", 1),
    ]


@pytest.mark.parametrize(
    ("percentile", "expected"),
    [
        ("50", "15"),
        ("0.000000001", "0.5"),
        ("20", "0.5"),
        ("20.000000001", "15"),
        ("40", "15"),
        ("60", "15"),
        ("80", "20"),
        ("99.9", str(HUGE)),
        ("100", str(HUGE)),
    ],
)
def test_percentile_is_the_nearest_rank(
    desk: Desk, where: str, percentile: str, expected: str
) -> None:
    """The smallest value that so many percent of the values do not exceed."""
    fill(
        desk,
        where,
        block(1, event(20), event(HUGE), event("15.0")),
        block(4, event("0.5"), event("15")),
    )
    (row,) = rows(desk, "percentile", percentile=percentile)
    assert (row.value, row.events) == (expected, 5)


def test_percentile_tells_apart_what_differs_behind_the_point(desk: Desk, where: str) -> None:
    """The whole units are the same, and so are some of the scales."""
    fill(
        desk,
        where,
        block(1, event("7.3"), event("7.10")),
        block(3, event("7.200000001"), event("7.2")),
    )
    found = [value(desk, "percentile", percentile=p) for p in ("25", "50", "75", "100")]
    assert found == ["7.1", "7.2", "7.200000001", "7.3"]


@pytest.mark.parametrize("percentile", ["0", "100.000000001", "1e2", "-5", "", "x", "0.0000000001"])
def test_percentile_that_is_none_is_a_problem(desk: Desk, percentile: str) -> None:
    """Named by its field."""
    desk.send(block(1, event(1)))
    with pytest.raises(UnanswerableQuestion, match="expected a number above 0") as error:
        rows(desk, "percentile", percentile=percentile)
    assert error.value.field == "percentile"
