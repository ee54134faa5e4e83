"""Corrections and declarations: entered once, kept for ever, taken back by later ones."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from tallybook_server.catalogue import Declaration, UnknownDimension
from tallybook_server.correction import Adjustment, Run, Void
from tallybook_server.ledger import (
    AlreadyVoided,
    Corrected,
    CorrectionConflict,
    EventId,
    LedgerDamaged,
    LedgerFull,
    NothingToVoid,
    Position,
    UnfitCorrection,
    VoidRequest,
)
from tallybook_server.question import UsageQuery
from tallybook_server.verify import verify_directory
from tests.ingest_server.ledger.conftest import ONE, START, Desk, block, event

CREDIT = Adjustment("credit-1", "api.calls", (-25, 1), "acme", START, {"why": "sla"}, "outage")


def correct(desk: Desk, correction: Adjustment | VoidRequest) -> Corrected:
    return desk.ledger.correct(correction).result(timeout=0)


def the_event(sequence: int, producer: bytes = ONE) -> EventId:
    return EventId(producer.hex(), sequence)


def in_force(desk: Desk) -> tuple[list[str], tuple[Run, ...]]:
    """Ids of the adjustments, and the events taken back, that hold now."""
    snapshot = desk.ledger.snapshots.current
    state = snapshot.corrections.at(snapshot.position)
    return [one.id for one in state.adjustments], state.voided


def void(desk: Desk, void_id: str, sequence: int) -> Corrected:
    return correct(desk, VoidRequest(void_id, "a bug", event=the_event(sequence)))


@pytest.fixture
def filled(desk: Desk) -> Desk:
    """Sequences 1 to 4 in one block, entry 2."""
    desk.send(block(1, event(1), event(2), event(3), event(4)))
    return desk


def test_an_adjustment_is_an_entry_with_a_position(filled: Desk) -> None:
    """What is answered is what the ledger holds."""
    corrected = correct(filled, CREDIT)
    assert str(corrected.position) == "1.3"
    assert corrected.correction == replace(CREDIT, position=3, recorded_at=filled.now)
    assert filled.ledger.position() == corrected.position
    assert not corrected.repeated


def test_the_same_id_again_is_the_same_correction(filled: Desk) -> None:
    """A retry after a lost answer finds what it stored."""
    first = correct(filled, CREDIT)
    again = correct(filled, CREDIT)
    assert again == replace(first, repeated=True)
    assert in_force(filled)[0] == ["credit-1"]


def test_the_same_id_for_something_else_is_a_conflict(filled: Desk) -> None:
    """An id means one correction for ever, whatever its kind."""
    correct(filled, CREDIT)
    with pytest.raises(CorrectionConflict, match="entry 3"):
        correct(filled, replace(CREDIT, value=(-26, 1)))
    with pytest.raises(CorrectionConflict):
        void(filled, "credit-1", 2)
    assert filled.ledger.position().n == 3


def test_an_event_is_taken_back_by_its_identity(filled: Desk) -> None:
    """The place in the ledger is what is noted."""
    corrected = void(filled, "v", 3)
    assert corrected.correction == Void(
        "v", "a bug", (Run(2, 2, 2),), position=3, recorded_at=filled.now
    )
    assert in_force(filled) == ([], (Run(2, 2, 2),))


def test_a_void_of_a_void_restores(filled: Desk) -> None:
    """And a void of that takes back once more."""
    first = void(filled, "v1", 3)
    second = correct(filled, VoidRequest("v2", "was right", corrects=first.position))
    assert in_force(filled) == ([], ())
    correct(filled, VoidRequest("v3", "was wrong", corrects=second.position))
    assert in_force(filled) == ([], (Run(2, 2, 2),))


def test_an_adjustment_can_be_taken_back(filled: Desk) -> None:
    """By its position."""
    position = correct(filled, CREDIT).position
    correct(filled, VoidRequest("v", "twice", corrects=position))
    assert in_force(filled) == ([], ())


def test_what_was_taken_back_cannot_be_taken_back_again(filled: Desk) -> None:
    """One void is in force for a thing, so that taking that one back restores it."""
    position = void(filled, "v1", 3).position
    with pytest.raises(AlreadyVoided, match="taken back before"):
        void(filled, "v2", 3)
    correct(filled, VoidRequest("v3", "no", corrects=position))
    with pytest.raises(AlreadyVoided):
        correct(filled, VoidRequest("v4", "no", corrects=position))
    assert void(filled, "v5", 3).position.n == 5


@pytest.mark.parametrize("missing", [0, 5, 99])
def test_a_void_of_nothing_is_kept_as_a_rejection(filled: Desk, missing: int) -> None:
    """It can be replayed when the event has come; the same one is kept once."""
    for _ in range(2):
        with pytest.raises(NothingToVoid, match=f"-{missing} that counts"):
            void(filled, "early", missing)
    (rejection,) = filled.ledger.rejections(after=(0, -1), limit=10)
    assert (rejection.reason, b'"early"' in rejection.data) == ("void", True)
    assert in_force(filled) == ([], ())


def test_a_void_that_came_early_works_once_the_event_is_there(filled: Desk) -> None:
    """Its id was not used up."""
    with pytest.raises(NothingToVoid):
        void(filled, "early", 5)
    filled.send(block(5, event(5)))
    assert void(filled, "early", 5).position.n == 5


def test_an_event_that_does_not_count_cannot_be_taken_back(desk: Desk) -> None:
    """A rejected event has a sequence, and no place among what counts."""
    desk.send(block(1, event(1), event(2, dimension="NOT GOOD")))
    with pytest.raises(NothingToVoid):
        void(desk, "v", 2)


def test_a_void_of_no_correction_is_refused(filled: Desk) -> None:
    """A block's entry is no correction."""
    with pytest.raises(NothingToVoid, match="entry 2 is no correction"):
        correct(filled, VoidRequest("v", "a bug", corrects=Position(1, 2)))


