"""All checks of a book, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from tallybook_server.book import Book
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.verify.changes import check_branches, check_changes
from tallybook_server.verify.entries import check_entries
from tallybook_server.verify.events import check_events
from tallybook_server.verify.files import check_files
from tallybook_server.verify.identities import check_identities
from tallybook_server.verify.manifest import check_manifest
from tallybook_server.verify.pages import Read
from tallybook_server.verify.progress import Progress, Report, silent
from tallybook_server.verify.record import Record
from tallybook_server.verify.rejections import check_rejections
from tallybook_server.verify.sequences import check_sequences
from tallybook_server.verify.statements import check_statements
from tallybook_server.verify.tallies import check_tallies
from tallybook_server.verify.unread import Unread

__all__ = ["check_journal", "check_rest", "verify_book"]

_Checks = dict[str, Callable[[], Iterator[Finding]]]


def verify_book(
    book: Book, tables: Tables, snapshot: Snapshot, read: Read, report: Report = silent
) -> Iterator[Finding]:
    """
    Everything that is wrong with a book as of *snapshot*.

    Args:
        book: Its directory.
        tables: Where the tail is or will be loaded.
        snapshot: Held by the caller.
        read: Calls a function with the journal, where the journal may be used.
        report: Told how far it has come.
    """
    record = Record(snapshot.position)
    yield from check_journal(record, read, report)
    yield from check_rest(record, book, tables, snapshot, read, report)


def check_journal(record: Record, read: Read, report: Report) -> Iterator[Finding]:
    """The journal's file and its entries. Everything else is compared with these."""
    checks: _Checks = {
        "journal": partial(_check_file, read),
        "entries": partial(check_entries, record, read, report),
    }
    yield from _each(checks, report)


def check_rest(
    record: Record,
    book: Book,
    tables: Tables,
    snapshot: Snapshot,
    read: Read,
    report: Report,
) -> Iterator[Finding]:
    """What is compared with the entries; *record* is whole."""
    snapshot = replace(snapshot, position=record.position)
    unread, files = Unread(snapshot), book.segments
    checks: _Checks = {
        "segments": partial(check_manifest, record, snapshot, tables, files, unread, report),
        "events": partial(check_events, record, snapshot, tables, files, unread, report),
        "sequences": partial(check_sequences, record, read, report),
        "identities": partial(check_identities, snapshot, tables, files, unread, read, report),
        "rejections": partial(check_rejections, record, read, report),
        "changes": partial(check_changes, record, read),
        "branches": partial(check_branches, record, read),
        "statements": partial(check_statements, record, read),
        "tallies": partial(check_tallies, read),
        "files": partial(check_files, record, snapshot, book, read),
    }
    yield from _each(checks, report)


def _each(checks: _Checks, report: Report) -> Iterator[Finding]:
    for name, check in checks.items():
        report(Progress(name))
        try:
            yield from check()
        except Exception as error:
            # Whatever damaged bytes make of the code that reads them is a finding, and no
            # reason not to look at the rest.
            yield Finding(name, name, f"cannot be read: {type(error).__name__}: {error}")


def _check_file(read: Read) -> Iterator[Finding]:
    """SQLite's own check of its file, and what SQLite was told that is in it."""
    for problem in read(Journal.integrity):
        yield Finding("journal", "journal.db", problem)
    for name in read(Journal.strange_schema):
        yield Finding("journal", "journal.db", f"{name} is not as it is in a journal")
