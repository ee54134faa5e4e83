"""
The schedules that lose or double events, each by its name.

Each belongs to a rule of the design, and each was seen to fail when its rule was taken out:
tests/README.md says what was taken out.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from tallybook import DurabilityUnknown
from tallybook.block import encode_block, pack, read_header
from tallybook.committer import Committer
from tallybook.directory import Lock
from tallybook.errors import QueueFull
from tallybook.flusher import Flusher
from tallybook.frame import split_body
from tallybook.limits import REQUEST_BLOCKS_MAX
from tallybook.producer import Producer
from tallybook.queue import Packed, Queue
from tallybook.spool import Spool
from tallybook.testing import MemoryServer
from tallybook.transport import Response
from tallybook.wire import encode_request, read_request
from tests.sdk.conftest import ENDPOINT, Bench, body, frame

SMALL: dict[str, Any] = {"queue_bytes_max": 1 << 20}
SPOOLFUL = 12_000
LARGE = {f"t{number}": "x" * 256 for number in range(32)}


class Noting(MemoryServer):
    """
    The server in memory, and what was sent to it.

    Attributes:
        blocks: Every block of every request, in the order that they arrived.
        answers: What to answer to the next requests instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[bytes] = []
        self.answers: list[Response] = []
        self.closed: list[bool] = []

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        announcement, blocks = read_request(body)
        self.blocks += [bytes(block) for block in blocks]
        self.closed.append(announcement.closed)
        if self.answers:
            return self.answers.pop(0)
        return super().send(body, content_type, timeout_seconds)


@pytest.fixture
def server(bench: Bench) -> Noting:
    """What was sent is known."""
    found = Noting()
    bench.server = found
    return found


def run(bench: Bench, program: str, *arguments: str, code: int | None = 0) -> str:
    """Run a program in a process of its own; what it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(bench.directory), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert code is None or ran.returncode == code, ran.stderr
    return ran.stdout


BEGIN = f"""
import os, signal, sys
from tallybook import Meter
meter = Meter("app", directory=sys.argv[1], endpoint="{ENDPOINT}", close_seconds=0.1,
              durability=sys.argv[2] if len(sys.argv) > 2 else "process")
"""


# -- from the spool into the queue -------------------------------------------------------------


def test_schedule_recut_after_a_lost_commit(
    bench: Bench, server: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut is rolled back; more is recorded; the next cut is another one: each event once."""
    producer = bench.producer()
    bench.store(producer, 1, 2)

    def roll_back(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "commit_block", roll_back)
        with pytest.raises(sqlite3.OperationalError):
            producer.step(cut=True)
    bench.flusher().step(producer)
    bench.store(producer, 3)
    producer.step(cut=True)
    bench.flusher().step(producer)
    # However many blocks it is: behind a failed commit, smaller ones are cut.
    headers = [read_header(block) for block in server.blocks]
    cut = [range(header.first, header.last + 1) for header in headers]
    assert list(chain.from_iterable(cut)) == [1, 2, 3]
    assert bench.counted() == [1, 2, 3]


def test_schedule_sent_before_its_commit(bench: Bench, tmp_path: Path) -> None:
    """
    Between the last write of a commit into the log and the request, the log is synced: else a
    power cut rolls the cut back, and recovery cuts otherwise what has been sent.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace")
    program = """
import os, sys
from tallybook import Meter
from tallybook.testing import MemoryServer
class Marking(MemoryServer):
    def send(self, body, content_type, timeout_seconds=None):
        os.write(1, b"SENDING")
        return super().send(body, content_type, timeout_seconds)
