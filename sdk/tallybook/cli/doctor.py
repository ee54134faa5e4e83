"""
``tallybook doctor``: is this machine fit for recording, and does what is recorded arrive?

Each check is one function that returns what it found; none changes anything but a
temporary file that has no name.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from tallybook.cli.connection import DEFAULT_ENDPOINT, Reply, Server, add_endpoint, settings_of
from tallybook.cli.output import (
    Exit,
    Failure,
    number_of,
    plain,
    print_json,
    print_line,
    say,
    table,
)
from tallybook.cli.parser import Commands, add_command
from tallybook.cli.queue import add_directory, read_queues
from tallybook.clock import SystemClock
from tallybook.directory import NETWORK_FILE_SYSTEMS, file_system
from tallybook.guard import wiped_page
from tallybook.limits import FUTURE_SECONDS_MAX, SPOOL_BYTES
from tallybook.settings import Settings

__all__ = [
    "Check",
    "clock_check",
    "file_system_check",
    "register",
    "space_check",
    "sqlite_check",
]

SKEW_SECONDS_WARNED: Final = 60
"""A clock that is further off than this is worth a look; beyond FUTURE_SECONDS_MAX it is wrong."""

_PYTHON_MIN: Final = (3, 11)
_WAL_FIXED: Final = (3, 51, 3)
_WAL_BACKPORTED: Final = ((3, 44, 6), (3, 50, 7))
_MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Check:
    """
    What one check found.

    Attributes:
        name: What was looked at.
        level: ``ok``; ``warn``: it works, and may not always; ``FAIL``: usage is at risk.
        found: What is there, and what to do about it.
    """

    name: str
    level: Level
    found: str


def register(commands: Commands) -> None:
    """Declare ``doctor``."""
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        summary="check this machine, the queue's directory and the way to the server",
        examples=["tallybook doctor", "tallybook doctor --directory /var/lib/app/tallybook"],
    )
    add_directory(parser)
    add_endpoint(parser)


def _doctor(arguments: Namespace) -> int:
    settings = settings_of(endpoint=arguments.endpoint, directory=arguments.directory)
    checks = [
        _python(),
        sqlite_check(sqlite3.sqlite_version_info),
        _fork_guard(),
        *_directory_checks(settings),
        *_server_checks(settings),
        _dead_queues(settings.directory),
    ]
    failed = sum(check.level == "FAIL" for check in checks)
    if arguments.json:
        print_json({"ok": not failed, "data": [asdict(check) for check in checks]})
    else:
        for line in table(["", "check", "found"], [(c.level, c.name, c.found) for c in checks])[1:]:
            print_line(line)
    say(f"{failed} of {len(checks)} checks failed" if failed else "fit for recording")
    return Exit.FINDING if failed else Exit.OK


# -- this machine --------------------------------------------------------------------------


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info < _PYTHON_MIN:
        return Check("Python", "FAIL", f"{version}; expected 3.11 or later")
    return Check("Python", "ok", version)


def sqlite_check(version: tuple[int, ...]) -> Check:
    """Whether this SQLite has the fault that can corrupt a WAL database of two connections."""
    text = ".".join(map(str, version))
    backported = any(version[:2] == fixed[:2] and version >= fixed for fixed in _WAL_BACKPORTED)
    if version >= _WAL_FIXED or backported:
        return Check("SQLite", "ok", text)
    return Check(
        "SQLite",
        "ok",
        f"{text}, affected by the WAL reset fault (fixed in 3.51.3), which takes two connections "
        "on one file; tallybook never uses two",
    )


def _fork_guard() -> Check:
    page = wiped_page()
    if page is None:
        return Check(
            "fork guard",
            "warn",
            "the kernel does not wipe a page in a fork; the pid is asked at every record "
            "instead, which is slower. Linux 4.14 or later has it",
        )
    page.close()
    return Check("fork guard", "ok", "MADV_WIPEONFORK")


# -- the directory -------------------------------------------------------------------------


def _directory_checks(settings: Settings) -> Iterator[Check]:
    directory = settings.directory
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    yield _writable(directory, there)
    yield file_system_check(directory, file_system(there))
    yield space_check(shutil.disk_usage(there).free, settings.queue_bytes_max)


def _writable(directory: Path, there: Path) -> Check:
    """Whether a spool file can be made: a named one would look like a producer's."""
    name = "directory"
    if not there.is_dir():
        return Check(
            name, "FAIL", f"{there} is a file; choose a directory with TALLYBOOK_DIRECTORY"
        )
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            os.posix_fallocate(file.fileno(), 0, SPOOL_BYTES)
    except OSError as error:
        return Check(
            name,
            "FAIL",
            f"{there}: no spool file of {SPOOL_BYTES >> 20} MiB can be made there: "
            f"{error.strerror}; make room or give the application's user the right to write, "
            "or choose another with TALLYBOOK_DIRECTORY",
        )
    made = "" if there == directory else f"; the first record makes it, in {there}"
    return Check(name, "ok", f"{directory} can be written and allocated{made}")