def test_only_a_sum_is_adjusted(filled: Desk) -> None:
    """By the rule that holds at the adjustment's time."""
    levels = Declaration("api.calls", aggregation="last", start=START)
    filled.ledger.declare(levels).result(timeout=0)
    with pytest.raises(UnfitCorrection, match="declared as last"):
        correct(filled, CREDIT)
    assert correct(filled, replace(CREDIT, time=START - 1)).position.n == 4


def test_a_misspelt_dimension_is_not_adjusted(filled: Desk) -> None:
    """There is nothing that the adjustment could belong to."""
    with pytest.raises(UnknownDimension):
        correct(filled, replace(CREDIT, dimension="api.cals"))


def test_a_declaration_that_says_nothing_new_is_no_entry(filled: Desk) -> None:
    """PUT is idempotent; another declaration is another entry."""
    seats = Declaration("seats", unit="seat", aggregation="time_weighted")
    first = filled.ledger.declare(seats).result(timeout=0)
    assert first == replace(seats, position=3)
    assert filled.ledger.declare(seats).result(timeout=0) == first
    later = filled.ledger.declare(replace(seats, unit="seats", start=START)).result(timeout=0)
    assert later.position == 4
    assert filled.ledger.catalogue().rules("seats") == [first, later]


def test_dimensions_are_those_declared_and_those_seen(filled: Desk) -> None:
    """One that nobody declared is a sum, at position 0; sealing changes nothing."""
    filled.ledger.declare(Declaration("seats", aggregation="last")).result(timeout=0)
    for _ in range(2):
        found = [
            (one.name, one.aggregation, one.position > 0) for one in filled.ledger.dimensions()
        ]
        assert found == [("api.calls", "sum", False), ("seats", "last", True)]
        filled.ledger.sealer.step(force=True)


def test_what_does_not_count_makes_no_dimension(desk: Desk) -> None:
    """
    An event in conflict names a dimension that nothing was recorded of.

    It was unknown to a question as long as it was in the tail, and known once it was sealed.
    """
    desk.offer(event(1, id="1"))
    desk.offer(event(1, id="1", dimension="other"))
    for _ in range(2):
        assert [one.name for one in desk.ledger.dimensions()] == ["api.calls"]
        with pytest.raises(UnknownDimension):
            desk.ledger.aggregate(UsageQuery(("other",)))
        with pytest.raises(UnknownDimension):
            correct(desk, replace(CREDIT, dimension="other"))
        desk.seal()


