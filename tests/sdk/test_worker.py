"""The two threads: they end, they sleep, they never spin, and whoever waits gets an answer."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tallybook import DurabilityUnknown, Meter
from tallybook.clock import SystemClock
from tallybook.directory import Lock
from tallybook.limits import ANNOUNCE_SECONDS, BUFFER_EVENTS_MAX
from tallybook.producer import Producer
from tallybook.queue import Queue, QueueDamaged
from tallybook.spool import Spool
from tallybook.testing import MemoryServer
from tallybook.transport import Response
from tallybook.worker import Bell, Worker
from tests.sdk.conftest import Bench, until

LIVE: dict[str, Any] = {"threads": True, "clock": None}


class Slow(MemoryServer):
    """A server whose answers wait until they may go."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = threading.Event()
        self.go_on = threading.Event()

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        self.under_way.set()
        self.go_on.wait(30)
        return super().send(body, content_type, timeout_seconds)


def test_a_bell_that_was_rung_keeps_from_sleeping_once() -> None:
    """Before the wait or during it, and twice is once."""
    bell = Bell()
    bell.ring()
    bell.ring()
    bell.wait(None)
    began = time.monotonic()
    bell.wait(0.01)
    assert time.monotonic() - began >= 0.01


def test_what_is_recorded_arrives_by_itself(bench: Bench) -> None:
    """Packed and sent by the threads, without a flush."""
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    until(lambda: bench.counted() == [1])
    until(lambda: bench.worker(meter).asleep)
    meter.record("d", 2)
    until(lambda: bench.counted() == [1, 2])


def test_nobody_wakes_while_nothing_is_recorded(bench: Bench) -> None:
    """The packing thread sleeps after a second without an event, until `record` rings."""
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    worker = bench.worker(meter)
    until(lambda: worker.asleep)
    looked = worker._clock.monotonic()
    assert worker._pause_seconds() > 1
    assert worker.asleep
    assert worker._clock.monotonic() - looked < 1


def test_a_server_that_is_away_wakes_nobody_every_tick(bench: Bench) -> None:
    """
    With a block that was filling up, the packing thread looked fifty times a second for as
    long as the server was away. Once it is back, the block goes all the same.
    """
    bench.server.faults = ["refuse"] * 3
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    worker = bench.worker(meter)
    until(lambda: worker.producer.sending_blocked)
    meter.record("d", 2)
    until(lambda: worker.asleep)
    until(lambda: bench.counted() == [1, 2])


