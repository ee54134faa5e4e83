"""
The queue's directory: names, locks, ballast.

A producer's lock file is locked for its whole life. A lock that can be taken is a
producer that died, whose files may be adopted. The lock goes last, so files without a
lock are leftovers of nobody; identities are random, so no pid is ever asked.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from errno import EEXIST
from pathlib import Path
from typing import ClassVar, Final

from tallybook.limits import BALLAST_BYTES

__all__ = [
    "Lock",
    "add_ballast",
    "drop_ballast",
    "forget_locks",
    "lock_names",
    "make_directory",
    "queue_path",
    "spool_paths",
    "status_path",
    "write_status",
]

_BALLAST: Final = "ballast"

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"}
)
"""Where neither locks nor memory maps nor SQLite's write-ahead log can be trusted."""


class Lock:
    """
    A producer's lock file, held.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._pid = os.getpid()
        self._held = True

    # Every lock file that is open, and the process that opened it. A child of fork closes
    # those of its parent: a lock belongs to the open file, and a child that kept one would
    # make its parent look alive after its death.
    descriptors: ClassVar[dict[int, int]] = {}
    # No fork between opening or closing a lock file and the note of it: a child would
    # inherit a file that it does not know of.
    noting: ClassVar[threading.RLock] = threading.RLock()

    @classmethod
    def make(cls, directory: Path, producer: bytes) -> Lock | None:
        """
        Make and take the lock of a new producer; None if somebody took it first.

        Between making and locking, an adopter may find the file, take it for a dead
        producer's and remove it. The comparison of inodes sees that.
        """
        return cls._lock(directory / f"{producer.hex()}.lock", os.O_CREAT | os.O_EXCL)

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """The lock of a dead producer, or None: alive, adopted by another, or gone."""
        try:
            # No O_CREAT: a file that is made here would be a producer that never was.
            return cls._lock(path, 0)
        except FileNotFoundError:
            return None

    @classmethod
    def _lock(cls, path: Path, how: int) -> Lock | None:
        with cls.noting:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | how, 0o600)
            lock = cls(path, fd)
            cls.descriptors[fd] = lock._pid
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.in_place():
                return lock
        except BlockingIOError:
            pass
        except BaseException:
            lock.release(unlink=False)
            raise
        lock.release(unlink=False)
        return None

    def in_place(self) -> bool:
        """Whether the path still leads to the file that is held."""
        try:
            return os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self, *, unlink: bool) -> None:
        """Let go; with *unlink*, the file goes while it is still locked. Idempotent."""
        if not self._held or self._pid != os.getpid():
            return
        self._held = False
        if unlink:
            with suppress(OSError):
                self.path.unlink()
        with Lock.noting:
            Lock.descriptors.pop(self._fd, None)
            os.close(self._fd)


def forget_locks() -> None:
    """In a child after fork: close the parent's lock files, without unlocking them."""
    Lock.noting = threading.RLock()
    for fd, pid in list(Lock.descriptors.items()):
        if pid != os.getpid():
            with suppress(OSError):
                os.close(fd)
            Lock.descriptors.pop(fd, None)


def _before_fork() -> None:
    Lock.noting.acquire()


def _after_fork() -> None:
    Lock.noting.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=forget_locks)


def make_directory(path: Path) -> None:
    """
    Make the directory, for its owner only.

    Raises:
        OSError: It cannot be made, or lies on a network file system.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise OSError(
            f"{path} is on {kind}, a network file system, where a queue is not safe; "
            "set TALLYBOOK_DIRECTORY to a local disk"
        )


def file_system(path: Path) -> str:
    """The type of the file system under *path*, or ``""`` where the system does not say."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        # Octal escapes stand for blanks in the mount point; the longest match is the mount.
        point = fields.split(" ")[4].replace("\\040", " ").replace("\\011", "\t")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, rest.split(" ")[0]
    return kind


def queue_path(directory: Path, producer: str) -> Path:
    """The producer's SQLite file."""
    return directory / f"{producer}.db"


def status_path(directory: Path, producer: str) -> Path:
    """The producer's published counts."""
    return directory / f"{producer}.status"


def write_status(directory: Path, producer: str, status: Mapping[str, object]) -> bool:
    """Publish a producer's counts beside its queue; whether the disk took them."""
    path = status_path(directory, producer)
    unfinished = path.with_suffix(".status-new")
    try:
        unfinished.write_text(json.dumps(status))
        unfinished.replace(path)
    except OSError:
        return False
    return True


def spool_paths(directory: Path, producer: str) -> list[tuple[int, Path]]:
    """(number, path) of the producer's spool files, in order."""
    found: list[tuple[int, Path]] = []
    for path in directory.glob(f"{producer}.spool-*"):
        number = path.name.rpartition("-")[2]
        if number.isascii() and number.isdigit():
            found.append((int(number), path))
    return sorted(found)


def lock_names(directory: Path) -> list[Path]:
    """The lock files of all producers here, dead or alive."""
    return sorted(
        path
        for path in directory.glob("*.lock")
        if len(path.stem) == 32 and set(path.stem) <= set("0123456789abcdef")
    )


def add_ballast(directory: Path) -> bool:
    """Put the ballast there, if there is room for it; whether it is there."""
    try:
        fd = os.open(directory / _BALLAST, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return error.errno == EEXIST
    try:
        os.posix_fallocate(fd, 0, BALLAST_BYTES)
    except OSError:
        drop_ballast(directory)
        return False
    finally:
        os.close(fd)
    return True


def drop_ballast(directory: Path) -> None:
    """Give the ballast up: room to checkpoint and to remove what was sent."""
    with suppress(OSError):
        (directory / _BALLAST).unlink()
