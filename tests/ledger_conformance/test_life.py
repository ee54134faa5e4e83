"""
A ledger's life: closed and opened, kept in order, listened to, and what it knows of producers.
"""

from __future__ import annotations

import pytest

from tallybook_server.ledger import LedgerBusy, ProducerReport
from tests.ledger_conformance.clerk import Clerk
from tests.ledger_conformance.deliveries import ONE, SECOND, TWO, announcement, block, event


def test_ledger_is_the_same_one_after_it_was_closed(clerk: Clerk) -> None:
    """The id and the position that it had, and every answer."""
    clerk.send(block(1, [event(1), event(2)]))
    before = clerk.ledger.id, clerk.ledger.position(), clerk.ask()
    clerk.subject.reopen()
    assert (clerk.ledger.id, clerk.ledger.position(), clerk.ask()) == before


def test_closing_twice_is_closing(clerk: Clerk) -> None:
    """Whoever comes last needs not know."""
    clerk.ledger.close()
    clerk.ledger.close()
    clerk.subject.reopen()


def test_nothing_is_taken_once_it_is_closed(clerk: Clerk) -> None:
    """And nothing that was acknowledged is lost."""
    clerk.send(block(1, [event(1)]))
    clerk.ledger.close()
    with pytest.raises(LedgerBusy):
        clerk.send(block(2, [event(2)]))
    clerk.subject.reopen()
    assert clerk.total() == "1"


def test_keeping_an_empty_ledger_in_order_changes_nothing(clerk: Clerk) -> None:
    """There is nothing to do."""
    before = clerk.ledger.position()
    clerk.subject.maintain()
    assert clerk.ledger.position() == before


def test_keeping_it_in_order_changes_no_answer(clerk: Clerk) -> None:
    """However often, with new events in between."""
    for at in range(8):
        clerk.send(block(at + 1, [event(10**at, tenant=f"t{at % 3}", tags={f"k{at % 2}": "v"})]))
        before = clerk.rows(by_tenant=True, by_tags=("k0",))
        clerk.subject.maintain()
        assert clerk.rows(by_tenant=True, by_tags=("k0",)) == before
    assert clerk.total() == "11111111"


def test_whoever_listens_is_told_of_what_is_new(clerk: Clerk) -> None:
    """By the time that it is in answers; until they listen no more."""
    heard: list[str | None] = []
    end = clerk.ledger.listen(lambda: heard.append("something"))
    clerk.send(block(1, [event(1)]))
    assert heard
    end()
    heard.clear()
    clerk.send(block(2, [event(1)]))
    assert heard == []


# -- producers -------------------------------------------------------------------------------


def report(clerk: Clerk, producer: bytes = ONE) -> ProducerReport:
    """What is known of one producer."""
    (found,) = (one for one in clerk.ledger.producers() if one.producer == producer.hex())
    return found


def test_announced_and_missing_is_a_number(clerk: Clerk, life: str) -> None:
    """Five were recorded, and three are here."""
    said = announcement(clerk.now, highest=5)
    clerk.send(block(2, [event(), event(), event()]), announcement=said)
    clerk.pass_through(life)
    found = report(clerk)
    assert (found.recorded, found.received, found.missing) == (5, 3, 2)
    assert found.gaps == [(1, 1), (5, 5)]
    assert clerk.ask().producers["missing"] == 2


def test_answer_is_complete_through_what_was_announced(clerk: Clerk, life: str) -> None:
    """Once nothing up to the highest sequence is missing."""
    begun = clerk.now
    clerk.send(block(1, [event()]), announcement=announcement(begun, highest=1))
    clerk.subject.clock.advance(10)
    clerk.send(block(3, [event()]), announcement=announcement(clerk.now, highest=3))
    clerk.pass_through(life)
    assert clerk.ask().through == begun
    clerk.send(block(2, [event()]))
    assert clerk.ask().through == begun + 10 * SECOND
    assert clerk.ask().complete


def test_silent_producer_makes_answers_incomplete(clerk: Clerk, life: str) -> None:
    """Nobody knows what it holds; the answer names it."""
    clerk.send(block(1, [event()]), announcement=announcement(clerk.now, highest=1))
    clerk.subject.clock.advance(3_600)
    clerk.pass_through(life)
    answer = clerk.ask()
    assert (answer.complete, report(clerk).state) == (False, "silent")
    assert answer.producers["silent_producers"] == [ONE.hex()]


def test_closed_producer_is_never_silent(clerk: Clerk, life: str) -> None:
    """It has said that nothing will come."""
    said = announcement(clerk.now, highest=1, closed=True)
    clerk.send(block(1, [event()]), announcement=said)
    clerk.subject.clock.advance(3_600)
    clerk.pass_through(life)
    assert (clerk.ask().complete, report(clerk).state) == (True, "closed")


def test_dropped_events_make_answers_incomplete(clerk: Clerk, life: str) -> None:
    """They are lost, and a number."""
    said = announcement(clerk.now, highest=1, dropped=7)
    clerk.send(block(1, [event()]), announcement=said)
    clerk.pass_through(life)
    answer = clerk.ask()
    assert (answer.complete, answer.producers["dropped"]) == (False, 7)


def test_last_seen_producer_comes_first(clerk: Clerk) -> None:
    """The list begins with who spoke last."""
    for producer in (ONE, TWO):
        clerk.send(announcement=announcement(clerk.now, producer=producer))
        clerk.subject.clock.advance(1)
    assert [one.producer for one in clerk.ledger.producers()] == [TWO.hex(), ONE.hex()]
