"""
The journal: a book's SQLite file, and the only place that opens one.

It keeps the entries with the chain over them, and beside them what the writer must look
up to decide an entry: which sequences are held, which identities are taken, what each
producer said. It decides nothing itself; that is `tallybook_server.judge`.

There is one connection, and one thread uses it. Two are not an option: in every SQLite
from 3.7.0 to 3.51.2, which most machines have, two connections that checkpoint at the
same moment can corrupt a database in WAL mode.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from tallybook.errors import InvariantBroken
from tallybook_server.entry import (
    CHAIN_START,
    Entry,
    EntryDamaged,
    Kind,
    VerdictRun,
    encode_entry,
    link,
    read_entry,
)
from tallybook_server.ledger import LedgerDamaged
from tallybook_server.limits import COPY_PAGES, JOURNAL_CACHE_BYTES, WAL_PAGES_MAX
from tallybook_server.segment import Segment
from tallybook_server.tally import TALLIED, TALLY_BITS, TalliedPart, difference

__all__ = [
    "Head",
    "Held",
    "Identity",
    "Journal",
    "ProducerRow",
    "RejectionRow",
    "open_connection",
    "open_read_only",
]

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x54424B31  # "TBK1", so that file(1) can tell a journal.

_SCHEMA: Final = """
CREATE TABLE entries (
    position INTEGER PRIMARY KEY,
    entry    BLOB NOT NULL,
    chain    BLOB NOT NULL,
    producer BLOB,     -- of a block, and null for every other kind
    first    INTEGER,
    sha256   BLOB
) STRICT;
CREATE UNIQUE INDEX entries_block ON entries (producer, first, sha256) WHERE producer IS NOT NULL;

CREATE TRIGGER entries_rise BEFORE INSERT ON entries
WHEN NEW.position <> (SELECT ifnull(max(position), 0) + 1 FROM entries)
BEGIN SELECT RAISE(ABORT, 'a journal has no gaps'); END;
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'an entry is never changed'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'an entry is never removed'); END;

-- The bytes of the blocks that are not sealed.
CREATE TABLE blocks (
    position INTEGER PRIMARY KEY,
    data     BLOB NOT NULL
) STRICT;

-- The sequences that are held. They never overlap.
CREATE TABLE ranges (
    producer BLOB NOT NULL,
    first    INTEGER NOT NULL,
    last     INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (producer, first)
) STRICT, WITHOUT ROWID;

-- Idempotency keys (scope: the dimension) and foreign ids (scope: ''), taken for ever.
CREATE TABLE identities (
    source   TEXT NOT NULL,
    scope    TEXT NOT NULL,
    key      TEXT NOT NULL,
    position INTEGER NOT NULL,
    idx      INTEGER NOT NULL,
    digest   BLOB NOT NULL,
    PRIMARY KEY (source, scope, key)
) STRICT, WITHOUT ROWID;

-- Events that were not counted. A duplicate keeps its digest only: enough to know it again.
CREATE TABLE rejections (
    position INTEGER NOT NULL,
    idx      INTEGER NOT NULL,
    verdict  INTEGER NOT NULL,
    reason   TEXT NOT NULL,
    detail   TEXT NOT NULL,
    data     BLOB NOT NULL,
    digest   BLOB NOT NULL,
    seal     BLOB NOT NULL,       -- SHA-256 of all of the above
    UNIQUE (position, idx)
) STRICT;
CREATE INDEX rejections_digest ON rejections (digest);

CREATE TABLE producers (
    number     INTEGER PRIMARY KEY,
    producer   BLOB NOT NULL UNIQUE,
    kind       INTEGER NOT NULL,  -- 0 an application's, 1 derived, 2 the ledger's own door
    source     TEXT,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    sent_at    INTEGER NOT NULL,  -- of its newest announcement, by the host's clock
    recorded   INTEGER NOT NULL,
    dropped    INTEGER NOT NULL,
    highest    INTEGER NOT NULL,  -- announced, or held, whichever is higher
    received   INTEGER NOT NULL,  -- sequences held
    closed     INTEGER NOT NULL,
    claimed    INTEGER,           -- complete through, if nothing up to highest is missing
    through    INTEGER,           -- complete through
    reissue_of BLOB
) STRICT;
-- What an answer has to know of producers, without reading those that are done.
CREATE INDEX producers_live ON producers (last_seen) WHERE kind = 0 AND closed = 0;
CREATE INDEX producers_short ON producers (number) WHERE kind = 0 AND highest > received;
CREATE INDEX producers_kind ON producers (kind);
CREATE INDEX producers_dropped ON producers (number) WHERE kind = 0 AND dropped > 0;