def test_corrections_are_listed_in_pages(filled: Desk) -> None:
    """In the ledger's order, those that were taken back included."""
    correct(filled, CREDIT)
    void(filled, "v", 1)
    correct(filled, VoidRequest("w", "no", corrects=Position(1, 3)))
    listed = filled.ledger.corrections(after=0, limit=2)
    assert [one.position.n for one in listed] == [3, 4]
    assert [one.position.n for one in filled.ledger.corrections(after=4, limit=2)] == [5]


def test_a_restart_knows_them(filled: Desk) -> None:
    """Everything is read from the entries again."""
    correct(filled, CREDIT)
    void(filled, "v", 1)
    filled.ledger.declare(Declaration("seats", aggregation="last", start=START)).result(timeout=0)
    before = in_force(filled), filled.ledger.catalogue().rules("seats")
    filled.reopen()
    assert (in_force(filled), filled.ledger.catalogue().rules("seats")) == before
    assert correct(filled, CREDIT).repeated
    assert filled.findings() == []


def test_an_earlier_position_knows_only_what_was_before(filled: Desk) -> None:
    """What is in force depends on the position and on nothing else."""
    correct(filled, CREDIT)
    void(filled, "v", 1)
    correct(filled, VoidRequest("w", "no", corrects=Position(1, 3)))
    corrections = filled.ledger.snapshots.current.corrections
    states = [
        (len(corrections.at(n).adjustments), len(corrections.at(n).voided)) for n in range(2, 6)
    ]
    assert states == [(0, 0), (1, 0), (1, 1), (0, 1)]


@pytest.mark.parametrize(
    ("sql", "finding"),
    [
        ("DELETE FROM changes WHERE position = 3", "it is not noted as what it says"),
        ("UPDATE changes SET id = 'other' WHERE position = 3", "it is not noted as what it says"),
        ("UPDATE changes SET digest = x'00' WHERE position = 4", "it is not noted as what it says"),
        ("INSERT INTO changes VALUES (2, 'x', x'00')", "noted as a change, which it is not"),
        ("DELETE FROM changes WHERE position = 4", "it is not noted as what it says"),
    ],
)
def test_verify_finds_a_changed_note(filled: Desk, sql: str, finding: str) -> None:
    """What is found by its id must be what the chain says."""
    correct(filled, CREDIT)
    void(filled, "v", 1)
    assert filled.findings() == []
    filled.ledger.close()
    db = sqlite3.connect(filled.directory / "journal.db")
    db.execute(sql)
    db.commit()
    db.close()
    found = list(verify_directory(filled.directory))
    assert any(finding in one.detail for one in found)


def test_a_list_of_changes_that_is_damaged_is_not_opened(filled: Desk) -> None:
    """An answer must not leave out a correction in silence."""
    filled.ledger.close()
    db = sqlite3.connect(filled.directory / "journal.db")
    db.execute("INSERT INTO changes VALUES (2, 'x', x'00')")
    db.commit()
    db.close()
    with pytest.raises(LedgerDamaged, match="entry 2 is a block"):
        filled.reopen()


@pytest.mark.parametrize("durable", [False, True])
def test_a_commit_that_fails_once_leaves_one_correction(filled: Desk, durable: bool) -> None:
    """Whether it was durable or not: the second try looks first."""
    filled.faults.commits, filled.faults.durable = 1, durable
    corrected = correct(filled, CREDIT)
    assert corrected.repeated is durable
    assert in_force(filled)[0] == ["credit-1"]
    assert filled.findings() == []


def test_a_commit_that_fails_for_good_says_so_and_changes_nothing(filled: Desk) -> None:
    """No answer heeds what is not on disk."""
    filled.faults.commits = 2
    with pytest.raises(LedgerFull):
        correct(filled, CREDIT)
    assert in_force(filled) == ([], ())
    assert correct(filled, CREDIT).position.n == 3
