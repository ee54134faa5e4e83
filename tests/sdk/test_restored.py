"""A server that was restored from a backup: what it lacks and is still kept arrives once more."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import UNSET

from tallybook.block import REISSUED, derived_producer, encode_block, pack, read_header
from tallybook.frame import split_body
from tallybook.kept import Kept
from tallybook.limits import RETAINED_SECONDS_MAX
from tallybook.queue import Packed, Queue
from tallybook.testing import MemoryServer
from tallybook.wire import Announcement, Answer, read_announcement, read_request
from tests.sdk.conftest import ENDPOINT, PRODUCER, Bench, body

ACKNOWLEDGED = "acknowledged"


def block(first: int, *numbers: int, producer: bytes = PRODUCER, flags: int = 0) -> bytes:
    columns = pack("app", [split_body(body(number)) for number in numbers])
    return encode_block(columns, producer=producer, first=first, flags=flags)


def made_of(parent: bytes, *numbers: int) -> bytes:
    """The block that a conflict of *parent* is made into."""
    header = read_header(parent)
    producer = derived_producer(header.producer, header.first, header.sha256)
    return block(header.first, *numbers, producer=producer, flags=REISSUED)


def fill(queue: Queue, *blocks: bytes) -> None:
    """Put blocks into a queue, those of others as reissued ones."""
    sequence = queue.packed().sequence
    for one in blocks:
        header = read_header(one)
        if header.flags & REISSUED:
            queue.settle([], reissued=[one])
            continue
        queue.commit_block(one, Packed(0, 4096 + sequence, header.last + 1), 1)
        sequence = header.last + 1


def acknowledge(queue: Queue, positions: dict[int, int]) -> None:
    queue.settle(
        [(id, "acknowledged", None) for id in positions],
        receipts={id: (at, f"{at:064x}") for id, at in positions.items()},
        meta={"branch": "b", "incarnation": 1},
    )


def waiting(queue: Queue) -> list[int]:
    """The first sequences of what waits."""
    return [read_header(one.data).first for one in queue.pending(99, 1 << 20)]


# -- the queue -----------------------------------------------------------------------------


def test_what_lies_behind_the_held_position_waits_again(queue: Queue) -> None:
    """And what lies before it does not."""
    fill(queue, block(1, 1), block(2, 2), block(3, 3))
    acknowledge(queue, {1: 10, 2: 11, 3: 12})
    queue.settle([], held=11)

    assert waiting(queue) == [3]
    assert (queue.note("position"), queue.note("chain")) == (11, None)


def test_a_block_without_a_receipt_waits_again(queue: Queue) -> None:
    """Where it lies was never noted: sending it is right, for a duplicate is success."""
    fill(queue, block(1, 1))
    queue.settle([(1, "acknowledged", None)])
    queue.settle([], held=100)

    assert waiting(queue) == [1]


def test_what_was_set_aside_stays_aside(queue: Queue) -> None:
    """It was refused for good, and no restore changes that."""
    fill(queue, block(1, 1))
    queue.settle([(1, "aside", "refused")])
    queue.settle([], held=0)

    assert waiting(queue) == []


def test_a_block_that_is_settled_by_the_same_answer_does_not_wait(queue: Queue) -> None:
    """It was stored by the restored server; what it has lost is what was acknowledged before."""
    fill(queue, block(1, 1), block(2, 2))
    acknowledge(queue, {1: 50})
    queue.settle([(2, "acknowledged", None)], receipts={2: (41, "c" * 64)}, held=40)

    assert waiting(queue) == [1]
    assert (queue.note("position"), queue.note("chain")) == (41, "c" * 64)


def test_the_receipt_that_reaches_furthest_is_remembered(queue: Queue) -> None:
    """A duplicate's lies further back, and proves less."""
    fill(queue, block(1, 1), block(2, 2))
    acknowledge(queue, {2: 9})
    acknowledge(queue, {1: 4})

    assert (queue.note("position"), queue.note("chain")) == (9, f"{9:064x}")


