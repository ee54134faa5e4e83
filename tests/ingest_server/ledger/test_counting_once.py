"""
Counting once: each schedule that loses or doubles in a system that lacks the rule.
"""

from __future__ import annotations

import pytest

from tallybook.block import HEADER_BYTES, RAW, encode_block, pack
from tallybook.event import Event
from tallybook_server.ledger import UsageQuery
from tests.ingest_server.ledger.conftest import (
    ONE,
    START,
    TWO,
    Desk,
    block,
    event,
    reissue,
)
from tests.ledger_conformance.deliveries import body


def runs(desk: Desk, data: bytes) -> tuple[str, list[tuple[int, int, str, str]]]:
    """The receipt of a block, in short: status, and its exceptions without references."""
    (receipt,) = desk.send(data)
    short = [(run.first, run.last, str(run.verdict), run.reason) for run in receipt.exceptions]
    return receipt.status, short


def test_late_lower_block_counts_after_a_higher_one(desk: Desk) -> None:
    """Never a high-water mark: the lower block arrives last, and nothing of it was seen before."""
    desk.send(block(11, event(10)))
    assert runs(desk, block(1, event(1), event(2))) == ("stored", [])

    assert desk.total() == "13"


def test_exact_block_again_is_the_same_receipt(desk: Desk) -> None:
    """A lost answer, and the block comes again: held already, at the same place, counted once."""
    data = block(1, event(1), event(2, dimension="NOT VALID"))
    (first,) = desk.send(data)
    desk.send(block(50, event(4)))
    (again,) = desk.send(data)

    assert (first.status, again.status) == ("stored", "duplicate")
    assert (again.position, again.chain) == (first.position, first.chain)
    assert again.exceptions == first.exceptions
    assert desk.total() == "5"


def test_exact_block_again_in_the_same_commit_counts_once(desk: Desk) -> None:
    """Twice in one request: the second one meets the first inside the transaction."""
    data = block(1, event(3))
    assert [receipt.status for receipt in desk.send(data, data)] == ["stored", "duplicate"]
    assert desk.total() == "3"


@pytest.mark.parametrize("sealed", [False, True])
def test_overlap_is_decided_event_by_event(desk: Desk, sealed: bool) -> None:
    """Equal is a duplicate, other content a conflict, and what was not held counts."""
    desk.send(block(1, event(1), event(2), event(3)))
    if sealed:
        desk.seal()

    verdicts = runs(desk, block(2, event(2), event(30), event(4)))

    assert verdicts == (
        "stored",
        [(2, 2, "duplicate", "sequence"), (3, 3, "conflict", "sequence")],
    )
    assert desk.total() == "10"
    (conflict,) = desk.ledger.rejections(after=(0, -1), limit=10)
    assert (conflict.verdict, conflict.reason) == ("conflict", "sequence")
    assert b'"value":"30"' in conflict.data


