"""
The threads of a Meter: one packs, one sends, and at level ``buffered`` one empties the
memory. They only call steps.

None runs before the first event, and none wakes while there is nothing to do: the packing
thread ticks while events arrive and then sleeps until `record` rings; the sending thread
wakes for a block, for a retry, and to say that the producer lives. What is in memory must
not wait for a disk: packing waits for one, so emptying has a thread of its own.

A bell is a bare lock, not an Event or a Condition: ringing it is one call that a signal
handler or a finaliser may make at any moment.

The end is the sending thread's work too, so that whoever closes waits for it only as long
as he likes: a request that is under way, or a name server that does not answer, holds up no
exit. Whichever thread comes last lets go of the files.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tallybook.adoption import Adopter
from tallybook.clock import Clock
from tallybook.directory import write_status
from tallybook.flusher import Flusher
from tallybook.limits import (
    ADOPTION_SECONDS,
    ANNOUNCE_SECONDS,
    BUFFER_DELAY_SECONDS,
    STATUS_DELAY_SECONDS,
)
from tallybook.producer import Producer, ProducerClosed
from tallybook.queue import QueueDamaged, Reentered
from tallybook.warning import Warner

__all__ = ["Bell", "Drained", "FlushResult", "Hooks", "Worker"]

_TICK_SECONDS: Final = BUFFER_DELAY_SECONDS
# Half of what is promised: the other half is for the thread to get its turn.
_DRAIN_TICK_SECONDS: Final = BUFFER_DELAY_SECONDS / 2
_IDLE_TICKS: Final = 50
"""After a second without an event, the packing thread sleeps."""
_FAULT_SECONDS: Final = 1.0
"""After a fault, a thread tries again so often."""
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})


class Bell:
    """Wakes one waiting thread; ringing twice before it wakes is ringing once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the thread, or keep it from sleeping once. May be called from anywhere."""
        with suppress(RuntimeError):  # It was rung already.
            self._lock.release()

    def wait(self, seconds: float | None) -> None:
        """Sleep until it rings, or for so many seconds."""
        self._lock.acquire(timeout=-1 if seconds is None else max(seconds, 0.0))


class FlushResult(msgspec.Struct, frozen=True):
    """
    What a flush achieved.

    Attributes:
        ok: Everything recorded before the call, since this Meter was opened last, is at the
            server.
        sent: Events that the server acknowledged during the call.
        pending: Events that are on disk and wait, those recorded meanwhile among them.
        error: Why something waits, or None.
    """

    ok: bool
    sent: int
    pending: int
    error: str | None


class Drained(NamedTuple):
    """
    What became of the events that were in memory.

    Attributes:
        moved: How many are in the spool now, or were dropped.
        all: Whether that is all that there were when the move began.
    """

    moved: int
    all: bool


class _LeftOver(NamedTuple):
    """Events that are not at the server, however far they have come, and those set aside."""

    pending: int
    aside: int


class Hooks(NamedTuple):
    """
    What a worker asks of its Meter.

    Attributes:
        drain: Move what is in memory into this producer's spool.
        buffered: How many events are in memory.
        in_memory: Whether every event is in memory first, for 20 ms at most.
        status: The counts that lie beside the queue.
        lost: This worker's files cannot be written any more, for this reason: from now on
            record elsewhere.
    """

    drain: Callable[[Producer], Drained]
    buffered: Callable[[], int]
    in_memory: bool
    status: Callable[[Worker], dict[str, object]]
    lost: Callable[[Worker, str], None]


class Worker:
    """
    Drives one producer.

    Attributes:
        producer: Whose steps.
        flusher: Sends; None without an endpoint.
        adopter: Drains dead producers; None without an endpoint.
        asleep: Whether `record` has to call `wake`.
        packing: The packing thread's bell.
        waiters: Who waits for a sync: called once, with whether the disk confirmed.
        ended: The threads have ended and the files are let go of.
    """

    def __init__(
        self,
        producer: Producer,
        flusher: Flusher | None,
        adopter: Adopter | None,
        clock: Clock,
        hooks: Hooks,
        directory: Path,
    ) -> None:
        self.producer = producer
        self.flusher = flusher
        self.adopter = adopter
        self.asleep = True
        self.packing = Bell()
        self._draining = Bell()
        self.waiters: deque[Callable[[bool], None]] = deque()
        self.ended = False
        self._sending = Bell()
        self._clock = clock
        self._hooks = hooks
        self._directory = directory
        self._status_at = clock.monotonic() - STATUS_DELAY_SECONDS
        self._status_written: dict[str, object] = {}
        self._announced_at = clock.monotonic()
        self._warn = Warner(clock)
        self.closed_announced = False
        self._publishing = threading.Lock()
        self._stopping = False
        self._retired = False
        self._damaged = False
        self._deadline = 0.0
        self._result: FlushResult | None = None
        self._inside = {"sending"}
        self._release_once = [True]
        self._starting = threading.Lock()
        self._loops = {"commit": self._commit_loop}
        if flusher is not None:
            self._loops["flush"] = self._flush_loop
        if hooks.in_memory:
            self._loops["drain"] = self._drain_loop
        self._threads: dict[str, threading.Thread] = {}
        self._start_at: float | None = None

    def start(self) -> None:
        """Start the threads that do not run; where they cannot, others do their work."""
        if not self._starting.acquire(False):
            return
        self._start_at = self._clock.monotonic() + _FAULT_SECONDS
        try:
            for name in self._loops.keys() - self._threads.keys():
                thread = threading.Thread(
                    target=self._loops[name], name=f"tallybook-{name}", daemon=True
                )
                # The interpreter is shutting down, or the system has no thread left.
                with suppress(RuntimeError):
                    thread.start()
                    self._threads[name] = thread
        finally:
            self._starting.release()

    def _start_missing(self) -> None:
        start_at = self._start_at
        if (
            start_at is not None
            and len(self._threads) < len(self._loops)
            and not self._stopping
            and self._clock.monotonic() >= start_at
        ):
            self.start()

    def _alive(self, name: str) -> threading.Thread | None:
        thread = self._threads.get(name)
        return thread if thread is not None and thread.is_alive() else None

    @property
    def running(self) -> bool:
        """Whether the packing thread is there to serve waiters."""
        return not self._stopping and self._alive("commit") is not None

    @property
    def entered(self) -> bool:
        """Whether the calling thread is in the middle of one of the steps."""
        return self.producer.entered or (self.flusher is not None and self.flusher.entered)

    def wake(self) -> None:
        """An event was recorded while nobody looked. May be called from anywhere."""
        self.packing.ring()
        self._draining.ring()
        if "commit" not in self._threads:
            with suppress(Exception):  # Nobody else is there who moves it out of the memory.
                self._start_missing()
                self._hooks.drain(self.producer)

    # -- packing -----------------------------------------------------------------------------

    def _commit_loop(self) -> None:
        self._inside.add("packing")
        self.asleep = False
        idle = 0
        while not self._stopping:
            busy = self._guarded(self.commit_step)
            idle = 0 if busy is not False else idle + 1
            if idle < _IDLE_TICKS:
                tick = _FAULT_SECONDS if busy is None else _TICK_SECONDS
                self.packing.wait(0 if self.waiters else tick)
                continue
            self.asleep = True
            # Whoever stored before it saw `asleep` is seen here; whoever stores later rings.
            if self._guarded(self.commit_step) is False and not self._stopping:
                self.packing.wait(None)
            self.asleep = False
            self._draining.ring()
            idle = 0
        self._draining.ring()
        self._leave("packing")

    def _drain_loop(self) -> None:
        """Empty the memory while events arrive, whatever the packing thread waits for."""
        while not self._stopping:
            self._guarded(lambda: self._hooks.drain(self.producer).all)
            self._draining.wait(None if self.asleep else _DRAIN_TICK_SECONDS)

    def commit_step(self) -> bool:
        """
        Take what was recorded, sync it if somebody waits, pack it; whether there was anything.
        """
        waiters = [self.waiters.popleft() for _ in range(len(self.waiters))]
        if waiters:
            # Every one of them stored before it began to wait, so this sync covers them all.
            self._sync(waiters)
        before = self.producer.open_events
        drained, committed = self._pack(cut=False)
        self._publish()
        # While sending is blocked, a block that fills up is no reason to look every tick.
        known = before if self.producer.sending_blocked else 0
        return bool(drained.moved or waiters or committed or self.producer.open_events > known)

    def _pack(self, *, cut: bool) -> tuple[Drained, bool]:
        # Before the memory is emptied: what was recorded before this moment is in the spool
        # afterwards, and only then may the server be told so.
        moment = self._clock.time_ns() // 1000
        drained = self._hooks.drain(self.producer)
        whole = drained.all or self.producer.closed
        committed = self.producer.step(cut=cut, through=moment if whole else self.producer.through)
        if committed:
            self._sending.ring()
        return drained, committed

    def _sync(self, waiters: list[Callable[[bool], None]]) -> None:
        confirmed = False
        try:
            confirmed = self.producer.sync()
        finally:
            for waiter in waiters:
                waiter(confirmed)
        if not confirmed:
            self._warn(
                "sync",
                f"nothing is lost, but a spool could not be synced: {self.producer.sync_error}; "
                "going on in a new one",
            )

    def wait_for_sync(self, done: Callable[[bool], None]) -> None:
        """Call *done* once, when the disk has confirmed what is stored, or has not."""
        if self.producer.entered:
            done(False)  # Who waits here waits for himself.
            return
        self.waiters.append(done)
        if self.running:
            self.packing.ring()
        else:
            self._guarded(self.commit_step)
        if self.ended:
            self._answer_waiters()

    def _answer_waiters(self) -> None:
        with suppress(IndexError):
            while True:
                self.waiters.popleft()(False)

    def _publish(self) -> None:
        """Write the counts beside the queue, so that nobody opens a live one to see them."""
        now = self._clock.monotonic()
        if now - self._status_at < STATUS_DELAY_SECONDS or not self._publishing.acquire(False):
            return
        self._status_at = now
        try:
            self.write_status()
        finally:
            self._publishing.release()
        self._start_missing()
        if not self._retired and not self.producer.in_place():
            self._lose(f"{self._directory} was removed, or its files were")

    def write_status(self) -> None:
        """Write the counts now, if they have changed."""
        status = self._hooks.status(self)
        if status == self._status_written:
            return
        if write_status(self._directory, self.producer.id.hex(), status):
            self._status_written = status

    # -- sending -----------------------------------------------------------------------------

    def _flush_loop(self) -> None:
        while not self._stopping:
            more = self._guarded(self.flush_step)
            if self._retired and self._guarded(lambda: not self._left_over().pending):
                break
            if not more:
                self._sending.wait(_FAULT_SECONDS if more is None else self._pause_seconds())
        self._stopping = True
        self.packing.ring()
        self._finish()

    def _pause_seconds(self) -> float:
        if self.flusher is None:
            return ADOPTION_SECONDS
        announce_in = self._announced_at + ANNOUNCE_SECONDS - self._clock.monotonic()
        # A retry is due when its wait is over: neither blocks nor announcements make it due
        # earlier, and the search for dead producers, every few seconds, not later.
        wait = self.flusher.wait_seconds()
        return wait if wait > 0 else max(min(ADOPTION_SECONDS, announce_in), 0.0)

    def flush_step(self) -> bool:
        """Send one request, if one is due; whether there is more to send now."""
        if self.flusher is None or self.flusher.wait_seconds() > 0:
            return False
        more = False
        try:
            more = self._send()
        finally:
            # What ails this producer's queue is no fault of those of the dead.
            if self.adopter is not None:
                more = self.adopter.step() or more
        return more

    def _send(self) -> bool:
        if self.flusher is None:
            return False
        now = self._clock.monotonic()
        announce = now - self._announced_at >= ANNOUNCE_SECONDS
        if announce:
            self._announced_at = now  # If it fails, the blocks or the next turn will bring it.
            self._pack_if_room()
        answered = self.flusher.step(self.producer, announce=announce)
        if answered:
            self._announced_at = now
            self.producer.tidy()
            self._publish()
            if self.asleep:
                self.packing.ring()  # A block that was filling up meanwhile is cut now.
        return (
            not self.producer.held
            and self.flusher.wait_seconds() == 0
            and bool(self.producer.queue.counts().pending_blocks)
        )

    # -- flushing ----------------------------------------------------------------------------

    def flush(self, deadline: float, *, closed: bool = False) -> FlushResult:
        """
        Pack and send what was recorded before, until the time is over, on the calling thread.

        Args:
            deadline: On the monotonic clock.
            closed: The producer has ended: say so, and do not wait for a server that is away.
        """
        before = self.flusher.acknowledged if self.flusher else 0
        error: str | None = None
        left = _LeftOver(0, 0)
        try:
            packed = self._pack_if_room()
            error = self._send_until(deadline, closed=closed and packed)
            while not packed and error is None:
                # What has been sent has made room for what has not been packed.
                unpacked = self._unpacked()
                packed = self._pack_if_room()
                error = self._send_until(deadline, closed=closed and packed)
                if not packed and self._unpacked() >= unpacked:
                    break
            left = self._left_over()
            if left.aside and error is None:
                error = f"{left.aside} events are set aside: the server refuses them for good"
            if not packed:
                error = "there is no room for every event; what was recorded is kept where it is"
        except Exception as fault:
            error = str(fault) or "it was closed meanwhile"
            self._fault(fault)
            with suppress(Exception):
                left = self._left_over()
        return FlushResult(
            ok=error is None,
            sent=(self.flusher.acknowledged if self.flusher else 0) - before,
            pending=left.pending,
            error=error,
        )

    def _pack_if_room(self) -> bool:
        """Pack everything; False where the disk or the queue has no room for all of it."""
        try:
            drained, _ = self._pack(cut=True)
        except (OSError, sqlite3.OperationalError) as fault:
            if not _is_full(fault):
                raise
            self._fault(fault)
            return False
        return drained.all or self.producer.closed

    def _unpacked(self) -> int:
        return self._hooks.buffered() + self.producer.waiting_events

    def _send_until(self, deadline: float, *, closed: bool) -> str | None:
        queue, producer = self.producer.queue, self.producer
        if self.flusher is None:
            waits = queue.counts().pending_blocks
            return "no endpoint is set; events are kept on disk" if waits else None
        last_id = queue.last_id()
        announced = not closed
        while queue.waits(last_id, producer.id) or not announced:
            left = deadline - self._clock.monotonic()
            if left <= 0 or producer.held:
                return producer.held or self.flusher.last_error or "the time was over"
            wait = self.flusher.wait_seconds()
            if wait > 0:
                if closed or wait >= left:
                    return self.flusher.last_error
                threading.Event().wait(wait)
                continue
            answered = self.flusher.step(
                producer, closed=closed, announce=not announced, timeout_seconds=left
            )
            if answered:
                producer.tidy()
                announced = announced or not queue.counts().pending_blocks
        self.closed_announced = closed
        return None

    def _left_over(self) -> _LeftOver:
        waiting = self.producer.waiting_events
        counts = self.producer.queue.counts()
        buffered = 0 if self.producer.closed else self._hooks.buffered()
        return _LeftOver(buffered + waiting + counts.pending_events, counts.aside_events)

    # -- closing -----------------------------------------------------------------------------

    def close(self, deadline: float) -> FlushResult:
        """
        Send what can be sent in time, say that the producer has ended, let go of the files.

        The producer is shut already. Idempotent.
        """
        self._deadline = deadline
        self._stopping = True
        self.packing.ring()
        self._sending.ring()
        threads = [self._alive(name) for name in ("flush", "commit", "drain")]
        if threads[0] is None and not self.ended:
            self._finish()
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - self._clock.monotonic()))
        if self._result is not None:
            return self._result
        # What the request that is under way carries is on disk, and its thread lets go of
        # the files when it has ended.
        pending = 0
        with suppress(Exception):
            pending = self._left_over().pending
        return FlushResult(False, 0, pending, "a request was still under way")

    def retire(self, *, damaged: bool) -> None:
        """
        Another worker records from now on; send what is left here, and end.

        Args:
            damaged: The queue file cannot be read: leave everything as it is, for adoption.
        """
        with suppress(Reentered):
            self.producer.shut()
        self._retired = True
        self._damaged = damaged
        if damaged:
            self._stopping = True
            if self._alive("flush") is None:
                self._finish()
        self.packing.ring()
        self._sending.ring()

    def _finish(self) -> None:
        """The last request, by whoever sends; then the files go, once nobody packs any more."""
        if not self._damaged:
            with suppress(Exception):
                self.commit_step()  # Whoever waits for a sync gets an answer.
            self._result = self.flush(self._deadline, closed=True)
        self._leave("sending")

    def _leave(self, who: str) -> None:
        self._inside.discard(who)
        if self._inside or not self._stopping:
            return
        try:
            self._release_once.pop()
        except IndexError:
            return  # The other thread came here at the same time.
        with suppress(Exception):
            self._release()
        self.ended = True
        self._answer_waiters()

    def _release(self) -> None:
        finished = False
        with suppress(Exception):
            finished = self.closed_announced and self._left_over() == _LeftOver(0, 0)
            if not finished:
                self.write_status()
        try:
            self.producer.release(finished=finished)
        finally:
            if self.adopter is not None:
                self.adopter.close()
            if self.flusher is not None:
                self.flusher.close()

    # -- faults ------------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], bool]) -> bool | None:
        """A step whose fault never ends its thread, nor reaches the application: then None."""
        try:
            return step()
        except Exception as error:
            self._fault(error)
            return None

    def _fault(self, error: Exception) -> None:
        if isinstance(error, QueueDamaged):
            self._lose(str(error), damaged=True)
            return
        if isinstance(error, ProducerClosed | Reentered):
            return
        self._warn("queue", f"nothing is lost, but the queue cannot be written: {error}")
        if _is_full(error):
            with suppress(Exception):
                self.producer.make_room()

    def _lose(self, words: str, *, damaged: bool = False) -> None:
        if self._retired:
            return
        self._retired = True
        self._warn("files", f"{words}; recording goes on in a new queue")
        self._hooks.lost(self, words)
        self.retire(damaged=damaged)


def _is_full(error: Exception) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        # The low byte is the kind; a full disk shows as either.
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _FULL
    return isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)