meter = Meter("app", directory=sys.argv[1], transport=Marking(), threads=False)
meter.record("d")
meter.flush()
os.write(1, b"FLUSHED")
meter.record("d")
meter.flush()
os._exit(0)
"""
    traced = tmp_path / "trace"
    watched = ["-f", "-y", "-e", "trace=write,pwrite64,fdatasync,fsync"]
    ran = subprocess.run(
        [strace, *watched, "-o", str(traced), sys.executable, "-c", program, str(bench.directory)],
        capture_output=True,
        text=True,
    )
    if not traced.exists() or "SENDING" not in traced.read_text():
        pytest.skip(f"strace is refused: {ran.stderr[:200]}")
    second = traced.read_text().partition("FLUSHED")[2].partition("SENDING")[0]
    log = [line for line in second.splitlines() if ".db-wal>" in line]
    assert "pwrite64" in "".join(log)
    assert "sync" in log[-1]


def test_schedule_late_store_into_a_sealed_spool(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A thread took the store of a file just before it changed, and stores when the file's end
    has been read: it has to fail, though there is room, and go into the next file.
    """
    producer = bench.producer(**SMALL)
    spool = producer._spools[0]
    numbers = iter(range(1000))
    while len(producer._spools) == 1:
        large = frame(next(numbers), producer.id, tags=LARGE)
        if spool.end() + len(large) > spool.size:
            producer.store(large)
        else:
            spool.write(large)
    late = frame(next(numbers), producer.id)
    assert spool.end() + len(late) < spool.size
    take = Committer.take

    def store_late(self: Committer, number: int, *arguments: Any) -> None:
        if number == spool.number:
            try:
                spool.write(late)
            except ValueError:
                producer.store(late)
        take(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Committer, "take", store_late)
        producer.step(cut=True)
    while bench.flusher().step(producer):
        pass
    assert bench.counted() == list(range(next(numbers)))


def test_schedule_late_store_between_seal_and_its_end(bench: Bench) -> None:
    """A store that goes in while another thread seals is before the end, or fails."""
    spool = bench.spool()
    spool.write(frame(1))
    before = spool.end()
    seek = spool._map.seek

    class Late:
        """The map, with a store in the last moment before it is sealed."""

        def __getattr__(self, name: str) -> Any:
            if name == "seek":
                spool.write(frame(2))
                return seek
            return getattr(inner, name)

        def __getitem__(self, place: slice) -> bytes:
            return inner[place]

    inner = spool._map
    spool._map = Late()  # type: ignore[assignment]
    spool.seal()
    spool._map = inner
    with pytest.raises(ValueError, match="out of range"):
        spool.write(frame(3))
    assert spool.end() == before + len(frame(2))
    spool.close(unlink=True)


def test_schedule_position_inferred_from_rows(bench: Bench) -> None:
    """Every row acknowledged and pruned, then a crash: the next sequence is not 1 again."""
    producer = bench.producer()
    bench.store(producer, 1, 2, 3)
    producer.step(cut=True)
    bench.flusher().step(producer)
    producer.queue.prune(0, 0)
    bench.store(producer, 4)
    producer.release(finished=False)
    bench.adopt_all()
    assert bench.counted() == [1, 2, 3, 4]
    assert bench.server.conflicts == []


def test_schedule_torn_frame_takes_no_sequence(bench: Bench) -> None:
    """Killed in the middle of a store: the server is told of no event that is not there."""
    producer = bench.producer()
    bench.store(producer, 1, 2)
    end = producer._spools[0].end()
    path = producer._spools[0].path
    producer.release(finished=False)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(frame(3, producer.id)[:-5])
    bench.adopt_all()
    said = bench.server.announcements[producer.id]
    assert (bench.counted(), said.highest, said.recorded) == ([1, 2], 2, 2)


@pytest.mark.parametrize("held", [[True], [False], [True, False], [False, True]])
def test_schedule_failed_commit_that_is_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, held: list[bool]
) -> None:
    """
    A commit reports failure and holds all the same, or does not: looked at, written once.

    When the second look fails too, it is the next step that looks.
    """
    producer = bench.producer()
    bench.store(producer, 1, 2)
    change = Queue._change
    fates = list(held)

    def fail(self: Queue, action: Any) -> Any:
        if not fates:
            return change(self, action)
        if fates.pop(0):
            change(self, action)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "_change", fail)
        if len(held) == 1:
            producer.step(cut=True)
        else:
            with pytest.raises(sqlite3.OperationalError):
                producer.step(cut=True)
    bench.store(producer, 3)
    producer.step(cut=True)
    bench.flusher().step(producer)
    assert bench.counted() == [1, 2, 3]
    assert sorted(sequence for _, sequence in bench.server.events) == [1, 2, 3]


