"""One producer: stores, spools and blocks, and what it says of itself."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tallybook.block import read_header, read_payload
from tallybook.directory import Lock
from tallybook.errors import QueueFull
from tallybook.producer import Producer, ProducerClosed
from tallybook.queue import Packed, Queue, Reentered
from tallybook.spool import Spool
from tallybook.wire import read_request
from tests.sdk.conftest import Bench, frame, until

SMALL = {"queue_bytes_max": 1 << 20}  # Spools of 256 KiB, about 9,500 of these events.


def packed(producer: Producer) -> list[int]:
    """The values of all events that are in blocks, in the order of their sequences."""
    values: list[int] = []
    for waiting in producer.queue.pending(10_000, 1 << 30):
        header = read_header(waiting.data)
        assert header.first == len(values) + 1
        values += [event.value[0] for event in read_payload(waiting.data, header).events()]
    return values


def test_a_producer_makes_its_files_and_no_others(bench: Bench) -> None:
    """Lock, first spool, queue, and the ballast of the directory."""
    name = bench.producer().id.hex()
    assert bench.names("*") == sorted(
        ["ballast", f"{name}.db", f"{name}.db-wal", f"{name}.lock", f"{name}.spool-0"]
    )


def test_what_is_stored_is_packed_in_order(bench: Bench) -> None:
    """A step with a cut leaves nothing behind."""
    producer = bench.producer()
    bench.store(producer, 1, 2, 3)
    assert producer.step(cut=True)
    assert packed(producer) == [1, 2, 3]
    assert producer.waiting_events == 0


def test_a_block_waits_for_company_for_a_quarter_second(bench: Bench) -> None:
    """Until then it is open; then it is cut, however few events it has."""
    producer = bench.producer()
    bench.store(producer, 1)
    assert not producer.step()
    bench.clock.advance(0.2)
    bench.store(producer, 2)
    assert not producer.step()
    bench.clock.advance(0.1)
    assert producer.step()
    assert packed(producer) == [1, 2]


def test_while_sending_is_blocked_a_block_fills(bench: Bench) -> None:
    """It is not cut by time: a server that is away for a month makes no tiny blocks."""
    producer = bench.producer()
    producer.sending_blocked = True
    bench.store(producer, 1)
    producer.step()
    bench.clock.advance(60)
    assert not producer.step()
    producer.sending_blocked = False
    assert producer.step()


def test_a_full_spool_is_followed_by_another(bench: Bench) -> None:
    """Nothing is lost over rotations, and packed files go."""
    producer = bench.producer(**SMALL)
    for portion in range(3):
        bench.store(producer, *range(portion * 12_000, (portion + 1) * 12_000))
        producer.step()
    producer.step(cut=True)
    assert packed(producer) == list(range(36_000))
    assert len(bench.names("*.spool-*")) == 1
    assert bench.names("*.spool-*") != [f"{producer.id.hex()}.spool-0"]


def test_threads_that_store_while_spools_change_lose_nothing(bench: Bench) -> None:
    """Four threads store over many rotations while a fifth packs: each event once."""
    producer = bench.producer(**SMALL)
    done = threading.Event()

    def store(first: int) -> None:
        for number in range(first, 50_000, 4):
            with suppress(QueueFull):
                bench.store(producer, number)
                continue
            until(lambda: producer.bytes < 1 << 19)
            bench.store(producer, number)

    def pack() -> None:
        while not done.is_set():
            producer.step()

    threads = [threading.Thread(target=store, args=(first,)) for first in range(4)]
    packing = threading.Thread(target=pack)
    for thread in [packing, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    packing.join()
    producer.step(cut=True)
    assert sorted(packed(producer)) == list(range(50_000))
    assert bench.names("*.spool-*") > [f"{producer.id.hex()}.spool-3"]


def test_a_full_queue_is_said_so(bench: Bench) -> None:
    """QueueFull names the directory, what it holds and what it may; what was stored is kept."""
    producer = bench.producer(**SMALL)
    stored = 0
    with pytest.raises(QueueFull, match=r"may hold 1048576.*queue_bytes_max"):
        while True:
            bench.store(producer, stored)
            stored += 1
    producer.step(cut=True)
    assert packed(producer) == list(range(stored))


def test_what_the_server_has_does_not_fill_a_small_queue(bench: Bench) -> None:
    """
    Acknowledged blocks were kept up to 64 MiB whatever the queue may hold: a queue of 1 MiB
    was full for ever, with a server that had everything.
    """
    producer = bench.producer(**SMALL)
    for portion in range(60):
        for index in range(500):
            number = portion * 500 + index
            tags = {"noise": os.urandom(100).hex()}
            stored = frame(number, producer.id, tags=tags)
            try:
                producer.slot[0](stored)
            except ValueError:
                producer.store(stored)
        producer.step(cut=True)
        waiting = producer.queue.pending(1000, 1 << 30)
        producer.queue.settle([(one.id, "acknowledged", None) for one in waiting])
        producer.tidy()
    assert producer.dropped == 0


def test_drops_are_counted_over_spools_and_steps(bench: Bench) -> None:
    """The counter is the sum over the files, and each file's counts once."""
    producer = bench.producer(**SMALL)
    producer.count_drop(2)
    bench.store(producer, *range(12_000))
    producer.count_drop(3)
    assert producer.dropped == 5
    producer.step(cut=True)
    assert producer.dropped == 5
    assert producer.announcement(0).dropped == 5


