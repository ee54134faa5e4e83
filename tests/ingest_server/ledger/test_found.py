"""
One event by its name: what became of it, where it is, and the link of the chain to it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from tallybook.errors import InvariantBroken
from tallybook_server.correction import Corrections, Run, Void
from tallybook_server.entry import read_entry
from tallybook_server.event_filter import INDEX_MAX, EventId, Place, read_event_name
from tallybook_server.ledger import FoundEvent, RejectedEvent
from tests.ingest_server.ledger.conftest import ONE, START, TWO, Desk, block, event


@pytest.fixture(params=["tail", "sealed", "reopened"])
def where(request: pytest.FixtureRequest) -> str:
    """Where the events lie when they are asked for."""
    return str(request.param)


def settle(desk: Desk, where: str) -> None:
    """Put what was delivered where it is wanted."""
    if where != "tail":
        desk.seal()
    if where == "reopened":
        desk.reopen()


def find(desk: Desk, name: str) -> FoundEvent:
    """The event of this name."""
    wanted = read_event_name(name)
    assert wanted is not None
    found = desk.ledger.find(wanted)
    assert found is not None
    return found


def test_counted_event_is_found_by_both_names(desk: Desk, where: str) -> None:
    """By producer and sequence, and by its place: the same, as a list shows it."""
    sent = event("12.5", tags={"a": "1"}, key="k")
    desk.send(block(7, event(1), sent))
    settle(desk, where)
    found = find(desk, f"{ONE.hex()}-8")
    assert found == find(desk, f"{found.position}.{found.index}")
    assert (found.verdict, found.reason, found.event) == ("counted", "", sent)
    assert (found.position, found.index, found.sequence, found.source) == (2, 1, 8, "shop")
    listed = desk.ledger.scan(after=(0, -1), limit=10)[1]
    assert (found.producer, found.recorded_at) == (listed.producer, listed.recorded_at)


def test_segment_is_named_once_there_is_one(desk: Desk) -> None:
    """Before, the tail has it; the other segments have it never."""
    desk.send(block(1, event(1)))
    desk.seal()
    desk.send(block(2, event(2)))
    assert find(desk, f"{ONE.hex()}-2").segment is None
    desk.seal()
    names = [segment.name for segment in desk.ledger.snapshots.current.segments]
    assert [find(desk, f"{ONE.hex()}-{at}").segment for at in (1, 2)] == names


def test_link_of_the_chain_can_be_computed_again(desk: Desk, where: str) -> None:
    """Each entry's bytes lead from the head before it to the head that the next one is behind."""
    for first in (1, 3, 5):
        desk.send(block(first, event(first), event(first + 1)))
    settle(desk, where)
    found = [find(desk, f"{ONE.hex()}-{sequence}") for sequence in (1, 3, 5)]
    for one in found:
        assert hashlib.sha256(one.chain_before + one.entry).digest() == one.chain
        assert read_entry(one.entry).position == one.position
    assert [one.chain for one in found[:-1]] == [one.chain_before for one in found[1:]]
    (receipt,) = desk.send(block(5, event(5), event(6)))
    assert found[-1].chain.hex() == receipt.chain


def test_flagged_event_counts_at_its_corrected_time(desk: Desk, where: str) -> None:
    """The host's clock was an hour ahead; the reference says by how much."""
    hour = 3_600_000_000
    announcement = desk.announce(sent_at=desk.now + hour)
    desk.send(block(1, event(1, time=desk.now + hour)), announcement=announcement)
    settle(desk, where)
    found = find(desk, f"{ONE.hex()}-1")
    assert (found.verdict, found.reason, found.reference) == ("flagged", "clock", hour)
    assert found.event is not None
    assert found.event.time == desk.now


def test_overlapping_deliveries_are_named_beside_the_one_that_counts(
    desk: Desk, where: str
) -> None:
    """A clone of the disk: the same sequence as a duplicate, and another one as a conflict."""
    desk.send(block(1, event(1), event(2)))
    desk.send(block(1, event(1), event(9), event(3)))
    settle(desk, where)
    first, second, third = (find(desk, f"{ONE.hex()}-{at}") for at in (1, 2, 3))
    assert [one.verdict for one in (first, second, third)] == ["counted"] * 3
    assert [one.others for one in (first, second, third)] == [
        (Place(3, 0),),
        (Place(3, 1),),
        (),
    ]
    duplicate, conflict = find(desk, "3.0"), find(desk, "3.1")
    assert (duplicate.verdict, duplicate.reason, duplicate.reference) == (
        "duplicate",
        "sequence",
        2,
    )
    assert (duplicate.event, duplicate.data) == (None, None)
    assert (conflict.verdict, conflict.reason, conflict.reference) == ("conflict", "sequence", 2)
    assert conflict.data is not None
    assert b'"value":"9"' in conflict.data
    assert (conflict.producer, conflict.sequence, conflict.segment) == (ONE.hex(), 2, None)