def test_schedule_failed_change_of_spool_that_is_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the commit that goes on to the next file: the old one is not read as it."""
    producer = bench.producer(**SMALL)
    bench.store(producer, *range(SPOOLFUL))
    move = Queue.move_packed

    def fail(self: Queue, packed: Packed) -> None:
        move(self, packed)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "move_packed", fail)
        with pytest.raises(sqlite3.OperationalError):
            producer.step(cut=True)
    producer.step(cut=True)
    while bench.flusher().step(producer):
        pass
    assert bench.counted() == list(range(SPOOLFUL))


def test_schedule_fsync_error_retires_the_spool(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A sync fails; a second one of the same file would succeed and mean nothing. The caller is
    told "unknown", and by then the event is in the queue; later ones go to another file.
    """
    meter = bench.meter(durability="power")
    meter.record("d", 1)
    worker = bench.worker(meter)
    queue = worker.producer.queue
    told: list[tuple[bool, int]] = []
    worker.waiters.append(lambda confirmed: told.append((confirmed, queue.packed().sequence)))
    sync = Spool.sync
    failed: list[str] = []

    def fail_once(self: Spool) -> None:
        if not failed:
            failed.append(self.path.name)
            raise OSError(5, "Input/output error")
        sync(self)

    monkeypatch.setattr(Spool, "sync", fail_once)
    with pytest.raises(DurabilityUnknown):
        meter.record("d", 2)
    assert told == [(False, 3)]
    assert failed[0] not in bench.names("*.spool-*")
    meter.record("d", 3)
    assert meter.flush().ok
    assert bench.counted() == [1, 2, 3]


def test_schedule_packed_spool_not_yet_unlinked_at_a_crash(bench: Bench) -> None:
    """The commit moved on, the file is still there: it is not packed a second time."""
    producer = bench.producer(**SMALL)
    bench.store(producer, *range(SPOOLFUL))
    first = producer._spools[0].path
    copied = first.read_bytes()
    producer.step(cut=True)
    producer.release(finished=False)
    first.write_bytes(copied)
    bench.adopt_all()
    assert bench.counted() == list(range(SPOOLFUL))


def test_schedule_step_within_a_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler flushes in the middle of a flush: no frame is taken by both."""
    meter = bench.meter()
    for number in range(5):
        meter.record("d", number, key=f"k{number}")
    left = [3]

    def interrupt(found: bytes) -> Any:
        left[0] -= 1
        if not left[0]:
            meter.flush()
            meter.stats()
        return split_body(found)

    with monkeypatch.context() as patch:
        patch.setattr("tallybook.committer.split_body", interrupt)
        meter.flush()
    assert meter.flush().ok
    assert sorted(sequence for _, sequence in bench.server.events) == list(range(1, 6))
    assert bench.counted() == list(range(5))


def test_schedule_step_that_is_interrupted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a flush: what was half taken is taken anew."""
    meter = bench.meter()
    for number in range(5):
        meter.record("d", number)
    left = [3]

    def interrupt(found: bytes, seed: int) -> int:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return crc32(found, seed)

    with monkeypatch.context() as patch:
        patch.setattr("tallybook.committer.crc32", interrupt)
        with pytest.raises(KeyboardInterrupt):
            meter.flush()
    assert meter.flush().ok
    assert bench.counted() == list(range(5))


# -- forks -------------------------------------------------------------------------------------


