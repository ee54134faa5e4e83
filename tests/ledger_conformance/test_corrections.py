"""
Corrections and declarations: later entries, each once, heeded by every later answer.
"""

from __future__ import annotations

import pytest

from tallybook_server.catalogue import UnknownDimension
from tallybook_server.correction import Adjustment, Void
from tallybook_server.event_filter import EventFilter
from tallybook_server.ledger import (
    AlreadyVoided,
    CorrectionConflict,
    NothingToVoid,
    Position,
    UnfitCorrection,
    VoidRequest,
)
from tests.ledger_conformance.clerk import Clerk
from tests.ledger_conformance.deliveries import HOUR, NOON, ONE, TWO, block, event


@pytest.fixture
def filled(clerk: Clerk) -> Clerk:
    """Sequences 1 to 4, with the values 1, 2, 4 and 8."""
    clerk.send(block(1, [event(1), event(2), event(4), event(8)]))
    return clerk


def test_adjustment_is_part_of_the_sum_and_no_event(filled: Clerk, life: str) -> None:
    """It is signed, and counted apart."""
    filled.adjust("credit", -20)
    filled.pass_through(life)
    (row,) = filled.rows()
    assert (row.value, row.events, row.adjustments) == ("-5", 4, 1)


def test_adjustment_is_where_its_tenant_tags_and_time_are(filled: Clerk, life: str) -> None:
    """It makes a row of its own where nothing was used."""
    filled.correct(
        Adjustment("a", "api.calls", (25, 1), None, NOON + HOUR, {"plan": "pro"}, "as agreed")
    )
    filled.pass_through(life)
    found = filled.rows(
        start=NOON, end=NOON + 2 * HOUR, window="hour", by_tenant=True, by_tags=("plan",)
    )
    assert [(row.start, row.tenant, row.tags, row.value, row.events) for row in found] == [
        (NOON, "acme", {}, "15", 4),
        (NOON + HOUR, None, {"plan": "pro"}, "2.5", 0),
    ]


def test_adjustment_changes_nothing_but_sums(filled: Clerk) -> None:
    """There is no event that could be the greatest, or be counted."""
    filled.adjust("credit", 1_000)
    assert filled.total(aggregation="max") == "8"
    assert filled.total(aggregation="count") == "4"


def test_voided_event_exists_for_no_aggregation(filled: Clerk, life: str) -> None:
    """As if it had never been recorded."""
    filled.void("v", 4)
    filled.pass_through(life)
    found = {
        name: filled.total(aggregation=name)
        for name in ("sum", "count", "min", "max", "avg", "unique")
    }
    assert found == {
        "sum": "7",
        "count": "3",
        "min": "1",
        "max": "4",
        "avg": "2.333333333333333333",
        "unique": "3",
    }
    assert filled.total(aggregation="percentile", percentile="100") == "4"


def test_void_of_a_void_restores(filled: Clerk, life: str) -> None:
    """And a void of that takes back once more."""
    first = filled.void("v1", 4)
    filled.pass_through(life)
    second = filled.undo("v2", first)
    assert filled.total() == "15"
    filled.undo("v3", second)
    assert filled.total() == "7"


def test_adjustment_can_be_taken_back(filled: Clerk, life: str) -> None:
    """By its position, and restored by a void of that."""
    adjusted = filled.adjust("credit", -5)
    filled.pass_through(life)
    void = filled.undo("v", adjusted)
    assert filled.total() == "15"
    filled.undo("w", void)
    assert filled.total() == "10"


def test_earlier_answers_stay(filled: Clerk, life: str) -> None:
    """What was answered before a correction is answered as of then."""
    before = filled.ask()
    filled.void("v", 4)
    between = filled.ask()
    filled.adjust("credit", -5)
    filled.pass_through(life)
    assert [
        filled.total(as_of=before.position),
        filled.total(as_of=between.position),
        filled.total(),
    ] == ["15", "7", "2"]