def test_duplicate_by_key_names_the_entry_that_holds_the_key(desk: Desk, where: str) -> None:
    """It has a name of its own, under which it is found."""
    desk.send(block(1, event(1, key="k")), block(1, event(1, key="k"), producer=TWO))
    settle(desk, where)
    found = find(desk, f"{TWO.hex()}-1")
    assert (found.verdict, found.reason, found.reference) == ("duplicate", "key", 2)
    assert (found.event, found.data, found.segment) == (None, None, None)


def test_rejected_event_of_a_block_is_found(desk: Desk, where: str) -> None:
    """With what is wrong and what was kept of it."""
    desk.send(block(1, event(1), event(2, tenant="x" * 256)))
    settle(desk, where)
    found = find(desk, f"{ONE.hex()}-2")
    assert (found.verdict, found.reason) == ("rejected", "tenant")
    assert "256 bytes" in found.detail
    assert found.data is not None
    assert b'"value":"2"' in found.data


def test_json_that_is_no_event_is_found_by_its_place(desk: Desk) -> None:
    """It never had a sequence."""
    desk.offer(event(1, id="1"), RejectedEvent(b"{", "event", "not an object"))
    (rejection,) = desk.ledger.rejections(after=(0, -1), limit=9)
    found = find(desk, f"{rejection.position}.{rejection.index}")
    assert (found.verdict, found.reason, found.data) == ("rejected", "event", b"{")
    assert (found.producer, found.sequence, found.source) == (None, None, None)
    assert hashlib.sha256(found.chain_before + found.entry).digest() == found.chain


def test_event_of_the_first_entries_has_a_link(desk: Desk) -> None:
    """The chain begins with zeros, and the genesis has no events."""
    desk.send(block(1, event(1)))
    assert find(desk, "2.0").chain_before != bytes(32)
    assert desk.ledger.find(Place(1, 0)) is None


def test_void_is_named(desk: Desk, where: str) -> None:
    """Of two, the first that is in force; of one that is taken back, none."""
    desk.send(block(1, event(1), event(2), event(3)))
    settle(desk, where)
    head = desk.ledger.position().n
    voids = [
        Void("a", "twice", (Run(2, 1, 1),), position=head + 1),
        Void("b", "a leak", (Run(2, 0, 1),), position=head + 2),
        Void("c", "a leak, too", (Run(2, 1, 2),), position=head + 3),
        Void("d", "no leak", corrects=head + 3, position=head + 4),
        Void("e", "not twice", corrects=head + 1, position=head + 5),
    ]
    snapshot = desk.ledger.snapshots.current
    corrected = replace(snapshot, position=head + 5, corrections=Corrections(voids))
    desk.ledger.snapshots.swap(corrected)
    found = [find(desk, f"{ONE.hex()}-{at}") for at in (1, 2, 3)]
    assert [one.void for one in found] == [voids[1], voids[1], None]
    assert [one.verdict for one in found] == ["counted"] * 3


@pytest.mark.parametrize(
    "name",
    [EventId(ONE.hex(), 3), EventId(TWO.hex(), 1), Place(2, 2), Place(0, 0), Place(9, 0)],
    ids=str,
)
def test_event_that_was_never_delivered_is_none(desk: Desk, name: EventId | Place) -> None:
    """Whatever is wrong with its name."""
    desk.send(block(1, event(1), event(2)))
    assert desk.ledger.find(name) is None


def test_event_that_should_be_there_and_is_not_is_no_unknown_one(desk: Desk) -> None:
    """A segment without the row: that is damage, and is said so."""
    desk.send(block(1, event(1)), block(2, event(2)))
    desk.seal()
    snapshot = desk.ledger.snapshots.current
    desk.ledger.snapshots.swap(replace(snapshot, segments=()))
    with pytest.raises(InvariantBroken, match="tallybook verify"):
        desk.ledger.find(EventId(ONE.hex(), 1))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"{ONE.hex()}-17", EventId(ONE.hex(), 17)),
        (f"{'AB' * 16}-1", EventId("ab" * 16, 1)),
        ("12.0", Place(12, 0)),
        (f"1.{INDEX_MAX}", Place(1, INDEX_MAX)),
        (f"{ONE.hex()}-0", None),
        (f"{ONE.hex()}-{2**63}", None),
        (f"{ONE.hex()[1:]}-1", None),
        (f"{ONE.hex()}", None),
        ("12", None),
        ("12.", None),
        (f"1.{INDEX_MAX + 1}", None),
        ("1.-1", None),
        ("\u0661.\u0662", None),
        ("", None),
    ],
)
def test_names_of_events(text: str, name: EventId | Place | None) -> None:
    """Two shapes, and nothing else; numbers within what a ledger can hold."""
    assert read_event_name(text) == name


def test_time_and_place_are_those_of_the_clock(desk: Desk) -> None:
    """Recorded when the server says, wherever the event's own time lies."""
    desk.send(block(1, event(1, time=START - 10**12)))
    assert find(desk, "2.0").recorded_at == desk.now
