"""
Does the ledger hold together? Everything is computed anew and compared with what is there.

- the chain: each entry's bytes, its position, and the head behind it;
- blocks: digests, and that none that is needed is missing;
- events: each (entry, index) that the verdicts count is in exactly one segment or in the
  tail, once, and no other is. An index has a mark, a hash that is seeded with the chain's
  head; of each entry, the marks of what the segments have add up to those of what counts,
  which by chance would happen once in 10^19 times;
- sequences: no two stretches of a producer overlap, and they add up;
- identities: each key and id of a counted event is taken by it, and no other is taken;
- rejections: one for each event that was not counted, its bytes unchanged;
- changes: each correction and declaration is noted under its id, and takes back only what is there;
- segments: the file's SHA-256; that seals cover the journal without a gap; that compactions
  made as many rows as they took, of segments that there were; and that what is left after
  all of them is what the manifest has;
- branches: each restore follows from the one before it, and is noted;
- files that belong to nobody.

Work on the journal is done in pages, so that ingest waits for milliseconds at a time.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import duckdb

from tallybook.block import read_header, read_payload
from tallybook.errors import BlockDamaged, TallybookError
from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.book import Book
from tallybook_server.branching import read_lineage
from tallybook_server.catalogue import Declaration
from tallybook_server.change import CHANGES, Change, change_of, digest_of
from tallybook_server.content import identities_of
from tallybook_server.correction import Void
from tallybook_server.entry import CHAIN_START, Entry, EntryDamaged, Verdict, link, read_entry
from tallybook_server.journal import Journal, RejectionRow, open_read_only
from tallybook_server.judge import rejected_digest
from tallybook_server.ledger import Finding, LedgerDamaged
from tallybook_server.rows import keyed_events
from tallybook_server.segment import Segment, SegmentName, file_digest, quoted, read_name
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.tail import UNCOUNTED
from tallybook_server.writer import read_snapshot

__all__ = ["open_unchanged", "verify_book", "verify_directory"]

_PAGE: Final = 500
_ROWS: Final = 10_000
_MARK: Final = 'hash("index", $1::UBIGINT)'
_MARKS: Final = 1 << 64


def verify_book(
    book: Book, tables: Tables, snapshot: Snapshot, read: Callable[[Callable[[Journal], Any]], Any]
) -> Iterator[Finding]:
    """
    Everything that is wrong with a book as of *snapshot*.

    Args:
        book: Its directory.
        tables: Where the tail is or will be loaded.
        snapshot: Held by the caller.
        read: Calls a function with the journal, where the journal may be used.
    """
    verification = _Verification(book, tables, snapshot, read)
    checks = (
        verification.journal,
        verification.entries,
        verification.segments,
        verification.events,
        verification.sequences,
        verification.identities,
        verification.rejections,
        verification.changes,
        verification.branches,
        verification.files,
    )
    for check in checks:
        try:
            yield from check()
        except (sqlite3.Error, duckdb.Error, OSError, TallybookError) as error:
            # What cannot even be read is a finding, and no reason not to look at the rest.
            yield Finding(check.__name__, str(book.directory), f"cannot be read: {error}")


def verify_directory(directory: Path, *, files: Path | None = None) -> Iterator[Finding]:
    """
    Everything that is wrong with a book that no server has open. Nothing is written to it.

    Args:
        directory: Of the book.
        files: Where the files of the segments are, if the book has only links to them.

    Raises:
        LedgerLocked: A server has it; it verifies by itself, and says what it found.
        LedgerDamaged: There is no book, or one that cannot even be opened.
    """
    book = Book(directory)
    book.open_to_read()
    try:
        with tempfile.TemporaryDirectory() as aside:
            try:
                journal = open_unchanged(book, Path(aside))
            except sqlite3.Error as error:
                yield Finding("journal", "journal.db", f"cannot be opened: {error}")
                return
            try:
                tables = Tables(files or book.segments, Path(aside) / "spill")
                yield from _verify_closed(book, journal, tables)
            finally:
                journal.close()
    finally:
        book.close()


def open_unchanged(book: Book, aside: Path) -> Journal:
    """The journal as it is; a copy of it where a killed server has left a write-ahead log."""
    log = book.journal.with_name(f"{book.journal.name}-wal")
    if not log.exists() or not log.stat().st_size:
        return Journal(book.journal, open_read_only)
    # To read the log is to write beside it, so that is done to a copy.
    for path in (book.journal, log):
        shutil.copyfile(path, aside / path.name)
    return Journal(aside / book.journal.name)


def _verify_closed(book: Book, journal: Journal, tables: Tables) -> Iterator[Finding]:
    try:
        snapshot = read_snapshot(journal, number=1)
    except (sqlite3.Error, TallybookError) as error:
        yield Finding("journal", "journal.db", f"the tail cannot be read: {error}")
        snapshot = Snapshot(journal.head.position, (), ())
    try:
        yield from verify_book(book, tables, snapshot, lambda function: function(journal))
    finally:
        tables.close()


class _Verification:
    """One run. What `entries` finds out, the later checks compare with."""

    def __init__(
        self,
        book: Book,
        tables: Tables,
        snapshot: Snapshot,
        read: Callable[[Callable[[Journal], Any]], Any],
    ) -> None:
        self._book = book
        self._tables = tables
        self._snapshot = snapshot
        self._read = read
        size = snapshot.position + 1
        self._counted = array("i", bytes(4 * size))  # per entry: events that count
        self._fresh = array("i", bytes(4 * size))  # per entry: sequences it was the first to hold
        self._refused = array("i", bytes(4 * size))  # per entry: events kept as rejections
        self._odd: dict[int, Entry] = {}  # blocks with exceptions
        self._seed = 0
        self._segments: dict[str, list[Any]] = {}  # what seals and compactions have left
        self._replaced: set[str] = set()
        self._sealed = 0  # the last entry that a seal covers
        self._compacted = 0  # the last compaction's position
        self._rejected: dict[int, list[Any]] = {}  # details of rejection entries
        self._changes: dict[int, Change] = {}
        self._restores: list[int] = []

    # -- the journal -----------------------------------------------------------------------

    def journal(self) -> Iterator[Finding]:
        """SQLite's own check of its file."""
        for problem in self._read(Journal.integrity):
            yield Finding("journal", "journal.db", problem)

    def entries(self) -> Iterator[Finding]:
        """The chain, and the blocks' bytes."""
        chain, position, recorded_at = CHAIN_START, 0, 0
        while position < self._snapshot.position:
            page, blocks, sealed = self._read(partial(_page, after=position))
            if not page:
                break
            for at, data, stored, columns in page:
                if at > self._snapshot.position:
                    break
                where = f"entry {at}"
                if at != position + 1:
                    yield Finding("chain", where, f"expected entry {position + 1}")
                chain = link(chain, data)
                if chain != stored:
                    yield Finding("chain", where, "the chain's head does not follow from it")
                    chain = stored
                position = at
                try:
                    entry = read_entry(data)
                except EntryDamaged as error:
                    yield Finding("chain", where, str(error))
                    continue
                try:
                    yield from self._entry(entry, at, columns, recorded_at)
                except (TypeError, ValueError, LookupError) as error:
                    # One byte can make a list of a number; what follows from it is found, too.
                    yield Finding("chain", where, f"a {entry.kind} that makes no sense: {error}")
                    continue
                recorded_at = entry.recorded_at
                if entry.kind == "block":
                    yield from _block(entry, blocks.get(at), at > sealed)
        if position < self._snapshot.position:
            last = self._snapshot.position
            yield Finding("chain", f"entry {last}", f"the journal ends at {position}")
        self._seed = int.from_bytes(chain[:8], "little")

    def _entry(
        self, entry: Entry, at: int, columns: tuple[Any, ...], recorded_at: int
    ) -> Iterator[Finding]:
        where = f"entry {at}"
        if entry.position != at:
            yield Finding("chain", where, f"its bytes say that it is {entry.position}")
        if entry.recorded_at < recorded_at:
            yield Finding("chain", where, "it was recorded before the entry in front of it")
        if (entry.kind == "genesis") != (at == 1):
            yield Finding("chain", where, f"a {entry.kind} has no place here")
        named = (None, None, None)
        if entry.kind == "block":
            named = (entry.detail[0], entry.detail[1], entry.detail[3])
            yield from self._verdicts(entry)
        elif entry.kind == "seal":
            yield from self._seal(entry)
        elif entry.kind == "compaction":
            yield from self._compaction(entry)
        elif entry.kind == "rejection":
            self._rejected[at] = entry.detail
            self._refused[at] = entry.detail[0]
        elif entry.kind == "restore":
            self._restores.append(at)
        elif entry.kind in CHANGES:
            try:
                self._changes[at] = change_of(entry)
            except EntryDamaged as error:
                yield Finding("change", where, str(error))
        if columns != named:
            yield Finding("chain", where, "its row names another block than its bytes")

    def _seal(self, entry: Entry) -> Iterator[Finding]:
        name, _, _, first, last = entry.detail
        if first != self._sealed + 1:
            where = f"entry {entry.position}"
            yield Finding("segment", where, f"seals from {first}, expected {self._sealed + 1}")
        self._sealed = last
        self._segments[name] = entry.detail

    def _compaction(self, entry: Entry) -> Iterator[Finding]:
        where = f"entry {entry.position}"
        inputs, outputs = entry.detail
        for one in inputs:
            if self._segments.pop(one[0], None) != one:
                yield Finding("segment", where, f"merges {one[0]}, which was not there like this")
            self._replaced.add(one[0])
        before, after = (sum(one[2] for one in some) for some in (inputs, outputs))
        if before != after:
            yield Finding("segment", where, f"made {after} rows of {before}")
        self._segments |= {one[0]: one for one in outputs}
        self._compacted = entry.position

    def _verdicts(self, entry: Entry) -> Iterator[Finding]:
        count, before = entry.detail[2], -1
        if not 0 < count <= BLOCK_EVENTS_MAX:
            where = f"entry {entry.position}"
            yield Finding("block", where, f"{count} events, expected 1 to {BLOCK_EVENTS_MAX}")
            return
        uncounted = seen_before = sequence_duplicates = 0
        for run in entry.verdicts:
            if not before < run.first <= run.last < count:
                yield Finding("block", f"entry {entry.position}", "verdicts out of order or bounds")
                return
            before = run.last
            length = run.last - run.first + 1
            if run.verdict in UNCOUNTED:
                uncounted += length
            if run.reason == "sequence":
                seen_before += length
                if run.verdict is Verdict.DUPLICATE:
                    sequence_duplicates += length
        at = entry.position
        self._counted[at] = count - uncounted
        self._fresh[at] = count - seen_before
        self._refused[at] = uncounted - sequence_duplicates
        if uncounted:
            self._odd[at] = entry

    # -- segments --------------------------------------------------------------------------

    def segments(self) -> Iterator[Finding]:
        """The files, and what the journal says of them."""
        for segment in self._snapshot.segments:
            where = f"segments/{segment.name}"
            said = self._segments.pop(segment.name, None)
            is_so = [segment.name, segment.sha256, segment.rows, segment.first, segment.last]
            if said != is_so:
                yield Finding("segment", where, "the manifest does not say what its entry says")
            yield from _file(self._book.segments / segment.name, segment)
        for name in self._segments:
            yield Finding("segment", f"segments/{name}", "has an entry, but is not in the manifest")

    # -- events ----------------------------------------------------------------------------

    def events(self) -> Iterator[Finding]:
        """Each event that counts is there, once."""
        self._tables.load(self._snapshot.tail)
        marks = self._marks()
        missing = self._counted[:]
        missed = array("Q", (marks[count] for count in self._counted))
        for at, entry in self._odd.items():
            missed[at] = _counted_marks(entry, marks)
        for source, rows in self._held_rows():
            for at, count, marked in rows:
                if not 0 < at < len(missing) or count > missing[at]:
                    where = f"entry {at} in {source}"
                    yield Finding("sum", where, f"{count} events that do not count here")
                    continue
                missing[at] -= count
                missed[at] = (missed[at] - marked) % _MARKS
        for at, (count, marked) in enumerate(zip(missing, missed, strict=True)):
            if count:
                yield Finding("sum", f"entry {at}", f"{count} events that count are nowhere")
            elif marked:
                yield Finding("sum", f"entry {at}", "an event twice, or one that does not count")

    def _marks(self) -> list[int]:
        """By count: the sum of the marks of the indices below it."""
        with self._tables.cursor() as cursor:
            rows = cursor.execute(
                f'SELECT {_MARK} FROM (SELECT unnest(range($2))::INTEGER AS "index")',
                [self._seed, BLOCK_EVENTS_MAX],
            ).fetchall()
        return [total % _MARKS for total in accumulate((mark for (mark,) in rows), initial=0)]

    def _held_rows(self) -> Iterator[tuple[str, list[tuple[int, int, int]]]]:
        """Of each segment and of the tail: entries, how many events, and the sum of their marks."""
        sql = f"SELECT entry, count(*), sum({_MARK})::HUGEINT FROM {{table}} GROUP BY entry"
        with self._tables.cursor() as cursor:
            for segment in self._snapshot.segments:
                path = self._book.segments / segment.name
                table = f"read_parquet({quoted(str(path))})"
                cursor.execute(sql.format(table=table), [self._seed])
                while rows := cursor.fetchmany(_ROWS):
                    yield f"segments/{segment.name}", rows
            for part in self._snapshot.tail:
                table = (
                    f"(SELECT * FROM events_{part.generation.number} "
                    f"WHERE entry <= {self._snapshot.position})"
                )
                cursor.execute(sql.format(table=table), [self._seed])
                while rows := cursor.fetchmany(_ROWS):
                    yield "the tail", rows

    # -- sequences, identities, rejections -------------------------------------------------

    def sequences(self) -> Iterator[Finding]:
        """The stretches that are held, and the counts per producer."""
        remaining = self._fresh[:]
        after: tuple[bytes, int] = (b"", 0)
        producer, last_held = b"", 0
        while True:
            page = self._read(partial(_range_page, after=after))
            if not page:
                break
            for name, first, last, position in page:
                where = f"producer {name.hex()}"
                if name == producer and first <= last_held:
                    yield Finding("sequence", where, f"sequence {first} is held twice")
                producer, last_held = name, last
                if position > self._snapshot.position:
                    continue
                remaining[position] -= last - first + 1
            after = (page[-1][0], page[-1][1])
        for entry, left in enumerate(remaining):
            if left:
                detail = f"{left} more sequences than are held in its name"
                yield Finding("sequence", f"entry {entry}", detail)
        for name, received, held in self._read(Journal.received_and_held):
            if received != held:
                detail = f"{received} received, but {held} held"
                yield Finding("sequence", f"producer {name.hex()}", detail)

    def identities(self) -> Iterator[Finding]:
        """Keys and ids, against the events that carry them."""
        found = 0
        for page in keyed_events(self._tables, self._book.segments, self._snapshot, _PAGE):
            checked, wrong = self._read(partial(_check_identities, page=page))
            found += checked
            yield from wrong
        taken = self._read(partial(_taken, upto=self._snapshot.position))
        if taken != found:
            yield Finding("identity", "identities", f"{taken} are taken, by {found} events")

    def rejections(self) -> Iterator[Finding]:
        """What was not counted is kept, unchanged."""
        remaining = self._refused[:]
        data: dict[int, list[bytes]] = {at: [] for at in self._rejected}
        after = (0, -1)
        while page := self._read(partial(_rejection_page, after=after)):
            for row in page:
                where = f"entry {row.position}, event {row.place}"
                if row.position <= self._snapshot.position:
                    remaining[row.position] -= 1
                if row.seal != row.sealed():
                    yield Finding("rejection", where, "its bytes have changed")
                if row.position in data:
                    data[row.position].append(row.data)
            after = (page[-1].position, page[-1].place)
        for entry, left in enumerate(remaining):
            if left:
                yield Finding("rejection", f"entry {entry}", f"{left} rejections are missing")
        for at, detail in self._rejected.items():
            if rejected_digest(data[at]) != detail[1]:
                yield Finding("rejection", f"entry {at}", "not the bytes that the entry names")

    def changes(self) -> Iterator[Finding]:
        """What corrects and declares, against the list by which it is found."""
        noted = {at: (name, digest) for at, name, digest in self._read(Journal.changes)}
        for at, change in self._changes.items():
            where = f"entry {at}"
            name = None if isinstance(change, Declaration) else change.id
            if noted.pop(at, None) != (name, digest_of(change)):
                yield Finding("change", where, "it is not noted as what it says")
            if isinstance(change, Void):
                yield from self._taken_back(change, where)
        for at in noted:
            if at <= self._snapshot.position:
                yield Finding("change", f"entry {at}", "noted as a change, which it is not")

    def _size(self, entry: int) -> int:
        """How many events the block of an entry has."""
        odd = self._odd.get(entry)
        return int(odd.detail[2]) if odd is not None else self._counted[entry]

    def _taken_back(self, void: Void, where: str) -> Iterator[Finding]:
        for run in void.runs:
            fits = 0 < run.entry < void.position and 0 <= run.first <= run.last
            if not fits or run.last >= self._size(run.entry):
                words = f"it takes back events {run.first} to {run.last} of entry {run.entry}"
                yield Finding("change", where, f"{words}, which has none such")
        if void.corrects and isinstance(self._changes.get(void.corrects), None | Declaration):
            words = f"it takes back the correction of entry {void.corrects}, which is none"
            yield Finding("change", where, words)

    def branches(self) -> Iterator[Finding]:
        """What begins a branch, against the list by which it is found."""
        noted = self._read(Journal.restores)
        if [at for at in noted if at <= self._snapshot.position] != self._restores:
            yield Finding("branch", "restores", "not the entries that begin a branch are noted")
            return
        try:
            self._read(read_lineage)
        except LedgerDamaged as error:
            yield Finding("branch", "restores", str(error))

    def files(self) -> Iterator[Finding]:
        """What lies in the directory and belongs to nobody."""
        entered = self._read(Journal.segments)
        known = {segment.name for segment in (*self._snapshot.segments, *entered)}
        unknown = list(self._book.unknown_files(known))
        # The head after the look, and not the snapshot's: a seal may have begun since then.
        head = self._read(_head_position)
        for name in unknown:
            named = read_name(Path(name).name)
            if named is None or not self._passes(named, Path(name).name, head):
                yield Finding("file", name, "belongs to nobody; nothing reads it")

    def _passes(self, named: SegmentName, name: str, head: int) -> bool:
        """
        Whether a file is on its way into the manifest or out of it.

        Begun since the last seal or compaction that was looked at; or what a compaction has
        replaced, and a query may still hold. A crash may have ended its way, and the next
        start removes it.
        """
        if named.last > head:
            return False
        if named.begun:
            recent = self._compacted <= named.begun <= head
        else:
            recent = named.first > self._sealed
        return recent or name in self._replaced