-- Where the entries are that change answers without being events, and by which id.
CREATE TABLE changes (
    position INTEGER PRIMARY KEY,
    id       TEXT UNIQUE,         -- the caller's; a declaration has none
    digest   BLOB NOT NULL        -- SHA-256 of what it says
) STRICT;

-- What proofs need: a key per tenant ('' is nobody), the roots of finished groups, and what
-- was stated. All of it but the keys can be computed anew.
CREATE TABLE tenant_keys (
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL UNIQUE,
    key    BLOB NOT NULL
) STRICT;
CREATE TABLE proof_groups (
    number INTEGER PRIMARY KEY,
    root   BLOB NOT NULL,
    events INTEGER NOT NULL
) STRICT;
CREATE TABLE checkpoints (
    position INTEGER PRIMARY KEY,
    document BLOB NOT NULL
) STRICT;

-- Where the entries are that begin a branch.
CREATE TABLE restores (
    position INTEGER PRIMARY KEY
) STRICT;

-- What is no entry, because it changes no answer.
CREATE TABLE notes (
    number INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    value  INTEGER NOT NULL
) STRICT;

-- Of rows that no entry speaks of: the sums of their hashes. See tallybook_server.tally.
CREATE TABLE tallies (
    name TEXT NOT NULL,           -- the table
    part INTEGER NOT NULL,
    sum  BLOB NOT NULL,
    PRIMARY KEY (name, part)
) STRICT, WITHOUT ROWID;

CREATE TABLE segments (
    name     TEXT PRIMARY KEY,
    sha256   BLOB NOT NULL,
    bytes    INTEGER NOT NULL,
    rows     INTEGER NOT NULL,
    first    INTEGER NOT NULL,
    last     INTEGER NOT NULL,
    time_min INTEGER,
    time_max INTEGER,
    wides    INTEGER NOT NULL,
    tags     TEXT NOT NULL,       -- JSON: the keys with a column of their own
    more     TEXT NOT NULL,       -- JSON: the keys in the map
    dimensions TEXT NOT NULL,     -- JSON
    month    INTEGER,             -- of all its events, counted from year 0; null: of any
    level    INTEGER NOT NULL     -- how often its rows were written anew
) STRICT;
"""

_ENTRY_BYTES_MIN: Final = 40
"""What a row of `entries` has at least: the chain's head, and as much as an empty entry."""


class Head(NamedTuple):
    """
    The end of the journal.

    Attributes:
        position: The last entry.
        chain: The chain's head behind it.
        recorded_at: When it was recorded, in microseconds since 1970 UTC.
    """

    position: int
    chain: bytes
    recorded_at: int


class Held(NamedTuple):
    """
    A stretch of a producer's sequences that the ledger holds.

    Attributes:
        first: The first sequence.
        last: The last sequence.
        position: The entry that brought them.
    """

    first: int
    last: int
    position: int


class Identity(NamedTuple):
    """
    A key or id that is taken.

    Attributes:
        position: The entry whose event took it.
        place: The event's place in that entry.
        digest: SHA-256 of what the event says.
    """

    position: int
    place: int
    digest: bytes


class RejectionRow(NamedTuple):
    """
    An event that was not counted.

    Attributes:
        position: The entry that says so.
        place: The event's place in that entry.
        verdict: A `Verdict`: rejected, conflict, or duplicate.
        reason: A stable word.
        detail: In words.
        data: The event's bytes; empty for a duplicate.
        digest: SHA-256 of the event's content, or of the bytes of one that never was an event.
        seal: SHA-256 of all of the above.
    """

    position: int
    place: int
    verdict: int
    reason: str
    detail: str
    data: bytes
    digest: bytes
    seal: bytes

    @classmethod
    def of(
        cls,
        position: int,
        place: int,
        verdict: int,
        reason: str,
        detail: str,
        data: bytes,
        digest: bytes,
    ) -> RejectionRow:
        """A row with its seal."""
        row = cls(position, place, verdict, reason, detail, data, digest, b"")
        return row._replace(seal=row.sealed())

    def sealed(self) -> bytes:
        """What the seal is, if nothing has changed."""
        return sha256(msgspec.msgpack.encode(tuple(self[:-1]))).digest()


