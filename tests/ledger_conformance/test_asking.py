"""
Asking: what every answer says beside its rows, and what has no answer.

What the rows are is in `test_answers`.
"""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfoNotFoundError

import pytest

from tallybook_server.catalogue import RuleChanges, UnfitAggregation, UnknownDimension
from tallybook_server.ledger import Position, PositionUnknown, TooManyRows, UsageRow
from tallybook_server.question import UnanswerableQuestion
from tests.ledger_conformance.clerk import Clerk
from tests.ledger_conformance.deliveries import HOUR, NOON, SECOND, block, event


@pytest.fixture
def filled(clerk: Clerk) -> Clerk:
    """Ten tenants with one event each."""
    clerk.send(block(1, [event(at, tenant=f"t{at}") for at in range(10)]))
    return clerk


# -- as of -----------------------------------------------------------------------------------


def test_answer_names_the_position_that_it_holds_for(filled: Clerk) -> None:
    """The head, or what was asked for."""
    head = filled.ledger.position()
    assert filled.ask().position == head
    filled.send(block(11, [event(1)]))
    assert filled.ask(as_of=head).position == head


def test_as_of_leaves_out_what_came_later(filled: Clerk, life: str) -> None:
    """Also what came in between, and lies between earlier events."""
    head = filled.ledger.position()
    filled.send(block(11, [event(100, tenant="t3")]))
    filled.pass_through(life)
    assert (filled.total(), filled.total(as_of=head)) == ("145", "45")


def test_as_of_a_time_of_recording(clerk: Clerk, life: str) -> None:
    """What was recorded by then, whatever time the events themselves claim."""
    moments: list[int] = []
    for at in range(3):
        clerk.send(block(at + 1, [event(10**at, time=NOON - at)]))
        moments.append(clerk.now)
        clerk.subject.clock.advance(10)
    clerk.pass_through(life)
    found = [clerk.total(as_of_time=moment) for moment in moments]
    between = clerk.total(as_of_time=moments[1] + SECOND)
    assert (found, between) == (["1", "11", "111"], "11")


@pytest.mark.parametrize("asked", [Position(1, 99), Position(2, 1), Position(1, -1)])
def test_position_that_never_was_is_unknown(filled: Clerk, asked: Position) -> None:
    """Beyond the head, of a life yet to come, or before the beginning."""
    with pytest.raises(PositionUnknown) as refused:
        filled.ask(as_of=asked)
    assert refused.value.head == filled.ledger.position()


def test_dimension_is_unknown_as_of_before_it_was(filled: Clerk) -> None:
    """It was not there yet."""
    head = filled.ledger.position()
    filled.send(block(11, [event(1, dimension="later")]))
    with pytest.raises(UnknownDimension):
        filled.ask("later", as_of=head)


# -- pages -----------------------------------------------------------------------------------


def test_pages_are_the_whole_answer_while_events_arrive(filled: Clerk) -> None:
    """All name one position."""
    whole = filled.ask(by_tenant=True)
    found: list[UsageRow] = []
    while True:
        page = filled.ask(by_tenant=True, skip=len(found), limit=3, as_of=whole.position)
        assert page.events == whole.events == 10
        found += page.rows
        filled.send(block(100 + len(found), [event(1, tenant=f"t{len(found)}")]))
        filled.subject.maintain()
        if not page.more:
            break
    assert found == whole.rows


def test_rows_beyond_the_last_are_none(filled: Clerk) -> None:
    """An empty page, and no more."""
    page = filled.ask(by_tenant=True, skip=10, limit=3)
    assert (page.rows, page.more) == ([], False)


def test_top_is_per_window_and_dimension(filled: Clerk) -> None:
    """The greatest two of each."""
    filled.send(block(11, [event(7, dimension="other"), event(20, tenant="t0", time=NOON + HOUR)]))
    found = filled.rows(
        "api.calls",
        "other",
        start=NOON,
        end=NOON + 2 * HOUR,
        window="hour",
        by_tenant=True,
        order="-value",
        top=2,
    )
    assert [(row.start, row.dimension, row.value) for row in found] == [
        (NOON, "api.calls", "9"),
        (NOON, "api.calls", "8"),
        (NOON, "other", "7"),
        (NOON + HOUR, "api.calls", "20"),
    ]


