"""
``tallybook queue status``: the queues of a directory, from outside.

Nothing is opened that somebody may be writing: two connections on one SQLite file can
corrupt it. What is shown is what each producer published beside its queue, the sizes of its
files, and whether its lock is held: that alone says who lives.
"""

from __future__ import annotations

import fcntl
import json
import os
from argparse import Namespace
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from tallybook.cli.connection import settings_of
from tallybook.cli.output import Exit, Failure, number_of, print_json, print_line, say, table
from tallybook.cli.parser import Commands, Parser, add_command, add_group
from tallybook.directory import lock_names, queue_path, spool_paths, status_path
from tallybook.errors import FrameDamaged
from tallybook.event import format_time
from tallybook.frame import SpoolIdentity, read_header
from tallybook.limits import SPOOL_HEADER_BYTES

__all__ = ["QueueStatus", "add_directory", "directory_of", "read_queues", "register"]

_SHOWN_CHARS: Final = 60


def register(commands: Commands) -> Commands:
    """Declare ``queue`` and ``queue status``; what is returned takes its other commands."""
    queues = add_group(
        commands,
        "queue",
        summary="look at, and drain, what applications have queued on this machine",
        examples=["tallybook queue status", "tallybook queue flush"],
    )
    parser = add_command(
        queues,
        "status",
        _status,
        summary="show every queue of a directory: who writes it, and what waits",
        words="A living producer's counts are at most a second old; those of a dead one are its\n"
        "last, and what it recorded in its last second comes on top.",
    )
    add_directory(parser)
    return queues


def add_directory(parser: Parser) -> None:
    """Declare ``--directory``."""
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help="the queues' directory; by default TALLYBOOK_DIRECTORY, else the user's state "
        "directory",
    )


def directory_of(arguments: Namespace) -> Path:
    """
    The directory that is meant.

    Raises:
        Failure: It is named, and it is not there.
    """
    directory = settings_of(directory=arguments.directory).directory
    if arguments.directory is not None and not directory.is_dir():
        raise Failure(
            f"{directory} is no directory; expected the one that the application's Meter has, "
            "see TALLYBOOK_DIRECTORY",
            Exit.USAGE,
        )
    return directory


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """
    One producer's queue, seen from outside. Numbers are None where nobody published them.

    Attributes:
        producer: 32 hex digits.
        alive: Whether its process lives, or another one is draining it just now; None: its
            lock cannot be opened.
        source: The application's name, or None.
        endpoint: Where it is to be sent, or None.
        pid: The process that published, or None.
        recorded: Events that were kept.
        pending: Events that wait.
        aside: Events that the server refused for good.
        dropped: Events that could not be kept.
        oldest: Since when the oldest waiting block waits, RFC 3339, or None.
        published: When the counts were published, RFC 3339, or None.
        bytes: What its files take on disk.
        held: Why it is left as it is, or None.
        last_error: Why sending failed last, or None.
    """

    producer: str
    alive: bool | None
    source: str | None
    endpoint: str | None
    pid: int | None
    recorded: int | None
    pending: int | None
    aside: int | None
    dropped: int | None
    oldest: str | None
    published: str | None
    bytes: int
    held: str | None
    last_error: str | None


def read_queues(directory: Path) -> list[QueueStatus]:
    """Every queue of *directory*, the living first."""
    names = [path.stem for path in lock_names(directory)]
    published = {name: _published(directory, name) for name in names}
    held: dict[str, str] = {}
    for document in published.values():
        found = document.get("held")
        held |= cast(dict[str, str], found) if isinstance(found, dict) else {}
    queues = [_queue(directory, name, published[name], held.get(name)) for name in names]
    return sorted(queues, key=lambda queue: (not queue.alive, queue.producer))


def _queue(directory: Path, name: str, published: dict[str, Any], held: str | None) -> QueueStatus:
    alive = _is_alive(directory / f"{name}.lock")
    identity = _identity(directory, name)
    oldest = published.get("oldest")
    return QueueStatus(
        producer=name,
        alive=alive,
        source=published.get("source", identity.source if identity else None),
        endpoint=published.get("endpoint", identity.endpoint if identity else None),
        pid=published.get("pid"),
        recorded=published.get("recorded"),
        pending=published.get("pending"),
        aside=published.get("aside"),
        dropped=published.get("dropped"),
        oldest=format_time(oldest) if isinstance(oldest, int) else None,
        published=_modified(status_path(directory, name)),
        bytes=_bytes(directory, name),
        # What a living producer says of a dead one's queue is of no weight once it lives.
        held=None if alive else held,
        last_error=published.get("last_error"),
    )


