"""
Appending: each event once, whatever arrives in whatever order, and a receipt that says so.
"""

from __future__ import annotations

import pytest

from tallybook.event import Event
from tallybook.wire import Receipt
from tallybook_server.ledger import Delivery, RejectedEvent
from tests.ledger_conformance.clerk import Clerk
from tests.ledger_conformance.deliveries import HOUR, NOON, ONE, SECOND, TWO, block, event


def short(receipt: Receipt) -> list[tuple[int, int, str, str]]:
    """Its exceptions, without references."""
    return [(run.first, run.last, run.verdict, run.reason) for run in receipt.exceptions]


# -- receipts --------------------------------------------------------------------------------


def test_receipt_echoes_its_block(clerk: Clerk) -> None:
    """Producer, range and digest, so that nobody removes another block because of it."""
    (receipt,) = clerk.send(block(7, [event(), event()]))
    assert (receipt.producer, receipt.first, receipt.count) == (ONE.hex(), 7, 2)
    assert (receipt.status, receipt.exceptions) == ("stored", [])
    assert len(bytes.fromhex(receipt.sha256)) == 32


def test_acknowledgement_names_the_ledger_and_its_head(clerk: Clerk) -> None:
    """The position is the one that a query right behind it answers for."""
    done = clerk.deliver(Delivery(blocks=[block(1, [event()]), block(2, [event()])]))
    assert done.ledger == clerk.ledger.id
    assert done.position == clerk.ledger.position() == clerk.ask().position
    assert [receipt.position for receipt in done.receipts] == [
        done.position.n - 1,
        done.position.n,
    ]


def test_what_is_acknowledged_is_in_the_next_answer(clerk: Clerk) -> None:
    """No answer behind an acknowledgement lacks what it acknowledges."""
    for count in range(1, 6):
        clerk.send(block(count, [event()]))
        assert clerk.total() == str(count)


def test_empty_delivery_is_acknowledged(clerk: Clerk) -> None:
    """An announcement alone, or nothing at all: there is nothing to store."""
    before = clerk.ledger.position()
    assert clerk.deliver(Delivery()).receipts == []
    assert clerk.ledger.position() == before


# -- once ------------------------------------------------------------------------------------


def test_same_block_again_is_a_duplicate(clerk: Clerk, life: str) -> None:
    """After a lost answer: the same place in the ledger, the same exceptions, nothing counted."""
    data = block(1, [event(1), event(2, tags={"k" * 65: "too long"}), event(4)])
    (first,) = clerk.send(data)
    clerk.send(block(50, [event(8)]))
    clerk.pass_through(life)
    (again,) = clerk.send(data)
    assert (first.status, again.status) == ("stored", "duplicate")
    assert (again.position, short(again)) == (first.position, short(first))
    assert clerk.total() == "13"


def test_same_block_twice_in_one_delivery_counts_once(clerk: Clerk) -> None:
    """The second one meets the first before either is acknowledged."""
    data = block(1, [event(3)])
    assert [one.status for one in clerk.send(data, data)] == ["stored", "duplicate"]
    assert clerk.total() == "3"


def test_late_lower_block_counts(clerk: Clerk, life: str) -> None:
    """With two senders a later block may come first."""
    clerk.send(block(11, [event(10)]))
    clerk.pass_through(life)
    clerk.send(block(1, [event(1), event(2)]))
    assert clerk.total() == "13"


def test_overlap_is_decided_event_by_event(clerk: Clerk, life: str) -> None:
    """Equal is a duplicate, other content is a conflict, and what was not held counts."""
    clerk.send(block(1, [event(1), event(2), event(3)]))
    clerk.pass_through(life)
    (receipt,) = clerk.send(block(2, [event(2), event(30), event(4)]))
    assert short(receipt) == [(2, 2, "duplicate", "sequence"), (3, 3, "conflict", "sequence")]
    assert clerk.total() == "10"


def test_producers_do_not_share_sequences(clerk: Clerk) -> None:
    """The first event of one and the first of the other are two events."""
    clerk.send(block(1, [event(1)]), block(1, [event(2)], producer=TWO))
    assert clerk.total() == "3"


def test_conflict_is_kept_with_its_content(clerk: Clerk, life: str) -> None:
    """Evidence: what was said, and that it did not count."""
    clerk.send(block(1, [event(1)]))
    clerk.send(block(1, [event(5)]))
    clerk.pass_through(life)
    (found,) = clerk.ledger.rejections(after=(0, -1), limit=10)
    assert (found.verdict, found.reason) == ("conflict", "sequence")
    assert b'"value":"5"' in found.data


def test_bad_event_leaves_its_neighbours_alone(clerk: Clerk, life: str) -> None:
    """Two count, and the third is kept with its bytes and the reason."""
    bad = event(7, tenant="x" * 256)
    (receipt,) = clerk.send(block(1, [event(1), bad, event(2)]))
    clerk.pass_through(life)
    assert short(receipt) == [(2, 2, "rejected", "tenant")]
    assert clerk.total() == "3"
    (found,) = clerk.ledger.rejections(after=(0, -1), limit=10)
    assert (found.verdict, found.reason, found.index) == ("rejected", "tenant", 1)
    assert b'"value":"7"' in found.data


