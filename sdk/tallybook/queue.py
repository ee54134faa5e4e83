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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from tallybook.block import HEADER_BYTES, derived_producer, read_header
from tallybook.errors import InvariantBroken
from tallybook.limits import LOG_PAGES_MAX, SPOOL_HEADER_BYTES

__all__ = ["Counts", "Packed", "Queue", "QueueDamaged", "QueuedBlock", "Reentered"]

_T = TypeVar("_T")

_SCHEMA: Final = """
create table meta (name text primary key, value any) strict;
create table blocks (
    id integer primary key,
    producer blob not null,
    first integer not null,
    count integer not null,
    state integer not null default 0,
    reason text,
    queued_at integer not null,
    data blob not null,
    unique (producer, first)
) strict;
create index by_state on blocks (state, id, count, queued_at);
create table receipts (id integer primary key, position integer not null) strict;
"""
# The index holds all that `counts` wants: a queue of a gigabyte is counted every second.
_VERSION: Final = 1

# Pending is 0 and acknowledged 1, because both take no space in a row: marking a block writes
# one page anew. Were the row to change its length, all of the block would be written into the
# log, which on a full disk has no room for it.
_PENDING, _ACKNOWLEDGED, _ASIDE = 0, 1, 2
_STATES: Final = {"acknowledged": _ACKNOWLEDGED, "aside": _ASIDE}
# For the same reason a block's place in the ledger is in a table of its own: `receipts`.


class QueueDamaged(Exception):
    """The file is no queue, or no longer one."""


