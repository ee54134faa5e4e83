"""A book that no server has open: it is locked, read, and nothing is written to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tallybook_server.book import Book
from tallybook_server.journal import Journal, open_read_only
from tallybook_server.ledger import Finding, LedgerDamaged
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.verify.book_check import verify_book
from tallybook_server.verify.log import check_log
from tallybook_server.verify.progress import Report, silent
from tallybook_server.writer import read_snapshot

__all__ = ["verify_directory"]


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
    try:
        snapshot = read_snapshot(journal, number=1)
    except Exception as error:
        # Anything can come of reading damaged bytes; what they are, the checks say.
        words = f"the tail cannot be read: {type(error).__name__}: {error}"
        yield Finding("journal", "journal.db", words)
        snapshot = _without_tail(journal)
    yield from verify_book(book, tables, snapshot, lambda function: function(journal), report)


def _without_tail(journal: Journal) -> Snapshot:
    try:
        segments = tuple(journal.segments())
    except Exception:
        segments = ()
    return Snapshot(journal.head.position, segments, ())
