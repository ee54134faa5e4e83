"""
Events that came as JSON: the ledger is their producer, and each counts once by its identity.
"""

from __future__ import annotations

from tallybook.event import Event
from tallybook_server.ledger import Delivery, OfferedEvent, RejectedEvent
from tests.ingest_server.ledger.conftest import START, Desk, event

BAD = RejectedEvent(b'{"value": "many"}', "value", "value is 'many'; expected a number")


def test_event_is_stored_and_placed(desk: Desk) -> None:
    """One answer per event, in the order of the request."""
    done = desk.offer(event(5, id="a"), BAD, event(6, id="b"))
    assert [run and run.verdict for run in done.verdicts] == [None, "rejected", None]
    assert done.position_of == [3, 2, 3]
    assert desk.total() == "11"


def test_request_again_is_all_duplicates_and_no_entry(desk: Desk) -> None:
    """A retry after a lost answer changes nothing, not even the position."""
    first = desk.offer(event(5, id="a"), BAD, event(6, id="b"))
    again = desk.offer(event(5, id="a"), BAD, event(6, id="b"))
    assert [run and run.verdict for run in again.verdicts] == ["duplicate", "rejected", "duplicate"]
    assert again.position_of == first.position_of
    assert again.position == first.position
    assert desk.total() == "11"
    assert len(desk.ledger.rejections(after=(0, -1), limit=10)) == 1


def test_request_again_after_a_restart_is_all_duplicates(desk: Desk) -> None:
    """The ledger is another producer in each life; identities are for ever."""
    desk.offer(event(5, id="a"))
    desk.seal()
    desk.reopen()
    done = desk.offer(event(5, id="a"), event(7, id="b"))
    assert [run and run.verdict for run in done.verdicts] == ["duplicate", None]
    assert desk.total() == "12"


def test_retry_of_a_conflict_is_evidence_once(desk: Desk) -> None:
    """The same wrong event again is answered the same, and not kept again."""
    desk.offer(event(5, id="a"))
    first = desk.offer(event(6, id="a"))
    again = desk.offer(event(6, id="a"))
    assert first.verdicts[0] is not None
    assert first.verdicts[0].verdict == "conflict"
    assert again.verdicts == first.verdicts
    assert again.position_of == first.position_of
    assert again.position == first.position
    assert len(desk.ledger.rejections(after=(0, -1), limit=10)) == 1


def test_event_from_the_future_is_rejected_and_can_come_again(desk: Desk) -> None:
    """Here the caller is asked to look at the clock; when the time has come, it counts."""
    early = event(5, id="a", time=START + 301_000_000, given=True)
    done = desk.offer(early, event(1, id="b"))
    assert done.verdicts[0] is not None
    assert (done.verdicts[0].verdict, done.verdicts[0].reason) == ("rejected", "time")
    assert desk.total() == "1"
    desk.clock.advance(300)
    assert desk.offer(early).verdicts == [None]
    assert desk.total() == "6"


def test_identity_without_a_source_is_rejected(desk: Desk) -> None:
    """It would not be known whose id it is."""
    done = desk.offer(event(5, id="a"), source=None)
    assert done.verdicts[0] is not None
    assert done.verdicts[0].reason == "source"


def test_sources_are_kept_apart(desk: Desk) -> None:
    """One request, two sources, the same id: two events, each in its source's block."""
    events = [OfferedEvent(event(at, id="a"), source) for at, source in ((1, "x"), (2, "y"))]
    done = desk.deliver(Delivery(events=[*events, *events]))
    assert [run and run.verdict for run in done.verdicts] == [None, None, "duplicate", "duplicate"]
    assert [one.source for one in desk.ledger.scan(after=(0, -1), limit=9)] == ["x", "y"]
    assert desk.total() == "3"


def test_many_events_become_several_blocks(desk: Desk) -> None:
    """More than fit into one block, and large ones: every one counts, and is answered."""
    large = {f"tag{at}": "v" * 256 for at in range(30)}
    events: list[Event] = [event(1, id=f"s{at}") for at in range(4_500)]
    events += [event(1, id=f"l{at}", tags=large | {"n": str(at)}) for at in range(300)]
    done = desk.offer(*events)
    assert done.verdicts == [None] * 4_800
    assert desk.total() == "4800"
    assert desk.findings() == []


def test_equal_rejected_bytes_in_one_request_are_kept_once(desk: Desk) -> None:
    """Both are answered with the same place."""
    done = desk.offer(BAD, BAD)
    assert done.position_of == [2, 2]
    assert len(desk.ledger.rejections(after=(0, -1), limit=10)) == 1
    assert desk.findings() == []
