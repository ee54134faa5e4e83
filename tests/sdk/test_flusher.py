"""The flusher: every answer has one meaning, and none of them loses or doubles an event."""

from __future__ import annotations

import threading

import msgspec
import pytest

from tallybook.block import REISSUED, derived_producer, encode_block, pack, read_header
from tallybook.errors import ServerUnreachable
from tallybook.flusher import Flusher
from tallybook.frame import split_body
from tallybook.limits import BACKOFF_SECONDS_MAX, REQUEST_BLOCKS_MAX
from tallybook.queue import Reentered
from tallybook.testing import FakeIds, MemoryServer
from tallybook.transport import Response
from tallybook.wire import Announcement, encode_request, read_request
from tests.sdk.conftest import Bench, body, until


class Recording(MemoryServer):
    """
    The server in memory; it keeps what arrived, and answers as it is told to.

    Attributes:
        bodies: The requests, as they came.
        answers: What to answer to the next ones instead, first come first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []
        self.answers: list[Response | Exception] = []

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        self.bodies.append(body)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return super().send(body, content_type, timeout_seconds)

    def sent(self, index: int = -1) -> tuple[Announcement, list[bytes]]:
        """One request: its announcement and its blocks."""
        announcement, blocks = read_request(self.bodies[index])
        return announcement, [bytes(block) for block in blocks]


class Desk:
    """A producer with blocks, a flusher, and a server that does as it is told."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.server = Recording()
        bench.server = self.server
        self.producer = bench.producer()
        self.flusher = Flusher(self.server, bench.clock, FakeIds())

    def block(self, *numbers: int) -> None:
        """Queue a block of events."""
        self.bench.store(self.producer, *numbers)
        self.producer.step(cut=True)

    def step(self, **options: bool) -> bool:
        """One request, as soon as it is due."""
        self.bench.clock.advance(self.flusher.wait_seconds())
        return self.flusher.step(self.producer, **options)

    def request(self) -> bytes:
        """The request that would be sent now."""
        blocks = [one.data for one in self.producer.queue.pending(64, 1 << 20)]
        return encode_request(self.producer.announcement(len(blocks)), blocks)

    @property
    def pending(self) -> int:
        """Blocks that wait."""
        return self.producer.queue.counts().pending_blocks

    @property
    def aside(self) -> int:
        """Blocks that were set aside."""
        return self.producer.queue.counts().aside_blocks


@pytest.fixture
def desk(bench: Bench) -> Desk:
    """The desk."""
    return Desk(bench)


def problem(status: int, **members: object) -> Response:
    """A refusal."""
    return Response(status, msgspec.json.encode(members))


def test_what_is_queued_arrives(desk: Desk) -> None:
    """All blocks in one request, acknowledged, and counted."""
    desk.block(1, 2)
    desk.block(3)
    assert desk.step()
    assert desk.bench.counted() == [1, 2, 3]
    assert (desk.pending, desk.flusher.acknowledged, desk.server.requests) == (0, 3, 1)


def test_without_blocks_nothing_is_sent(desk: Desk) -> None:
    """Unless the announcement is due."""
    assert not desk.step()
    assert desk.server.bodies == []
    assert desk.step(announce=True)
    assert desk.server.sent()[0].blocks == 0


def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(desk: Desk) -> None:
    """The server had stored it: sent once more, byte for byte, it counts once."""
    desk.block(1, 2)
    desk.server.faults = ["lose"]
    assert not desk.step()
    assert desk.pending == 1
    assert desk.step()
    assert desk.server.sent(0)[1] == desk.server.sent(1)[1]
    assert desk.bench.counted() == [1, 2]
    assert (desk.flusher.acknowledged, desk.flusher.duplicates) == (2, 2)


