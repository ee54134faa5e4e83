"""
A producer: one writer's life, from its first record to its last acknowledged block.

Its identity is 16 random bytes, new for every process, fork and reopening, and is never
taken up again. Its files are a lock, spools, and a queue; whoever finds them without an
owner sends what is in them under that identity (`tallybook.adoption`).

`store` is on the application's thread; `step` on the committer's, or on any thread that
flushes or closes. They meet in the spool, and in nothing else.

Two locks, and neither is ever waited for under the other: `_rotation` for a change of
the spool, `_stepping` for packing, which waits for the disk. A signal handler or a finaliser
may call in the middle of either, on the thread that holds it; it is told so (`Reentered`),
because doing the same work twice at once is how an event is counted twice.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Final, TypeVar

from msgspec import UNSET

from tallybook._version import __version__
from tallybook.clock import Clock, Ids, boot_id
from tallybook.committer import Committer
from tallybook.directory import (
    Lock,
    add_ballast,
    drop_ballast,
    make_directory,
    queue_path,
    spool_paths,
    status_path,
)
from tallybook.errors import QueueFull
from tallybook.frame import SpoolIdentity, Torn, frame_seed, scan
from tallybook.kept import keep_blocks, vouched
from tallybook.limits import (
    BLOCK_DELAY_SECONDS,
    RETAINED_BYTES_MAX,
    RETAINED_SECONDS_MAX,
    SPOOL_BYTES,
    SPOOL_HEADER_BYTES,
)
from tallybook.queue import Packed, Queue, Reentered
from tallybook.settings import Settings
from tallybook.spool import Spool
from tallybook.wire import Announcement

__all__ = ["Producer", "ProducerClosed", "announce", "remove_files"]

_T = TypeVar("_T")

_SPOOL_BYTES_MIN: Final = 64 << 10


class ProducerClosed(Exception):
    """This producer takes no more events."""


class Producer:
    """
    The producer of this process.

    Attributes:
        id: 16 bytes.
        queue: Its blocks.
        slot: (store, seed): how to store a frame now. Both in one attribute, so that a
            thread never pairs the store of one producer with the seed of another.
        sending_blocked: Set by the flusher: blocks fill up while nothing can be sent.
        held: Why the flusher does not send this queue, or None.
        sync_error: Why the last failed sync failed, or None.
        through: By the host's clock: everything recorded before has a sequence, or 0: nothing
            is known yet.
    """

    def __init__(self, settings: Settings, clock: Clock, ids: Ids) -> None:
        """
        Make the files.

        Raises:
            OSError: The directory refuses them. Nothing is left.
        """
        self._settings = settings
        self._clock = clock
        self._pid = os.getpid()
        make_directory(settings.directory)
        add_ballast(settings.directory)
        self.id, self._lock_file = _make_lock(settings.directory, ids)
        self.seed = frame_seed(self.id)
        self._next_number = 0
        self._rotation = threading.RLock()
        self._rotating = False
        self._closed = False
        self._released = False
        self._stepping = threading.RLock()
        self._stepper = 0
        self.sending_blocked = False
        self.held: str | None = None
        self.sync_error: str | None = None
        self._taken_at: float | None = None
        self.through = 0
        try:
            self._spools = [self._make_spool()]
        except BaseException:
            self._lock_file.release(unlink=True)
            raise
        try:
            self.queue = Queue(queue_path(settings.directory, self.id.hex()))
            self.queue.remember(source=settings.source, endpoint=settings.endpoint)
            self._committer = Committer(self.queue, self.id, settings.source)
        except BaseException:
            self._spools[0].close(unlink=True)
            _remove_queue(queue_path(settings.directory, self.id.hex()))
            self._lock_file.release(unlink=True)
            raise
        self._queue_bytes = self.queue.used_bytes()
        self.slot: tuple[Callable[[bytes], object], int] = (self._spools[0].write, self.seed)

    # -- on the application's thread ---------------------------------------------------------

    def store(self, frame: bytes) -> None:
        """
        Store a frame that the current spool did not take: go on with a new file.

        Raises:
            QueueFull: The queue holds as much as it may.
            OSError: The disk has no room for another spool.
            ProducerClosed: It takes nothing any more; another producer will.
            Reentered: This thread is in the middle of this.
        """

        def store() -> None:
            if self._fits(frame):
                self.slot = (self._spools[-1].write, self.seed)
            else:
                self._rotate(frame)

        self._alone(store)

    def rotate(self, frame: bytes) -> None:
        """As `store`, short of storing: make it so that the next store of *frame* fits."""

        def rotate() -> None:
            spool = self._spools[-1]
            if spool.end() + len(frame) <= spool.size:
                self.slot = (spool.write, self.seed)
            else:
                self._rotate(b"")

        self._alone(rotate)

    def count_drop(self, events: int = 1) -> None:
        """
        Count events that could not be kept: in the mapped page, so a crash keeps the count.

        Raises:
            ProducerClosed, Reentered: As `store`.
        """
        self._alone(lambda: self._spools[-1].count_drop(events))

    def _alone(self, action: Callable[[], None]) -> None:
        with self._rotation:
            if self._closed:
                raise ProducerClosed
            if self._rotating:
                raise Reentered("in the middle of a store")
            self._rotating = True
            try:
                action()
            finally:
                self._rotating = False

    def _fits(self, frame: bytes) -> bool:
        try:
            self._spools[-1].write(frame)
        except ValueError:
            return False
        return True

    def _rotate(self, frame: bytes) -> None:
        used = self.bytes
        if self._committer.short:
            raise QueueFull(
                f"the disk of {self._settings.directory} is full; its last room is for sending "
                "what is there"
            )
        if used + _SPOOL_BYTES_MIN > self._settings.queue_bytes_max:
            raise QueueFull(
                f"the queue in {self._settings.directory} holds {used} bytes and may hold "
                f"{self._settings.queue_bytes_max}; raise queue_bytes_max, or see why nothing is "
                "sent: tallybook queue status"
            )
        self._go_on_in(self._make_spool(self._settings.queue_bytes_max - used), frame)

    def _go_on_in(self, spool: Spool, frame: bytes) -> None:
        if self._closed:
            # A child of fork, made by a signal handler in the middle of this.
            spool.close(unlink=True)
            raise ProducerClosed
        if frame:
            spool.write(frame)  # Before anybody else finds the new file, and fills it.
        self._spools.append(spool)
        # The committer seals the one before. Stores that are under way go into either.
        self.slot = (spool.write, self.seed)

    def _make_spool(self, room: int | None = None) -> Spool:
        size = min(SPOOL_BYTES, self._settings.queue_bytes_max // 4, room or SPOOL_BYTES)
        while True:
            identity = SpoolIdentity(
                producer=self.id,
                number=self._next_number,
                boot=boot_id(),
                source=self._settings.source,
                endpoint=self._settings.endpoint,
                level=self._settings.durability,
                created=self._clock.time_ns() // 1000,
            )
            try:
                spool = Spool(self._settings.directory, identity, max(size, _SPOOL_BYTES_MIN))
            except FileExistsError:
                self._next_number += 1  # What an earlier attempt left could not be removed.
            except OSError as error:
                # A nearly full disk still has room for a smaller file, of the same number: the
                # position in the queue begins in number 0.
                if error.errno not in (ENOSPC, EDQUOT) or size <= _SPOOL_BYTES_MIN:
                    raise
                size //= 4
            else:
                self._next_number += 1
                return spool

    # -- on the committer's thread -----------------------------------------------------------

    def step(self, *, cut: bool = False, through: int | None = None) -> bool:
        """
        Pack what is stored.

        Args:
            cut: Cut the last block even if it is neither full nor old.
            through: By the host's clock: what was recorded before is in the spool. Now, when
                left out.

        Returns:
            Whether a block was committed.

        Raises:
            sqlite3.OperationalError, OSError: The disk refused; nothing is lost, and the next
                step goes on from what is on disk.
            QueueDamaged: The queue file is no longer what it was.
            Reentered: This thread is in the middle of a step.
        """
        moment = self._clock.time_ns() // 1000 if through is None else through
        return self._in_turn(lambda: self._step(cut, moment))

    def _in_turn(self, action: Callable[[], _T]) -> _T:
        with self._stepping:
            if self._stepper:
                raise Reentered("in the middle of a step")
            if self._released or self._pid != os.getpid():
                raise ProducerClosed
            self._stepper = threading.get_ident()
            try:
                return action()
            finally:
                self._stepper = 0

    @property
    def entered(self) -> bool:
        """Whether the calling thread is in the middle of a step or of a change of spool."""
        with self._rotation:
            rotating = self._rotating
        return rotating or self._stepper == threading.get_ident()

    def _step(self, cut: bool, through: int) -> bool:
        committer = self._committer
        before = committer.packed.sequence
        now = self._clock.time_ns() // 1000
        self._take_all(now)
        if committer.taken and self._taken_at is None:
            self._taken_at = self._clock.monotonic()
        if cut or self._due():
            committer.cut(now)
        if not committer.taken:
            self._taken_at = None
            self.through = through
        if committer.short:
            committer.short = not add_ballast(self._settings.directory)
        committed = committer.packed.sequence != before
        if committed:
            self._queue_bytes = self.queue.used_bytes()
        return committed

    def _due(self) -> bool:
        return (
            not self.sending_blocked
            and self._taken_at is not None
            and self._clock.monotonic() - self._taken_at >= BLOCK_DELAY_SECONDS
        )

    def _take_all(self, now: int) -> None:
        committer = self._committer
        committer.recover()
        # No further than what is there now: an application that stores faster than this
        # packs would hold up whoever flushes for as long as it likes.
        newest = self._spools[-1].number
        while True:
            spool = self._spools[0]
            number, offset = committer.read
            if spool.number < number:
                # Packed to its end, and the queue says so: even where that commit was
                # reported as failed.
                self._spools.pop(0)
                spool.close(unlink=True)
                continue
            if spool.number > number:
                committer.next_spool(spool.number, 0, now)
                continue
            # Before its end is read: a spool with a successor takes nothing more.
            last = spool.number == newest
            if not last:
                spool.seal()
            data = spool.read(offset, spool.end())
            if data:
                committer.take(number, data, offset, now)
            if last:
                return
            committer.next_spool(self._spools[1].number, spool.dropped(), now)

    def sync(self) -> bool:
        """
        Have the disk confirm every event stored so far.

        Returns:
            False if it did not: then the spool is retired, and what it held is written and
            synced in the queue. Nothing may be told to record again.
        """
        return self._in_turn(self._sync)

    def _sync(self) -> bool:
        try:
            for spool in tuple(self._spools):
                spool.sync()
            return True
        except OSError as error:
            self.sync_error = str(error)
        # After a failed sync the kernel forgets which pages are dirty: a second sync of this
        # file would succeed and mean nothing.
        self._retire_spool()
        self._step(True, self.through)
        return False

    def _retire_spool(self) -> None:
        # Whoever holds it is just going on to a new file, or will not be long.
        if not self._rotation.acquire(timeout=1.0):
            return
        try:
            if not self._rotating and not self._closed:
                with suppress(OSError):
                    self._go_on_in(self._make_spool(), b"")
        finally:
            self._rotation.release()

    def make_room(self) -> None:
        """On a full disk: give up the ballast and what the server has, and cut the log."""
        # Until a step has succeeded and the ballast is back: no new spool, which would take the
        # room that packing needs, and one block at a time.
        self._committer.short = True
        drop_ballast(self._settings.directory)
        for step in (self.queue.checkpoint, self._drop_acknowledged, self.queue.checkpoint):
            # Each makes room for the next, and one may fail where the next does not.
            with suppress(Exception):
                step()
        self._queue_bytes = self.queue.used_bytes()

    def _drop_acknowledged(self) -> None:
        self.queue.prune(0, 0)

    def tidy(self) -> None:
        """Remove acknowledged blocks that are archived, or beyond their limits."""
        self.queue.drop_archived()
        now = self._clock.time_ns() // 1000
        # Of a small queue, only a small part is for what the server has already.
        kept = min(RETAINED_BYTES_MAX, self._settings.queue_bytes_max // 8)
        if self._committer.short:
            kept = 0
        self.queue.prune(kept, now - RETAINED_SECONDS_MAX * 1_000_000)
        self._queue_bytes = self.queue.used_bytes()
        if not self.queue.counts().pending_blocks:
            # The disk takes it again, so put it back.
            self._committer.short = not add_ballast(self._settings.directory)

    # -- what it says of itself --------------------------------------------------------------

    @property
    def dropped(self) -> int:
        """Events that could not be kept."""
        with self._stepping:
            packed = self._committer.packed
            spools = tuple(self._spools)
            # What a packed spool has counted is in the queue's count already.
            return packed.dropped + sum(s.dropped() for s in spools if s.number >= packed.number)

    @property
    def closed(self) -> bool:
        """Whether it takes no more events."""
        return self._closed

    @property
    def waiting_events(self) -> int:
        """Events that no block holds yet."""
        with self._stepping:
            return self.recorded - (self._committer.packed.sequence - 1)

    @property
    def open_events(self) -> int:
        """Events taken from the spool that no block holds yet."""
        return self._committer.taken

    @property
    def torn(self) -> int:
        """Stretches of damage that were skipped in the spools."""
        return self._committer.packed.torn

    @property
    def recorded(self) -> int:
        """Events stored so far."""
        with self._stepping:
            committer = self._committer
            try:
                self._in_turn(lambda: self._take_all(self._clock.time_ns() // 1000))
            except (Reentered, ProducerClosed):
                pass  # Whoever is in the middle of it has taken what there was.
            except (OSError, sqlite3.OperationalError):
                return committer.packed.sequence - 1 + self._stored_behind(committer.packed)
            return committer.packed.sequence - 1 + committer.taken

    def _stored_behind(self, packed: Packed) -> int:
        """Events in the spools that are not packed, counted without packing: the disk is full."""
        events = 0
        for spool in tuple(self._spools):
            if spool.number >= packed.number:
                start = packed.offset if spool.number == packed.number else SPOOL_HEADER_BYTES
                data = spool.read(start, spool.end())
                events += sum(not isinstance(f, Torn) for f in scan(data, 0, self.seed))
        return events

    @property
    def bytes(self) -> int:
        """Bytes that its files take."""
        return sum(spool.size for spool in tuple(self._spools)) + self._queue_bytes

    def in_place(self) -> bool:
        """Whether its files are where it made them: nobody has removed the directory."""
        return self._lock_file.in_place()

    def announcement(self, blocks: int, *, closed: bool = False) -> Announcement:
        """What goes with a request of so many blocks."""
        with self._stepping:
            highest = self._committer.packed.sequence - 1
            recorded = highest + self._committer.taken
            dropped = self.dropped
            through = self.through
        said = announce(
            self.queue,
            self.id,
            blocks=blocks,
            recorded=recorded,
            dropped=dropped,
            highest=highest,
            through=through,
            closed=closed,
            sent_at=self._clock.time_ns() // 1000,
        )
        return said if said.ledger is not None else vouched(said, self._settings.directory)

    # -- the end -------------------------------------------------------------------------------

    def shut(self) -> None:
        """
        Let no further event in. Idempotent.

        A store after it fails for ever; another producer takes the event.
        """
        with self._rotation:
            if self._closed:
                return
            if self._rotating:
                raise Reentered("in the middle of a store")
            self._closed = True
            self._spools[-1].seal()

    def release(self, *, finished: bool) -> None:
        """
        Let go of the files. Idempotent.

        Args:
            finished: The server has everything and knows that this producer is closed: the
                files go. Otherwise they stay, for whoever adopts them.
        """
        with self._stepping:
            if self._released or self._pid != os.getpid():
                return
            self._released = True
            producer, directory = self.id.hex(), self._settings.directory
            if finished:
                with suppress(Exception):  # What the server has is not worth an error.
                    keep_blocks(directory, self.queue, self.announcement(0, closed=True))
            for spool in self._spools:
                spool.close(unlink=finished)
            self.queue.close()
            if finished:
                remove_files(directory, producer)
            self._lock_file.release(unlink=finished)

    def forget(self) -> None:
        """In a child after fork: become unusable without touching a file."""
        self._closed = True
        self._pid = 0
        for spool in self._spools:
            spool.forget()
        self.queue.forget()


def announce(
    queue: Queue,
    producer: bytes,
    *,
    blocks: int,
    recorded: int,
    dropped: int,
    highest: int,
    through: int,
    closed: bool,
    sent_at: int,
) -> Announcement:
    """An announcement with what the queue remembers of the server's last answer."""
    source, ledger = queue.note("source"), queue.note("ledger")
    incarnation, position = queue.note("incarnation"), queue.note("position")
    branch, chain = queue.note("branch"), queue.note("chain")
    return Announcement(
        producer=producer,
        sent_at=sent_at,
        blocks=blocks,
        recorded=recorded,
        dropped=dropped,
        highest=highest,
        through=through,
        closed=closed,
        source=source if isinstance(source, str) else None,
        ledger=ledger if isinstance(ledger, str) else None,
        receipt=(incarnation, position)
        if isinstance(incarnation, int) and isinstance(position, int)
        else None,
        sdk=__version__,
        branch=branch if isinstance(branch, str) else UNSET,
        chain=chain if isinstance(chain, str) else UNSET,
    )


def _make_lock(directory: Path, ids: Ids) -> tuple[bytes, Lock]:
    while True:
        producer = ids.producer()
        lock = Lock.make(directory, producer)
        if lock is not None:
            return producer, lock


def remove_files(directory: Path, producer: str) -> None:
    """Remove what a producer leaves behind, except for its lock, which goes last."""
    # A spool that could not be removed when it was packed goes now.
    for _, path in spool_paths(directory, producer):
        with suppress(OSError):
            path.unlink()
    _remove_queue(queue_path(directory, producer))
    status = status_path(directory, producer)
    for path in (status, status.with_suffix(".status-new")):
        with suppress(OSError):
            path.unlink()


def _remove_queue(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):
            os.unlink(f"{path}{suffix}")