@pytest.mark.parametrize(
    "other",
    [
        event(2),
        event(1, tenant="other"),
        event(1, tenant=None),
        event(1, dimension="other"),
        event(1, tags={"route": "/b"}),
        event(1, time=START),
        event(1, key="k"),
        event(1, id="i"),
        event(1, given=True),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_other_content_under_a_held_sequence_is_a_conflict(
    desk: Desk, other: Event, sealed: bool
) -> None:
    """Each field of an event is part of what is compared, before the seal and after it."""
    desk.send(block(1, event(1)))
    if sealed:
        desk.seal()
    assert runs(desk, block(1, other))[1] == [(1, 1, "conflict", "sequence")]


def test_another_source_under_a_held_sequence_is_a_conflict(desk: Desk) -> None:
    """The source is part of what an event says."""
    desk.send(block(1, event(1), source="shop"))
    desk.seal()
    assert runs(desk, block(1, event(1), source="web"))[1] == [(1, 1, "conflict", "sequence")]


@pytest.mark.parametrize("sealed", [False, True])
def test_same_content_in_other_bytes_is_a_duplicate(desk: Desk, sealed: bool) -> None:
    """1.50 is 1.5, and the order of tags says nothing; nothing is stored for it."""
    one = event("1.5", tags={"a": "1", "b": "2"})
    desk.send(block(1, one, event(1)))
    if sealed:
        desk.seal()
    before = desk.ledger.position()
    same = event("1.5", tags={"b": "2", "a": "1"})

    status, exceptions = runs(desk, block(1, same))

    assert (status, exceptions) == ("duplicate", [(1, 1, "duplicate", "sequence")])
    assert desk.ledger.position() == before
    assert desk.total() == "2.5"


def test_cloned_disk_counts_each_event_of_both_clones_once(desk: Desk) -> None:
    """Two clones go on from sequence 2: the second meets a conflict and comes again."""
    first = block(2, event(20), event(21))
    second = block(2, event(30), event(31))
    desk.send(block(1, event(1)), first)
    (receipt,) = desk.send(second)
    assert [(run.first, run.last, run.verdict) for run in receipt.exceptions] == [
        (2, 3, "conflict")
    ]

    again = reissue(second, event(30), event(31))
    desk.send(again, announcement=desk.announce(highest=3))

    assert desk.total() == "103"
    (derived,) = (one for one in desk.ledger.producers() if one.producer != ONE.hex())
    assert (derived.reissue_of, derived.missing) == (ONE.hex(), 0)


def test_two_clones_of_a_clone_reissue_once(desk: Desk) -> None:
    """The derived name follows from the block, so however many re-issue it, it counts once."""
    refused = block(1, event(30))
    desk.send(block(1, event(20)))
    desk.send(refused)

    receipts = desk.send(reissue(refused, event(30)), reissue(refused, event(30)))

    assert [receipt.status for receipt in receipts] == ["stored", "duplicate"]
    assert desk.total() == "50"


def test_refused_conflict_again_is_answered_from_the_entry(desk: Desk) -> None:
    """A conflict is evidence once, however often its block is sent."""
    desk.send(block(1, event(20)))
    refused = block(1, event(30))
    (first,) = desk.send(refused)
    (again,) = desk.send(refused)

    assert again.status == "duplicate"
    assert again.exceptions == first.exceptions
    assert len(desk.ledger.rejections(after=(0, -1), limit=10)) == 1


def test_block_of_two_old_ones_counts_what_is_between(desk: Desk) -> None:
    """A range that spans two held ones and a gap: only the gap counts."""
    desk.send(block(1, event(1)), block(3, event(3)))
    receipt = runs(desk, block(1, event(1), event(2), event(3), event(4)))
    assert receipt[1] == [(1, 1, "duplicate", "sequence"), (3, 3, "duplicate", "sequence")]
    assert desk.total() == "10"


# -- rejected events -------------------------------------------------------------------------


def test_rejected_event_leaves_its_neighbours_alone(desk: Desk) -> None:
    """One bad event in three: two count, and the third is kept with its bytes."""
    bad = event(7, tags={"k" * 65: "v"})
    assert runs(desk, block(1, event(1), bad, event(2))) == (
        "stored",
        [(2, 2, "rejected", "tags")],
    )
    assert desk.total() == "3"
    (rejection,) = desk.ledger.rejections(after=(0, -1), limit=10)
    assert rejection.verdict == "rejected"
    assert b'"value":"7"' in rejection.data


@pytest.mark.parametrize("sealed", [False, True])
def test_rejected_sequence_is_held(desk: Desk, sealed: bool) -> None:
    """The same rejected event in another block is known again, and not kept twice."""
    bad = event(7, tenant="x" * 256)
    desk.send(block(1, bad, event(1)))
    if sealed:
        desk.seal()
    assert runs(desk, block(1, bad, event(1), event(2)))[1] == [(1, 2, "duplicate", "sequence")]
    assert len(desk.ledger.rejections(after=(0, -1), limit=10)) == 1
    assert desk.total() == "3"


# -- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["nothing", "restart", "seal", "seal and restart"])
def test_key_counts_once_for_ever(desk: Desk, between: str) -> None:
    """Another producer, another time, the same key: counted once, across restarts and seals."""
    desk.send(block(1, event(5, key="order-1")))
    if "seal" in between:
        desk.seal()
    if "restart" in between:
        desk.reopen()
    desk.clock.advance(86_400 * 400)
    later = event(5, key="order-1", time=START + 10)

    assert runs(desk, block(1, later, producer=TWO))[1] == [(1, 1, "duplicate", "key")]
    assert desk.total() == "5"


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (event(6, key="k"), "conflict"),
        (event(5, key="k", tenant="other"), "conflict"),
        (event(5, key="k", tags={"a": "b"}), "conflict"),
        (event(5, key="k", time=START), "duplicate"),
        (event(5, key="k", time=START, given=True), "conflict"),
    ],
)
def test_key_with_other_content_is_a_conflict(desk: Desk, other: Event, verdict: str) -> None:
    """Tenant, value and tags must be equal, and the time where the caller gives it."""
    desk.send(block(1, event(5, key="k")))
    assert runs(desk, block(1, other, producer=TWO))[1] == [(1, 1, verdict, "key")]
    assert desk.total() == "5"