def test_schedule_parents_buffer_sent_by_the_child(bench: Bench) -> None:
    """What the parent has in memory at a fork is the parent's; the child throws it away."""
    run(
        bench,
        BEGIN
        + """
import threading
meter._threads = False
for n in range(5): meter._buffer.waiting.append(meter._checked_body("d", n, None, None, None, None))
child = os.fork()
if not child:
    meter.record("d", 100)
    meter.close()
    os._exit(0)
os.waitpid(child, 0)
meter.record("d", 5)
meter.close()
""",
        "buffered",
    )
    bench.adopt_all()
    assert bench.counted() == [*range(6), 100]


def test_schedule_child_stores_into_the_parents_map(bench: Bench) -> None:
    """Both sides record at once; the parent's file holds what the parent recorded."""
    run(
        bench,
        BEGIN
        + """
meter.record("d", 0)
child = os.fork()
for n in range(1, 200):
    meter.record("d", n if child else 1000 + n)
if child: os.waitpid(child, 0)
os.kill(os.getpid(), signal.SIGKILL)
""",
        code=-9,
    )
    bench.adopt_all()
    assert bench.counted() == [*range(200), *range(1001, 1200)]


def test_schedule_child_of_a_fork_without_hooks(bench: Bench) -> None:
    """
    A library in C forked, and no hook of Python's ran: the pid tells at the next record.

    Without threads: an interpreter that another thread had just asked for its lock waits in
    such a child for a thread that is not there, whatever runs in it.
    """
    run(
        bench,
        BEGIN.replace("close_seconds=0.1", "threads=False")
        + """
import ctypes
libc = ctypes.PyDLL(None)
meter.record("d", 0)
child = libc.fork()
for n in range(1, 50):
    meter.record("d", n if child else 1000 + n)
if not child:
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
os.kill(os.getpid(), signal.SIGKILL)
""",
        code=-9,
    )
    bench.adopt_all()
    assert bench.counted() == [*range(50), *range(1001, 1050)]