def test_same_correction_again_is_the_same(filled: Clerk, life: str) -> None:
    """A retry after a lost answer finds what it stored."""
    adjusted, voided = filled.adjust("credit", -5), filled.void("v", 1)
    filled.pass_through(life)
    again = filled.adjust("credit", -5), filled.void("v", 1)
    # An earlier incarnation's name for the same place is as good.
    assert [one.position.n for one in again] == [adjusted.position.n, voided.position.n]
    assert [one.repeated for one in (adjusted, voided, *again)] == [False, False, True, True]
    assert filled.total() == "9"


def test_id_means_one_correction_for_ever(filled: Clerk, life: str) -> None:
    """Another correction under it is refused, with the place of the first."""
    first = filled.adjust("credit", -5)
    filled.pass_through(life)
    before = filled.ledger.position()
    with pytest.raises(CorrectionConflict) as refused:
        filled.adjust("credit", -6)
    assert refused.value.position == first.position.n
    with pytest.raises(CorrectionConflict):
        filled.void("credit", 1)
    assert filled.ledger.position() == before


def test_what_was_taken_back_is_not_taken_back_again(filled: Clerk, life: str) -> None:
    """Neither an event nor a correction."""
    void = filled.void("v1", 4)
    filled.undo("v2", void)
    filled.void("v3", 4)
    filled.pass_through(life)
    with pytest.raises(AlreadyVoided):
        filled.void("v4", 4)
    with pytest.raises(AlreadyVoided):
        filled.undo("v5", void)
    assert filled.total() == "7"


def test_void_of_nothing_is_kept_and_can_come_again(filled: Clerk, life: str) -> None:
    """Its id is not used up: it works once the event is there."""
    for _ in range(2):
        with pytest.raises(NothingToVoid):
            filled.void("early", 5)
    filled.pass_through(life)
    assert [one.reason for one in filled.ledger.rejections(after=(0, -1), limit=9)] == ["void"]
    filled.send(block(5, [event(16)]))
    filled.void("early", 5)
    assert filled.total() == "15"


def test_what_is_no_correction_is_not_taken_back(filled: Clerk) -> None:
    """The entry of a block, or none at all."""
    for position in (filled.ledger.position().n, 99):
        with pytest.raises(NothingToVoid):
            filled.correct(VoidRequest(f"v{position}", "a mistake", corrects=Position(1, position)))


def test_only_a_sum_is_adjusted(filled: Clerk) -> None:
    """By the rule that holds at the adjustment's time."""
    filled.declare("api.calls", aggregation="max", start=NOON)
    with pytest.raises(UnfitCorrection):
        filled.adjust("credit", -5)
    filled.adjust("credit", -5, time=NOON - 1)
    assert filled.total(end=NOON) == "-5"


def test_unknown_dimension_is_not_adjusted(filled: Clerk) -> None:
    """A misspelt name would be money that nobody finds."""
    with pytest.raises(UnknownDimension):
        filled.adjust("credit", -5, dimension="api.cals")


def test_corrections_are_listed_in_pages(filled: Clerk, life: str) -> None:
    """In the ledger's order, those that were taken back included, as they were told."""
    void = filled.void("v", 2)
    done = [void, filled.undo("w", void), filled.adjust("credit", -5)]
    filled.pass_through(life)
    assert [one.correction for one in filled.ledger.corrections(after=0, limit=9)] == [
        one.correction for one in done
    ]
    behind = filled.ledger.corrections(after=done[0].position.n, limit=1)
    assert [one.position.n for one in behind] == [done[1].position.n]


def test_correction_is_answered_as_it_is_kept(filled: Clerk) -> None:
    """With its position, the time of recording, and the place of what it takes back."""
    entry = filled.ledger.position().n
    correction = filled.void("v", 2).correction
    assert isinstance(correction, Void)
    assert correction.runs == ((entry, 1, 1),)
    assert (correction.position, correction.recorded_at) == (entry + 1, filled.now)