def test_series_of_an_uncounted_event_disturbs_no_other(desk: Desk) -> None:
    """
    A conflict brings a tenant that nobody knew, and then that tenant's own usage comes.

    The series of a commit without a counted event was known but never handed to DuckDB, and
    every later series answered under the number of another.
    """
    desk.send(block(1, event(5, key="k")))
    desk.send(block(1, event(6, key="k", tenant="new"), producer=TWO))
    desk.send(block(2, event(10, tenant="other"), event(20, tenant="new"), producer=TWO))
    found = desk.ledger.aggregate(UsageQuery(("api.calls",), by_tenant=True)).rows
    assert [(row.tenant, row.value) for row in found] == [
        ("acme", "5"),
        ("new", "20"),
        ("other", "10"),
    ]
    assert desk.findings() == []


def test_tags_of_an_uncounted_event_disturb_no_other(desk: Desk) -> None:
    """The same with tags that nobody knew: they are numbered apart from the tenants."""
    desk.send(block(1, event(5, key="k")))
    desk.send(block(1, event(6, key="k", tags={"a": "new"}), producer=TWO))
    tagged = [event(10, tags={"a": "other"}), event(20, tags={"a": "new"})]
    desk.send(block(2, *tagged, producer=TWO))
    found = desk.ledger.aggregate(UsageQuery(("api.calls",), by_tags=("a",))).rows
    assert [(row.tags.get("a"), row.value) for row in found] == [
        (None, "5"),
        ("new", "20"),
        ("other", "10"),
    ]
    assert desk.findings() == []


def test_key_is_unique_per_dimension_and_source(desk: Desk) -> None:
    """The same key of another dimension or source is another key."""
    desk.send(
        block(1, event(1, key="k"), event(1, key="k", dimension="other")),
        block(1, event(1, key="k"), producer=TWO, source="web"),
    )
    assert desk.total() == "2"


def test_key_twice_in_one_block_counts_once(desk: Desk) -> None:
    """The first of them takes the key before the second is looked at."""
    verdicts = runs(desk, block(1, event(5, key="k"), event(5, key="k"), event(6, key="k")))
    assert verdicts[1] == [(2, 2, "duplicate", "key"), (3, 3, "conflict", "key")]
    assert desk.total() == "5"


def test_key_of_a_rejected_event_is_free(desk: Desk) -> None:
    """The corrected event comes with the same key, and counts."""
    desk.send(block(1, event(5, key="k", tenant="x" * 256)))
    assert runs(desk, block(2, event(5, key="k"))) == ("stored", [])
    assert desk.total() == "5"


def test_key_without_a_source_is_rejected(desk: Desk) -> None:
    """Nobody could say whose key it is."""
    verdicts = runs(desk, block(1, event(5, key="k"), event(1), source=None))
    assert verdicts[1] == [(1, 1, "rejected", "source")]
    assert desk.total() == "1"