@pytest.mark.parametrize("state", ["pending", ACKNOWLEDGED])
def test_what_a_conflict_was_made_into_does_not_wait_beside_its_block(
    state: str, queue: Queue
) -> None:
    """The block may meet no conflict now; if it does, the same is made of it again."""
    parent = block(1, 1)
    child = made_of(parent, 1)
    grandchild = made_of(child, 1)
    fill(queue, parent, child, grandchild)
    positions = {1: 10} if state == "pending" else {1: 10, 2: 11, 3: 12}
    acknowledge(queue, positions)
    queue.settle([], held=5)

    assert [one.data for one in queue.pending(9, 1 << 20)] == [parent]


def test_what_a_conflict_was_made_into_waits_where_its_block_is_held(queue: Queue) -> None:
    """The server has the block and its conflict, and lacks what came of it."""
    parent = block(1, 1)
    child = made_of(parent, 1)
    fill(queue, parent, child)
    acknowledge(queue, {1: 10, 2: 11})
    queue.settle([], held=10)

    assert [one.data for one in queue.pending(9, 1 << 20)] == [child]


def test_archived_blocks_go_and_the_others_stay(queue: Queue) -> None:
    """Whatever their age and size; nothing that waits is touched."""
    fill(queue, block(1, 1), block(2, 2), block(3, 3))
    acknowledge(queue, {1: 10, 2: 20})
    queue.remember(archived=10)
    queue.drop_archived()
    queue.drop_archived()

    assert [read_header(one).first for one in queue.acknowledged()] == [2]
    assert waiting(queue) == [3]


def test_receipts_go_with_their_blocks(queue: Queue) -> None:
    """A new block in the place of an old one has no receipt of its."""
    fill(queue, block(1, 1))
    acknowledge(queue, {1: 10})
    queue.prune(0, 0)
    fill(queue, block(2, 2))
    queue.settle([(1, "acknowledged", None)])
    queue.settle([], held=10)

    assert waiting(queue) == [2]


# -- answers -------------------------------------------------------------------------------


def answer(branch: str | None = None, *holds: tuple[str, int]) -> Answer:
    return Answer(
        ledger="a" * 32,
        incarnation=1 + len(holds),
        position=99,
        archived=0,
        receipts=[],
        branch=UNSET if branch is None else branch,
        holds=list(holds) or UNSET,
    )


def test_an_answer_of_the_same_branch_holds_everything() -> None:
    """Restored ever or never."""
    assert answer().held_of("a" * 32) is None
    assert answer("b", ("a" * 32, 40)).held_of("b") is None


def test_an_answer_says_how_much_of_an_earlier_branch_it_holds() -> None:
    """Of each; and nothing of one that it has never heard of."""
    restored = answer("c", ("a" * 32, 40), ("b", 70))
    assert [restored.held_of(name) for name in ("a" * 32, "b", "x")] == [40, 70, 0]
    assert answer().held_of("x") == 0


# -- a Meter -------------------------------------------------------------------------------


def record(bench: Bench, *numbers: int) -> None:
    """Record with one Meter, and have it acknowledged."""
    meter = bench.meter()
    for number in numbers:
        meter.record("d", number)
    assert meter.flush().ok


def test_what_a_restored_server_lacks_is_sent_again(bench: Bench) -> None:
    """Each event is there once, with or without something new to send."""
    meter = bench.meter()
    for number in (1, 2, 4):
        meter.record("d", number)
        assert meter.flush().ok
    bench.server.restore(1)
    assert bench.counted() == [1]
    meter.record("d", 8)
    assert meter.flush().ok

    assert bench.counted() == [1, 2, 4, 8]


def test_an_announcement_is_enough_to_find_out(bench: Bench) -> None:
    """An application that records nothing more learns of it within half a minute."""
    meter = bench.meter()
    meter.record("d", 1)
    assert meter.flush().ok
    bench.server.restore(0)
    worker = bench.worker(meter)
    for _ in range(3):
        bench.clock.advance(31)
        worker.flush_step()

    assert bench.counted() == [1]