@pytest.mark.parametrize(
    "answer",
    [
        Response(200, b"<html>Welcome to the hotel</html>"),
        Response(200, b""),
        Response(200, b"{}"),
        Response(204, b""),
        Response(302, b""),
        Response(500, b""),
        Response(503, b"", 1.0),
        ServerUnreachable("cut off"),
        RuntimeError("a transport with a fault of its own"),
        UnicodeError("a host name that is none"),
    ],
)
def test_what_is_no_answer_changes_nothing(desk: Desk, answer: Response | Exception) -> None:
    """The blocks wait on, the sender waits, and the next answer that is one settles them."""
    desk.block(1)
    desk.server.answers = [answer]
    assert not desk.step()
    assert desk.pending == 1
    assert desk.flusher.wait_seconds() > 0
    assert desk.flusher.last_error
    assert desk.step()
    assert desk.bench.counted() == [1]
    assert desk.flusher.last_error is None


def test_a_200_that_echoes_another_block_is_no_answer(desk: Desk) -> None:
    """A cached answer, to another request, removes nothing."""
    desk.block(1)
    cached = desk.server.send(desk.request(), "")
    desk.block(2)
    desk.server.answers = [cached]
    assert not desk.step()
    assert desk.pending == 2


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 301])
def test_a_wrong_key_or_address_keeps_everything(desk: Desk, status: int) -> None:
    """Somebody has to mend it: wait long, send nothing away, set nothing aside."""
    desk.block(1)
    for _ in range(10):
        desk.server.answers = [problem(status)]
        assert not desk.step()
        assert desk.flusher.wait_seconds() >= BACKOFF_SECONDS_MAX
    assert (desk.pending, desk.aside) == (1, 0)
    assert desk.step()
    assert desk.bench.counted() == [1]


def test_another_ledger_holds_the_queue(desk: Desk) -> None:
    """409: nothing is sent any more from it, and nothing is removed."""
    desk.block(1)
    desk.server.answers = [problem(409)]
    assert not desk.step()
    assert desk.producer.held
    assert not desk.step(announce=True)
    assert len(desk.server.bodies) == 1
    assert (desk.pending, desk.aside) == (1, 0)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_blocks_go_fewer_at_a_time_and_never_cut(desk: Desk, status: int) -> None:
    """The request is halved, not its blocks: each block arrives with the bytes that it had."""
    for number in range(8):
        desk.block(number)
    blocks = [one.data for one in desk.producer.queue.pending(64, 1 << 20)]
    desk.server.answers = [problem(status)] * 3
    sizes = []
    for _ in range(20):
        if not desk.pending:
            break
        desk.step()
        sizes.append(len(desk.server.sent()[1]))
    assert sizes[:4] == [8, 4, 2, 1]
    arrived = [block for index in range(3, len(sizes)) for block in desk.server.sent(index)[1]]
    assert arrived == blocks
    assert desk.bench.counted() == list(range(8))


def test_a_block_that_is_refused_for_good_holds_up_no_other(desk: Desk) -> None:
    """Refused alone three times, it is set aside with the reason, and the others arrive."""

    class Picky(Recording):
        def send(
            self, body: bytes, content_type: str, timeout_seconds: float | None = None
        ) -> Response:
            if any(read_header(block).first == 2 for block in read_request(body)[1]):
                return Response(422, b"not this one")
            return super().send(body, content_type, timeout_seconds)

    desk.server = desk.bench.server = Picky()
    desk.flusher = Flusher(desk.server, desk.bench.clock, FakeIds())
    for number in range(1, 5):
        desk.block(number)
    for _ in range(40):
        desk.step()
    assert desk.bench.counted() == [1, 3, 4]
    assert (desk.pending, desk.aside) == (0, 1)
    assert not desk.producer.sending_blocked


def test_refusals_are_counted_per_block(desk: Desk, bench: Bench) -> None:
    """Two refusals of one queue's block and one of another's set none of them aside."""
    desk.block(1)
    other = bench.producer()
    bench.store(other, 2)
    other.step(cut=True)
    desk.server.answers = [problem(400)] * 4
    for outbox in (desk.producer, desk.producer, other, other):
        bench.clock.advance(desk.flusher.wait_seconds())
        desk.flusher.step(outbox)
    assert desk.aside + other.queue.counts().aside_blocks == 0