@pytest.mark.parametrize("sealed", [False, True])
def test_duplicate_by_key_holds_its_sequence(desk: Desk, sealed: bool) -> None:
    """Its block comes again in another cut, even after its bytes are gone: still nothing new."""
    desk.send(block(1, event(5, key="k")))
    twice = event(5, key="k", time=START + 5)
    desk.send(block(1, twice, event(1), producer=TWO))
    if sealed:
        desk.seal()
    status, exceptions = runs(desk, block(1, twice, event(1), event(2), producer=TWO))
    assert (status, exceptions) == ("stored", [(1, 2, "duplicate", "sequence")])
    assert desk.total() == "8"


def test_id_is_unique_over_dimensions(desk: Desk) -> None:
    """An id is unique per source, so that another dimension under it is a conflict."""
    desk.send(block(1, event(1, id="evt-1")))
    other = event(1, id="evt-1", dimension="other")
    assert runs(desk, block(2, event(1, id="evt-1"), other))[1] == [
        (2, 2, "duplicate", "id"),
        (3, 3, "conflict", "id"),
    ]


# -- clocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
def test_host_clock_ahead_costs_no_usage(desk: Desk, sealed: bool) -> None:
    """A host an hour ahead: its event counts, flagged, at the time that its clock meant."""
    hour = 3_600_000_000
    ahead = event(5, time=START + hour - 7)
    sent = desk.announce(highest=1, sent_at=START + hour)
    (receipt,) = desk.send(block(1, ahead), announcement=sent)
    if sealed:
        desk.seal()

    (run,) = receipt.exceptions
    assert (run.verdict, run.reason, run.reference) == ("flagged", "clock", hour)
    (counted,) = desk.ledger.scan(after=(0, -1), limit=10)
    assert counted.event.time == START - 7
    assert desk.total(start=START - 7, end=START - 6) == "5"
    # What it said is compared, not what was made of it.
    assert runs(desk, block(1, ahead, event(1)))[1] == [(1, 1, "duplicate", "sequence")]


def test_future_without_an_announcement_is_flagged_as_it_is(desk: Desk) -> None:
    """Nobody knows the host's clock: the event counts, with its time."""
    (receipt,) = desk.send(block(1, event(5, time=START + 400_000_000), event(1)))
    (run,) = receipt.exceptions
    assert (run.first, run.last, run.verdict, run.reference) == (1, 1, "flagged", 0)
    assert desk.total() == "6"


def test_recording_time_never_falls(desk: Desk) -> None:
    """The server's clock is set back: later entries are not recorded earlier."""
    desk.send(block(1, event(1)))
    desk.clock.jump(-3600)
    desk.send(block(2, event(1)))
    first, second = desk.ledger.scan(after=(0, -1), limit=10)
    assert second.recorded_at == first.recorded_at


# -- what is no block ------------------------------------------------------------------------


def test_flipped_byte_is_damaged_and_stores_nothing(desk: Desk) -> None:
    """Changed on the way: the sender sends it again, and its neighbour is stored."""
    data = bytearray(block(1, event(1)))
    data[-1] ^= 1
    damaged, stored = desk.send(bytes(data), block(2, event(2)))
    assert (damaged.status, stored.status) == ("damaged", "stored")
    assert damaged.position is None
    assert desk.total() == "2"


def test_flipped_byte_that_can_still_be_read_is_damaged(desk: Desk) -> None:
    """Not compressed, so that with one byte changed the payload may be read, and says 9 for 8."""
    whole = encode_block(pack("shop", [body(event(8))]), producer=ONE, first=1, codec=RAW)
    for at in range(HEADER_BYTES, len(whole)):
        data = bytearray(whole)
        data[at] ^= 1
        (receipt,) = desk.send(bytes(data))
        assert (at, receipt.status, receipt.position) == (at, "damaged", None)
    assert desk.total() == "0"


def test_wrong_payload_with_a_right_digest_is_refused(desk: Desk) -> None:
    """It was made like this: to send it again would be in vain."""
    import hashlib
    import struct

    raw = b"\x93\x01\x02\x03"
    head = struct.pack("<4sBBH16sQIII", b"TBK1", 0, 0, 0, ONE, 1, 1, len(raw), len(raw))
    (receipt,) = desk.send(head + hashlib.sha256(head + raw).digest() + raw)
    assert receipt.status == "refused"
    assert receipt.reason