def test_a_lost_answer_of_a_restored_server_loses_nothing(bench: Bench) -> None:
    """It is told again with the next one."""
    meter = bench.meter()
    meter.record("d", 1)
    assert meter.flush().ok
    bench.server.restore(0)
    meter.record("d", 2)
    bench.server.faults = ["lose"]
    worker = bench.worker(meter)
    for _ in range(4):
        bench.clock.advance(31)
        worker.commit_step()
        worker.flush_step()

    assert bench.counted() == [1, 2]


def test_what_is_archived_is_not_kept(bench: Bench) -> None:
    """The server's word for it comes with each answer."""
    meter = bench.meter()
    meter.record("d", 1)
    assert meter.flush().ok
    queue = bench.worker(meter).producer.queue
    before = queue.counts().acknowledged_events
    bench.server.archived = 1
    meter.record("d", 2)
    assert meter.flush().ok

    assert (before, queue.counts().acknowledged_events) == (1, 1)
    assert [read_header(one).first for one in queue.acknowledged()] == [2]


def test_the_announcement_carries_the_furthest_receipt(bench: Bench) -> None:
    """With the branch that gave it; before the first answer, nothing."""
    meter = bench.meter()
    meter.record("d", 1)
    assert meter.flush().ok
    meter.record("d", 2)
    assert meter.flush().ok
    (said,) = bench.server.announcements.values()

    assert (said.ledger, said.receipt, said.branch) == (bench.server.ledger, (1, 1), said.ledger)


# -- kept files ----------------------------------------------------------------------------


def kept_files(bench: Bench) -> list[Kept]:
    found = [Kept.read(path) for path in sorted(bench.directory.glob("*.kept"))]
    return [one for one in found if one is not None]


def drained(bench: Bench, *numbers: int) -> Kept:
    """What a Meter leaves that recorded, sent everything and closed."""
    meter = bench.meter()
    for number in numbers:
        meter.record("d", number)
    assert meter.close(timeout=5).ok
    return kept_files(bench)[-1]


def test_a_kept_file_says_whose_it_is_and_who_has_it(bench: Bench) -> None:
    """The bytes of a request: an announcement, and the blocks."""
    kept = drained(bench, 1, 2)
    said, blocks = read_request(kept.path.read_bytes())

    assert (said.highest, said.closed, said.ledger) == (2, True, bench.server.ledger)
    assert (len(blocks), kept.position, said.branch) == (1, 1, bench.server.ledger)


def test_blocks_of_a_producer_that_has_ended_are_sent_again(bench: Bench) -> None:
    """Its kept file becomes a queue once anybody learns that the server was restored."""
    drained(bench, 1, 2)
    bench.server.restore(0)
    record(bench, 4)
    bench.adopt_all_but_the_living()

    assert bench.counted() == [1, 2, 4]
    assert len(kept_files(bench)) == 1
    assert [one.recorded for one in bench.server.announcements.values() if one.closed] == [2]


def test_kept_blocks_that_the_server_holds_stay_where_they_are(bench: Bench) -> None:
    """It was restored to a later position."""
    kept = drained(bench, 1)
    bench.server.restore(5)
    said = bench.server.announcements[kept.announcement.producer]
    record(bench, 2)
    bench.adopt_all_but_the_living()

    assert kept.path.exists()
    assert bench.server.announcements[kept.announcement.producer] is said


def test_a_kept_file_goes_when_it_is_archived(bench: Bench) -> None:
    """And not before."""
    kept = drained(bench, 1)
    bench.server.archived = kept.position - 1
    record(bench, 2)
    bench.adopt_all_but_the_living()
    early = kept.path.exists()
    bench.server.archived = kept.position
    record(bench, 4)
    bench.adopt_all_but_the_living()

    assert (early, kept.path.exists()) == (True, False)


def test_kept_blocks_of_another_ledger_are_left_alone(bench: Bench) -> None:
    """Two applications of two servers may share a directory."""
    drained(bench, 1)
    bench.server = MemoryServer("11" * 16)
    bench.server.restore(0)
    record(bench, 2)
    bench.adopt_all_but_the_living()

    assert (bench.counted(), len(kept_files(bench))) == ([2], 1)