# -- beside the rows -------------------------------------------------------------------------


def test_answer_names_its_time_zone_rules(filled: Clerk) -> None:
    """So that a changed rule is told from a changed ledger."""
    assert filled.ask().tzdata


def test_explanation_only_on_demand(filled: Clerk, life: str) -> None:
    """How many rows were read, wherever they are."""
    filled.void("v", 1)
    filled.pass_through(life)
    assert filled.ask().explanation is None
    told = filled.ask(explain=True).explanation
    assert told is not None
    assert (told.segment_rows + told.tail_rows, told.voided) == (10, 1)


def test_no_events_are_no_rows(filled: Clerk, life: str) -> None:
    """A dimension that there is, and a time at which nothing was used."""
    filled.pass_through(life)
    answer = filled.ask(start=0, end=1)
    assert (answer.rows, answer.events, answer.more) == ([], 0, False)
    assert answer.rules


# -- what has no answer ----------------------------------------------------------------------


def test_unknown_dimension_is_refused(filled: Clerk, life: str) -> None:
    """With those that there are, for who has misspelt it."""
    filled.pass_through(life)
    with pytest.raises(UnknownDimension) as refused:
        filled.ask("api.cals")
    assert refused.value.known == ("api.calls",)


def test_new_ledger_knows_no_dimension(clerk: Clerk) -> None:
    """It has a position all the same."""
    assert clerk.ledger.position().incarnation == 1
    with pytest.raises(UnknownDimension):
        clerk.ask()


def test_what_did_not_count_makes_no_dimension(clerk: Clerk, life: str) -> None:
    """A duplicate, a conflict and a rejection name dimensions, too."""
    clerk.offer(event(id="1"), event(id="1", dimension="conflict"))
    clerk.send(block(1, [event(1, dimension="rejected", tags={"k" * 65: ""})]))
    clerk.pass_through(life)
    for name in ("conflict", "rejected"):
        with pytest.raises(UnknownDimension):
            clerk.ask(name)
    assert [one.name for one in clerk.ledger.dimensions()] == ["api.calls"]


def test_sum_of_a_level_is_refused(filled: Clerk) -> None:
    """It would depend on how often the level was reported."""
    filled.declare("seats", aggregation="last")
    with pytest.raises(UnfitAggregation) as refused:
        filled.ask("seats", aggregation="sum")
    assert (refused.value.declared, refused.value.asked) == ("last", "sum")


def test_rule_that_changes_within_a_row_is_refused(filled: Clerk) -> None:
    """No rule fits all of it."""
    filled.declare("api.calls", aggregation="max", start=NOON)
    with pytest.raises(RuleChanges) as refused:
        filled.ask()
    assert refused.value.moment == NOON
    assert filled.total(start=NOON) == "9"
    assert filled.total(aggregation="count") == "10"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"window": "day", "end": NOON}, "start"),
        ({"window": "day", "start": NOON}, "end"),
        ({"aggregation": "percentile"}, "percentile"),
        ({"aggregation": "percentile", "percentile": "0"}, "percentile"),
        ({"aggregation": "percentile", "percentile": "100.1"}, "percentile"),
        ({"as_of": Position(1, 1), "as_of_time": NOON}, "as_of_time"),
    ],
)
def test_question_that_lacks_something_is_refused(
    filled: Clerk, query: dict[str, Any], field: str
) -> None:
    """And told which of its fields it is."""
    with pytest.raises(UnanswerableQuestion) as refused:
        filled.ask(**query)
    assert refused.value.field == field


def test_level_over_time_needs_an_end(filled: Clerk) -> None:
    """The last one holds until then."""
    filled.declare("api.calls", aggregation="time_weighted")
    with pytest.raises(UnanswerableQuestion) as refused:
        filled.ask()
    assert refused.value.field == "end"


def test_unknown_time_zone_is_refused(filled: Clerk) -> None:
    """There is no guess."""
    with pytest.raises(ZoneInfoNotFoundError):
        filled.ask(start=0, end=NOON, window="day", time_zone="Europe/Atlantis")


def test_too_many_windows_are_refused(filled: Clerk) -> None:
    """The minutes of fifty years; never a part of them."""
    with pytest.raises(TooManyRows):
        filled.ask(start=0, end=NOON, window="minute")
