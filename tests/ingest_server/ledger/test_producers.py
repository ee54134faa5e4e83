"""
Producers: what is known to be missing, and when an answer is complete.
"""

from __future__ import annotations

from tallybook_server.ledger import ProducerReport, Usage, UsageQuery
from tests.ingest_server.ledger.conftest import ONE, START, TWO, Desk, block, event

SECOND = 1_000_000


def report(desk: Desk, producer: bytes = ONE) -> ProducerReport:
    """What is known of one producer."""
    (found,) = (one for one in desk.ledger.producers() if one.producer == producer.hex())
    return found


def usage(desk: Desk) -> Usage:
    return desk.ledger.aggregate(UsageQuery(("api.calls",)))


def test_announced_and_missing_is_a_number(desk: Desk) -> None:
    """A lost disk: 5 were recorded, 3 are here."""
    desk.send(block(2, event(1)), block(4, event(1)), announcement=desk.announce(highest=5))
    found = report(desk)
    assert (found.recorded, found.received, found.missing) == (5, 2, 3)
    assert found.gaps == [(1, 1), (3, 3), (5, 5)]
    assert found.through is None
    assert usage(desk).producers["missing"] == 3


def test_complete_through_what_was_announced(desk: Desk) -> None:
    """Everything up to the highest sequence is here: complete through the announced time."""
    desk.send(block(1, event(1)), announcement=desk.announce(highest=1, through=START - SECOND))
    assert report(desk).through == START - SECOND
    assert usage(desk).through == START - SECOND
    assert usage(desk).complete


def test_through_is_by_the_servers_clock(desk: Desk) -> None:
    """A host an hour ahead: what it says is an hour less."""
    hour = 3600 * SECOND
    ahead = desk.announce(highest=1, sent_at=START + hour, through=START + hour - SECOND)
    desk.send(block(1, event(1)), announcement=ahead)
    assert report(desk).through == START - SECOND


def test_through_waits_for_what_is_missing(desk: Desk) -> None:
    """The announcement overtakes a block: through moves when the block is here."""
    desk.send(block(1, event(1)), announcement=desk.announce(highest=1))
    desk.clock.advance(10)
    desk.send(block(3, event(1)), announcement=desk.announce(highest=3))
    assert report(desk).through == START
    desk.send(block(2, event(1)))
    assert report(desk).through == START + 10 * SECOND


def test_old_announcement_that_comes_late_claims_nothing(desk: Desk) -> None:
    """Held up on the way for an hour, it would look like a clock that is an hour slow."""
    old = desk.announce(highest=1)
    desk.send(block(1, event(1)), announcement=old)
    desk.clock.advance(3600)
    desk.send(announcement=old)
    assert report(desk).through == START


def test_producer_without_a_word_is_silent(desk: Desk) -> None:
    """After 300 seconds an answer is complete no more, and names it."""
    desk.send(block(1, event(1)), announcement=desk.announce(highest=1))
    desk.clock.advance(300)
    assert report(desk).state == "open"
    assert usage(desk).complete
    desk.clock.advance(1)
    assert report(desk).state == "silent"
    answer = usage(desk)
    assert not answer.complete
    assert answer.producers["silent_producers"] == [ONE.hex()]
    assert answer.through == START


def test_closed_producer_is_never_silent(desk: Desk) -> None:
    """It has said that it will never record again, and nothing of it is missing."""
    desk.send(block(1, event(1)), announcement=desk.announce(highest=1, closed=True))
    desk.clock.advance(86_400)
    answer = usage(desk)
    assert report(desk).state == "closed"
    assert (answer.complete, answer.through) == (True, None)


def test_closed_producer_with_a_gap_is_not_complete(desk: Desk) -> None:
    """It recorded two and one came."""
    desk.send(block(1, event(1)), announcement=desk.announce(highest=2, closed=True))
    assert not usage(desk).complete


def test_dropped_events_make_an_answer_incomplete(desk: Desk) -> None:
    """They were announced as lost, and are a number."""
    desk.send(block(1, event(1)), announcement=desk.announce(highest=1, dropped=7))
    answer = usage(desk)
    assert not answer.complete
    assert answer.producers["dropped"] == 7


def test_json_events_have_no_producer_that_could_fall_silent(desk: Desk) -> None:
    """The ledger itself is theirs, and is not listed."""
    desk.offer(event(1, id="a"))
    desk.clock.advance(86_400)
    assert desk.ledger.producers() == []
    assert usage(desk).complete


def test_rejected_and_conflicting_sequences_are_received(desk: Desk) -> None:
    """They are here, even if they do not count: nothing of the producer is missing."""
    desk.send(block(1, event(1, tenant="x" * 256), event(1)), announcement=desk.announce(highest=2))
    assert report(desk).missing == 0
    assert report(desk).through == START


def test_last_seen_comes_first(desk: Desk) -> None:
    """The list begins with who spoke last."""
    desk.send(announcement=desk.announce(ONE))
    desk.clock.advance(1)
    desk.send(announcement=desk.announce(TWO))
    assert [one.producer for one in desk.ledger.producers()] == [TWO.hex(), ONE.hex()]