def test_a_request_that_was_damaged_on_the_way_sets_nothing_aside(desk: Desk) -> None:
    """A 400 that says that sending again is right is no refusal, however often it comes."""
    desk.block(1)
    for _ in range(10):
        desk.server.answers = [problem(400, retryable=True)]
        assert not desk.step()
        assert desk.flusher.wait_seconds() > 0
    assert (desk.pending, desk.aside) == (1, 0)
    assert desk.step()


def test_a_block_that_the_server_refuses_by_receipt_is_set_aside(desk: Desk) -> None:
    """Its neighbours in the same request are acknowledged."""
    desk.block(1)
    desk.block(2)
    answer = msgspec.json.decode(desk.server.send(desk.request(), "").body)
    answer["receipts"][0] |= {"status": "refused", "reason": "never", "position": None}
    desk.server.answers = [Response(200, msgspec.json.encode(answer))]
    assert desk.step()
    assert (desk.pending, desk.aside) == (0, 1)
    assert desk.flusher.acknowledged == 1


def test_a_block_that_was_damaged_on_the_way_goes_again(desk: Desk) -> None:
    """Its neighbours are acknowledged, and it waits, for it is sound here."""
    desk.block(1)
    desk.block(2)
    answer = msgspec.json.decode(desk.server.send(desk.request(), "").body)
    answer["receipts"][1] |= {"status": "damaged", "reason": "a byte", "position": None}
    desk.server.answers = [Response(200, msgspec.json.encode(answer))]
    desk.step()
    assert desk.pending == 1
    assert desk.flusher.wait_seconds() > 0
    desk.step()
    assert desk.pending == 0


def test_a_block_that_rots_in_the_queue_holds_up_no_other(desk: Desk) -> None:
    """It is set aside unsent; the next ones arrive, and `closed` is said with them."""
    for number in (1, 2, 3):
        desk.block(number)
    rotten = bytearray(desk.producer.queue.pending(1, 1)[0].data)
    rotten[-1] ^= 1
    desk.producer.queue._change(
        lambda connection: connection.execute(
            "update blocks set data = ? where id = 1", (bytes(rotten),)
        )
    )
    assert desk.step(closed=True)
    assert desk.bench.counted() == [2, 3]
    assert (desk.pending, desk.aside) == (0, 1)
    assert desk.server.sent()[0].closed


def test_only_rotten_blocks_make_no_request(desk: Desk) -> None:
    """The next ones have their turn at once."""
    desk.block(1)
    desk.producer.queue._change(
        lambda connection: connection.execute("update blocks set data = x'00'")
    )
    assert not desk.step()
    assert desk.server.bodies == []
    assert desk.flusher.wait_seconds() == 0


def test_closed_is_said_with_the_last_blocks_only(desk: Desk) -> None:
    """Before them, the server would count what is on its way as missing."""
    for number in range(REQUEST_BLOCKS_MAX + 1):
        desk.block(number)
    desk.step(closed=True)
    desk.step(closed=True)
    assert [desk.server.sent(index)[0].closed for index in (0, 1)] == [False, True]


def test_conflicts_are_issued_again_under_a_name_that_follows_from_the_block(desk: Desk) -> None:
    """The same sequences, the flag, and the derived producer; the rest is left alone."""
    desk.block(1, 2, 3)
    (block,) = (one.data for one in desk.producer.queue.pending(1, 1 << 20))
    header = read_header(block)
    # A clone of this disk was first, with another second event.
    clone = pack("app", [split_body(body(number)) for number in (1, 99)])
    other = encode_block(clone, producer=header.producer, first=1)
    desk.server.send(encode_request(desk.producer.announcement(1), [other]), "")
    desk.step()
    (again,) = (one.data for one in desk.producer.queue.pending(9, 1 << 20))
    reissued = read_header(again)
    assert reissued.producer == derived_producer(header.producer, 1, header.sha256)
    assert (reissued.first, reissued.count, reissued.flags) == (2, 1, REISSUED)
    desk.step()
    assert desk.bench.counted() == [1, 2, 3, 99]
    assert desk.pending == 0