def file_system_check(directory: Path, kind: str) -> Check:
    """Whether a queue may lie on a file system of this *kind*."""
    name = "file system"
    if kind in NETWORK_FILE_SYSTEMS:
        return Check(
            name,
            "FAIL",
            f"{directory} is on {kind}, a network file system, where a queue is not safe; choose "
            "a local disk with TALLYBOOK_DIRECTORY",
        )
    if kind in _MEMORY_FILE_SYSTEMS:
        return Check(
            name,
            "warn",
            f"{directory} is on {kind}: what waits there dies with the machine; choose a disk "
            "with TALLYBOOK_DIRECTORY",
        )
    return Check(name, "ok", kind or "unknown")


def space_check(free: int, queue_bytes_max: int) -> Check:
    """Whether *free* bytes are enough for a queue that is full."""
    found = f"{free >> 20} MiB free, the queue may take {queue_bytes_max >> 20} MiB"
    if free < SPOOL_BYTES:
        return Check("space", "FAIL", f"{found}; make room: recording needs a spool of 8 MiB")
    if free < queue_bytes_max:
        return Check(
            "space",
            "warn",
            f"{found}: a long outage fills the disk first; make room, or set "
            "TALLYBOOK_QUEUE_BYTES_MAX lower",
        )
    return Check("space", "ok", found)


# -- the server ----------------------------------------------------------------------------


def _server_checks(settings: Settings) -> Iterator[Check]:
    named = settings.endpoint is not None
    server = Server((settings.endpoint or DEFAULT_ENDPOINT).rstrip("/"), settings.api_key)
    clock = SystemClock()
    asked = clock.time_ns()
    try:
        reply = server.get("/")
    except Failure as failure:
        hint = "" if named else "; TALLYBOOK_ENDPOINT is not set"
        yield Check("server", "FAIL" if named else "warn", f"{failure}{hint}")
        return
    answered = clock.time_ns()
    if reply.document.get("service") != "tallybook" or "ledger" not in reply.document:
        yield Check("server", "FAIL", f"{server.endpoint} is another program than tallybook")
        return
    yield Check(
        "server",
        "ok",
        f"{server.endpoint}, ledger {reply.document['ledger']}, "
        f"version {reply.document.get('version')}",
    )
    yield clock_check(reply, (asked + answered) / 2e9)


def clock_check(reply: Reply, now: float) -> Check:
    """How far this machine's *now*, in seconds since 1970 UTC, is from the server's."""
    if reply.time is None:
        return Check("clock", "warn", "the server did not say what time it is")
    # The server's Date is cut to the second; half of one is the best guess.
    skew = now - (reply.time + 0.5)
    where = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    if abs(skew) > FUTURE_SECONDS_MAX:
        return Check(
            "clock",
            "FAIL",
            f"{where}: usage would be booked at wrong times; set this machine's clock by NTP",
        )
    if abs(skew) > SKEW_SECONDS_WARNED:
        return Check("clock", "warn", f"{where}; set this machine's clock by NTP")
    return Check("clock", "ok", f"within {max(1, round(abs(skew)))} s of the server's")


def _dead_queues(directory: Path) -> Check:
    dead = [queue for queue in read_queues(directory) if queue.alive is False]
    if not dead:
        return Check("dead queues", "ok", "none")
    events = sum(queue.pending or 0 for queue in dead)
    held = [queue for queue in dead if queue.held]
    return Check(
        "dead queues",
        "warn",
        plain(
            f"{len(dead)} of dead producers with at least {number_of(events, 'event')}"
            + (f", {len(held)} of them held" if held else "")
            + "; the next Meter for their endpoint sends them, or now: tallybook queue flush"
        ),
    )
