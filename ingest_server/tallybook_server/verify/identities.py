"""Keys and ids, against the events that carry them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tallybook_server.content import identities_of
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding
from tallybook_server.rows import CountedEvent, keyed_events
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.verify.pages import PAGE, Read, pages
from tallybook_server.verify.progress import Progress, Report

__all__ = ["check_identities"]

_FIRST = ("", "", "")  # In front of all: nothing is taken without a key.


def check_identities(
    snapshot: Snapshot,
    tables: Tables,
    directory: Path,
    unread: set[str],
    read: Read,
    report: Report,
) -> Iterator[Finding]:
    """
    Each key and id of a counted event is taken by it, and no other is taken.

    Args:
        snapshot: Held by the caller.
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        unread: The names of the segments that cannot be read.
        read: Asks the journal.
        report: Told how many identities were compared.
    """
    taken = 0
    for rows, head in pages(read, Journal.identity_page, _key, _FIRST):
        for source, scope, key, position in rows:
            if not 0 < position <= head:
                where = f"key {key!r} of {scope!r} from {source!r}"
                yield Finding("identity", where, f"taken by entry {position}, which there is not")
            taken += position <= snapshot.position
    found = 0
    readable = tuple(one for one in snapshot.segments if one.name not in unread)
    whole = replace(snapshot, segments=readable)
    for page in keyed_events(tables, directory, whole, PAGE):
        checked, wrong = read(partial(_compare, page=page))
        found += checked
        yield from wrong
        report(Progress("identities", found, taken, "keys and ids"))
    if taken != found and not unread:
        yield Finding("identity", "identities", f"{taken} are taken, by {found} events")


def _key(row: tuple[str, str, str, int]) -> tuple[str, str, str]:
    return row[:3]


def _compare(journal: Journal, page: list[CountedEvent]) -> tuple[int, list[Finding]]:
    """How many identities the events of a page have, and what is wrong with them."""
    wrong: list[Finding] = []
    sources: dict[int, str] = {}
    count = 0
    for row in page:
        if row.entry not in sources:
            sources[row.entry] = journal.entry(row.entry).detail[4] or ""
        for reason, scope, key, digest in identities_of(row.event):
            count += 1
            held = journal.identity(sources[row.entry], scope, key)
            if held is None or held != (row.entry, row.place, digest):
                where = f"entry {row.entry}, event {row.place}"
                wrong.append(Finding("identity", where, f"its {reason} is not noted as its own"))
    return count, wrong
