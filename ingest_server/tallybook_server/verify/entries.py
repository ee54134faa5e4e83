"""
The chain and the blocks' bytes. What the entries say goes into the `Record`.

An entry whose bytes were changed breaks the chain, and is read all the same, because the
rest can only be compared with something that was read. So nothing that an entry says is
taken to make sense.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from tallybook.block import read_header, read_payload
from tallybook.errors import BlockDamaged
from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.change import CHANGES, change_of
from tallybook_server.entry import CHAIN_START, Entry, EntryDamaged, link, read_entry
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding, LedgerDamaged
from tallybook_server.tail import UNCOUNTED
from tallybook_server.verify.pages import BEFORE_ALL, PAGE, Read
from tallybook_server.verify.progress import Progress, Report
from tallybook_server.verify.record import (
    MARKS,
    Record,
    free_stretches,
    is_kept,
    stretch_mark,
)

__all__ = ["check_entries"]

_ENTRIES: Final = PAGE // 10
"""Entries that are read at one time, with their blocks, which may be large."""


class _Page(NamedTuple):
    """
    Entries as they are at one moment.

    Attributes:
        rows: Of the journal: position, entry, chain, and the columns that name its block.
        blocks: The blocks that are there between the entry before the page and its last one.
        sealed: Up to where blocks may be gone.
    """

    rows: list[tuple[int, bytes, bytes, tuple[Any, ...]]]
    blocks: dict[int, bytes]
    sealed: int


def check_entries(record: Record, read: Read, report: Report) -> Iterator[Finding]:
    """The chain, and the blocks' bytes; *record* is filled. Told are the entries, once at least."""
    chain, position, recorded_at = CHAIN_START, 0, 0
    while position < record.position:
        page = read(partial(_page, after=position, upto=record.position))
        for at, data, stored, columns in page.rows:
            if at <= position:
                # To follow them might never end.
                raise LedgerDamaged(f"entry {at} comes behind {position}: they are not in order")
            if at != position + 1:
                yield _wrong(at, f"expected entry {position + 1}")
            chain = link(chain, data)
            if chain != stored:
                yield _wrong(at, "the chain's head does not follow from it")
                chain = stored
            position = at
            block = page.blocks.pop(at, None)
            try:
                entry = read_entry(data)
                yield from _entry(record, entry, at, columns, recorded_at)
                if entry.kind == "block":
                    yield from _block(entry, at, block, at > page.sealed)
                    block = None
            except EntryDamaged as error:
                yield _wrong(at, str(error))
                continue
            except (TypeError, ValueError, LookupError, OverflowError) as error:
                # One byte can make a list of a number.
                yield _wrong(at, f"it makes no sense: {error}")
                continue
            if block is not None:
                yield Finding("block", f"entry {at}", f"a {entry.kind} has a block")
            recorded_at = entry.recorded_at
        for at in page.blocks:
            yield Finding("block", f"entry {at}", "a block without an entry")
        if not page.rows:
            break
        report(Progress("entries", position, record.position, "entries"))
    if position < record.position:
        yield _wrong(record.position, f"the journal ends at {position}")
    record.chain = chain
    for at in read(_stray_blocks):
        yield Finding("block", f"entry {at}", "a block without an entry")


def _page(journal: Journal, after: int, upto: int) -> _Page:
    rows = [row for row in journal.entry_page(after, _ENTRIES) if row[0] <= upto]
    last = rows[-1][0] if rows else after
    return _Page(rows, dict(journal.blocks_between(after + 1, last)), journal.sealed_upto())


def _stray_blocks(journal: Journal) -> list[int]:
    """Where there are blocks that no entry can have."""
    head = journal.head.position
    outside = ((BEFORE_ALL, 0), (head + 1, -BEFORE_ALL - 1))
    return [at for edges in outside for at, _ in journal.blocks_between(*edges)]


def _wrong(at: int, detail: str) -> Finding:
    return Finding("chain", f"entry {at}", detail)


# -- one entry -----------------------------------------------------------------------------


def _entry(
    record: Record, entry: Entry, at: int, columns: tuple[Any, ...], recorded_at: int
) -> Iterator[Finding]:
    if entry.position != at:
        yield _wrong(at, f"its bytes say that it is {entry.position}")
    if entry.recorded_at < recorded_at:
        yield _wrong(at, "it was recorded before the entry in front of it")
    if (entry.kind == "genesis") != (at == 1):
        yield _wrong(at, f"a {entry.kind} has no place here")
    named = (None, None, None)
    if entry.kind == "block":
        named = (entry.detail[0], entry.detail[1], entry.detail[3])
        yield from _verdicts(record, entry, at)
    elif entry.kind == "genesis":
        record.ledger = entry.detail[0]
    elif entry.kind == "seal":
        yield from _seal(record, entry, at)
    elif entry.kind == "compaction":
        yield from _compaction(record, entry, at)
    elif entry.kind == "rejection":
        record.refused[at] = entry.detail[0]
        record.rejected[at] = entry.detail
    elif entry.kind == "restore":
        record.restores.append(at)
    elif entry.kind in CHANGES:
        try:
            record.changes[at] = change_of(entry)
        except EntryDamaged as error:
            yield Finding("change", f"entry {at}", str(error))
    if columns != named:
        yield _wrong(at, "its row names another block than its bytes")


def _verdicts(record: Record, entry: Entry, at: int) -> Iterator[Finding]:
    producer, count, before = entry.detail[0], entry.detail[2], -1
    if not 0 < count <= BLOCK_EVENTS_MAX:
        words = f"{count} events, expected 1 to {BLOCK_EVENTS_MAX}"
        yield Finding("block", f"entry {at}", words)
        return
    uncounted = kept = 0
    for run in entry.verdicts:
        if not before < run.first <= run.last < count:
            yield Finding("block", f"entry {at}", "verdicts out of order or bounds")
            return
        before = run.last
        length = run.last - run.first + 1
        uncounted += length if run.verdict in UNCOUNTED else 0
        kept += length if is_kept(run.verdict, run.reason) else 0
    fresh = list(free_stretches(entry))
    record.counted[at] = count - uncounted
    record.fresh[at] = sum(last - first + 1 for first, last in fresh)
    record.fresh_marks[at] = sum(stretch_mark(producer, *one) for one in fresh) % MARKS
    record.refused[at] = kept
    if uncounted:
        record.odd[at] = entry


def _seal(record: Record, entry: Entry, at: int) -> Iterator[Finding]:
    name, _, _, first, last = entry.detail
    if first != record.sealed + 1:
        words = f"seals from {first}, expected {record.sealed + 1}"
        yield Finding("segment", f"entry {at}", words)
    record.sealed = last
    record.segments[name] = entry.detail
    record.levels[name] = 0


def _compaction(record: Record, entry: Entry, at: int) -> Iterator[Finding]:
    where = f"entry {at}"
    inputs, outputs = entry.detail
    level = 0
    for one in inputs:
        level = max(level, record.levels.pop(one[0], 0))
        if record.segments.pop(one[0], None) != one:
            yield Finding("segment", where, f"merges {one[0]}, which was not there like this")
        record.replaced.add(one[0])
    before, after = (sum(one[2] for one in some) for some in (inputs, outputs))
    if before != after:
        yield Finding("segment", where, f"made {after} rows of {before}")
    record.segments |= {one[0]: one for one in outputs}
    record.levels |= {one[0]: level + 1 for one in outputs}
    record.compacted = at


def _block(entry: Entry, at: int, data: bytes | None, needed: bool) -> Iterator[Finding]:
    where = f"entry {at}"
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