def test_block_changed_on_the_way_is_damaged(clerk: Clerk) -> None:
    """It is not stored, and its neighbour is."""
    data = bytearray(block(1, [event(1)]))
    data[-1] ^= 1
    damaged, stored = clerk.send(bytes(data), block(2, [event(2)]))
    assert (damaged.status, damaged.position, stored.status) == ("damaged", None, "stored")
    assert clerk.total() == "2"
    clerk.send(block(1, [event(1)]))
    assert clerk.total() == "3"


# -- keys and ids ----------------------------------------------------------------------------


def test_key_counts_once_for_ever(clerk: Clerk, life: str) -> None:
    """Another producer, the same key and content: counted once."""
    clerk.send(block(1, [event(5, key="order-1")]))
    clerk.pass_through(life)
    (receipt,) = clerk.send(block(1, [event(5, key="order-1")], producer=TWO))
    assert short(receipt) == [(1, 1, "duplicate", "key")]
    assert clerk.total() == "5"


@pytest.mark.parametrize(
    "other",
    [
        event(6, key="k"),
        event(5, key="k", tenant="other"),
        event(5, key="k", tags={"a": "b"}),
        event(5, key="k", time=NOON + 1),
    ],
)
def test_key_with_other_content_is_a_conflict(clerk: Clerk, life: str, other: Event) -> None:
    """Tenant, value, tags and given time belong to it."""
    clerk.send(block(1, [event(5, key="k")]))
    clerk.pass_through(life)
    (receipt,) = clerk.send(block(1, [other], producer=TWO))
    assert short(receipt) == [(1, 1, "conflict", "key")]
    assert clerk.total() == "5"


def test_key_belongs_to_its_source_and_dimension(clerk: Clerk) -> None:
    """The same word of another application, or for something else, is another key."""
    clerk.send(block(1, [event(1, key="k"), event(2, key="k", dimension="other")]))
    clerk.send(block(1, [event(4, key="k")], producer=TWO, source="web"))
    assert (clerk.total(), clerk.total("other")) == ("5", "2")


def test_key_of_a_rejected_event_is_free(clerk: Clerk) -> None:
    """The corrected event comes with the same key, and counts."""
    clerk.send(block(1, [event(5, key="k", tenant="x" * 256)]))
    clerk.send(block(2, [event(5, key="k")]))
    assert clerk.total() == "5"


def test_key_of_a_voided_event_is_taken(clerk: Clerk, life: str) -> None:
    """What was taken back was recorded all the same."""
    clerk.send(block(1, [event(5, key="k")]))
    clerk.void("v", 1)
    clerk.pass_through(life)
    clerk.send(block(2, [event(5, key="k")]))
    assert clerk.total() is None


def test_id_is_unique_in_its_source_whatever_the_dimension(clerk: Clerk, life: str) -> None:
    """Under an id that is taken, another dimension is another content."""
    clerk.offer(event(1, id="i"))
    clerk.pass_through(life)
    again = clerk.offer(event(1, id="i"), event(1, id="i", dimension="other"))
    assert [one and one.verdict for one in again.verdicts] == ["duplicate", "conflict"]
    clerk.offer(event(1, id="i"), source="web")
    assert clerk.total() == "2"


# -- JSON ------------------------------------------------------------------------------------


def test_each_json_event_has_its_verdict(clerk: Clerk) -> None:
    """In the order of the request; a bad one keeps its place."""
    bad = RejectedEvent(b'{"value":"many"}', "value", "value is 'many'; expected a number")
    done = clerk.offer(event(1, id="a"), bad, event(2, id="b"), event(2, id="b"))
    verdicts = [one and (one.first, one.verdict, one.reason) for one in done.verdicts]
    assert verdicts == [None, (1, "rejected", "value"), None, (3, "duplicate", "id")]
    assert clerk.total() == "3"
    (found,) = clerk.ledger.rejections(after=(0, -1), limit=10)
    assert (found.data, found.detail) == (bad.data, bad.detail)


def test_json_event_is_where_it_is_said_to_be(clerk: Clerk, life: str) -> None:
    """Its position is that of the entry in which a search finds it."""
    done = clerk.offer(event(1, id="a"), event(2, id="b"))
    clerk.pass_through(life)
    found = clerk.ledger.scan(after=(0, -1), limit=10)
    assert [(one.event.id, one.position) for one in found] == [
        ("a", done.position_of[0]),
        ("b", done.position_of[1]),
    ]


def test_json_event_again_is_where_it_was(clerk: Clerk, life: str) -> None:
    """A repetition is answered with the place of the first."""
    first = clerk.offer(event(1, id="a"))
    clerk.pass_through(life)
    again = clerk.offer(event(1, id="a"))
    assert again.position_of == first.position_of


def test_json_event_from_the_future_is_rejected(clerk: Clerk) -> None:
    """By more than five minutes: its sender is told, and can send it again later."""
    done = clerk.offer(
        event(1, id="a", time=clerk.now + 300 * SECOND),
        event(2, id="b", time=clerk.now + 301 * SECOND),
    )
    assert [one and one.reason for one in done.verdicts] == [None, "time"]
    assert clerk.total() == "1"


def test_block_event_from_the_future_counts(clerk: Clerk, life: str) -> None:
    """A host's wrong clock costs no usage: it is flagged."""
    (receipt,) = clerk.send(block(1, [event(1, time=clerk.now + HOUR), event(2)]))
    clerk.pass_through(life)
    assert short(receipt) == [(1, 1, "flagged", "clock")]
    assert clerk.total() == "3"