class Reentered(Exception):
    """This thread is in the middle of it: a signal handler or a finaliser called once more."""


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
        QueueDamaged: The file is not what it should be, or is gone.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it if it is not there."""
        self.path = path
        self._lock = threading.RLock()
        self._changing = False
        self._closed = False
        self._made = False
        self._dropped_upto = 0
        self._connection: sqlite3.Connection | None = None
        with self._lock:
            self._connected()
        self._made = True

    # -- the connection --------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        """The connection, opened anew after a fault. The caller holds the lock."""
        if self._closed:
            raise sqlite3.ProgrammingError(f"{self.path.name} is closed")
        if self._connection is None:
            try:
                self._connect()
            except sqlite3.Error as error:
                raise _fault(error, self.path) from None
        return self._connection  # type: ignore[return-value]

    def _connect(self) -> None:
        # Opened anew, the file has to be there: one that is made here would begin at
        # sequence 1 again.
        mode = "rw" if self._made else "rwc"
        self._connection = connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _prepare(connection, self.path)
            # A connection that is freed is closed, and a child of fork frees what it has
            # inherited when it exits: it would remove the log of its parent's queue (seen).
            # This circle goes through SQLite, where no collector sees it, so that only
            # `close` ends a connection.
            connection.create_function("kept_alive", 0, lambda: id(connection))
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

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

        def commit(connection: sqlite3.Connection) -> None:
            before = self.packed()
            if before == packed:
                return
            if header.first != before.sequence or packed.sequence != header.last + 1:
                raise InvariantBroken(
                    f"block {header.first}-{header.last} behind sequence {before.sequence}"
                )
            _insert(connection, block, now)
            _set_packed(connection, packed)

        self._change_or_look(commit)

    def move_packed(self, packed: Packed) -> None:
        """Move the position over a stretch without events: a new file, or torn bytes."""

        def commit(connection: sqlite3.Connection) -> None:
            if packed.sequence != self.packed().sequence:
                raise InvariantBroken("a stretch without events moved the sequence")
            _set_packed(connection, packed)

        self._change_or_look(commit)

    def _change_or_look(self, commit: Callable[[sqlite3.Connection], None]) -> None:
        with self._lock:
            try:
                self._change(commit)
            except sqlite3.OperationalError:
                # What the failed commit left may be in the page cache only. Folding the log
                # into the file writes it once more, and syncs that: then what is seen is so.
                self.checkpoint()
                self._change(commit)

    def _change(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        """``begin immediate``, *action*, ``commit``; after a fault the file is opened anew."""
        with self._lock:
            if self._changing:
                raise Reentered("in the middle of a transaction")
            self._changing = True
            try:
                connection = self._connected()
                connection.execute("begin immediate")
                done = action(connection)
                connection.execute("commit")
                return done
            except BaseException as error:
                # Whether the transaction holds, only a new connection can tell; and an open
                # one, left behind, would refuse every later one.
                self._disconnect()
                if isinstance(error, sqlite3.Error):
                    raise _fault(error, self.path) from None
                raise
            finally:
                self._changing = False

    # -- sending ---------------------------------------------------------------------------

    def pending(self, blocks_max: int, bytes_max: int) -> list[QueuedBlock]:
        """The oldest waiting blocks, at least one if there is any."""
        with self._lock:
            waiting = self._rows(
                f"select id, length(data) from blocks where state = {_PENDING} order by id limit ?",
                blocks_max,
            )
            sizes = accumulate(size for _, size in waiting)
            fitting = [
                id for (id, _), size in zip(waiting, sizes, strict=True) if size <= bytes_max
            ]
            last = fitting[-1] if fitting else waiting[0][0] if waiting else 0
            rows = self._rows(
                f"select id, data from blocks where state = {_PENDING} and id <= ? order by id",
                last,
            )
        return [QueuedBlock(id, data) for id, data in rows]

    def last_id(self) -> int:
        """The place of the newest block; 0 when there is none."""
        return int(self._rows("select coalesce(max(id), 0) from blocks")[0][0])

    def waits(self, last_id: int, producer: bytes) -> bool:
        """Whether a block of *producer* up to *last_id* waits, or any that was issued again."""
        return bool(
            self._rows(
                f"select 1 from blocks where state = {_PENDING} and (id <= ? or producer <> ?) "
                "limit 1",
                last_id,
                producer,
            )
        )

    def settle(
        self,
        settled: Iterable[tuple[int, Literal["acknowledged", "aside"], str | None]],
        *,
        reissued: Sequence[bytes] = (),
        meta: dict[str, int | str | None] | None = None,
        now: int = 0,
        receipts: Mapping[int, tuple[int, str | None]] | None = None,
        held: int | None = None,
    ) -> None:
        """
        Mark blocks as the server answered, queue what has to come again, note the receipts.

        Args:
            settled: (id, new state, reason) of each block.
            reissued: Blocks made of events that met a conflict; known ones are left alone.
            meta: Names and values to remember: the ledger, its branch.
            now: Microseconds since 1970 UTC.
            receipts: By id: a block's position in the ledger, and the chain's head there.
            held: The server was restored, and has lost what lies behind this position: such
                blocks wait again. None: it was not.
        """

        def settle(connection: sqlite3.Connection) -> None:
            if held is not None:
                _recall(connection, held)
            _note_receipts(connection, receipts or {})
            connection.executemany(
                "update blocks set state = ?, reason = ? where id = ?",
                [(_STATES[state], reason, id) for id, state, reason in settled],
            )
            for block in reissued:
                _insert(connection, block, now)
            _set(connection, meta or {})

        self._change(settle)

    def retry_aside(self) -> int:
        """Let the blocks that were set aside be sent again; how many."""
        return self._change(
            lambda connection: (
                connection.execute(
                    f"update blocks set state = {_PENDING}, reason = null where state = {_ASIDE}"
                ).rowcount
            )
        )

    def prune(self, bytes_max: int, queued_after: int) -> None:
        """Remove acknowledged blocks, oldest first, beyond *bytes_max* or older than the time."""
        kept = 0
        for last, size, queued_at in self._rows(
            f"select id, length(data), queued_at from blocks where state = {_ACKNOWLEDGED} "
            "order by id desc"
        ):
            kept += size
            if kept > bytes_max or queued_at < queued_after:
                self._remove_acknowledged(last)
                return

    def _remove_acknowledged(self, last: int) -> None:
        def remove(connection: sqlite3.Connection) -> None:
            connection.execute(
                f"delete from blocks where state = {_ACKNOWLEDGED} and id <= ?", (last,)
            )
            connection.execute("delete from receipts where id <= ?", (last,))

        self._change(remove)

    def drop_archived(self) -> None:
        """Remove acknowledged blocks that the server has in a backup, by its last word."""
        archived = self.note("archived")
        if not isinstance(archived, int) or archived <= self._dropped_upto:
            return

        def drop(connection: sqlite3.Connection) -> None:
            connection.execute(
                "delete from blocks where id in (select id from receipts where position <= ?)",
                (archived,),
            )
            connection.execute("delete from receipts where position <= ?", (archived,))

        self._change(drop)
        self._dropped_upto = archived

    def refill(
        self, blocks: Iterable[bytes], packed: Packed, notes: dict[str, int | str | None], now: int
    ) -> None:
        """
        Let *blocks* that were acknowledged once wait again, in a queue that was removed since.

        Args:
            blocks: In the order in which they were queued.
            packed: Up to where its spools were packed.
            notes: What the queue had remembered.
            now: Microseconds since 1970 UTC.
        """

        def refill(connection: sqlite3.Connection) -> None:
            for block in blocks:
                _insert(connection, block, now)
            connection.execute(f"update blocks set state = {_ACKNOWLEDGED}")
            _recall(connection, 0)
            _set_packed(connection, packed)
            _set(connection, notes)

        self._change(refill)

    def acknowledged_blocks(self) -> int:
        """How many acknowledged blocks are still kept."""
        return int(self._rows(f"select count(*) from blocks where state = {_ACKNOWLEDGED}")[0][0])

    def acknowledged(self) -> Iterator[bytes]:
        """The acknowledged blocks that are still kept, oldest first."""
        # One at a time: together they may be 64 MiB.
        for (id,) in self._rows(f"select id from blocks where state = {_ACKNOWLEDGED} order by id"):
            for (data,) in self._rows("select data from blocks where id = ?", id):
                yield data

    # -- counts and notes ------------------------------------------------------------------

    def counts(self) -> Counts:
        """What is in the queue now."""
        by_state = {
            state: (blocks, events, oldest)
            for state, blocks, events, oldest in self._rows(
                "select state, count(*), sum(count), min(queued_at) from blocks group by state"
            )
        }
        none = (0, 0, None)
        pending, aside = by_state.get(_PENDING, none), by_state.get(_ASIDE, none)
        return Counts(
            pending_blocks=pending[0],
            pending_events=pending[1],
            aside_blocks=aside[0],
            aside_events=aside[1],
            acknowledged_events=by_state.get(_ACKNOWLEDGED, none)[1],
            oldest=pending[2],
        )

    def used_bytes(self) -> int:
        """The bytes in use; pages of removed blocks are used again and do not count."""
        pages, free, size = (
            self._rows(f"pragma {name}")[0][0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def note(self, name: str) -> int | str | None:
        """What was remembered under *name*."""
        return self._get(name)[0]

    def remember(self, **notes: int | str | None) -> None:
        """Remember names and values."""
        self._change(lambda connection: _set(connection, notes))

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file and cut it: room on a full disk."""
        self._rows("pragma wal_checkpoint(truncate)")

    def check(self) -> None:
        """Read everything once; QueueDamaged if a part of it does not hold."""
        self.counts()
        ((finding,),) = self._rows("pragma quick_check(1)")
        if finding != "ok":
            raise QueueDamaged(f"{self.path.name} does not hold: {finding}")

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def forget(self) -> None:
        """
        In a child after fork: become unusable, and leave the connection as it is.

        Using it, and even closing or freeing it, can corrupt the parent's file.
        """
        self._closed = True
        self._lock = threading.RLock()

    # -- rows ------------------------------------------------------------------------------

    def _rows(self, statement: str, *parameters: int | bytes) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connected().execute(statement, parameters).fetchall()
            except sqlite3.Error as error:
                raise _fault(error, self.path) from None

    def _get(self, *names: str) -> list[int | str | None]:
        rows = dict(self._rows("select name, value from meta"))
        return [rows.get(name) for name in names]


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma locking_mode = exclusive")
    (version,) = connection.execute("pragma user_version").fetchone()
    (tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
    # Before anything is written: somebody else's file stays as it is.
    if version not in (0, _VERSION):
        raise QueueDamaged(f"{path.name} has version {version}; this is {_VERSION}")
    if version == 0 and tables:
        raise QueueDamaged(f"{path.name} is a SQLite file, but not a queue")
    # EXTRA while the file is made: it syncs the directory too, without which a power cut
    # can bring back a hot rollback journal and un-create the tables (measured: half of the
    # simulated cuts).
    connection.execute("pragma synchronous = extra")
    connection.execute("pragma journal_mode = wal")
    # The log, with the largest block behind it, must fold into the file on a full disk that has
    # no more room than the ballast leaves.
    connection.execute(f"pragma wal_autocheckpoint = {LOG_PAGES_MAX}")
    # FULL: a block is sent only once its commit is on disk. A cut that is rolled back after
    # it was sent would be cut differently the next time.
    connection.execute("pragma synchronous = full")
    if version == 0:
        connection.executescript(f"begin; {_SCHEMA} pragma user_version = {_VERSION}; commit;")


def _fault(error: sqlite3.Error, path: Path) -> Exception:
    """What *error* means: the disk refuses just now, or the file is no queue any more."""
    code = getattr(error, "sqlite_errorcode", None)
    gone = code == sqlite3.SQLITE_CANTOPEN and not path.exists()
    # SQLITE_ERROR is a table that is missing: the statements themselves are right.
    if gone or code == sqlite3.SQLITE_ERROR or type(error) is sqlite3.DatabaseError:
        return QueueDamaged(f"{path.name} cannot be read: {'it is gone' if gone else error}")
    return error


def _insert(connection: sqlite3.Connection, block: bytes, now: int) -> None:
    header = read_header(block)
    connection.execute(
        "insert into blocks (producer, first, count, data, queued_at) values (?, ?, ?, ?, ?) "
        "on conflict do nothing",
        (header.producer, header.first, header.count, block, now),
    )


def _note_receipts(
    connection: sqlite3.Connection, receipts: Mapping[int, tuple[int, str | None]]
) -> None:
    """Where blocks lie in the ledger, and of all of them the one that reaches furthest."""
    if not receipts:
        return
    connection.executemany(
        "insert or replace into receipts values (?, ?)",
        [(id, position) for id, (position, _) in receipts.items()],
    )
    position, chain = max(receipts.values(), key=lambda receipt: receipt[0])
    noted = connection.execute("select value from meta where name = 'position'").fetchone()
    if noted is None or noted[0] is None or position >= noted[0]:
        _set(connection, {"position": position, "chain": chain})


def _recall(connection: sqlite3.Connection, held: int) -> None:
    """
    Let every acknowledged block that does not lie at *held* or before wait again.

    What was made of such a block's conflicting events is forgotten, also where it waits: in a
    ledger that has lost its like, the block may meet no conflict, and its events would count
    under both names. If it meets one, the same blocks are made of it again.
    """
    lost = f"state = {_ACKNOWLEDGED} and id not in (select id from receipts where position <= ?)"
    heads: list[bytes] = []
    if _several_producers(connection):
        rows = connection.execute(
            f"select substr(data, 1, {HEADER_BYTES}) from blocks where {lost}", (held,)
        )
        heads = [head for (head,) in rows]
    connection.execute(f"update blocks set state = {_PENDING} where {lost}", (held,))
    while heads:
        header = read_header(heads.pop())
        derived = (derived_producer(header.producer, header.first, header.sha256),)
        rows = connection.execute(
            f"select substr(data, 1, {HEADER_BYTES}) from blocks where producer = ?", derived
        )
        heads += [head for (head,) in rows]
        connection.execute("delete from blocks where producer = ?", derived)
    kept = f"select id from blocks where state = {_ACKNOWLEDGED}"
    connection.execute(f"delete from receipts where id not in ({kept})")
    (position,) = connection.execute("select max(position) from receipts").fetchone()
    _set(connection, {"position": position, "chain": None})


def _several_producers(connection: sqlite3.Connection) -> bool:
    """Whether there are blocks of derived producers at all: it takes a cloned disk."""
    least, most = connection.execute("select min(producer), max(producer) from blocks").fetchone()
    return bool(least != most)


def _set(connection: sqlite3.Connection, notes: Mapping[str, int | str | None]) -> None:
    connection.executemany("insert or replace into meta values (?, ?)", notes.items())


def _set_packed(connection: sqlite3.Connection, packed: Packed) -> None:
    _set(connection, packed._asdict())
