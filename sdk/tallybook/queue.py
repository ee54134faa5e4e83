"""
The queue: one producer's blocks in one SQLite file, until the server has them.

One file per producer and one connection per file, never two: SQLite from 3.7.0 to 3.51.2
can corrupt a WAL database that two connections checkpoint (fixed in 3.51.3), and most
machines have such a version. The connection takes the file exclusively, so a second one
is refused by SQLite itself.

`position` says up to where the spools are packed. It is written in the transaction that
inserts the block, so a recovery begins exactly behind the last block and never has to
infer that from rows, which may be gone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

from tallybook.block import read_header
from tallybook.errors import InvariantBroken
from tallybook.limits import SPOOL_HEADER_BYTES

__all__ = ["Counts", "Packed", "Queue", "QueueDamaged", "QueuedBlock"]

_T = TypeVar("_T")

_SCHEMA: Final = """
create table meta (name text primary key, value any) strict;
create table blocks (
    id integer primary key,
    producer blob not null,
    first integer not null,
    count integer not null,
    data blob not null,
    state text not null default 'pending',
    reason text,
    queued_at integer not null,
    unique (producer, first)
) strict;
create index pending on blocks (id) where state = 'pending';
"""
_VERSION: Final = 1


class QueueDamaged(Exception):
    """The file is no queue, or no longer one."""


class Packed(NamedTuple):
    """
    Up to where a producer's spools are packed into blocks.

    Attributes:
        number: The spool file.
        offset: The offset in it, behind the last packed frame.
        sequence: The next event's sequence.
        torn: Stretches of damage that were skipped.
        dropped: Drops that were counted in spool files before this one.
    """

    number: int = 0
    offset: int = SPOOL_HEADER_BYTES
    sequence: int = 1
    torn: int = 0
    dropped: int = 0


class QueuedBlock(NamedTuple):
    """
    A block that waits.

    Attributes:
        id: Its place in the queue.
        data: Its bytes.
    """

    id: int
    data: bytes


class Counts(NamedTuple):
    """
    What is in a queue.

    Attributes:
        pending_blocks: Blocks that wait to be sent.
        pending_events: Events in them.
        aside_blocks: Blocks that the server refused for good, or that are damaged.
        aside_events: Events in them.
        acknowledged_events: Events of blocks that the server has and that are still kept.
        oldest: When the oldest waiting block was queued, in microseconds, or None.
    """

    pending_blocks: int
    pending_events: int
    aside_blocks: int
    aside_events: int
    acknowledged_events: int
    oldest: int | None


class Queue:
    """
    One producer's queue file. Every method may be called from any thread.

    Raises (all methods):
        sqlite3.OperationalError: The disk refused; the transaction is not in effect, or is:
            see `commit_block`.
        QueueDamaged: The file is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it if it is not there."""
        self.path = path
        self._lock = threading.RLock()
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("pragma trusted_schema = off")
            connection.execute("pragma locking_mode = exclusive")
            # EXTRA while the file is made: it syncs the directory too, without which a power
            # cut can bring back a hot rollback journal and un-create the tables (measured:
            # half of the simulated cuts).
            connection.execute("pragma synchronous = extra")
            connection.execute("pragma journal_mode = wal")
            # FULL: a block is sent only once its commit is on disk. A cut that is rolled back
            # after it was sent would be cut differently the next time.
            connection.execute("pragma synchronous = full")
            (version,) = connection.execute("pragma user_version").fetchone()
            if version == 0:
                (tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
                if tables:
                    raise QueueDamaged(f"{self.path.name} is a SQLite file, but not a queue")
                connection.executescript(
                    f"begin; {_SCHEMA} pragma user_version = {_VERSION}; commit;"
                )
            elif version != _VERSION:
                raise QueueDamaged(f"{self.path.name} has version {version}; this is {_VERSION}")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise QueueDamaged(f"{self.path.name} cannot be read: {error}") from None

    # -- packing ---------------------------------------------------------------------------

    def packed(self) -> Packed:
        """Up to where the spools are packed."""
        values = self._get(*Packed._fields)
        return Packed(*(v for v in values if isinstance(v, int)))

    def commit_block(self, block: bytes, packed: Packed, now: int) -> None:
        """
        Add *block* and move the position, in one transaction that is on disk on return.

        A commit that reports failure can still be durable (measured: EIO at its sync, and the
        row is there after a restart). So on an error the file is opened anew and looked at:
        the same block under the same sequence is either there or is written once more.

        Args:
            block: The bytes, as they will be sent.
            packed: The position behind the block's last event.
            now: Microseconds since 1970 UTC.
        """
        header = read_header(block)

        def commit() -> None:
            with self._transaction():
                before = self.packed()
                if before == packed:
                    return
                if header.first != before.sequence or packed.sequence != header.last + 1:
                    raise InvariantBroken(
                        f"block {header.first}-{header.last} behind sequence {before.sequence}"
                    )
                self._insert(block, now)
                self._set_packed(packed)

        self._retry_once(commit)

    def move_packed(self, packed: Packed) -> None:
        """Move the position over a stretch without events: a new file, or torn bytes."""

        def commit() -> None:
            with self._transaction():
                if packed.sequence != self.packed().sequence:
                    raise InvariantBroken("a stretch without events moved the sequence")
                self._set_packed(packed)

        self._retry_once(commit)

    def _retry_once(self, commit: Callable[[], None]) -> None:
        with self._lock:
            try:
                commit()
            except sqlite3.OperationalError:
                self.reopen()
                commit()

    def reopen(self) -> None:
        """Drop the connection and look at the file anew."""
        with self._lock:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = self._open()

    # -- sending ---------------------------------------------------------------------------

    def pending(self, blocks_max: int, bytes_max: int) -> list[QueuedBlock]:
        """The oldest waiting blocks, at least one if there is any."""
        found: list[QueuedBlock] = []
        size = 0
        with self._lock:
            rows = self._connection.execute(
                "select id, data from blocks where state = 'pending' order by id limit ?",
                (blocks_max,),
            )
            for id, data in rows:
                size += len(data)
                if found and size > bytes_max:
                    break
                found.append(QueuedBlock(id, data))
        return found

    def settle(
        self,
        settled: Iterable[tuple[int, Literal["acknowledged", "aside"], str | None]],
        *,
        reissued: Sequence[bytes] = (),
        meta: dict[str, int | str | None] | None = None,
        now: int = 0,
    ) -> None:
        """
        Mark blocks as the server answered, queue what has to come again, note the receipt.

        Args:
            settled: (id, new state, reason) of each block.
            reissued: Blocks made of events that met a conflict; known ones are left alone.
            meta: Names and values to remember: the ledger, the last receipt.
            now: Microseconds since 1970 UTC.
        """
        with self._transaction():
            self._connection.executemany(
                "update blocks set state = ?, reason = ? where id = ?",
                [(state, reason, id) for id, state, reason in settled],
            )
            for block in reissued:
                self._insert(block, now)
            for name, value in (meta or {}).items():
                self._set(name, value)

    def retry_aside(self) -> int:
        """Let the blocks that were set aside be sent again; how many."""
        with self._transaction():
            return self._connection.execute(
                "update blocks set state = 'pending', reason = null where state = 'aside'"
            ).rowcount

    def prune(self, bytes_max: int, queued_after: int) -> None:
        """Remove acknowledged blocks, oldest first, beyond *bytes_max* or older than the time."""
        with self._transaction():
            kept = 0
            rows = self._connection.execute(
                "select id, length(data), queued_at from blocks where state = 'acknowledged' "
                "order by id desc"
            ).fetchall()
            for id, size, queued_at in rows:
                kept += size
                if kept > bytes_max or queued_at < queued_after:
                    self._connection.execute(
                        "delete from blocks where state = 'acknowledged' and id <= ?", (id,)
                    )
                    break

    def acknowledged(self) -> list[bytes]:
        """The acknowledged blocks that are still kept, oldest first."""
        with self._lock:
            return [
                data
                for (data,) in self._connection.execute(
                    "select data from blocks where state = 'acknowledged' order by id"
                )
            ]

    # -- counts and notes ------------------------------------------------------------------

    def counts(self) -> Counts:
        """What is in the queue now."""
        with self._lock:
            rows = self._connection.execute(
                "select state, count(*), sum(count), min(queued_at) from blocks group by state"
            ).fetchall()
        by_state = {state: (blocks, events, oldest) for state, blocks, events, oldest in rows}
        none = (0, 0, None)
        pending, aside = by_state.get("pending", none), by_state.get("aside", none)
        return Counts(
            pending_blocks=pending[0],
            pending_events=pending[1],
            aside_blocks=aside[0],
            aside_events=aside[1],
            acknowledged_events=by_state.get("acknowledged", none)[1],
            oldest=pending[2],
        )

    def used_bytes(self) -> int:
        """The bytes in use; pages of removed blocks are used again and do not count."""
        with self._lock:
            one = self._connection.execute
            pages = one("pragma page_count").fetchone()[0]
            free = one("pragma freelist_count").fetchone()[0]
            size = one("pragma page_size").fetchone()[0]
        return int((pages - free) * size)

    def note(self, name: str) -> int | str | None:
        """What was remembered under *name*."""
        return self._get(name)[0]

    def remember(self, **notes: int | str | None) -> None:
        """Remember names and values."""
        with self._transaction():
            for name, value in notes.items():
                self._set(name, value)

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file and cut it: room on a full disk."""
        with self._lock:
            self._connection.execute("pragma wal_checkpoint(truncate)")

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._connection.close()

    def forget(self) -> sqlite3.Connection:
        """
        In a child after fork: the connection, for the caller to keep for ever.

        Using it, and even closing or freeing it, can corrupt the parent's file.
        """
        return self._connection

    # -- rows ------------------------------------------------------------------------------

    def _transaction(self) -> _Transaction:
        return _Transaction(self._connection, self._lock)

    def _insert(self, block: bytes, now: int) -> None:
        header = read_header(block)
        self._connection.execute(
            "insert into blocks (producer, first, count, data, queued_at) values (?, ?, ?, ?, ?) "
            "on conflict do nothing",
            (header.producer, header.first, header.count, block, now),
        )

    def _get(self, *names: str) -> list[int | str | None]:
        with self._lock:
            rows = dict(self._connection.execute("select name, value from meta").fetchall())
        return [rows.get(name) for name in names]

    def _set(self, name: str, value: int | str | None) -> None:
        self._connection.execute("insert or replace into meta values (?, ?)", (name, value))

    def _set_packed(self, packed: Packed) -> None:
        for name, value in zip(Packed._fields, packed, strict=True):
            self._set(name, value)


class _Transaction:
    """``begin immediate`` to ``commit`` under the lock; ``rollback`` on an error."""

    def __init__(self, connection: sqlite3.Connection, lock: threading.RLock) -> None:
        self._connection = connection
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._connection.execute("begin immediate")
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("commit")
            elif self._connection.in_transaction:
                self._connection.execute("rollback")
        finally:
            self._lock.release()