class ProducerRow(NamedTuple):
    """A row of the table of producers; see the schema."""

    producer: bytes
    kind: int
    source: str | None
    first_seen: int
    last_seen: int
    sent_at: int
    recorded: int
    dropped: int
    highest: int
    received: int
    closed: bool
    claimed: int | None
    through: int | None
    reissue_of: bytes | None


Connect = Callable[[Path], sqlite3.Connection]
"""How the file is opened; a test hands in one whose commits fail."""


def open_connection(
    path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    """Open, or create, the journal at *path* for reading and writing."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=factory)
    # A power cut must not bring the rollback journal of the creation back, which would
    # empty the database: EXTRA before WAL. Measured: 0 of 7,064 states, 50 % without it.
    db.execute("PRAGMA synchronous = EXTRA")
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        db.close()
        raise LedgerDamaged(f"{path} has journal mode {mode!r}; expected 'wal'")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES_MAX}")
    db.execute(f"PRAGMA cache_size = -{JOURNAL_CACHE_BYTES >> 10}")
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def open_read_only(path: Path) -> sqlite3.Connection:
    """
    Open the journal at *path* so that nothing in its directory is changed.

    For a journal that was closed: what lies in a write-ahead log beside it is not seen.
    Who opens it holds the book's lock, so that "immutable" is true.
    """
    address = f"{path.absolute().as_uri()}?immutable=1"
    return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)


class Journal:
    """
    The open journal. Every method is for one thread only.

    Attributes:
        head: The last entry, inside a transaction the last one written in it.
    """

    def __init__(self, path: Path, connect: Connect = open_connection) -> None:
        """
        Open *path*, and create it if it is not there.

        Raises:
            LedgerDamaged: Not a journal, or one that a newer tallybook has written.
            sqlite3.Error: It cannot be opened.
        """
        self._db = connect(path)
        try:
            self._check_version(path)
            self.head = self._read_head()
        except BaseException:
            self._db.close()
            raise
        self._begin_head = self.head

    def _check_version(self, path: Path) -> None:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            if self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise LedgerDamaged(f"{path} is a database, but not a journal of tallybook")
            self._create()
            _sync_directory(path.parent)
        elif version != SCHEMA_VERSION:
            raise LedgerDamaged(
                f"{path} has schema {version}, this tallybook knows {SCHEMA_VERSION}: "
                "a newer version has written it, please use that one"
            )

    def _create(self) -> None:
        # One transaction, version included: a crash leaves all of it or nothing.
        self._db.executescript(
            f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )

    def _read_head(self) -> Head:
        row = self._db.execute(
            "SELECT position, chain, entry FROM entries ORDER BY position DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return Head(0, CHAIN_START, 0)
        try:
            return Head(row[0], row[1], read_entry(row[2]).recorded_at)
        except EntryDamaged as error:
            raise LedgerDamaged(f"entry {row[0]}, the journal's last one: {error}") from None

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # -- transactions ----------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction that writes."""
        self._db.execute("BEGIN IMMEDIATE")
        self._begin_head = self.head

    def commit(self) -> None:
        """
        Make the transaction durable.

        Raises:
            sqlite3.Error: It failed, or only seems to have failed: after an error of fsync
                the transaction may be on disk. Who gets this closes the journal, opens
                it again, and looks.
        """
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, as far as SQLite has not done so itself."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self.head = self._begin_head

    # -- entries ---------------------------------------------------------------------------

    def add_entry(
        self,
        kind: Kind,
        detail: list[Any],
        *,
        recorded_at: int,
        verdicts: list[VerdictRun] | None = None,
        block: tuple[bytes, int, bytes] | None = None,
    ) -> Head:
        """
        Write the next entry and link it into the chain.

        Args:
            kind: What it is.
            detail: See `Entry`.
            recorded_at: Microseconds since 1970 UTC; an earlier time than the head's is
                taken as the head's, because recording time never falls.
            verdicts: For a block.
            block: For a block: producer, first, SHA-256; unique.

        Returns:
            The new head.
        """
        position = self.head.position + 1
        recorded_at = max(recorded_at, self.head.recorded_at)
        data = encode_entry(Entry(1, position, recorded_at, kind, detail, verdicts or []))
        chain = link(self.head.chain, data)
        self._db.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
            (position, data, chain, *(block or (None, None, None))),
        )
        self.head = Head(position, chain, recorded_at)
        return self.head

    def entry(self, position: int) -> Entry:
        """The entry at *position*. Raises InvariantBroken if there is none."""
        return self.entry_and_chain(position)[0]

    def entry_and_chain(self, position: int) -> tuple[Entry, bytes]:
        """The entry at *position*, and the chain's head behind it."""
        row = self._db.execute(
            "SELECT entry, chain FROM entries WHERE position = ?", (position,)
        ).fetchone()
        if row is None:
            raise InvariantBroken(f"there is no entry {position}; the head is {self.head.position}")
        return read_entry(row[0]), row[1]

    def chain_at(self, position: int) -> str | None:
        """The chain's head behind entry *position*, in hex, or None: there is no such entry."""
        row = self._db.execute(
            "SELECT chain FROM entries WHERE position = ?", (position,)
        ).fetchone()
        return None if row is None else row[0].hex()

    def block_position(self, producer: bytes, first: int, sha256: bytes) -> int | None:
        """Where exactly this block is stored, or None."""
        row = self._db.execute(
            "SELECT position FROM entries WHERE producer = ? AND first = ? AND sha256 = ?",
            (producer, first, sha256),
        ).fetchone()
        return None if row is None else row[0]

    def entry_page(self, after: int, limit: int) -> list[tuple[int, bytes, bytes, tuple[Any, ...]]]:
        """At most *limit* of `entries`, for who must not keep the writer waiting."""
        rows = self._db.execute(
            "SELECT position, entry, chain, producer, first, sha256 FROM entries "
            "WHERE position > ? ORDER BY position LIMIT ?",
            (after, limit),
        ).fetchall()
        return [(row[0], row[1], row[2], row[3:]) for row in rows]

    def blocks_of(self, producer: bytes, limit: int) -> list[int]:
        """The positions of at most *limit* blocks of *producer*, in no order."""
        rows = self._db.execute(
            "SELECT position FROM entries WHERE producer = ? LIMIT ?", (producer, limit)
        )
        return [row[0] for row in rows]

    def blocks_from(self, producer: bytes, first_min: int, first_max: int) -> list[int]:
        """The positions of the blocks of *producer* that begin in this range, rising."""
        rows = self._db.execute(
            "SELECT position FROM entries WHERE producer = ? AND first BETWEEN ? AND ?",
            (producer, first_min, first_max),
        )
        return sorted(row[0] for row in rows)

    def entries_max(self) -> int:
        """More entries than this cannot be in the file, whatever a damaged position says."""
        pages, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
        return int(pages * size // _ENTRY_BYTES_MIN)

    # -- blocks ----------------------------------------------------------------------------

    def add_block(self, position: int, data: bytes) -> None:
        """Keep the bytes of the block of entry *position*."""
        self._db.execute("INSERT INTO blocks VALUES (?, ?)", (position, data))

    def block(self, position: int) -> bytes | None:
        """The bytes of the block of entry *position*, or None: sealed."""
        row = self._db.execute("SELECT data FROM blocks WHERE position = ?", (position,)).fetchone()
        return None if row is None else row[0]

    def blocks_after(self, position: int) -> Iterator[tuple[int, bytes]]:
        """Position and bytes of every block behind *position*."""
        yield from self._db.execute(
            "SELECT position, data FROM blocks WHERE position > ? ORDER BY position", (position,)
        )

    def blocks_between(self, first: int, last: int) -> list[tuple[int, bytes]]:
        """Position and bytes of every block that is there of entries *first* to *last*."""
        return self._db.execute(
            "SELECT position, data FROM blocks WHERE position BETWEEN ? AND ?", (first, last)
        ).fetchall()

    def drop_blocks(self, upto: int, limit: int) -> int:
        """Remove the bytes of at most *limit* blocks up to entry *upto*; how many there were."""
        return self._db.execute(
            "DELETE FROM blocks WHERE position IN "
            "(SELECT position FROM blocks WHERE position <= ? ORDER BY position LIMIT ?)",
            (upto, limit),
        ).rowcount

    # -- sequences -------------------------------------------------------------------------

    def held(self, producer: bytes, first: int, last: int) -> list[Held]:
        """The stretches of *producer* that meet [first, last], in order."""
        found: list[Held] = []
        # Stretches do not overlap, so downwards from `last` the first one that ends
        # before `first` is the end of the search.
        for row in self._db.execute(
            "SELECT first, last, position FROM ranges "
            "WHERE producer = ? AND first <= ? ORDER BY first DESC",
            (producer, last),
        ):
            if row[1] < first:
                break
            found.append(Held(*row))
        found.reverse()
        return found

    def hold(self, producer: bytes, first: int, last: int, position: int) -> None:
        """Note that entry *position* brought the sequences *first* to *last*."""
        self._db.execute(
            "INSERT INTO ranges VALUES (?, ?, ?, ?)", (producer, first, last, position)
        )

    def ranges(self, producer: bytes | None = None) -> Iterator[tuple[bytes, int, int, int]]:
        """Producer, first, last and position of every stretch, ordered."""
        where, values = ("", ()) if producer is None else (" WHERE producer = ?", (producer,))
        yield from self._db.execute(
            f"SELECT producer, first, last, position FROM ranges{where} ORDER BY producer, first",
            values,
        )

    def range_page(self, after: tuple[bytes, int], limit: int) -> list[tuple[bytes, int, int, int]]:
        """At most *limit* stretches behind (producer, first), ordered."""
        return self._db.execute(
            "SELECT producer, first, last, position FROM ranges WHERE (producer, first) > (?, ?) "
            "ORDER BY producer, first LIMIT ?",
            (*after, limit),
        ).fetchall()

    def received_and_held(self, after: int, limit: int) -> list[tuple[int, bytes, int, int]]:
        """
        Of at most *limit* producers behind number *after*, what is received and what is held.

        Returns:
            Number, producer, the sequences counted as received, and those that are held.
        """
        return self._db.execute(
            "SELECT p.number, p.producer, p.received, "
            "(SELECT ifnull(sum(last - first + 1), 0) FROM ranges r WHERE r.producer = p.producer) "
            "FROM producers p WHERE p.number > ? ORDER BY p.number LIMIT ?",
            (after, limit),
        ).fetchall()

    # -- identities ------------------------------------------------------------------------

    def identity(self, source: str, scope: str, key: str) -> Identity | None:
        """Who has taken the key, or None."""
        row = self._db.execute(
            "SELECT position, idx, digest FROM identities "
            "WHERE source = ? AND scope = ? AND key = ?",
            (source, scope, key),
        ).fetchone()
        return None if row is None else Identity(*row)

    def scopes_after(self, source: str, scope: str, limit: int) -> list[tuple[str, str]]:
        """At most *limit* different (source, scope) in which something is taken, in order."""
        found: list[tuple[str, str]] = []
        while len(found) < limit:
            # One step into the index for each, however many keys a scope has.
            row = self._db.execute(
                "SELECT source, scope FROM identities WHERE (source, scope) > (?, ?) "
                "ORDER BY source, scope LIMIT 1",
                found[-1] if found else (source, scope),
            ).fetchone()
            if row is None:
                break
            found.append((row[0], row[1]))
        return found

    def claim(self, source: str, scope: str, key: str, identity: Identity) -> None:
        """Take the key, for ever."""
        self._db.execute(
            "INSERT INTO identities VALUES (?, ?, ?, ?, ?, ?)", (source, scope, key, *identity)
        )

    def identity_page(
        self, after: tuple[str, str, str], limit: int
    ) -> list[tuple[str, str, str, int, int, bytes]]:
        """
        At most *limit* of what is taken behind (source, scope, key), in order.

        Returns:
            Source, scope and key; and the `Identity` that has taken it.
        """
        return self._db.execute(
            "SELECT source, scope, key, position, idx, digest FROM identities "
            "WHERE (source, scope, key) > (?, ?, ?) ORDER BY source, scope, key LIMIT ?",
            (*after, limit),
        ).fetchall()

    # -- rejections ------------------------------------------------------------------------

    def add_rejections(self, rows: Iterable[RejectionRow]) -> None:
        """Keep events that were not counted."""
        self._db.executemany("INSERT INTO rejections VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def rejection(self, position: int, index: int) -> RejectionRow | None:
        """What was not counted at this place, or None."""
        row = self._db.execute(
            "SELECT * FROM rejections WHERE position = ? AND idx = ?", (position, index)
        ).fetchone()
        return None if row is None else RejectionRow(*row)

    def rejection_of(self, digest: bytes, verdict: int) -> RejectionRow | None:
        """The first one with this digest and verdict, or None."""
        row = self._db.execute(
            "SELECT * FROM rejections WHERE digest = ? AND verdict = ? ORDER BY position, idx",
            (digest, verdict),
        ).fetchone()
        return None if row is None else RejectionRow(*row)

    def rejections(
        self, verdicts: Sequence[int], after: tuple[int, int], limit: int
    ) -> list[RejectionRow]:
        """At most *limit* with one of the *verdicts*, behind (position, index), in order."""
        marks = ", ".join("?" * len(verdicts))
        rows = self._db.execute(
            f"SELECT * FROM rejections WHERE verdict IN ({marks}) AND (position, idx) > (?, ?) "
            "ORDER BY position, idx LIMIT ?",
            (*verdicts, *after, limit),
        )
        return [RejectionRow(*row) for row in rows]

    def rejection_page(self, after: tuple[int, int], limit: int) -> list[RejectionRow]:
        """At most *limit* of all that was not counted, behind (position, index), in order."""
        rows = self._db.execute(
            "SELECT * FROM rejections WHERE (position, idx) > (?, ?) ORDER BY position, idx "
            "LIMIT ?",
            (*after, limit),
        )
        return [RejectionRow(*row) for row in rows]

    # -- changes ---------------------------------------------------------------------------

    def add_change(self, position: int, change_id: str | None, digest: bytes) -> None:
        """Note that entry *position* is a correction or a declaration."""
        self._db.execute("INSERT INTO changes VALUES (?, ?, ?)", (position, change_id, digest))

    def change(self, change_id: str) -> tuple[int, bytes] | None:
        """Position and digest of the correction with this id, or None."""
        row: tuple[int, bytes] | None = self._db.execute(
            "SELECT position, digest FROM changes WHERE id = ?", (change_id,)
        ).fetchone()
        return row

    def changes(self) -> list[tuple[int, str | None, bytes]]:
        """Position, id and digest of every change, in the ledger's order."""
        return self._db.execute(
            "SELECT position, id, digest FROM changes ORDER BY position"
        ).fetchall()

    # -- restores and notes ----------------------------------------------------------------

    def add_restore(self, position: int) -> None:
        """Note that entry *position* begins a branch."""
        self._db.execute("INSERT INTO restores VALUES (?)", (position,))

    def restores(self) -> list[int]:
        """The entries that begin a branch, in order."""
        rows = self._db.execute("SELECT position FROM restores ORDER BY position")
        return [row[0] for row in rows]

    def noted(self, name: str) -> int:
        """The number that was noted under *name*; 0 without one."""
        return self.value("SELECT value FROM notes WHERE name = ?", (name,)) or 0

    def put_note(self, name: str, value: int) -> None:
        """Note a number."""
        self._put(
            "notes",
            ("name", name),
            "INSERT INTO notes (name, value) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    # -- proofs ----------------------------------------------------------------------------

    def tenant_key(self, tenant: str, fresh: bytes) -> bytes:
        """The key of *tenant*; *fresh* from now on, if it has none."""
        self._put(
            "tenant_keys",
            ("tenant", tenant),
            "INSERT OR IGNORE INTO tenant_keys (tenant, key) VALUES (?, ?)",
            (tenant, fresh),
        )
        row = self._db.execute("SELECT key FROM tenant_keys WHERE tenant = ?", (tenant,))
        key: bytes = row.fetchone()[0]
        return key

    def proof_group(self, number: int) -> tuple[bytes, int] | None:
        """The root of a finished group and how many events it has, or None: not known yet."""
        row: tuple[bytes, int] | None = self._db.execute(
            "SELECT root, events FROM proof_groups WHERE number = ?", (number,)
        ).fetchone()
        return row

    def add_proof_group(self, number: int, root: bytes, events: int) -> None:
        """Keep the root of a finished group."""
        self._put(
            "proof_groups",
            ("number", number),
            "INSERT OR REPLACE INTO proof_groups VALUES (?, ?, ?)",
            (number, root, events),
        )

    def proof_group_page(self, after: int, limit: int) -> list[tuple[int, bytes, int]]:
        """At most *limit* of the finished groups behind number *after*, in order."""
        return self._db.execute(
            "SELECT number, root, events FROM proof_groups WHERE number > ? "
            "ORDER BY number LIMIT ?",
            (after, limit),
        ).fetchall()

    def checkpoint(self, position: int) -> bytes | None:
        """The checkpoint at *position*, or None."""
        row = self._db.execute(
            "SELECT document FROM checkpoints WHERE position = ?", (position,)
        ).fetchone()
        return None if row is None else row[0]

    def checkpoints(self) -> list[bytes]:
        """Every checkpoint, in the ledger's order."""
        rows = self._db.execute("SELECT document FROM checkpoints ORDER BY position")
        return [row[0] for row in rows]

    def checkpoint_page(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Position and document of at most *limit* checkpoints behind *after*, in order."""
        return self._db.execute(
            "SELECT position, document FROM checkpoints WHERE position > ? "
            "ORDER BY position LIMIT ?",
            (after, limit),
        ).fetchall()

    def add_checkpoint(self, position: int, document: bytes) -> None:
        """Keep a checkpoint."""
        self._put(
            "checkpoints",
            ("position", position),
            "INSERT OR IGNORE INTO checkpoints VALUES (?, ?)",
            (position, document),
        )

    # -- tallies ---------------------------------------------------------------------------

    def _put(self, table: str, key: tuple[str, object], sql: str, values: Sequence[Any]) -> None:
        """Write the one row of *table* that has this *key*, and its part's tally with it."""
        select = f"SELECT * FROM {table} WHERE {key[0]} = ?"
        before = self._db.execute(select, key[1:]).fetchone()
        self._db.execute(sql, values)
        after = self._db.execute(select, key[1:]).fetchone()
        if after == before:
            return
        part = after[0] >> TALLY_BITS
        tally = difference(self._tally(table, part), before, after)
        self._db.execute("INSERT OR REPLACE INTO tallies VALUES (?, ?, ?)", (table, part, tally))

    def _tally(self, table: str, part: int) -> bytes | None:
        row = self._db.execute(
            "SELECT sum FROM tallies WHERE name = ? AND part = ?", (table, part)
        ).fetchone()
        return None if row is None else row[0]

    def tallied_part(self, table: str, after: int | None) -> TalliedPart | None:
        """The next part of *table* that has rows or a tally; *after* None: the first one."""
        number = TALLIED[table]
        behind = -1 << 55 if after is None else after + 1
        part = self.value(
            f"SELECT min(part) FROM (SELECT min({number}) >> {TALLY_BITS} AS part FROM {table} "
            f"WHERE {number} >= ? UNION ALL "
            "SELECT min(part) FROM tallies WHERE name = ? AND part >= ?)",
            (behind << TALLY_BITS, table, behind),
        )
        if part is None:
            return None
        rows = self._db.execute(
            f"SELECT * FROM {table} WHERE {number} BETWEEN ? AND ?",
            (part << TALLY_BITS, ((part + 1) << TALLY_BITS) - 1),
        ).fetchall()
        return TalliedPart(part, rows, self._tally(table, part))

    def tallied(self) -> list[str]:
        """The tables of which there are tallies."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT name FROM tallies")]

    # -- producers -------------------------------------------------------------------------

    def producer(self, producer: bytes) -> ProducerRow | None:
        """What is known of *producer*, or None."""
        rows = self.producers("WHERE producer = ?", (producer,))
        return next(rows, None)

    def producers(self, where: str = "", values: Sequence[Any] = ()) -> Iterator[ProducerRow]:
        """The producers that fulfil an SQL condition of this package."""
        for row in self._db.execute(
            "SELECT producer, kind, source, first_seen, last_seen, sent_at, recorded, dropped, "
            f"highest, received, closed, claimed, through, reissue_of FROM producers {where}",
            values,
        ):
            yield ProducerRow(*row)._replace(closed=bool(row[10]))

    def count(self, table: str, where: str = "", values: Sequence[Any] = ()) -> int:
        """How many rows of a table fulfil an SQL condition of this package."""
        return int(self.value(f"SELECT count(*) FROM {table} {where}", values) or 0)

    def value(self, sql: str, values: Sequence[Any] = ()) -> int | None:
        """The one number that a query of this package returns."""
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def put_producer(self, row: ProducerRow) -> None:
        """Write what is known of a producer."""
        self._put(
            "producers",
            ("producer", row.producer),
            "INSERT INTO producers (producer, kind, source, first_seen, last_seen, sent_at, "
            "recorded, dropped, highest, received, closed, claimed, through, reissue_of) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (producer) DO UPDATE "
            "SET source = excluded.source, last_seen = excluded.last_seen, "
            "sent_at = excluded.sent_at, recorded = excluded.recorded, "
            "dropped = excluded.dropped, highest = excluded.highest, "
            "received = excluded.received, closed = excluded.closed, "
            "claimed = excluded.claimed, through = excluded.through, "
            "reissue_of = excluded.reissue_of",
            row,
        )

    # -- segments --------------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """Every segment, by the first entry that it covers."""
        rows = self._db.execute(
            "SELECT name, sha256, bytes, rows, first, last, time_min, time_max, wides, tags, more, "
            "dimensions, month, level FROM segments ORDER BY first, last, name"
        )
        return [
            Segment(*row[:9], *(tuple(json.loads(names)) for names in row[9:12]), *row[12:])
            for row in rows
        ]

    def sealed_upto(self) -> int:
        """The last entry that the segments cover."""
        return self.value("SELECT max(last) FROM segments") or 0

    def add_segment(self, segment: Segment) -> None:
        """Put a segment into the manifest."""
        self._db.execute(
            "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*segment[:9], *map(json.dumps, segment[9:12]), *segment[12:]),
        )

    def remove_segment(self, segment: Segment) -> None:
        """Take a segment out of the manifest: others hold its events."""
        removed = self._db.execute("DELETE FROM segments WHERE name = ?", (segment.name,)).rowcount
        if removed != 1:
            raise InvariantBroken(f"the manifest has no segment {segment.name} to be replaced")

    # -- the whole file --------------------------------------------------------------------

    def copy(self, target: Path, between: Callable[[bool], None]) -> None:
        """
        Copy the journal, as it is at the end, into a new file.

        Args:
            target: Not there yet.
            between: Called after every `COPY_PAGES` pages, and with True after the last; what
                it writes to the journal through this connection is copied as well, unless it
                is called with True. What it raises ends the copy.
        """
        other = sqlite3.connect(target, isolation_level=None)
        try:
            # A copy that is cut short is thrown away: nothing in it has to be undone.
            other.execute("PRAGMA journal_mode = OFF")
            other.execute("PRAGMA synchronous = OFF")
            self._db.backup(
                other,
                pages=COPY_PAGES,
                progress=lambda status, remaining, total: between(status == sqlite3.SQLITE_DONE),
            )
        finally:
            other.close()

    def integrity(self) -> list[str]:
        """What SQLite itself finds wrong with the file; nothing, if all is well."""
        rows = [row[0] for row in self._db.execute("PRAGMA integrity_check(20)")]
        return [] if rows == ["ok"] else rows

    def strange_schema(self) -> list[str]:
        """The tables, indexes and triggers that are not what a new journal has, by name."""
        new = sqlite3.connect(":memory:", isolation_level=None)
        try:
            new.executescript(_SCHEMA)
            wanted, there = (_schema_of(db) for db in (new, self._db))
        finally:
            new.close()
        names = sorted({name for _, name, _, _ in wanted ^ there})
        application: int = self._db.execute("PRAGMA application_id").fetchone()[0]
        return names if application == APPLICATION_ID else ["application_id", *names]


def _schema_of(db: sqlite3.Connection) -> set[tuple[str, str, str, str | None]]:
    return set(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"))


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