def test_schedule_child_keeps_the_parents_lock_alive(bench: Bench) -> None:
    """The parent dies, its child lives on: the parent's queue is adopted at once."""
    program = (
        BEGIN
        + """
meter.record("d", 1)
child = os.fork()
if not child:
    signal.pause()
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(bench.directory)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()
    parent.wait(20)
    try:
        os.kill(child, 0)
        adopter = bench.adopter()
        adopter.step()
        assert bench.counted() == [1]
    finally:
        os.kill(child, signal.SIGKILL)


def test_schedule_child_that_exits_closes_the_parents_queue(bench: Bench) -> None:
    """Its interpreter frees what it inherited: the parent's write-ahead log stays."""
    run(
        bench,
        BEGIN.replace("close_seconds=0.1", "threads=False")
        + """
meter.record("d", 1)
meter.flush(0.1)
child = os.fork()
if not child:
    sys.exit(0)
os.waitpid(child, 0)
log = os.path.join(sys.argv[1], meter.stats().producer + ".db-wal")
assert os.path.getsize(log) > 0
meter.record("d", 2)
meter.flush(0.1)
os.kill(os.getpid(), signal.SIGKILL)
""",
        code=-9,
    )
    bench.adopt_all()
    assert bench.counted() == [1, 2]


# -- adoption ----------------------------------------------------------------------------------


def left_by_the_dead(bench: Bench, *numbers: int, **options: Any) -> str:
    """A producer that recorded and died."""
    producer = bench.producer(**options)
    bench.store(producer, *numbers)
    producer.release(finished=False)
    return producer.id.hex()


def test_schedule_two_adopters_of_one_orphan(bench: Bench) -> None:
    """Whoever has the lock packs and sends; the other leaves it alone."""
    left_by_the_dead(bench, 1, 2, 3)
    first, second = bench.adopter(), bench.adopter()
    first.look()
    second.look()
    assert (len(first.orphans), len(second.orphans)) == (1, 0)
    assert second.held == {}
    for adopter in (first, second):
        adopter.step()
    assert bench.counted() == [1, 2, 3]


def test_schedule_lock_removed_between_open_and_flock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first adopter finishes in between, and a new file has the path: the lock is of none."""
    name = left_by_the_dead(bench, 1)
    first = bench.adopter()
    flock = fcntl.flock
    path = bench.directory / f"{name}.lock"
    looked: list[bool] = []

    def finish_first(fd: int, how: int) -> None:
        if not looked:
            looked.append(True)
            first.step()
            assert not path.exists()
            path.touch()
        flock(fd, how)

    monkeypatch.setattr("tallybook.directory.fcntl.flock", finish_first)
    assert Lock.take(path) is None
    assert bench.counted() == [1]


def test_schedule_adoption_by_a_meter_of_another_endpoint(bench: Bench) -> None:
    """It is held and reported; nothing of it is sent or changed."""
    name = left_by_the_dead(bench, 1, endpoint="http://127.0.0.1:2")
    adopter = bench.adopter()
    adopter.step()
    assert name in adopter.held
    assert bench.server.events == {}
    assert bench.names(f"{name}.spool-0")


def test_schedule_adoption_by_a_meter_of_another_book(bench: Bench) -> None:
    """The queue names its ledger from the first answer on; another ledger says 409: held."""
    producer = bench.producer()
    bench.store(producer, 1)
    producer.step(cut=True)
    bench.flusher().step(producer)
    bench.store(producer, 2)
    producer.release(finished=False)
    elsewhere = MemoryServer(ledger="ee" * 16)
    home, bench.server = bench.server, elsewhere
    adopter = bench.adopter()
    adopter.step()
    assert (elsewhere.events, "another ledger" in adopter.held[producer.id.hex()]) == ({}, True)
    bench.server = home
    bench.clock.advance(120)
    bench.adopt_all()
    assert bench.counted() == [1, 2]


# -- from the queue to the server --------------------------------------------------------------


@pytest.fixture
def queue(bench: Bench) -> Producer:
    """A producer with four blocks of one event."""
    producer = bench.producer()
    for number in range(1, 5):
        bench.store(producer, number)
        producer.step(cut=True)
    return producer


def steps(bench: Bench, producer: Producer, count: int = 30, **options: Any) -> Flusher:
    """As many requests, each when it is due."""
    flusher = bench.flusher()
    for _ in range(count):
        bench.clock.advance(flusher.wait_seconds())
        flusher.step(producer, **options)
    return flusher


def test_schedule_block_damaged_in_the_queue_holds_up_the_next(
    bench: Bench, queue: Producer
) -> None:
    """It is set aside, counted, shown; the others arrive."""
    rotten = bytearray(queue.queue.pending(1, 1)[0].data)
    rotten[-1] ^= 1
    queue.queue._change(
        lambda connection: connection.execute(
            "update blocks set data = ? where id = 1", (bytes(rotten),)
        )
    )
    steps(bench, queue, 5)
    counts = queue.queue.counts()
    assert (bench.counted(), counts.pending_blocks, counts.aside_events) == ([2, 3, 4], 0, 1)


def test_schedule_block_refused_for_good_holds_up_the_next(bench: Bench, queue: Producer) -> None:
    """It is set aside after a few attempts of its own; the others arrive."""

    class Picky(MemoryServer):
        def send(
            self, body: bytes, content_type: str, timeout_seconds: float | None = None
        ) -> Response:
            if any(read_header(block).first == 2 for block in read_request(body)[1]):
                return Response(422, b"never")
            return super().send(body, content_type, timeout_seconds)

    bench.server = Picky()
    steps(bench, queue)
    counts = queue.queue.counts()
    assert (bench.counted(), counts.pending_blocks, counts.aside_events) == ([1, 3, 4], 0, 1)


def test_schedule_200_that_does_not_echo(bench: Bench, server: Noting, queue: Producer) -> None:
    """An answer to as many other blocks, and the page of a portal: nothing is marked as sent."""
    blocks = [one.data for one in queue.queue.pending(3, 1 << 20)]
    cached = server.send(encode_request(queue.announcement(3), blocks), "")
    server.events.clear()
    queue.queue.settle([(1, "acknowledged", None)])
    server.answers = [cached, Response(200, b"<html>welcome</html>")]
    steps(bench, queue, 2)
    assert queue.queue.counts().pending_blocks == 3
    steps(bench, queue, 1)
    assert bench.counted() == [2, 3, 4]


def test_schedule_lost_response_is_resent_byte_identically(
    bench: Bench, server: Noting, queue: Any
) -> None:
    """The server had stored it: the same bytes under the same digest, counted once."""
    server.faults = ["lose", "lose"]
    steps(bench, queue, 3)
    assert server.blocks[:4] == server.blocks[4:8] == server.blocks[8:]
    assert bench.counted() == [1, 2, 3, 4]


def test_schedule_413_recuts_nothing(bench: Bench, server: Noting) -> None:
    """Fewer blocks at a time, down to one; the blocks stay what they are, even set aside."""
    producer = bench.producer()
    for number in range(1, 8, 2):
        bench.store(producer, number, number + 1)
        producer.step(cut=True)
    blocks = [one.data for one in producer.queue.pending(9, 1 << 20)]
    server.answers = [Response(413, b"")] * 5
    steps(bench, producer, 12)
    assert set(server.blocks) == set(blocks)
    assert bench.counted() == [3, 4, 5, 6, 7, 8]
    producer.queue.retry_aside()
    steps(bench, producer, 2)
    assert set(server.blocks) == set(blocks)
    assert bench.counted() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_schedule_401_keeps_everything(bench: Bench, server: Noting, queue: Producer) -> None:
    """For as long as it takes; then everything arrives."""
    server.answers = [Response(401, b"")] * 30
    steps(bench, queue, 30)
    counts = queue.queue.counts()
    assert (counts.pending_blocks, counts.aside_blocks) == (4, 0)
    steps(bench, queue, 1)
    assert bench.counted() == [1, 2, 3, 4]


def test_schedule_reissue_of_a_conflict_twice_makes_identical_blocks(
    bench: Bench, server: Noting
) -> None:
    """A clone of the disk does the same, and an answer comes twice: one block, counted once."""
    producer = bench.producer()
    bench.store(producer, 1, 2)
    producer.step(cut=True)
    (mine,) = producer.queue.pending(9, 1 << 20)
    theirs = encode_block(
        pack("app", [split_body(body(number)) for number in (1, 99)]),
        producer=producer.id,
        first=1,
    )
    server.send(encode_request(producer.announcement(1), [theirs]), "")
    clone = bench.producer()
    clone.queue._change(
        lambda connection: connection.execute(
            "insert into blocks values (1, ?, 1, 2, 0, null, 0, ?)",
            (producer.id, mine.data),
        )
    )
    server.faults = ["lose"]
    steps(bench, producer, 3)
    steps(bench, clone, 2)
    reissued = {block for block in server.blocks if read_header(block).flags}
    assert len(reissued) == 1
    assert bench.counted() == [1, 2, 99]
    queued = [one.data for one in producer.queue.pending(9, 1 << 20)]
    assert queued == []


def test_schedule_closed_announced_too_early(bench: Bench, server: Noting) -> None:
    """It is said with the last blocks and not before: after it, the server counts the missing."""
    producer = bench.producer()
    for number in range(2 * REQUEST_BLOCKS_MAX + 1):
        bench.store(producer, number)
        producer.step(cut=True)
    producer.shut()
    server.faults = ["refuse"]
    steps(bench, producer, 4, closed=True)
    assert server.closed == [False, False, False, True]
    assert len(bench.counted()) == 2 * REQUEST_BLOCKS_MAX + 1


def test_schedule_closed_over_a_disk_that_refuses_the_last_block(
    bench: Bench, server: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be cut is not in any block, so `closed` is not said."""
    meter = bench.meter()
    meter.record("d", 1)

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "commit_block", refuse)
        assert not meter.close().ok
    assert True not in server.closed
    bench.adopt_all()
    assert bench.counted() == [1]
    assert server.closed[-1]


