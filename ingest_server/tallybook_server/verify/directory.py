"""A book that no server has open: it is locked, read, and nothing is written to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tallybook_server.book import Book
from tallybook_server.journal import Journal, open_read_only
from tallybook_server.ledger import Finding, LedgerDamaged
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.verify.book_check import check_journal, check_rest
from tallybook_server.verify.log import check_log
from tallybook_server.verify.progress import Progress, Report, silent
from tallybook_server.verify.record import Record
from tallybook_server.writer import read_snapshot

__all__ = ["verify_directory"]

T = TypeVar("T")


def verify_directory(
    directory: Path, *, files: Path | None = None, report: Report = silent
) -> Iterator[Finding]:
    """
    Everything that is wrong with a book that no server has open. Nothing is written to it.

    Args:
        directory: Of the book.
        files: Where the files of the segments are, if the book has only links to them.
        report: Told how far it has come.

    Raises:
        LedgerLocked: A server has it; it verifies by itself, and says what it found.
        LedgerDamaged: There is no book, or one that cannot even be opened.
    """
    book = Book(directory)
    book.open_to_read()
    try:
        yield from check_log(_log(book))
        with tempfile.TemporaryDirectory() as aside:
            try:
                journal = _open_unchanged(book, Path(aside))
            except LedgerDamaged:
                raise
            except Exception as error:
                # Python cannot even read SQLite's words about some damage.
                yield Finding("journal", "journal.db", f"cannot be opened: {error}")
                return
            try:
                tables = Tables(files or book.segments, Path(aside) / "spill")
                try:
                    yield from _verify_closed(book, journal, tables, report)
                finally:
                    tables.close()
            finally:
                journal.close()
    finally:
        book.close()


def _open_unchanged(book: Book, aside: Path) -> Journal:
    """The journal as it is; a copy of it where a killed server has left a write-ahead log."""
    log = _log(book)
    if not log.exists() or not log.stat().st_size:
        return Journal(book.journal, open_read_only)
    # To read the log is to write beside it, so that is done to a copy.
    for path in (book.journal, log):
        shutil.copyfile(path, aside / path.name)
    return Journal(aside / book.journal.name)


def _log(book: Book) -> Path:
    return book.journal.with_name(f"{book.journal.name}-wal")


def _verify_closed(
    book: Book, journal: Journal, tables: Tables, report: Report
) -> Iterator[Finding]:
    def read(function: Callable[[Journal], T]) -> T:
        return function(journal)

    head, entries_max = journal.head.position, journal.entries_max()
    if head > entries_max:
        # A damaged position may be any number, and there are columns as long as it.
        words = f"the file has room for {entries_max} entries at most"
        yield Finding("chain", f"entry {head}", words)
    record = Record(min(head, entries_max))
    whole = True
    for finding in check_journal(record, read, report):
        whole = False
        yield finding
    # A tail is made of blocks and verdicts, and is only made of those that were checked.
    report(Progress("tail"))
    snapshot, wrong = _snapshot(journal, whole=whole)
    if wrong is not None:
        yield Finding("journal", "the tail", f"cannot be read: {type(wrong).__name__}: {wrong}")
    yield from check_rest(record, book, tables, snapshot, read, report)


def _snapshot(journal: Journal, *, whole: bool) -> tuple[Snapshot, Exception | None]:
    """What a query would see, as far as it can be read; and what was wrong with the rest."""
    wrong: Exception | None = None
    try:
        if whole:
            return read_snapshot(journal, number=1), None
    except Exception as error:
        wrong = error
    try:
        segments = tuple(journal.segments())
    except Exception as error:
        return Snapshot(journal.head.position, (), ()), error
    return Snapshot(journal.head.position, segments, ()), wrong
