"""
The two threads of a Meter: one packs, one sends. They only call steps.

Neither runs before the first event, and neither wakes while there is nothing to do: the
packing thread ticks while events arrive and then sleeps until `record` rings; the sending
thread wakes for a block, for a retry, and to say that the producer lives.

A bell is a bare lock, not an Event or a Condition: ringing it is one call that a signal
handler or a finaliser may make at any moment.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tallybook.adoption import Adopter
from tallybook.clock import Clock
from tallybook.errors import InvariantBroken
from tallybook.flusher import Flusher
from tallybook.limits import (
    ADOPTION_SECONDS,
    ANNOUNCE_SECONDS,
    BUFFER_DELAY_SECONDS,
    STATUS_DELAY_SECONDS,
    WARNING_SECONDS,
)
from tallybook.producer import Producer

__all__ = ["Bell", "FlushResult", "Worker"]

log = logging.getLogger("tallybook")

_TICK_SECONDS: Final = BUFFER_DELAY_SECONDS
_IDLE_TICKS: Final = 50
"""After a second without an event, the packing thread sleeps."""


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


@dataclass(frozen=True, slots=True)
class FlushResult:
    """
    What a flush achieved.

    Attributes:
        ok: Everything recorded before the call is at the server.
        sent: Events that the server acknowledged during the call.
        pending: Events that are on disk and wait.
        error: Why something waits, or None.
    """

    ok: bool
    sent: int
    pending: int
    error: str | None


class Worker:
    """
    Drives one producer.

    Attributes:
        producer: Whose steps.
        flusher: Sends; None without an endpoint.
        adopter: Drains dead producers; None without an endpoint.
        asleep: Whether `record` has to ring `packing`.
        packing: The packing thread's bell.
        waiters: Who waits for a sync: called once, with whether the disk confirmed.
    """

    def __init__(
        self,
        producer: Producer,
        flusher: Flusher | None,
        adopter: Adopter | None,
        clock: Clock,
        drain: Callable[[], bool],
        status: tuple[Path, Callable[[], dict[str, object]]],
    ) -> None:
        self.producer = producer
        self.flusher = flusher
        self.adopter = adopter
        self.asleep = False
        self.packing = Bell()
        self.waiters: deque[Callable[[bool], None]] = deque()
        self._sending = Bell()
        self._clock = clock
        self._drain = drain
        self._status_path, self._status = status
        self._status_at = clock.monotonic() - STATUS_DELAY_SECONDS
        self._status_written: dict[str, object] = {}
        self._announced_at = clock.monotonic()
        self._warned_at = clock.monotonic() - WARNING_SECONDS
        self.closed_announced = False
        self._publishing = threading.Lock()
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; where they cannot start, `close` does their work."""
        loops = [("tallybook-commit", self._commit_loop)]
        if self.flusher is not None:
            loops.append(("tallybook-flush", self._flush_loop))
        for name, loop in loops:
            thread = threading.Thread(target=loop, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # The interpreter is shutting down.
                return
            self._threads.append(thread)

    def stop(self, seconds: float) -> bool:
        """End the threads; whether they ended within the time."""
        self._stopping = True
        self.packing.ring()
        self._sending.ring()
        deadline = self._clock.monotonic() + seconds
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - self._clock.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # -- packing -----------------------------------------------------------------------------

    def _commit_loop(self) -> None:
        idle = 0
        while not self._stopping:
            busy = self._guarded(self.commit_step)
            idle = 0 if busy else idle + 1
            if idle < _IDLE_TICKS:
                self.packing.wait(0 if self.waiters else _TICK_SECONDS)
                continue
            self.asleep = True
            # Whoever stored before it saw `asleep` is seen here; whoever stores later rings.
            if not self._guarded(self.commit_step) and not self._stopping:
                self.packing.wait(None)
            self.asleep = False
            idle = 0

    def commit_step(self) -> bool:
        """
        Take what was recorded, sync it if somebody waits, pack it; whether there was anything.
        """
        drained = self._drain()
        waiters = [self.waiters.popleft() for _ in range(len(self.waiters))]
        if waiters:
            # Every one of them stored before it began to wait, so this sync covers them all.
            self._sync(waiters)
        committed = self.producer.step()
        if committed:
            self._sending.ring()
        self._publish()
        return bool(drained or waiters or committed or self.producer.open_events)

    def _sync(self, waiters: list[Callable[[bool], None]]) -> None:
        confirmed = False
        try:
            confirmed = self.producer.sync()
        finally:
            for waiter in waiters:
                waiter(confirmed)

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

    def write_status(self) -> None:
        """Write the counts now, if they have changed."""
        status = self._status()
        if status == self._status_written:
            return
        temporary = self._status_path.with_suffix(".status-new")
        with suppress(OSError):
            temporary.write_text(json.dumps(status))
            os.replace(temporary, self._status_path)
            self._status_written = status

    # -- sending -----------------------------------------------------------------------------

    def _flush_loop(self) -> None:
        while not self._stopping:
            more = self._guarded(self.flush_step)
            if not more:
                self._sending.wait(self._pause_seconds())

    def _pause_seconds(self) -> float:
        if self.flusher is None:
            raise InvariantBroken("a sending thread without a flusher")
        announce_in = self._announced_at + ANNOUNCE_SECONDS - self._clock.monotonic()
        wait = self.flusher.wait_seconds()
        # While a retry is due later, blocks do not make it due earlier.
        return max(wait, min(ADOPTION_SECONDS, announce_in, max(wait, ADOPTION_SECONDS)), 0.0)

    def flush_step(self) -> bool:
        """Send one request, if one is due; whether there is more to send now."""
        if self.flusher is None or self.flusher.wait_seconds() > 0:
            return False
        now = self._clock.monotonic()
        announce = now - self._announced_at >= ANNOUNCE_SECONDS
        if announce:
            self.producer.step(cut=True)
        answered = self.flusher.step(self.producer, announce=announce)
        if answered:
            self._announced_at = now
            self.producer.tidy()
            self._publish()
        elif announce:
            self._announced_at = now  # The blocks, or the next turn, will bring it.
        more = answered and bool(self.producer.queue.counts().pending_blocks)
        if self.adopter is not None:
            more = self.adopter.step() or more
        return more

    # -- flushing and closing ----------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the packing thread is there to serve waiters."""
        return not self._stopping and bool(self._threads) and self._threads[0].is_alive()

    def flush(self, deadline: float, *, closed: bool = False) -> FlushResult:
        """
        Pack and send until nothing waits or the time is over, on the calling thread.

        Args:
            deadline: On the monotonic clock.
            closed: The producer has ended: say so, and do not wait for a server that is away.
        """
        before = self.flusher.acknowledged if self.flusher else 0
        error: str | None = None
        try:
            self.producer.step(cut=True)
            error = self._send_until(deadline, closed)
        except Exception as fault:
            error = str(fault)
            self._fault(fault)
        pending = self.pending()
        return FlushResult(
            ok=not pending and error is None,
            sent=(self.flusher.acknowledged if self.flusher else 0) - before,
            pending=pending,
            error=error,
        )

    def _send_until(self, deadline: float, closed: bool) -> str | None:
        queue = self.producer.queue
        if self.flusher is None:
            return "no endpoint is set; events are kept on disk" if self.pending() else None
        announced = not closed
        while queue.counts().pending_blocks or not announced:
            left = deadline - self._clock.monotonic()
            if left <= 0 or self.producer.held:
                return self.producer.held or self.flusher.last_error or "the time was over"
            wait = self.flusher.wait_seconds()
            if wait > 0:
                if closed or wait >= left:
                    return self.flusher.last_error
                threading.Event().wait(wait)
                continue
            answered = self.flusher.step(
                self.producer, closed=closed, announce=not announced, timeout_seconds=left
            )
            if answered and not queue.counts().pending_blocks:
                announced = True
        self.closed_announced = closed
        return None

    def pending(self) -> int:
        """Events that are not at the server, however far they have come."""
        return self.producer.waiting_events + self.producer.queue.counts().pending_events

    def close(self, deadline: float) -> FlushResult:
        """Stop the threads, send what can be sent in time, let go of the files."""
        stopped = self.stop(deadline - self._clock.monotonic())
        with suppress(Exception):
            self.commit_step()  # Whoever waits for a sync gets an answer.
        if not stopped:
            # A request is under way and holds the queue. It ends with the process; what it
            # carries is on disk, and the lock goes when the process does.
            return FlushResult(False, 0, self.pending(), "a request was still under way")
        result = self.flush(deadline, closed=True)
        aside = self.producer.queue.counts().aside_blocks
        finished = self.closed_announced and not result.pending and not aside
        if not finished:
            self.write_status()
        self.producer.release(finished=finished)
        if self.adopter is not None:
            self.adopter.close()
        if self.flusher is not None:
            self.flusher.close()
        return result

    # -- faults ------------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], bool]) -> bool:
        """A step whose fault never ends its thread, and never reaches the application."""
        try:
            return step()
        except Exception as error:
            self._fault(error)
            return False

    def _fault(self, error: Exception) -> None:
        now = self._clock.monotonic()
        if now - self._warned_at >= WARNING_SECONDS:
            self._warned_at = now
            log.warning("nothing is lost, but the queue cannot be written: %s", error)
        if isinstance(error, sqlite3.OperationalError | OSError):
            with suppress(Exception):
                self.producer.make_room()