def _is_alive(lock: Path) -> bool | None:
    """Whether somebody holds *lock*. It is tried shared: two who look do not see each other."""
    try:
        # No O_CREAT: a file that is made here would be a producer that never was.
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def _published(directory: Path, name: str) -> dict[str, Any]:
    """
    The producer's last word on itself; empty where there is none.

    A document that names another producer, or none, is of a time when this one had ended: its
    counts are not this queue's, and "unknown" is better than a wrong zero.
    """
    with suppress(OSError, ValueError):
        document = json.loads(status_path(directory, name).read_bytes())
        if isinstance(document, dict) and cast(dict[str, Any], document).get("producer") == name:
            return cast(dict[str, Any], document)
    return {}


def _identity(directory: Path, name: str) -> SpoolIdentity | None:
    """Who wrote the spools, for a producer that died before it published anything."""
    for _, path in spool_paths(directory, name):
        with suppress(OSError, FrameDamaged), path.open("rb") as file:
            return read_header(file.read(SPOOL_HEADER_BYTES))
    return None


def _modified(path: Path) -> str | None:
    with suppress(OSError):
        return format_time(path.stat().st_mtime_ns // 1_000_000_000 * 1_000_000)
    return None


def _bytes(directory: Path, name: str) -> int:
    queue = queue_path(directory, name)
    files = [queue, queue.with_name(f"{queue.name}-wal")]
    size = 0
    for path in [*files, *(path for _, path in spool_paths(directory, name))]:
        with suppress(OSError):
            size += path.stat().st_blocks * 512
    return size


# -- status --------------------------------------------------------------------------------


def _status(arguments: Namespace) -> int:
    directory = directory_of(arguments)
    queues = read_queues(directory)
    totals = {
        "queues": len(queues),
        "dead": sum(queue.alive is False for queue in queues),
        **{name: _sum(queues, name) for name in ("recorded", "pending", "aside", "dropped")},
        "bytes": _sum(queues, "bytes"),
        "held": sum(queue.held is not None for queue in queues),
    }
    if arguments.json:
        print_json(
            {
                "directory": str(directory),
                "data": [asdict(queue) for queue in queues],
                "totals": totals,
            }
        )
    elif queues:
        for line in _table(queues):
            print_line(line)
    say(_words(directory, queues, totals))
    wrong = totals["aside"] or totals["dropped"] or totals["held"]
    return Exit.FINDING if wrong else Exit.OK


def _sum(queues: Iterable[QueueStatus], name: str) -> int:
    return sum(getattr(queue, name) or 0 for queue in queues)


def _table(queues: Iterable[QueueStatus]) -> list[str]:
    numbers = ("recorded", "pending", "aside", "dropped")
    words = {True: "alive", False: "dead", None: "?"}
    return table(
        ["producer", "state", "source", "endpoint", *numbers, "KiB", "oldest", "last error"],
        [
            [
                queue.producer,
                "held" if queue.held else words[queue.alive],
                queue.source or "-",
                queue.endpoint or "-",
                *(_number(getattr(queue, name)) for name in numbers),
                str(queue.bytes // 1024),
                queue.oldest or "-",
                (queue.held or queue.last_error or "-")[:_SHOWN_CHARS],
            ]
            for queue in queues
        ],
        right=(*numbers, "KiB"),
    )


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _words(directory: Path, queues: list[QueueStatus], totals: dict[str, int]) -> str:
    if not queues:
        return f"{directory}: no queue; everything that was recorded here has been sent"
    words = [
        f"{directory}: {number_of(totals['queues'], 'queue')}, {totals['dead']} of dead producers; "
        + ("at least " if any(queue.pending is None for queue in queues) else "")
        + f"{number_of(totals['pending'], 'event')} waiting"
    ]
    if totals["dead"]:
        words.append("tallybook queue flush sends what the dead ones left")
    if totals["aside"]:
        words.append(
            f"{number_of(totals['aside'], 'event')} set aside, which the server refuses for good; "
            "once it takes them: tallybook queue flush --retry-aside"
        )
    if totals["dropped"]:
        words.append(
            f"{number_of(totals['dropped'], 'event')} dropped, because the queue was full; the "
            "server is told how many"
        )
    words += [f"{queue.producer} is held: {queue.held}" for queue in queues if queue.held]
    return "\n".join(words)