def test_void_takes_back_of_one_producer_only(filled: Clerk) -> None:
    """A sequence is nobody's without its producer."""
    with pytest.raises(NothingToVoid):
        filled.void("v", 1, producer=ONE[::-1][:15] + b"\x00")
    assert filled.total() == "15"


def test_choice_of_events_is_taken_back_by_one_entry(filled: Clerk, life: str) -> None:
    """All that passes and still counts; what comes later does not belong to it."""
    filled.send(block(1, [event(16, tenant="other"), event(32)], producer=TWO))
    filled.void("v", 4)
    filled.pass_through(life)
    chosen = EventFilter(tenants=("acme",))
    void = filled.correct(VoidRequest("w", "a leaked key", events=chosen))
    assert isinstance(void.correction, Void)
    assert void.correction.events == 4
    filled.send(block(5, [event(64)]))
    assert filled.total() == "80"
    assert filled.correct(VoidRequest("w", "a leaked key", events=chosen)).repeated
    filled.undo("x", void)
    assert filled.total() == "119"


def test_choice_that_finds_nothing_is_kept(filled: Clerk) -> None:
    """It is said, and can be found among the rejections."""
    chosen = EventFilter(tenants=("nobody",))
    with pytest.raises(NothingToVoid):
        filled.correct(VoidRequest("w", "a leaked key", events=chosen))
    assert [one.reason for one in filled.ledger.rejections(after=(0, -1), limit=9)] == ["void"]


# -- the catalogue ---------------------------------------------------------------------------


def test_dimension_appears_by_itself_as_a_sum(filled: Clerk, life: str) -> None:
    """With its first event; nobody has declared it."""
    filled.declare("seats", unit="seat", aggregation="last")
    filled.pass_through(life)
    assert [(one.name, one.aggregation, one.unit) for one in filled.ledger.dimensions()] == [
        ("api.calls", "sum", ""),
        ("seats", "last", "seat"),
    ]


def test_same_declaration_again_is_no_entry(filled: Clerk, life: str) -> None:
    """Another one is."""
    first = filled.declare("api.calls", unit="call")
    filled.pass_through(life)
    before = filled.ledger.position()
    assert filled.declare("api.calls", unit="call") == first
    assert filled.ledger.position() == before
    assert filled.declare("api.calls", unit="calls").position > first.position


def test_declared_aggregation_is_the_default(filled: Clerk, life: str) -> None:
    """And the answer says what was applied."""
    filled.declare("api.calls", unit="call", aggregation="percentile", percentile="50")
    filled.pass_through(life)
    answer = filled.ask()
    assert answer.rows[0].value == "2"
    (rule,) = answer.rules
    assert (rule.unit, rule.aggregation, rule.percentile) == ("call", "percentile", "50")


def test_rule_of_earlier_usage_stays(filled: Clerk, life: str) -> None:
    """A declaration from noon on leaves the morning as it was invoiced."""
    filled.send(block(9, [event(16, time=NOON - 1), event(32, time=NOON - 2)]))
    filled.declare("api.calls", aggregation="max", start=NOON)
    filled.pass_through(life)
    answer = filled.ask(start=NOON - HOUR, end=NOON + HOUR, window="hour")
    assert [row.value for row in answer.rows] == ["48", "8"]
    assert [(rule.aggregation, rule.start) for rule in answer.rules] == [
        ("sum", None),
        ("max", NOON),
    ]


def test_earlier_position_keeps_its_rule(filled: Clerk, life: str) -> None:
    """What was answered by the sum is answered by the sum as of then."""
    before = filled.ask()
    filled.declare("api.calls", aggregation="max")
    filled.pass_through(life)
    assert filled.total() == "8"
    again = filled.ask(as_of=before.position)
    assert (again.rows, again.rules) == (before.rows, before.rules)


def test_catalogue_has_every_declaration(filled: Clerk, life: str) -> None:
    """In the ledger's order."""
    done = [filled.declare("seats", unit="seat"), filled.declare("seats", unit="seats", start=NOON)]
    filled.pass_through(life)
    assert list(filled.ledger.catalogue().history("seats")) == done
