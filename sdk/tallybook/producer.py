"""
A producer: one writer's life, from its first record to its last acknowledged block.

Its identity is 16 random bytes, new for every process, fork and reopening, and is never
taken up again. Its files are a lock, spools, and a queue; whoever finds them without an
owner sends what is in them under that identity (`tallybook.adoption`).

`store` is on the application's thread; `step` on the committer's, or on any thread that
flushes or closes. They meet in the spool, and in nothing else.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Final

from tallybook._version import __version__
from tallybook.clock import Clock, Ids, boot_id
from tallybook.committer import Committer
from tallybook.directory import (
    Lock,
    add_ballast,
    drop_ballast,
    keep_blocks,
    make_directory,
    queue_path,
    status_path,
)
from tallybook.errors import QueueFull
from tallybook.frame import SpoolIdentity, frame_seed
from tallybook.limits import (
    BLOCK_DELAY_SECONDS,
    RETAINED_BYTES_MAX,
    RETAINED_SECONDS_MAX,
    SPOOL_BYTES,
)
from tallybook.queue import Queue
from tallybook.settings import Settings
from tallybook.spool import Spool
from tallybook.wire import Announcement

__all__ = ["Producer", "ProducerClosed", "announce", "remove_files"]

log = logging.getLogger("tallybook")

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
    """

    def __init__(self, settings: Settings, clock: Clock, ids: Ids) -> None:
        """
        Make the files.

        Raises:
            OSError: The directory refuses them. Nothing is left.
        """
        self._settings = settings
        self._clock = clock
        make_directory(settings.directory)
        add_ballast(settings.directory)
        self.id, self._lock_file = _make_lock(settings.directory, ids)
        self.seed = frame_seed(self.id)
        self._numbers = itertools.count()
        self._rotation = threading.RLock()
        self._rotating = False
        self._closed = False
        self._late: deque[bytes] = deque()
        self._stepping = threading.RLock()
        self.sending_blocked = False
        self.held: str | None = None
        self._taken_at: float | None = None
        self._through = clock.time_ns() // 1000
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
        """
        with self._rotation:
            if self._closed:
                raise ProducerClosed
            if self._rotating:
                # A signal handler or finaliser that records while its own thread is in the
                # middle of this. Its frame goes in a few lines further on.
                self._late.append(frame)
                return
            self._rotating = True
            try:
                self._store_or_rotate(frame)
                while self._late:
                    self._store_or_rotate(self._late.popleft())
            finally:
                self._rotating = False

    def _store_or_rotate(self, frame: bytes) -> None:
        try:
            self._spools[-1].write(frame)
            return
        except ValueError:
            pass
        used = sum(spool.size for spool in self._spools) + self._queue_bytes
        if used + _SPOOL_BYTES_MIN > self._settings.queue_bytes_max:
            raise QueueFull(
                f"the queue in {self._settings.directory} holds {used} bytes and may hold "
                f"{self._settings.queue_bytes_max}; raise queue_bytes_max, or see why nothing is "
                "sent: tallybook queue status"
            )
        spool = self._make_spool(self._settings.queue_bytes_max - used)
        before = self._spools[-1]
        self._spools.append(spool)
        self.slot = (spool.write, self.seed)
        before.seal()
        spool.write(frame)

    def _make_spool(self, room: int | None = None) -> Spool:
        size = min(SPOOL_BYTES, self._settings.queue_bytes_max // 4, room or SPOOL_BYTES)
        while True:
            identity = SpoolIdentity(
                producer=self.id,
                number=next(self._numbers),
                boot=boot_id(),
                source=self._settings.source,
                endpoint=self._settings.endpoint,
                level=self._settings.durability,
                created=self._clock.time_ns() // 1000,
            )
            try:
                return Spool(self._settings.directory, identity, max(size, _SPOOL_BYTES_MIN))
            except OSError as error:
                # A nearly full disk still has room for a smaller file.
                if error.errno not in (ENOSPC, EDQUOT) or size <= _SPOOL_BYTES_MIN:
                    raise
                size //= 4

    def count_drop(self, events: int = 1) -> None:
        """Count events that could not be kept: in the mapped page, so a crash keeps the count."""
        with self._rotation:
            self._spools[-1].count_drop(events)

    # -- on the committer's thread -----------------------------------------------------------

    def step(self, *, cut: bool = False) -> bool:
        """
        Pack what is stored.

        Args:
            cut: Cut the last block even if it is neither full nor old.

        Returns:
            Whether a block was committed.

        Raises:
            sqlite3.OperationalError, OSError: The disk refused; nothing is lost, and the next
                step goes on from what is on disk.
        """
        with self._stepping:
            committer = self._committer
            committer.recover()
            before = committer.packed.sequence
            moment = self._clock.time_ns() // 1000
            self._take_all(moment)
            if committer.taken and self._taken_at is None:
                self._taken_at = self._clock.monotonic()
            if cut or self._due():
                committer.cut(moment)
            if not committer.taken:
                self._taken_at = None
                self._through = moment
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

    def _take_all(self, moment: int) -> None:
        committer = self._committer
        while True:
            spool = self._spools[0]
            # Before its end is read: a spool with a successor is sealed, or about to be.
            last = spool is self._spools[-1]
            if not last:
                spool.seal()
            number, offset = committer.read
            data = spool.read(offset, spool.end())
            if data:
                committer.take(number, data, offset, moment)
            if last:
                return
            following = self._spools[1]
            committer.next_spool(following.number, spool.dropped(), moment)
            with self._rotation:
                self._spools.pop(0)
            spool.close(unlink=True)

    def sync(self) -> bool:
        """
        Have the disk confirm every event stored so far.

        Returns:
            False if it did not: then the spool is retired, and what it held is written and
            synced in the queue. Nothing may be told to record again.
        """
        with self._stepping:
            try:
                for spool in list(self._spools):
                    spool.sync()
                return True
            except OSError as error:
                log.warning("the spool could not be synced: %s; going on in a new file", error)
            # After a failed sync the kernel forgets which pages are dirty: a second sync of
            # this file would succeed and mean nothing.
            with suppress(OSError, QueueFull):
                self._retire_spool()
            self.step(cut=True)
            return False

    def _retire_spool(self) -> None:
        with self._rotation:
            spool = self._make_spool()
            before = self._spools[-1]
            self._spools.append(spool)
            self.slot = (spool.write, self.seed)
            before.seal()

    def make_room(self) -> None:
        """On a full disk: give up the ballast and what the server has, and cut the log."""
        drop_ballast(self._settings.directory)
        with self._stepping:
            self.queue.checkpoint()
            self.queue.prune(0, 0)
            self.queue.checkpoint()
            self._queue_bytes = self.queue.used_bytes()

    def tidy(self) -> None:
        """Remove acknowledged blocks beyond their limits."""
        now = self._clock.time_ns() // 1000
        self.queue.prune(RETAINED_BYTES_MAX, now - RETAINED_SECONDS_MAX * 1_000_000)
        self._queue_bytes = self.queue.used_bytes()

    # -- what it says of itself --------------------------------------------------------------

    @property
    def dropped(self) -> int:
        """Events that could not be kept."""
        with self._rotation:
            return self._committer.packed.dropped + sum(s.dropped() for s in self._spools)

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
            self._committer.recover()
            self._take_all(self._clock.time_ns() // 1000)
            return self._committer.packed.sequence - 1 + self._committer.taken

    @property
    def bytes(self) -> int:
        """Bytes that its files take."""
        return sum(spool.size for spool in list(self._spools)) + self._queue_bytes

    def announcement(self, blocks: int, *, closed: bool = False) -> Announcement:
        """What goes with a request of so many blocks."""
        with self._stepping:
            highest = self._committer.packed.sequence - 1
            recorded = highest + self._committer.taken
            through = self._through
        return announce(
            self.queue,
            self.id,
            blocks=blocks,
            recorded=recorded,
            dropped=self.dropped,
            highest=highest,
            through=through,
            closed=closed,
            sent_at=self._clock.time_ns() // 1000,
        )

    # -- the end -------------------------------------------------------------------------------

    def seal(self) -> None:
        """Let no further event in, and pack what there is. A store after it fails for ever."""
        with self._rotation:
            self._closed = True
            self._spools[-1].seal()
        self.step(cut=True)

    def release(self, *, finished: bool) -> None:
        """
        Let go of the files.

        Args:
            finished: The server has everything and knows that this producer is closed: the
                files go. Otherwise they stay, for whoever adopts them.
        """
        with self._stepping:
            producer, directory = self.id.hex(), self._settings.directory
            for spool in self._spools:
                spool.close(unlink=finished)
            if finished:
                keep_blocks(directory, producer, self.queue.acknowledged())
            self.queue.close()
            if finished:
                remove_files(directory, producer)
            self._lock_file.release(unlink=finished)

    def forget(self) -> object:
        """
        In a child after fork: become unusable without touching a file.

        Returns:
            What must never be freed in this process.
        """
        for spool in self._spools:
            spool.forget()
        return self.queue.forget()


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
    )


def _make_lock(directory: Path, ids: Ids) -> tuple[bytes, Lock]:
    while True:
        producer = ids.producer()
        lock = Lock.make(directory, producer)
        if lock is not None:
            return producer, lock


def remove_files(directory: Path, producer: str) -> None:
    """Remove what a producer leaves behind, except for its lock, which goes last."""
    _remove_queue(queue_path(directory, producer))
    with suppress(FileNotFoundError):
        status_path(directory, producer).unlink()


def _remove_queue(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
