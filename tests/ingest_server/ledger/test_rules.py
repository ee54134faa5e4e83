"""
Declared rules: what holds where a window begins is what it is computed by.
"""

from __future__ import annotations

from typing import Any

import pytest

from tallybook_server.catalogue import (
    Declaration,
    RuleChanges,
    UnfitAggregation,
    UnknownDimension,
)
from tallybook_server.question import AppliedRule, UnanswerableQuestion, UsageQuery
from tests.ingest_server.ledger.conftest import START, Desk, block, event, fill

HOUR = 3_600_000_000


def declare(desk: Desk, name: str, aggregation: Any, **fields: Any) -> None:
    desk.ledger.declare(Declaration(name, aggregation=aggregation, **fields)).result(timeout=0)


def three_hours(desk: Desk, where: str = "tail") -> None:
    """In each of three hours 1 and 10 calls."""
    first, *others = (
        block(1 + 2 * at, event(1, time=START + at * HOUR), event(10, time=START + at * HOUR))
        for at in range(3)
    )
    desk.clock.advance(400 * 86_400)
    fill(desk, where, first, *others)


def hourly(desk: Desk, **query: Any) -> list[str | None]:
    """The value of each hour."""
    asked = UsageQuery(("api.calls",), start=START, end=START + 3 * HOUR, window="hour", **query)
    return [row.value for row in desk.ledger.aggregate(asked).rows]


def test_each_window_is_computed_by_the_rule_at_its_start(desk: Desk, where: str) -> None:
    """A sum until two, the greatest from two on; the answer says so."""
    three_hours(desk, where)
    declare(desk, "api.calls", "max", unit="call", start=START + 2 * HOUR)
    assert hourly(desk) == ["11", "11", "10"]
    usage = desk.ledger.aggregate(
        UsageQuery(("api.calls",), start=START, end=START + 3 * HOUR, window="hour")
    )
    assert usage.rules == [
        AppliedRule("api.calls", "", "sum"),
        AppliedRule("api.calls", "call", "max", start=START + 2 * HOUR),
    ]
    assert usage.events == 6


def test_a_rule_that_changes_within_a_row_is_an_error(desk: Desk) -> None:
    """The error names the moment; an aggregation that both rules know has no such trouble."""
    three_hours(desk)
    declare(desk, "api.calls", "max", start=START + HOUR + 1)
    with pytest.raises(RuleChanges, match=r"as sum until 2026-01-01T01:00:00\.000001Z") as error:
        hourly(desk)
    assert (error.value.dimension, error.value.moment) == ("api.calls", START + HOUR + 1)
    with pytest.raises(RuleChanges):
        desk.ledger.aggregate(UsageQuery(("api.calls",)))
    assert hourly(desk, aggregation="sum") == ["11", "11", "11"]
    before = UsageQuery(("api.calls",), end=START + HOUR + 1)
    after = UsageQuery(("api.calls",), start=START + HOUR + 1)
    values = [desk.ledger.aggregate(one).rows[0].value for one in (before, after)]
    assert values == ["22", "10"]


def test_the_same_rule_again_is_no_change(desk: Desk) -> None:
    """Other words for people, from some moment on, change no number."""
    three_hours(desk)
    declare(desk, "api.calls", "sum", description="calls of the API", start=START + HOUR + 1)
    assert hourly(desk) == ["11", "11", "11"]


def test_two_units_are_not_added_up(desk: Desk) -> None:
    """From megabytes to gigabytes is a change of the rule, though both are sums."""
    three_hours(desk)
    declare(desk, "api.calls", "sum", unit="GB", start=START + HOUR + 1)
    with pytest.raises(RuleChanges, match="as sum in GB"):
        hourly(desk)
    assert hourly(desk, aggregation="sum") == ["11", "11", "11"]


def test_dimensions_are_computed_each_by_its_own_rule(desk: Desk, where: str) -> None:
    """Several in one question: a sum, a level's last report, and the users of a third."""
    seats, logins = (
        [
            event(at, dimension=name, tags={"user": f"u{at % 2}"}, time=START + at)
            for at in (3, 2, 5)
        ]
        for name in ("seats", "logins")
    )
    declare(desk, "seats", "last", unit="seat")
    declare(desk, "logins", "unique", unique_of="user")
    fill(desk, where, block(1, *seats, event(7)), block(5, *logins, event(8)))
    usage = desk.ledger.aggregate(UsageQuery(("seats", "logins", "api.calls")))
    assert [(row.dimension, row.value, row.events) for row in usage.rows] == [
        ("api.calls", "15", 2),
        ("logins", "2", 3),
        ("seats", "5", 3),
    ]
    assert usage.rules == [
        AppliedRule("seats", "seat", "last"),
        AppliedRule("logins", "", "unique", unique_of="user"),
        AppliedRule("api.calls", "", "sum"),
    ]
    assert usage.events == 8


def test_the_average_of_a_level_is_refused(desk: Desk) -> None:
    """By every rule in force; the message names what may be asked."""
    desk.send(block(1, event(1, dimension="seats")))
    declare(desk, "seats", "last", start=START)
    with pytest.raises(UnfitAggregation, match="expected one of last, min, max") as error:
        desk.ledger.aggregate(UsageQuery(("seats",), aggregation="avg"))
    fields = (error.value.dimension, error.value.declared, error.value.asked)
    assert fields == ("seats", "last", "avg")
    before = UsageQuery(("seats",), aggregation="avg", end=START)
    assert desk.ledger.aggregate(before).rows[0].value == "1"


def test_the_question_overrules_what_is_counted(desk: Desk) -> None:
    """The p and the tag of the declaration hold unless the question names its own."""
    desk.send(block(1, *(event(at, tags={"user": f"u{at % 3}", "ip": "x"}) for at in range(10))))

    def ask(**query: Any) -> str | None:
        return desk.ledger.aggregate(UsageQuery(("api.calls",), **query)).rows[0].value

    with pytest.raises(UnanswerableQuestion, match="needs to know which"):
        ask(aggregation="percentile")
    declare(desk, "api.calls", "percentile", percentile="50")
    assert (ask(), ask(percentile="90"), ask(aggregation="percentile")) == ("4", "8", "4")
    declare(desk, "api.calls", "unique", unique_of="user")
    assert (ask(), ask(unique_of="ip"), ask(aggregation="sum")) == ("3", "1", "45")


def test_unique_that_is_asked_for_without_a_tag_is_of_the_value(desk: Desk) -> None:
    """Also where a tag is declared: else nobody could ask for the value."""
    desk.send(block(1, *(event(at, tags={"user": "u"}) for at in range(10))))
    declare(desk, "api.calls", "unique", unique_of="user")
    usage = desk.ledger.aggregate(UsageQuery(("api.calls",), aggregation="unique"))
    assert usage.rows[0].value == "10"
    assert usage.rules == [AppliedRule("api.calls", "", "unique")]


def test_a_dimension_that_nobody_knows_is_an_error(desk: Desk, where: str) -> None:
    """A typing mistake is no month without usage; the error knows the others."""
    declare(desk, "seats", "last")
    fill(desk, where, block(1, event(1)), block(2, event(1, dimension="tokens")))
    with pytest.raises(UnknownDimension) as error:
        desk.ledger.aggregate(UsageQuery(("api.calls", "api.cals")))
    assert error.value.dimension == "api.cals"
    assert error.value.known == ("api.calls", "seats", "tokens")
    assert desk.ledger.aggregate(UsageQuery(("seats",))).rows == []
