"""The stretches of sequences that are held, and the counts per producer."""

from __future__ import annotations

from collections.abc import Iterator

from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding
from tallybook_server.verify.pages import BEFORE_ALL, Read, pages
from tallybook_server.verify.progress import Progress, Report
from tallybook_server.verify.record import MARKS, Record, stretch_mark

__all__ = ["check_sequences"]

_Stretch = tuple[bytes, int, int, int]


def check_sequences(record: Record, read: Read, report: Report) -> Iterator[Finding]:
    """That what is held is what the blocks brought, once, and adds up per producer."""
    yield from _stretches(record, read, report)
    for rows, _ in pages(read, Journal.received_and_held, _number, BEFORE_ALL):
        for _, producer, received, held in rows:
            if received != held:
                detail = f"{received} received, but {held} held"
                yield Finding("sequence", f"producer {producer.hex()}", detail)


def _stretches(record: Record, read: Read, report: Report) -> Iterator[Finding]:
    remaining, marks = record.fresh[:], record.fresh_marks[:]
    done, total = 0, sum(remaining)
    producer, last_held = b"", 0
    for rows, head in pages(read, Journal.range_page, _stretch_key, (b"", BEFORE_ALL)):
        for name, first, last, position in rows:
            where = f"producer {name.hex()}"
            if name == producer and first <= last_held:
                yield Finding("sequence", where, f"sequence {first} is held twice")
            producer, last_held = name, last
            if not 0 < last - first + 1 <= BLOCK_EVENTS_MAX:
                yield Finding("sequence", where, f"{first} to {last} is more or less than a block")
            elif not 0 < position <= head:
                yield Finding("sequence", where, f"{first} is held by entry {position}: no such")
            elif position <= record.position:
                remaining[position] -= last - first + 1
                marks[position] = (marks[position] - stretch_mark(name, first, last)) % MARKS
                done += last - first + 1
        report(Progress("sequences", done, total, "events"))
    for entry, (left, marked) in enumerate(zip(remaining, marks, strict=True)):
        if left:
            detail = f"{left} more sequences than are held in its name"
            yield Finding("sequence", f"entry {entry}", detail)
        elif marked:
            detail = "other sequences are held in its name than it brought"
            yield Finding("sequence", f"entry {entry}", detail)


def _number(row: tuple[int, bytes, int, int]) -> int:
    return row[0]


def _stretch_key(row: _Stretch) -> tuple[bytes, int]:
    return row[:2]
