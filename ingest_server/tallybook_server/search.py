"""
A search: the pages of counted events that pass a filter.

What the events' rows say is asked of DuckDB (`rows`); what only their entries say is asked
of the journal first (`candidates`), for no more entries than the segments and the tail can
hold something in.
"""

from __future__ import annotations

from pathlib import Path

from tallybook_server.candidates import Read, candidates, needs_journal
from tallybook_server.conditions import range_of
from tallybook_server.correction import InForce
from tallybook_server.entry import Entry
from tallybook_server.event_filter import EventFilter
from tallybook_server.journal import Journal
from tallybook_server.ledger import LedgerEvent
from tallybook_server.rows import CountedEvent, Selection, select, stretches
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables

__all__ = ["search"]


def search(
    tables: Tables,
    directory: Path,
    snapshot: Snapshot,
    read: Read,
    chosen: EventFilter,
    *,
    after: tuple[int, int],
    limit: int,
) -> list[LedgerEvent]:
    """
    The first *limit* counted events behind *after* that pass, in the ledger's order.

    Args:
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        snapshot: Held by the caller.
        read: Asks the journal.
        chosen: Which events.
        after: (position, index).
        limit: 1 or more.
    """
    if needs_journal(chosen):
        found = _by_entries(tables, directory, snapshot, read, Selection(after, limit, chosen))
    else:
        found = select(tables, directory, snapshot, Selection(after, limit, chosen))
    positions = {row.entry for row in found}
    entries: dict[int, Entry] = read(lambda journal: _entries(journal, positions))
    voided = snapshot.corrections.at(snapshot.position)
    return [_ledger_event(row, entries[row.entry], voided) for row in found]


def _by_entries(
    tables: Tables, directory: Path, snapshot: Snapshot, read: Read, wanted: Selection
) -> list[CountedEvent]:
    found: list[CountedEvent] = []
    for entries in candidates(read, wanted.chosen, _ranges(snapshot, wanted)):
        rest = wanted.limit - len(found)
        some = Selection(wanted.after, rest, wanted.chosen, entries)
        found += select(tables, directory, snapshot, some)
        if len(found) == wanted.limit:
            break
    return found


def _ranges(snapshot: Snapshot, wanted: Selection) -> list[tuple[int, int]]:
    """The entries in which there can be something."""
    first, last = range_of(wanted.chosen, wanted.after, snapshot.position)
    ranges: list[tuple[int, int]] = []
    for stretch in stretches(snapshot, wanted.chosen, first, last):
        if ranges and ranges[-1][1] == stretch.first - 1:
            ranges[-1] = (ranges[-1][0], stretch.last)
        else:
            ranges.append((stretch.first, stretch.last))
    tail = max(first, snapshot.sealed_upto + 1)
    return [*ranges, (tail, last)] if tail <= last else ranges


def _entries(journal: Journal, positions: set[int]) -> dict[int, Entry]:
    return {position: journal.entry(position) for position in positions}


def _ledger_event(row: CountedEvent, entry: Entry, voided: InForce) -> LedgerEvent:
    return LedgerEvent(
        position=row.entry,
        index=row.place,
        producer=entry.detail[0].hex(),
        sequence=entry.detail[1] + row.place,
        recorded_at=entry.recorded_at,
        source=entry.detail[4],
        event=row.event,
        voided=voided.takes_back(row.entry, row.place),
    )
