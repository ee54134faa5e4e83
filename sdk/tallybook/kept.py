"""
What is kept of a queue that is drained: its acknowledged blocks, for a restored server.

The file ``<producer>.kept`` has the bytes of a request: an announcement, which says whose
blocks they are and which ledger holds them up to which position, and the blocks behind it.
When a server says that it was restored to an earlier position, a queue is made of the file
again, and drained as that of any dead producer. When a backup holds all of it, it goes.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from msgspec import UNSET, structs

from tallybook.directory import Lock, queue_path
from tallybook.errors import MessageDamaged
from tallybook.limits import RETAINED_BYTES_MAX, RETAINED_SECONDS_MAX
from tallybook.queue import Packed, Queue
from tallybook.wire import (
    HEAD_BYTES_MAX,
    Announcement,
    Answer,
    encode_request,
    read_announcement,
    read_request,
)

__all__ = ["Kept", "keep_blocks", "kept_paths", "sweep_kept", "vouched"]

_SUFFIX: Final = ".kept"
_KEPT_FILES_MAX: Final = 1_000


def keep_blocks(directory: Path, queue: Queue, announcement: Announcement) -> None:
    """
    Keep a drained queue's acknowledged blocks.

    Args:
        directory: Where the queue lies.
        queue: With nothing waiting any more.
        announcement: Its producer's last one.
    """
    blocks = queue.acknowledged_blocks()
    if not blocks:
        return
    path = directory / f"{announcement.producer.hex()}{_SUFFIX}"
    unfinished = path.with_suffix(f"{_SUFFIX}-new")
    with suppress(OSError):  # Room is short: what the server has is not worth an error.
        with unfinished.open("wb") as file:
            # The head of a request that has so many blocks, and then they, one at a time.
            file.write(encode_request(_with_blocks(announcement, blocks), ()))
            for block in queue.acknowledged():
                file.write(block)
        unfinished.replace(path)
    with suppress(OSError):
        unfinished.unlink()


def kept_paths(directory: Path) -> list[Path]:
    """The files of kept blocks."""
    return sorted(directory.glob(f"*{_SUFFIX}"))


def sweep_kept(directory: Path, now_seconds: float) -> None:
    """Remove kept blocks that are too old, or, oldest first, more than the limit."""
    files: list[tuple[float, int, Path]] = []
    for path in directory.glob(f"*{_SUFFIX}*"):
        with suppress(OSError):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    size = 0
    for count, (modified, length, path) in enumerate(sorted(files, reverse=True)):
        size += length
        if (
            size > RETAINED_BYTES_MAX
            or count >= _KEPT_FILES_MAX
            or modified < now_seconds - RETAINED_SECONDS_MAX
        ):
            with suppress(OSError):
                path.unlink()


def vouched(said: Announcement, directory: Path) -> Announcement:
    """
    What a producer says that has no receipt yet, with one of those that ended before it.

    Where a server's disk was set back without a word, somebody has to show it a receipt that it
    does not know, and they cannot any more. The last one that was kept is of the branch that
    they all spoke to last; of that branch, the receipt that reaches furthest proves most.
    """
    found = [kept for path in kept_paths(directory) if (kept := Kept.read(path)) is not None]
    last = max(found, key=lambda kept: kept.announcement.sent_at, default=None)
    if last is None:
        return said
    branch = last.announcement.branch
    same = [kept for kept in found if kept.announcement.branch == branch]
    told = max(same, key=lambda kept: kept.position).announcement
    return structs.replace(said, receipt=told.receipt, branch=told.branch, chain=told.chain)


class Kept(NamedTuple):
    """
    A file of kept blocks, of which only the head was read.

    Attributes:
        path: The file.
        announcement: Its producer's last one.
    """

    path: Path
    announcement: Announcement

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The file at *path*; None if it is gone or cannot be read: it goes when it is old."""
        try:
            with path.open("rb") as file:
                return cls(path, read_announcement(file.read(HEAD_BYTES_MAX)))
        except (OSError, MessageDamaged):
            return None

    @property
    def producer(self) -> str:
        """Whose blocks they are, 32 hex digits."""
        return self.announcement.producer.hex()

    @property
    def ledger(self) -> str | None:
        """The ledger that has them."""
        return self.announcement.ledger

    @property
    def position(self) -> int:
        """The furthest of their positions there."""
        receipt = self.announcement.receipt
        return 0 if receipt is None else receipt[1]

    def held_by(self, standing: Answer) -> bool:
        """Whether the server that gave this answer has them all."""
        branch = self.announcement.branch
        if branch is UNSET:
            return True
        held = standing.held_of(branch)
        return held is None or self.position <= held

    def remove(self) -> None:
        """Remove the file: what is in it is archived."""
        with suppress(OSError):
            self.path.unlink()

    def revive(self, directory: Path, endpoint: str | None, now: int) -> bool:
        """
        Make a queue of it, in which every block waits; then the file goes.

        Args:
            directory: The queues' directory.
            endpoint: Where the queue is to be sent.
            now: Microseconds since 1970 UTC.

        Returns:
            False if the producer has files already: what lies in them is sent first.

        Raises:
            OSError, sqlite3.Error, MessageDamaged: It cannot be done; the file stays.
        """
        announcement, blocks = read_request(self.path.read_bytes())
        try:
            lock = Lock.make(directory, announcement.producer)
        except FileExistsError:
            return False
        if lock is None:
            return False
        made = False
        try:
            self._fill(queue_path(directory, self.producer), blocks, endpoint, now)
            made = True
        finally:
            # Without a queue, an adopter takes the lock for one of nobody, and removes it.
            lock.release(unlink=not made)
        self.remove()
        return True

    def _fill(self, path: Path, blocks: list[memoryview], endpoint: str | None, now: int) -> None:
        said = self.announcement
        notes: dict[str, int | str | None] = {
            "source": said.source,
            "endpoint": endpoint,
            "ledger": said.ledger,
            "branch": None if said.branch is UNSET else said.branch,
            "incarnation": None if said.receipt is None else said.receipt[0],
        }
        # Under a name that nobody adopts, until it is whole. What a crash leaves of it is
        # swept like any file of kept blocks.
        unfinished = path.with_suffix(f"{_SUFFIX}-queue")
        _remove(unfinished)
        queue = Queue(unfinished)
        try:
            packed = Packed(sequence=said.highest + 1, dropped=said.dropped)
            queue.refill(map(bytes, blocks), packed, notes, now)
            queue.checkpoint()
        finally:
            queue.close()
        unfinished.replace(path)


def _remove(unfinished: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{unfinished}{suffix}").unlink(missing_ok=True)


def _with_blocks(announcement: Announcement, blocks: int) -> Announcement:
    return structs.replace(announcement, blocks=blocks)