# -- full --------------------------------------------------------------------------------------


def test_schedule_drop_counter_survives_a_kill(bench: Bench) -> None:
    """A full queue drops and counts; SIGKILL; whoever adopts announces the drops."""
    out = run(
        bench,
        BEGIN.replace("close_seconds=0.1", "queue_bytes_max=1<<20, threads=False")
        + """
for n in range(50000):
    meter.record("d", n, tags={"noise": "x" * 100})
print(meter._producer._spools[-1].dropped(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
        code=-9,
    )
    dropped = int(out)
    assert dropped > 0
    bench.adopt_all()
    (said,) = bench.server.announcements.values()
    assert said.dropped == dropped
    assert len(bench.counted()) + dropped == 50_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tallybook-test", str(path)]
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this process may not mount: {mounted.stderr.strip()}")
    yield path
    # Whatever a failed test has left open on it.
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_schedule_ballast_lets_a_full_disk_drain(bench: Bench, small_disk: Path) -> None:
    """
    Not a byte is left on the disk: what was recorded cannot be packed, nor what the server
    has be marked. The ballast goes, and everything drains.
    """
    meter = bench.meter(directory=small_disk / "queue", queue_bytes_max=1 << 20)
    for number in range(3000):
        meter.record("d", number)
    with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 512)
    worker = bench.worker(meter)
    for _ in range(20):
        bench.clock.advance(2)
        worker._guarded(worker.commit_step)
        worker._guarded(worker.flush_step)
    result = meter.flush()
    assert result.ok, result
    assert bench.counted() == list(range(3000))
    assert meter.stats().dropped == 0
    assert meter.close().ok


def test_schedule_full_buffer_drops_nothing_uncounted(bench: Bench) -> None:
    """At level `buffered` with ``on_full="raise"``: what was accepted is kept, whoever is told."""
    meter = bench.meter(durability="buffered", on_full="raise", **SMALL)
    meter.record("d", 0)
    producer = bench.worker(meter).producer
    with pytest.raises(QueueFull):
        while True:
            producer.store(frame(1, producer.id, dimension="f", tenant=None))
    meter.record("d", 1)
    meter.record("d", 2)
    assert meter.flush().ok
    numbers = sorted(e.value[0] for e in bench.server.events.values() if e.dimension == "d")
    assert numbers == [0, 1, 2]
    assert meter.stats().dropped == 0


def test_schedule_memory_of_a_meter_that_is_just_being_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is appended between the emptying of the memory and the end: somebody comes."""
    meter = bench.meter(durability="buffered")
    meter.record("d", 1)
    producer = bench.worker(meter).producer
    shut = type(producer).shut

    def late(self: Any) -> None:
        meter._waiting.append(meter._checked_body("d", 2, None, None, None, None))
        shut(self)

    with monkeypatch.context() as patch:
        patch.setattr(type(producer), "shut", late)
        meter.close()
    assert bench.names("*.lock"), "nobody came"
    assert meter.close().ok
    assert bench.counted() == [1, 2]


def test_schedule_first_spool_of_another_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A disk with room for a small file only, and then the queue rots: where the first spool is
    number 0 as ever, everything is there and is packed anew.
    """
    allocate = os.posix_fallocate

    def refuse(fd: int, offset: int, length: int) -> None:
        if length > 1 << 19:
            raise OSError(28, "no space left on device")
        allocate(fd, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        producer = bench.producer()
    bench.store(producer, 1)
    producer.step(cut=True)
    bench.flusher().step(producer)
    bench.store(producer, 2)
    producer.release(finished=False)
    (bench.directory / f"{producer.id.hex()}.db").write_bytes(b"\xa5rotten!" * 1000)
    bench.adopt_all()
    assert bench.counted() == [1, 2]


def test_the_schedules_are_in_the_index() -> None:
    """tests/README.md names each of them, and what was taken out to see it fail."""
    index = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    source = Path(__file__).read_text(encoding="utf-8")
    names = re.findall(r"^def (test_schedule_\w+)", source, re.MULTILINE)
    assert [name for name in names if f"`test_schedules.py::{name}`" not in index] == []
    assert len(names) == len(set(names)) > 25
