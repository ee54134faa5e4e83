"""
A backup's directory: what lies where, and what a crash may have left in it.

::

    lock            held (flock) as long as somebody writes or reads the backup
    manifest.json   what belongs to it; written last
    files/          the journal's copy and the segments, named by content

A file is written under another name, synced, and renamed; then the manifest takes the place
of the one before it; only then are files removed that it does not name. So whatever moment
a crash chooses, the manifest that is there names files that are there.

Files are copied and never linked. A hard link, or a clone of the file system's, is the same
bytes on the same disk: what damages the ledger would damage its backup.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from tallybook_server.backup_manifest import (
    BackupDamaged,
    BackupManifest,
    StoredFile,
    encode_manifest,
    read_manifest,
    stored_name,
)
from tallybook_server.book import sync_directory, sync_file, take_lock
from tallybook_server.ledger import BackupRefused
from tallybook_server.limits import COPY_CHUNK_BYTES
from tallybook_server.segment import WRITING_PREFIX, file_digest

__all__ = ["BackupDirectory", "copy_into"]

_MANIFEST: Final = "manifest.json"
_OURS: Final = frozenset({"lock", _MANIFEST, f"{WRITING_PREFIX}{_MANIFEST}", "files"})
_NOBODYS: Final = frozenset({"lost+found"})  # Of a file system of its own.
_FILE: Final = re.compile(rf"{WRITING_PREFIX}.+|.+-[0-9a-f]{{16}}\.(db|parquet)")


class BackupDirectory:
    """
    One backup, locked from `open` to `close`.

    Attributes:
        path: Where it lies.
        files: Where its files lie.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "files"
        self._lock: int | None = None

    # -- life ------------------------------------------------------------------------------

    def open(self) -> None:
        """
        Make the directory if it is not there, and lock it.

        Raises:
            BackupRefused: Something else is in it, or another backup is being made there.
            OSError: It cannot be made.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        strange = self._strange()
        if strange:
            raise BackupRefused(
                f"{self.path} holds something else than a backup: {strange[0]}; name a directory "
                "that is empty or is not there"
            )
        self._take_lock(os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, fcntl.LOCK_EX)
        self.files.mkdir(mode=0o700, exist_ok=True)
        for directory in (self.path, self.path.parent):
            sync_directory(directory)

    def _strange(self) -> list[str]:
        """What lies here and is not ours, which is never touched."""
        strange = [path.name for path in self.path.iterdir() if path.name not in _OURS | _NOBODYS]
        if self.files.is_dir():
            names = [path.name for path in self.files.iterdir()]
            strange += [f"files/{name}" for name in names if not _FILE.fullmatch(name)]
        return sorted(strange)

    def open_to_read(self) -> None:
        """
        Lock an existing backup so that nobody writes to it; nothing of it is changed.

        Raises:
            BackupDamaged: There is none.
            BackupRefused: One is being made there.
        """
        if not self.path.is_dir():
            raise BackupDamaged(f"there is no backup in {self.path}: it is no directory")
        try:
            self._take_lock(os.O_RDONLY, fcntl.LOCK_SH)
        except FileNotFoundError:
            pass  # A copy of a backup need not have one; who reads a copy is alone with it.

    def _take_lock(self, flags: int, operation: int) -> None:
        try:
            self._lock = take_lock(self.path / "lock", flags, operation, mode=0o600)
        except BlockingIOError as error:
            raise BackupRefused(
                f"{self.path} is in use by another backup or restore; try again when it is done"
            ) from error

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- the manifest ----------------------------------------------------------------------

    def manifest(self) -> BackupManifest | None:
        """
        What the backup holds; None if none was ever finished here.

        Raises:
            BackupDamaged: It cannot be read, or has changed.
        """
        try:
            return read_manifest((self.path / _MANIFEST).read_bytes())
        except FileNotFoundError:
            return None

    def finished(self) -> BackupManifest:
        """
        What the backup holds.

        Raises:
            BackupDamaged: As `manifest`, and if none was ever finished here.
        """
        manifest = self.manifest()
        if manifest is None:
            raise BackupDamaged(
                f"{self.path} holds no finished backup: it has no {_MANIFEST}, which is written "
                "last; make it again with tallybook backup"
            )
        return manifest

    def publish(self, manifest: BackupManifest) -> None:
        """Let *manifest*, whose files are all there, take the place of the one before it."""
        sync_directory(self.files)
        unfinished = self.path / f"{WRITING_PREFIX}{_MANIFEST}"
        with _new_file(unfinished) as file:
            file.write(encode_manifest(manifest))
        unfinished.replace(self.path / _MANIFEST)
        sync_directory(self.path)

    # -- files -----------------------------------------------------------------------------

    def unfinished(self, name: str) -> Path:
        """Where a file is written before it has its name; nothing is there."""
        path = self.files / f"{WRITING_PREFIX}{name}"
        path.unlink(missing_ok=True)
        return path

    def add(self, name: str, unfinished: Path, digest: str, size: int) -> StoredFile:
        """Make a file durable that was written as `unfinished` said, and give it its name."""
        stored = StoredFile(name=name, file=stored_name(name, digest), sha256=digest, bytes=size)
        sync_file(unfinished)
        unfinished.replace(self.files / stored.file)
        return stored

    def has(self, stored: StoredFile) -> bool:
        """Whether the file is there, in its full length; its bytes are not read."""
        try:
            return (self.files / stored.file).lstat().st_size == stored.bytes
        except FileNotFoundError:
            return False

    def holds(self, stored: StoredFile) -> bool:
        """Whether the file is there, byte for byte."""
        try:
            digest, size = file_digest(self.files / stored.file)
        except FileNotFoundError:
            return False
        return (digest.hex(), size) == (stored.sha256, stored.bytes)

    def tidy(self, manifest: BackupManifest) -> None:
        """Remove the files that *manifest* does not name."""
        named = {stored.file for stored in (manifest.journal, *manifest.segments)}
        for path in self.files.iterdir():
            if path.name not in named:
                path.unlink()


def copy_into(source: Path, target: Path) -> tuple[str, int]:
    """
    Copy a file into a new one, and return the SHA-256, in hex, and length of what was read.

    Raises:
        FileExistsError: *target* is there.
        OSError: The one cannot be read or the other not be written.
    """
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading, _new_file(target) as writing:
        while chunk := reading.read(COPY_CHUNK_BYTES):
            digest.update(chunk)
            writing.write(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


@contextmanager
def _new_file(path: Path) -> Generator[BinaryIO]:
    """A file that is on disk when the block ends; one that a crash has left goes first."""
    path.unlink(missing_ok=True)
    handle = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(handle)