def test_a_damaged_kept_file_harms_nobody(bench: Bench) -> None:
    """It is passed over, and goes when it is old."""
    path = drained(bench, 1).path
    path.write_bytes(b"TBQ1" + path.read_bytes()[5:])
    bench.server.restore(0)
    record(bench, 2)
    bench.adopt_all_but_the_living()

    assert (bench.counted(), path.exists()) == ([2], True)


def test_a_kept_file_that_is_cut_off_is_said_and_passed_over(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The head is whole, the blocks are not: nothing is sent under a wrong sequence."""
    path = drained(bench, 1).path
    path.write_bytes(path.read_bytes()[:-1])
    bench.server.restore(0)
    record(bench, 2)
    bench.adopt_all_but_the_living()

    assert bench.counted() == [2]
    assert "kept blocks cannot be sent again" in caplog.text
    assert bench.names("*.lock") == [f"{bench.living()}.lock"]


def test_a_crash_while_a_kept_file_becomes_a_queue_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is whole in one commit, and the file goes behind it."""
    kept = drained(bench, 1, 2)
    monkeypatch.setattr(Kept, "remove", lambda self: None)
    assert kept.revive(bench.directory, ENDPOINT, 1)
    assert not kept.revive(bench.directory, ENDPOINT, 1)
    monkeypatch.undo()
    bench.server.restore(0)
    bench.adopt_all()

    assert (bench.counted(), len(kept_files(bench))) == ([1, 2], 1)


def test_half_a_queue_that_a_crash_left_of_kept_blocks_is_in_nobodys_way(bench: Bench) -> None:
    """It has a name that nobody adopts; the lock goes, and the next one begins anew."""
    kept = drained(bench, 1, 2)
    Queue(bench.directory / f"{kept.producer}.kept-queue").close()
    (bench.directory / f"{kept.producer}.lock").touch()
    bench.adopt_all()
    whole = kept.path.exists()
    bench.server.restore(0)
    record(bench, 4)
    bench.adopt_all_but_the_living()

    assert (whole, bench.counted()) == (True, [1, 2, 4])
    assert bench.names("*.kept-queue*") == []


def test_a_drained_queue_without_blocks_leaves_what_is_kept_alone(bench: Bench) -> None:
    """Nothing to keep is no reason to remove what is kept already."""
    kept = drained(bench, 1, 2)
    data = kept.path.read_bytes()
    queue = Queue(bench.directory / f"{kept.producer}.db")
    queue.remember(endpoint=ENDPOINT)
    queue.close()
    (bench.directory / f"{kept.producer}.lock").touch()
    bench.adopt_all()

    assert kept.path.read_bytes() == data


def test_old_kept_files_are_swept(bench: Bench) -> None:
    """Retention is a limit with a name."""
    drained(bench, 1)
    bench.clock.advance(RETAINED_SECONDS_MAX * 100)
    bench.adopter().look()

    assert kept_files(bench) == []


def test_the_head_of_a_request_can_be_read_without_its_blocks(bench: Bench) -> None:
    """So that a look at a thousand kept files reads no block."""
    path: Path = drained(bench, *range(500)).path
    said: Announcement = read_announcement(path.read_bytes()[:1_000])

    assert said.highest == 500


def test_a_new_producer_shows_a_receipt_of_those_that_have_ended(bench: Bench) -> None:
    """They cannot any more, and a server that was set back without a word would never know."""
    drained(bench, 1)
    kept = drained(bench, 2)
    meter = bench.meter()
    meter.record("d", 4)
    producer = bench.worker(meter).producer
    before = producer.announcement(0)
    assert meter.flush().ok
    after = producer.announcement(0)

    last = max(one.position for one in kept_files(bench))
    assert (before.ledger, before.branch, before.receipt) == (None, kept.ledger, (1, last))
    assert (after.ledger, after.receipt) == (kept.ledger, (1, bench.server.requests))