def test_the_first_answer_names_the_ledger_and_the_next_request_says_it(desk: Desk) -> None:
    """From then on the queue belongs to it; the receipt goes back with each request."""
    desk.block(1)
    desk.step()
    desk.block(2)
    desk.step()
    first, second = (desk.server.sent(index)[0] for index in (0, 1))
    assert (first.ledger, first.receipt) == (None, None)
    assert (second.ledger, second.receipt) == (desk.server.ledger, (1, 1))


def test_waits_grow_and_end_with_the_first_success(desk: Desk) -> None:
    """Blocks fill up meanwhile."""
    desk.block(1)
    waits = []
    for _ in range(9):
        desk.server.answers = [ServerUnreachable("down")]
        desk.step()
        waits.append(desk.flusher.wait_seconds())
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert desk.producer.sending_blocked
    desk.step()
    assert desk.flusher.wait_seconds() == 0
    assert not desk.producer.sending_blocked


def test_an_announcement_that_fails_blocks_no_block(desk: Desk) -> None:
    """With nothing on its way, the next block is cut as ever, and does not wait for 30 s."""
    desk.server.answers = [ServerUnreachable("down")]
    assert not desk.step(announce=True)
    assert not desk.producer.sending_blocked


def test_a_settlement_that_fails_counts_no_acknowledgement(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has it and the disk refuses the mark: sent again, it is acknowledged once."""
    desk.block(1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the disk refuses")

    monkeypatch.setattr(desk.producer.queue, "settle", refuse)
    with pytest.raises(OSError, match="refuses"):
        desk.step()
    monkeypatch.undo()
    assert desk.step()
    assert (desk.flusher.acknowledged, desk.bench.counted()) == (1, [1])


def test_who_waits_for_a_request_that_is_under_way_waits_no_longer_than_he_likes(
    desk: Desk,
) -> None:
    """Another thread's request holds the transport; the deadline is kept all the same."""
    desk.block(1)
    under_way, go_on = threading.Event(), threading.Event()

    class Slow(Recording):
        def send(
            self, body: bytes, content_type: str, timeout_seconds: float | None = None
        ) -> Response:
            under_way.set()
            go_on.wait(20)
            return super().send(body, content_type, timeout_seconds)

    desk.server = desk.bench.server = Slow()
    desk.flusher = Flusher(desk.server, desk.bench.clock, FakeIds())
    sender = threading.Thread(target=desk.step)
    sender.start()
    until(under_way.is_set)
    assert not desk.flusher.step(desk.producer, timeout_seconds=0.01)
    go_on.set()
    sender.join()
    assert desk.bench.counted() == [1]


def test_a_request_within_a_request_is_refused(desk: Desk) -> None:
    """A signal handler that flushes in the middle of a request is told so."""
    desk.block(1)

    class Interrupted(Recording):
        def send(
            self, body: bytes, content_type: str, timeout_seconds: float | None = None
        ) -> Response:
            with pytest.raises(Reentered):
                desk.flusher.step(desk.producer)
            assert desk.flusher.entered
            return super().send(body, content_type, timeout_seconds)

    desk.server = desk.bench.server = Interrupted()
    desk.flusher = Flusher(desk.server, desk.bench.clock, FakeIds())
    assert desk.step()
    assert not desk.flusher.entered
    assert desk.server.requests == 1


def test_a_flood_of_failures_is_one_warning_a_minute(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is not flooded, and not silent."""
    desk.block(1)
    for _ in range(4):
        desk.server.answers = [problem(401)]
        desk.step()
    assert 1 <= len(caplog.records) <= 3


def test_a_held_queue_sends_nothing(desk: Desk) -> None:
    """Neither blocks nor announcements."""
    desk.block(1)
    desk.producer.held = "on purpose"
    assert not desk.step(announce=True)
    assert desk.server.bodies == []
