"""
A book's directory: what lies where, who holds it, and what a crash may have left in it.

::

    lock         held (flock) as long as a server lives
    journal.db   the journal, with SQLite's files beside it
    segments/    sealed events, one Parquet file each
    spill/       what queries could not keep in memory; empty between two lives
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tallybook_server.ledger import LedgerDamaged, LedgerLocked
from tallybook_server.segment import WRITING_PREFIX

__all__ = ["Book", "restoring_path", "sync_directory", "sync_file", "take_lock"]

_JOURNAL_FILES = ("journal.db", "journal.db-wal", "journal.db-shm", "journal.db-journal")


class Book:
    """The directory of one book, locked from `open` to `close`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = directory / "journal.db"
        self.segments = directory / "segments"
        self.spill = directory / "spill"
        self._lock: int | None = None

    def open(self) -> None:
        """
        Create what is missing, and lock the book.

        Raises:
            LedgerLocked: A server has it.
            LedgerDamaged: A restore into this place did not come to its end.
        """
        unfinished = restoring_path(self.directory)
        if unfinished.exists():
            raise LedgerDamaged(
                f"{unfinished} is what a restore left that did not come to its end; run tallybook "
                "restore again, or remove it"
            )
        self.segments.mkdir(parents=True, exist_ok=True)
        for directory in (self.directory, self.directory.parent, self.directory.parent.parent):
            sync_directory(directory)
        self._take_lock(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)

    def open_to_read(self) -> None:
        """
        Lock an existing book so that no server starts on it, without writing anything.

        Raises:
            LedgerLocked: A server has it.
            LedgerDamaged: There is no book.
        """
        if not self.journal.is_file():
            raise LedgerDamaged(f"{self.directory} is no book: it has no journal.db")
        try:
            self._take_lock(os.O_RDONLY, fcntl.LOCK_SH)
        except FileNotFoundError:
            raise LedgerDamaged(f"{self.directory} is no book: it has no lock file") from None

    def _take_lock(self, flags: int, operation: int) -> None:
        try:
            self._lock = take_lock(self.directory / "lock", flags, operation, mode=0o644)
        except BlockingIOError as error:
            raise LedgerLocked(
                f"the book {self.directory} is held by a running server; "
                "stop it first, or ask it instead"
            ) from error

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove_unfinished(self) -> None:
        """Remove segments that a crash has left half written."""
        for path in self.segments.glob(f"{WRITING_PREFIX}*"):
            path.unlink()

    def unknown_files(self, segments: set[str]) -> list[str]:
        """What lies in the directory and belongs to nobody, as paths relative to it."""
        known = {"lock", "segments", "spill", *_JOURNAL_FILES}
        unknown = [path.name for path in self.directory.iterdir() if path.name not in known]
        for path in self.segments.iterdir():
            if path.name not in segments and not path.name.startswith(WRITING_PREFIX):
                unknown.append(f"segments/{path.name}")
        return sorted(unknown)


def take_lock(path: Path, flags: int, operation: int, *, mode: int) -> int:
    """
    Open the file *path* and lock it with flock, without waiting.

    Returns:
        The file descriptor that holds the lock.

    Raises:
        BlockingIOError: Another process has it.
    """
    handle = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def restoring_path(directory: Path) -> Path:
    """Where the book for *directory* is made while it is restored."""
    return directory.with_name(f"restoring-{directory.name}")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