def test_a_disk_that_refuses_is_tried_again_without_another_event(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    After a second of refusals the packing thread went to sleep with frames that were not
    packed, until somebody recorded again.
    """
    refusing = threading.Event()
    refusing.set()
    commit = Queue.commit_block

    def refuse(self: Queue, *arguments: Any) -> None:
        if refusing.is_set():
            raise sqlite3.OperationalError("disk I/O error")
        commit(self, *arguments)

    monkeypatch.setattr(Queue, "commit_block", refuse)
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    worker = bench.worker(meter)
    until(lambda: worker._warn._warned_at)
    refusing.clear()
    until(lambda: bench.counted() == [1])


def paces(worker: Worker, bell: str, loop: Callable[[], None], turns: int) -> list[float]:
    """How long *loop* waits on *bell* between its turns."""
    waits: list[float] = []

    class Noting(Bell):
        def wait(self, seconds: float | None) -> None:
            waits.append(-1 if seconds is None else seconds)
            if len(waits) == turns:
                worker._stopping = True

    setattr(worker, bell, Noting())
    loop()
    worker._stopping = False
    return waits


def test_a_sending_thread_whose_disk_refuses_does_not_spin(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    With an announcement due and a queue that could not be written, it turned without a
    pause, at the cost of a whole processor.
    """
    meter = bench.meter()
    meter.record("d", 1)
    worker = bench.worker(meter)

    def refuse(*_: object, **__: object) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    bench.clock.advance(ANNOUNCE_SECONDS * 2)
    with monkeypatch.context() as patch:
        patch.setattr(Producer, "step", refuse)
        patch.setattr(worker, "_finish", lambda: None)
        assert min(paces(worker, "_sending", worker._flush_loop, 5)) >= 1


def test_a_packing_thread_whose_disk_refuses_does_not_spin(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries once a second."""
    meter = bench.meter()
    meter.record("d", 1)
    worker = bench.worker(meter)

    def refuse(*_: object, **__: object) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Producer, "step", refuse)
        assert paces(worker, "packing", worker._commit_loop, 5) == [1.0] * 5


def test_threads_that_could_not_start_are_started_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread was left in the system: recording goes on, and so does sending, later."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        meter = bench.meter(threads=True)
        meter.record("d", 1)
    assert threading.Thread.start is start
    bench.clock.advance(2)
    meter.record("d", 2)
    bench.clock.advance(2)
    until(lambda: bench.worker(meter).flush_step() or bench.counted() == [1, 2])
    assert meter.close().ok


# -- closing -----------------------------------------------------------------------------------


def test_close_ends_the_threads_and_removes_the_files(bench: Bench) -> None:
    """Everything at the server, said so, and nothing left but what is kept."""
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    worker = bench.worker(meter)
    assert meter.close().ok
    assert worker.ended
    assert not any(thread.is_alive() for thread in worker._threads.values())
    assert bench.server.announcements[worker.producer.id].closed
    assert bench.names(f"{worker.producer.id.hex()}*") == [f"{worker.producer.id.hex()}.kept"]
    assert Lock.descriptors == {}


def test_close_is_in_time_whatever_the_network_does(bench: Bench) -> None:
    """
    A request that was under way: close returned in time, and then nobody let go of the files
    as long as the process lived; nothing of them was sent.
    """
    slow = Slow()
    meter = bench.meter(**(LIVE | {"transport": slow}))
    meter.record("d", 1)
    assert slow.under_way.wait(20)
    meter.record("d", 2)
    worker = bench.worker(meter)
    began = time.monotonic()
    result = meter.close(timeout=0.1)
    assert time.monotonic() - began < 5
    assert (result.ok, result.pending) == (False, 2)
    slow.go_on.set()
    until(lambda: worker.ended)
    assert Lock.descriptors == {}
    bench.server = slow
    bench.adopt_all()
    assert bench.counted() == [1, 2]


def test_close_twice_is_close_once(bench: Bench) -> None:
    """And closing what was never opened is nothing."""
    meter = bench.meter()
    assert meter.close().ok
    meter.record("d", 1)
    assert meter.close().ok
    assert meter.close().ok
    assert bench.counted() == [1]


def test_close_with_a_disk_that_refuses_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The disk was full when the last block was to be cut: close raised, into the application.
    Now it says so, `closed` is not announced, and whoever comes next packs and sends.
    """
    meter = bench.meter()
    meter.record("d", 1)
    name = bench.worker(meter).producer.id

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "commit_block", refuse)
        result = meter.close()
    assert (result.ok, result.pending) == (False, 1)
    assert "full" in str(result.error)
    assert name not in bench.server.announcements
    assert meter.close().ok
    bench.adopt_all()
    assert bench.counted() == [1]


def test_close_with_a_server_that_is_away_does_not_wait_for_it(bench: Bench) -> None:
    """One attempt, and the rest is for whoever comes next."""
    bench.server.faults = ["refuse"] * 9
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    result = meter.close(timeout=20)
    assert not result.ok
    assert len(bench.server.faults) >= 7
    bench.server.faults = []
    bench.adopt_all()
    assert bench.counted() == [1]


def test_closed_is_said_only_when_everything_is_in_blocks(bench: Bench) -> None:
    """The announcement that says it counts every event that was recorded."""
    for number in range(5):
        meter = bench.meter(**LIVE)
        for value in range(10):
            meter.record("d", 100 * number + value)
        meter.close()
    for said in bench.server.announcements.values():
        assert (said.closed, said.highest, said.recorded) == (True, 10, 10)


# -- waiting for the disk ----------------------------------------------------------------------


def test_whoever_waits_for_a_sync_gets_an_answer_when_it_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DurabilityUnknown, and the event arrives all the same, once."""

    def fail(self: Spool) -> None:
        raise OSError(5, "Input/output error")

    meter = bench.meter(durability="power", **LIVE)
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "sync", fail)
        with pytest.raises(DurabilityUnknown, match="do not record it again"):
            meter.record("d", 1)
    meter.record("d", 2)
    assert meter.flush().ok
    assert bench.counted() == [1, 2]


def test_whoever_waits_for_a_sync_gets_an_answer_without_threads(bench: Bench) -> None:
    """`record` does the work itself."""
    meter = bench.meter(durability="power")
    meter.record("d", 1)
    assert bench.worker(meter).waiters == type(bench.worker(meter).waiters)()
    meter.close()


def test_whoever_waits_while_it_is_closed_gets_an_answer(bench: Bench) -> None:
    """Sync or none: no call hangs, and each event arrives once."""
    for _ in range(10):
        meter = bench.meter(durability="power", **LIVE)
        meter.record("d", 0)
        begin = threading.Barrier(5)

        def record(value: int, meter: Meter = meter, begin: threading.Barrier = begin) -> None:
            begin.wait()
            for _ in range(10):
                try:
                    meter.record("d", value)
                except DurabilityUnknown:
                    pass

        threads = [
            threading.Thread(target=record, args=(value,), daemon=True) for value in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        begin.wait()
        meter.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        meter.close()
        bench.server.faults = []
    assert sorted(bench.counted()) == sorted([0] * 10 + [1, 2, 3, 4] * 100)


def test_whoever_would_wait_for_himself_is_told_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A signal handler that records at level `power` in the middle of a flush on its own thread
    waited for a sync that waited for the flush: for ever.
    """
    meter = bench.meter(durability="power", **LIVE)
    meter.record("d", 1)
    commit = Queue.commit_block
    told: list[bool] = []

    def interrupt(self: Queue, *arguments: Any) -> None:
        if threading.current_thread() is threading.main_thread() and not told:
            with pytest.raises(DurabilityUnknown):
                meter.record("d", 3)
            told.append(True)
        commit(self, *arguments)

    monkeypatch.setattr(Queue, "commit_block", interrupt)
    while not told:
        with bench.worker(meter).producer._stepping:
            bench.worker(meter).producer.slot[0](_frame(bench, meter, 2))
            bench.worker(meter).producer.step(cut=True)
    monkeypatch.undo()
    assert meter.flush().ok
    assert bench.counted() == [1, 2, 3]


def _frame(bench: Bench, meter: Meter, number: int) -> bytes:
    from tests.sdk.conftest import frame

    return frame(number, bench.worker(meter).producer.id)


# -- status ------------------------------------------------------------------------------------


def published(bench: Bench, name: str) -> dict[str, Any]:
    """What lies beside a queue."""
    found: dict[str, Any] = json.loads((bench.directory / f"{name}.status").read_text())
    return found


def test_the_counts_lie_beside_the_queue(bench: Bench) -> None:
    """So that nobody opens a live one to see them."""
    meter = bench.meter()
    meter.record("d", 1)
    bench.worker(meter).commit_step()
    name = bench.worker(meter).producer.id.hex()
    status = published(bench, name)
    assert (status["producer"], status["recorded"], status["pending"]) == (name, 1, 1)
    assert (status["source"], status["endpoint"]) == ("app", "http://127.0.0.1:1")


def test_the_last_counts_of_what_is_left_are_its_own(bench: Bench) -> None:
    """
    A producer that was closed without a server published the counts of no producer: zeros,
    beside a queue in which events waited.
    """
    bench.server.faults = ["refuse"] * 9
    meter = bench.meter()
    meter.record("d", 1)
    name = bench.worker(meter).producer.id.hex()
    meter.close()
    status = published(bench, name)
    assert (status["producer"], status["recorded"], status["pending"]) == (name, 1, 1)


def test_the_counts_are_written_at_most_once_a_second(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at all when they are the same."""
    written: list[Path] = []
    replace = Path.replace

    def note(self: Path, target: Path) -> Path:
        written.append(self)
        return replace(self, target)

    meter = bench.meter()
    meter.record("d", 1)
    worker = bench.worker(meter)
    monkeypatch.setattr(Path, "replace", note)
    for _ in range(10):
        worker.commit_step()
    assert len(written) == 1
    bench.clock.advance(1)
    worker.commit_step()
    bench.clock.advance(1)
    worker.commit_step()
    assert len(written) <= 2


# -- lost and damaged --------------------------------------------------------------------------


def test_a_removed_directory_is_made_again_and_nothing_is_lost(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in it is sent from the open files; recording goes on in a new queue."""
    import shutil

    bench.server.faults = ["refuse"] * 2
    meter = bench.meter()
    meter.record("d", 1)
    first = bench.worker(meter)
    first.commit_step()
    shutil.rmtree(bench.directory)
    meter.record("d", 2)
    bench.clock.advance(2)
    first.commit_step()
    assert "was removed" in caplog.text
    meter.record("d", 3)
    assert bench.worker(meter) is not first
    assert bench.names("*.lock") == [f"{bench.worker(meter).producer.id.hex()}.lock"]
    bench.server.faults = []
    bench.clock.advance(60)
    assert meter.flush().ok
    assert bench.counted() == [1, 2, 3]
    assert meter.close().ok
    assert first.ended


def test_a_removed_directory_is_made_again_by_the_threads(bench: Bench) -> None:
    """And the worker of the old one ends by itself, once it has sent what it had."""
    import shutil

    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    first = bench.worker(meter)
    until(lambda: bench.counted() == [1])
    shutil.rmtree(bench.directory)
    value = [1]

    def moved() -> bool:
        value[0] += 1
        meter.record("d", value[0])
        return meter._worker is not None and meter._worker is not first

    until(moved)
    until(lambda: first.ended)
    assert meter.flush().ok
    assert bench.counted() == list(range(1, value[0] + 1))


def test_a_queue_that_is_damaged_while_it_is_open_is_left_for_adoption(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Recording goes on in a new one; what the spool holds is packed anew, and counts once."""
    meter = bench.meter()
    meter.record("d", 1)
    worker = bench.worker(meter)
    worker.flush_step()
    worker.producer.step(cut=True)
    worker.flush_step()
    meter.record("d", 2)

    def rot(*_: object, **__: object) -> None:
        raise QueueDamaged("x.db cannot be read: database disk image is malformed")

    with monkeypatch.context() as patch:
        patch.setattr(worker.producer.queue, "commit_block", rot)
        assert not meter.flush().ok
    assert "malformed" in caplog.text
    assert worker.ended
    meter.record("d", 3)
    assert bench.worker(meter) is not worker
    damaged = bench.directory / f"{worker.producer.id.hex()}.db"
    damaged.write_bytes(b"garbage" * 4096)
    for _ in range(5):
        bench.clock.advance(60)
        bench.worker(meter).flush_step()
        meter.flush()
    assert bench.counted() == [1, 2, 3]


def test_a_fault_never_ends_a_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is raised in a step: one warning, and the next step."""
    faults: list[Exception] = [RuntimeError("a fault"), MemoryError(), KeyError("x")]
    step = Worker.commit_step

    def fail(self: Worker) -> bool:
        if faults:
            raise faults.pop()
        return step(self)

    monkeypatch.setattr(Worker, "commit_step", fail)
    monkeypatch.setattr("tallybook.worker._FAULT_SECONDS", 0.01)
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    until(lambda: bench.counted() == [1])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_full_disk_makes_room_and_a_broken_one_does_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ballast is given up where that can help, and not for any error."""
    made: list[bool] = []
    monkeypatch.setattr(Producer, "make_room", lambda self: made.append(True))
    meter = bench.meter()
    meter.record("d", 1)
    worker = bench.worker(meter)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    for error in (busy, OSError(24, "too many open files"), RuntimeError("x")):
        worker._fault(error)
    assert made == []
    for error in (full, OSError(28, "no space left on device")):
        worker._fault(error)
    assert made == [True, True]


def test_a_real_clock_is_used_without_one(bench: Bench) -> None:
    """The tests with threads run on it."""
    assert isinstance(bench.meter(**LIVE)._clock, SystemClock)
    assert BUFFER_EVENTS_MAX > 1
