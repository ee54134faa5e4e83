"""
Keys and ids, against the events that carry them.

Each key or id has a mark, a hash of all that is noted of it. Per entry, the marks of what is
noted as taken by it add up to those of what its events carry; so neither the journal nor the
files have to be searched. Only where that is not so, one after the other is looked up.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from tallybook_server.content import identities_of
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding
from tallybook_server.rows import CountedEvent, keyed_events
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.verify.pages import PAGE, Read, pages
from tallybook_server.verify.progress import Progress, Report
from tallybook_server.verify.record import MARKS
from tallybook_server.verify.unread import Unread

__all__ = ["check_identities"]

_FIRST: Final = ("", "", "")  # In front of all: nothing is taken without a key.
_SOURCES_MAX: Final = 100_000  # Of entries, to be kept at one time.

_Row = tuple[str, str, str, int, int, bytes]
"""Source, scope, key, entry, index, digest."""


def check_identities(
    snapshot: Snapshot,
    tables: Tables,
    directory: Path,
    unread: Unread,
    read: Read,
    report: Report,
) -> Iterator[Finding]:
    """
    Each key and id of a counted event is taken by it, and no other is taken.

    Args:
        snapshot: Held by the caller.
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        unread: What cannot be read; its events are left out.
        read: Asks the journal.
        report: Told how many identities were compared.
    """
    marks = array("Q", bytes(8 * (snapshot.position + 1)))
    taken = yield from _add_noted(marks, read)
    readable = unread.rest()
    found, sources = 0, _Sources(read)
    for page in keyed_events(tables, directory, readable, PAGE):
        for _, row in sources.rows(page):
            if not 0 < row[3] < len(marks):
                yield Finding("identity", f"entry {row[3]}", "there is no such entry")
                continue
            marks[row[3]] = (marks[row[3]] - hash(row)) % MARKS
            found += 1
        report(Progress("identities", found, taken, "keys and ids"))
    wrong = {at for at, marked in enumerate(marks) if marked and not unread.may_hold(at)}
    for page in keyed_events(tables, directory, readable, PAGE) if wrong else ():
        some = [row for row in sources.rows(page) if row[1][3] in wrong]
        yield from read(partial(_look_up, some=some))
    for at in sorted(wrong):
        yield Finding(
            "identity", f"entry {at}", "other keys and ids are noted than its events have"
        )


def _add_noted(marks: array[int], read: Read) -> Generator[Finding, None, int]:
    """Add what the journal notes to *marks*; returns how many keys and ids that are."""
    taken = 0
    for rows, head in pages(read, Journal.identity_page, _key, _FIRST):
        for row in rows:
            source, scope, key, entry, _, _ = row
            if not 0 < entry <= head:
                where = f"key {key!r} of {scope!r} from {source!r}"
                yield Finding("identity", where, f"taken by entry {entry}, which there is not")
            elif entry < len(marks):
                marks[entry] = (marks[entry] + hash(row)) % MARKS
                taken += 1
    return taken


def _key(row: _Row) -> tuple[str, str, str]:
    return row[:3]


class _Sources:
    """The sources of entries, which their events do not say."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[int, str] = {}

    def rows(self, page: list[CountedEvent]) -> Iterator[tuple[str, _Row]]:
        """What should be noted of the events of a page: whether a key or an id, and the row."""
        missing = {one.entry for one in page} - self._known.keys()
        if missing:
            if len(self._known) > _SOURCES_MAX:
                self._known.clear()
                missing = {one.entry for one in page}
            self._known |= self._read(partial(_sources, entries=missing))
        for entry, place, event in page:
            source = self._known[entry]
            for reason, scope, key, digest in identities_of(event):
                yield reason, (source, scope, key, entry, place, digest)


def _sources(journal: Journal, entries: set[int]) -> dict[int, str]:
    return {at: journal.entry(at).detail[4] or "" for at in entries}


def _look_up(journal: Journal, some: list[tuple[str, _Row]]) -> list[Finding]:
    """Those of *some* that are not noted like this."""
    return [
        Finding(
            "identity", f"entry {row[3]}, event {row[4]}", f"its {reason} is not noted as its own"
        )
        for reason, row in some
        if journal.identity(*row[:3]) != row[3:]
    ]