def _page(
    journal: Journal, after: int
) -> tuple[list[tuple[int, bytes, bytes, tuple[Any, ...]]], dict[int, bytes], int]:
    """Entries, the bytes of their blocks, and up to where blocks may be gone: at one moment."""
    page = journal.entry_page(after, _PAGE // 10)
    blocks = {row[0]: data for row in page if (data := journal.block(row[0])) is not None}
    return page, blocks, journal.sealed_upto()


def _range_page(journal: Journal, after: tuple[bytes, int]) -> list[tuple[bytes, int, int, int]]:
    return journal.range_page(after, _PAGE)


def _rejection_page(journal: Journal, after: tuple[int, int]) -> list[RejectionRow]:
    return journal.rejections([int(verdict) for verdict in UNCOUNTED], after, _PAGE)


def _head_position(journal: Journal) -> int:
    return journal.head.position


def _taken(journal: Journal, upto: int) -> int:
    return journal.count("identities", "WHERE position <= ?", (upto,))


def _counted_marks(entry: Entry, marks: list[int]) -> int:
    """The sum of the marks of an entry's events that count."""
    count: int = entry.detail[2]
    total = marks[count]
    for run in entry.verdicts:
        if run.verdict in UNCOUNTED:
            total -= marks[run.last + 1] - marks[run.first]
    return total % _MARKS


def _block(entry: Entry, data: bytes | None, needed: bool) -> Iterator[Finding]:
    where = f"entry {entry.position}"
    if data is None:
        if needed:
            yield Finding("block", where, "its block is neither in the journal nor in a segment")
        return
    try:
        header = read_header(data)
        read_payload(data, header)
    except BlockDamaged as error:
        yield Finding("block", where, str(error))
        return
    if [header.producer, header.first, header.count, header.sha256] != entry.detail[:4]:
        yield Finding("block", where, "the journal holds another block than the entry names")


def _file(path: Path, segment: Segment) -> Iterator[Finding]:
    where = f"segments/{segment.name}"
    try:
        sha256, size = file_digest(path)
    except OSError as error:
        yield Finding("segment", where, f"cannot be read: {error}")
        return
    if (sha256, size) != (segment.sha256, segment.bytes):
        yield Finding("segment", where, "the file's SHA-256 or length is not what was sealed")


def _check_identities(journal: Journal, page: list[Any]) -> tuple[int, list[Finding]]:
    """How many identities the events of a page have, and what is wrong with them."""
    wrong: list[Finding] = []
    count = 0
    for row in page:
        entry = journal.entry(row.entry)
        source = entry.detail[4] or ""
        for reason, scope, key, digest in identities_of(row.event):
            count += 1
            held = journal.identity(source, scope, key)
            if held is None or held != (row.entry, row.place, digest):
                where = f"entry {row.entry}, event {row.place}"
                wrong.append(Finding("identity", where, f"its {reason} is not noted as its own"))
    return count, wrong
