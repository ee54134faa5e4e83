"""What lies in the directory and belongs to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tallybook_server.book import Book
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding
from tallybook_server.segment import SegmentName, read_name
from tallybook_server.snapshot import Snapshot
from tallybook_server.verify.pages import Read
from tallybook_server.verify.record import Record

__all__ = ["check_files"]


def check_files(record: Record, snapshot: Snapshot, book: Book, read: Read) -> Iterator[Finding]:
    """Files that nothing reads."""
    entered = read(Journal.segments)
    known = {segment.name for segment in (*snapshot.segments, *entered)}
    unknown = list(book.unknown_files(known))
    # The head after the look, and not the snapshot's: a seal may have begun since then.
    head = read(_head)
    for name in unknown:
        named = read_name(Path(name).name)
        if named is None or not _passes(record, named, Path(name).name, head):
            yield Finding("file", name, "belongs to nobody; nothing reads it")


def _head(journal: Journal) -> int:
    return journal.head.position


def _passes(record: Record, named: SegmentName, name: str, head: int) -> bool:
    """
    Whether a file is on its way into the manifest or out of it.

    Begun since the last seal or compaction that was looked at; or what a compaction has
    replaced, and a query may still hold. A crash may have ended its way, and the next
    start removes it.
    """
    if named.last > head:
        return False
    if named.begun:
        recent = record.compacted <= named.begun <= head
    else:
        recent = named.first > record.sealed
    return recent or name in record.replaced