@pytest.mark.parametrize("durable", [False, True])
def test_a_change_of_spool_that_fails_counts_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """
    The commit that moves on to the next file reported failure and was durable: the old file
    was then read as the new one, and all its events were packed once more.
    """
    producer = bench.producer(**SMALL)
    bench.store(producer, *range(12_000))
    move = Queue.move_packed

    def fail(self: Queue, packed: Packed) -> None:
        if durable:
            move(self, packed)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Queue, "move_packed", fail)
    with pytest.raises(sqlite3.OperationalError):
        producer.step(cut=True)
    monkeypatch.setattr(Queue, "move_packed", move)
    producer.count_drop()
    bench.store(producer, 12_000)
    producer.step(cut=True)
    assert packed(producer) == list(range(12_001))
    assert producer.dropped == 1


def test_a_first_spool_that_had_to_be_smaller_is_adopted_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    On a nearly full disk the first file was made smaller and called number 1, but packed as
    number 0: whoever adopted it packed everything a second time.
    """
    allocate = os.posix_fallocate

    def refuse(fd: int, offset: int, length: int) -> None:
        if length > 1 << 20:
            raise OSError(errno.ENOSPC, "no space left on device")
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    producer = bench.producer()
    bench.store(producer, 1, 2)
    producer.step(cut=True)
    bench.store(producer, 3)
    producer.release(finished=False)
    bench.adopt_all()
    assert bench.counted() == [1, 2, 3]


def test_a_spool_that_could_not_be_removed_is_stepped_over(bench: Bench) -> None:
    """Of a file that is in the way the number is left out, and nothing is read twice."""
    producer = bench.producer(**SMALL)
    (bench.directory / f"{producer.id.hex()}.spool-1").write_bytes(b"")
    bench.store(producer, *range(12_000))
    producer.step(cut=True)
    bench.store(producer, 12_000)
    producer.step(cut=True)
    assert packed(producer) == list(range(12_001))
    assert bench.names("*.spool-2")


def test_a_disk_without_room_for_the_next_spool_is_said_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OSError, everything stored is kept, and with room again it goes on."""
    producer = bench.producer(**SMALL)

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    stored = 0
    with pytest.raises(OSError, match="no space"):
        while True:
            bench.store(producer, stored)
            stored += 1
    monkeypatch.undo()
    bench.store(producer, stored)
    producer.step(cut=True)
    assert packed(producer) == list(range(stored + 1))


