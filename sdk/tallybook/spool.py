"""
The spool: a memory-mapped file that events are stored into, one frame after another.

Why a map: a store into it keeps the interpreter's lock, a `write` gives it up, and beside
busy threads that costs milliseconds. The page cache holds what was stored when the process
is killed.

Why ``mmap.write``: it reserves the place and copies the frame in one call that no other
thread, signal handler or finaliser can come between. So there is no lock, no place that is
taken and never filled, and nobody to wait for when a file is retired: `seal` moves the
position to the end of the file, and from then on every store into it fails and goes to the
next one. A spool is never truncated and never written anew.

Where the frames of a sealed spool end is not noted by whoever seals it: others may look in
between. It follows from the frames themselves, so everybody who looks finds the same.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tallybook.errors import InvariantBroken
from tallybook.frame import (
    DROPPED,
    DROPPED_OFFSET,
    SpoolIdentity,
    dropped_at,
    encode_header,
    frame_seed,
)
from tallybook.limits import SPOOL_HEADER_BYTES

__all__ = ["Spool", "spool_name"]

_POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0)


def spool_name(producer: bytes, number: int) -> str:
    """The file's name."""
    return f"{producer.hex()}.spool-{number}"


class Spool:
    """
    One spool file of a producer that lives in this process.

    Attributes:
        number: Its place among the producer's spools.
        path: The file.
        size: Its bytes, header included; fixed.
        write: Store a frame: `mmap.write`. Raises ValueError when it does not fit.
    """

    def __init__(self, directory: Path, identity: SpoolIdentity, size: int) -> None:
        """
        Create the file, really allocated.

        Raises:
            OSError: The directory refuses it, or has no room for *size* bytes. Nothing is left.
        """
        self.number = identity.number
        self.path = directory / spool_name(identity.producer, identity.number)
        self.size = size
        self.seed = frame_seed(identity.producer)
        header = encode_header(identity)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # A sparse map would turn a full disk into SIGBUS in the host application.
            os.posix_fallocate(self._fd, 0, size)
            self._map = mmap.mmap(self._fd, size, flags=mmap.MAP_SHARED | _POPULATE)
        except BaseException:
            os.close(self._fd)
            with suppress(OSError):
                self.path.unlink()
            raise
        self._map[:SPOOL_HEADER_BYTES] = header
        self._map.seek(SPOOL_HEADER_BYTES)
        self._seen = SPOOL_HEADER_BYTES  # A place where a frame ended, seen before any sealing.
        self._named = False
        self.write: Callable[[bytes], int] = self._map.write

    def end(self) -> int:
        """The offset behind the last stored frame; of a sealed spool, it never changes again."""
        position = self._map.tell()
        if position < self.size:
            self._seen = position
            return position
        # Sealed, or full to the last byte: from here on nothing is stored any more.
        end = self._seen
        while (length := self._frame_bytes(end)) > 0:
            end += length
        self._seen = end
        return end

    def seal(self) -> None:
        """Let no further store in. Idempotent; from any thread."""
        self.end()
        self._map.seek(self.size)

    def _frame_bytes(self, offset: int) -> int:
        head = self._map[offset : offset + 4]
        return int.from_bytes(head[2:4], "little") + 9 if head[:2] == b"\xa1\xb7" else 0

    def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end)."""
        if not SPOOL_HEADER_BYTES <= start <= end <= self.size:
            raise InvariantBroken(f"read [{start}, {end}) of a spool of {self.size} bytes")
        return self._map[start:end]

    def sync(self) -> None:
        """Have the disk confirm everything stored so far. Raises OSError if it does not."""
        os.fdatasync(self._fd)
        if not self._named:
            # The sync of a new file does not promise its name: without this one, a power cut
            # could leave the events on a disk where nobody finds them.
            _sync_directory(self.path.parent)
            self._named = True

    def count_drop(self, events: int = 1) -> None:
        """Count events that could not be kept. The caller holds the producer's lock."""
        DROPPED.pack_into(self._map, DROPPED_OFFSET, self.dropped() + events)

    def dropped(self) -> int:
        """Events dropped while this file was current."""
        return dropped_at(self._map)

    def close(self, *, unlink: bool) -> None:
        """Let go of the file, and remove it if *unlink*. Idempotent."""
        if not self._map.closed:
            self._map.close()
            os.close(self._fd)
        if unlink:
            with suppress(FileNotFoundError):
                self.path.unlink()

    def forget(self) -> None:
        """
        In a child after fork: make this copy unusable without touching the file.

        The position is the child's own, so moving it stops every store that was
        under way here, and none in the parent.
        """
        with suppress(ValueError, OSError):  # The parent was just letting go of it.
            self._map.seek(self.size)
            os.close(self._fd)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