def test_a_failed_sync_retires_the_spool(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it held is in the queue, with a sync of its own, and stores go to a new file."""
    producer = bench.producer()
    bench.store(producer, 1)

    def fail(self: Spool) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Spool, "sync", fail)
    assert not producer.sync()
    assert packed(producer) == [1]
    monkeypatch.undo()
    bench.store(producer, 2)
    assert producer.sync()
    producer.step(cut=True)
    assert packed(producer) == [1, 2]
    assert bench.names("*.spool-*") == [f"{producer.id.hex()}.spool-1"]


def test_a_shut_producer_takes_nothing(bench: Bench) -> None:
    """Neither events nor drops; and what it had is packed."""
    producer = bench.producer()
    bench.store(producer, 1)
    producer.shut()
    with pytest.raises(ValueError, match="out of range"):
        producer.slot[0](frame(2, producer.id))
    with pytest.raises(ProducerClosed):
        producer.store(frame(2, producer.id))
    with pytest.raises(ProducerClosed):
        producer.count_drop()
    producer.step(cut=True)
    assert packed(producer) == [1]


def test_through_says_only_what_is_packed(bench: Bench) -> None:
    """While events are in the open block, the claim stays where it was."""
    producer = bench.producer()
    assert producer.announcement(0).through == 0
    producer.step()
    first = bench.clock.time_ns() // 1000
    assert producer.announcement(0).through == first
    bench.clock.advance(0.1)
    bench.store(producer, 1)
    producer.step()
    said = producer.announcement(0)
    assert (said.recorded, said.highest, said.through) == (1, 0, first)
    bench.clock.advance(1)
    producer.step()
    said = producer.announcement(0)
    assert (said.highest, said.through) == (1, bench.clock.time_ns() // 1000)


def test_a_clock_that_goes_back_takes_the_claim_with_it(bench: Bench) -> None:
    """What is announced is what holds by the clock as it is now."""
    producer = bench.producer()
    producer.step()
    before = producer.announcement(0).through
    bench.clock.jump(-3600)
    producer.step()
    assert producer.announcement(0).through == before - 3_600_000_000


def test_a_step_within_a_step_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A signal handler that flushed in the middle of a flush took frames that the outer step had
    taken and not noted yet: they were packed twice.
    """
    producer = bench.producer()
    bench.store(producer, 1, 2, 3)
    commit = Queue.commit_block
    refused: list[bool] = []

    def interrupt(self: Queue, block: bytes, packed: Packed, now: int) -> None:
        try:
            producer.step(cut=True)
        except Reentered:
            refused.append(producer.entered)
        assert producer.recorded == 3
        commit(self, block, packed, now)

    monkeypatch.setattr(Queue, "commit_block", interrupt)
    producer.step(cut=True)
    assert refused == [True]
    assert not producer.entered
    assert packed(producer) == [1, 2, 3]


def test_a_store_within_a_change_of_spool_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that records in the middle of it is told so; both get their places."""
    producer = bench.producer(**SMALL)
    allocate = os.posix_fallocate
    refused: list[int] = []

    def interrupt(fd: int, offset: int, length: int) -> None:
        with pytest.raises(Reentered):
            producer.store(frame(0, producer.id))
        refused.append(1)
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", interrupt)
    bench.store(producer, *range(12_000))
    assert refused == [1]
    monkeypatch.undo()
    producer.step(cut=True)
    assert packed(producer) == list(range(12_000))


def test_release_leaves_everything_for_adoption(bench: Bench) -> None:
    """Not finished: the files stay, the lock is free."""
    producer = bench.producer()
    bench.store(producer, 1)
    producer.release(finished=False)
    producer.release(finished=True)  # Once let go of, it is nobody's to remove.
    lock = Lock.take(bench.directory / f"{producer.id.hex()}.lock")
    assert lock is not None
    lock.release(unlink=False)
    assert len(bench.names(f"{producer.id.hex()}.*")) == 3


def test_release_of_a_finished_producer_leaves_nothing(bench: Bench) -> None:
    """But for what is kept for a restored server: the acknowledged blocks, as they were."""
    producer = bench.producer(**SMALL)
    bench.store(producer, *range(12_000))
    producer.shut()
    producer.step(cut=True)
    waiting = producer.queue.pending(99, 1 << 30)
    producer.queue.settle([(one.id, "acknowledged", None) for one in waiting])
    producer.release(finished=True)
    name = producer.id.hex()
    assert bench.names("*") == sorted([f"{name}.kept", "ballast"])
    announcement, kept = read_request((bench.directory / f"{name}.kept").read_bytes())
    assert [bytes(block) for block in kept] == [one.data for one in waiting]
    assert (announcement.producer, announcement.closed) == (producer.id, True)


def test_files_that_cannot_be_made_leave_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of them fails, an error now and no half-made producer."""

    def refuse(self: Queue, **_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Queue, "remember", refuse)
    with pytest.raises(sqlite3.OperationalError):
        bench.producer()
    assert bench.names("*") == ["ballast"]
    assert Lock.descriptors == {}


def test_make_room_gives_up_the_ballast_and_what_the_server_has(bench: Bench) -> None:
    """And once a step has found room again, the ballast is put back."""
    producer = bench.producer()
    bench.store(producer, 1)
    producer.step(cut=True)
    producer.queue.settle([(1, "acknowledged", None)])
    producer.make_room()
    assert bench.names("ballast") == []
    assert list(producer.queue.acknowledged()) == []
    producer.step()
    assert bench.names("ballast") == ["ballast"]


def test_a_removed_directory_is_seen(bench: Bench, tmp_path: Path) -> None:
    """The lock file is no longer where it was."""
    producer = bench.producer()
    assert producer.in_place()
    bench.directory.rename(tmp_path / "elsewhere")
    assert not producer.in_place()
    (tmp_path / "elsewhere").rename(bench.directory)


def test_a_network_file_system_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither locks nor maps can be trusted there: an error that says what to set."""
    monkeypatch.setattr("tallybook.directory.file_system", lambda path: "nfs4")
    with pytest.raises(OSError, match=r"nfs4.*TALLYBOOK_DIRECTORY"):
        bench.producer()
