"""
What the entries of the journal say, kept small: numbers per entry, and whatever is rare.

`entries` fills it, reading the chain from its beginning; what comes afterwards is compared
with it, whatever it is about.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, Final

from tallybook_server.change import Change
from tallybook_server.entry import Entry, Verdict
from tallybook_server.tail import UNCOUNTED

__all__ = ["MARKS", "Record", "free_stretches", "is_kept", "stretch_mark"]

MARKS: Final = 1 << 64
"""Sums of marks are taken modulo this."""


class Record:
    """
    What the entries up to one position say.

    Attributes:
        position: The last entry.
        counted: Per entry, how many of its events count.
        fresh: Per entry, how many sequences it was the first to hold.
        fresh_marks: Per entry, the sum of the marks of the stretches of them.
        refused: Per entry, how many events are kept as rejections.
        odd: The blocks with events that do not count, by position.
        chain: The chain's head behind the last entry.
        segments: What seals and compactions have left, as their entries say it, by name.
        levels: How often the oldest rows of each of them were written anew.
        replaced: The names of those that were merged.
        sealed: The last entry that a seal covers.
        compacted: The position of the last compaction.
        rejected: The details of the entries that only reject.
        changes: Corrections and declarations, by position.
        restores: Where branches begin.
        ledger: The ledger's id.
    """

    def __init__(self, position: int) -> None:
        size = position + 1
        self.position = position
        self.counted = array("i", bytes(4 * size))
        self.fresh = array("i", bytes(4 * size))
        self.fresh_marks = array("Q", bytes(8 * size))
        self.refused = array("i", bytes(4 * size))
        self.odd: dict[int, Entry] = {}
        self.chain = b""
        self.segments: dict[str, list[Any]] = {}
        self.levels: dict[str, int] = {}
        self.replaced: set[str] = set()
        self.sealed = 0
        self.compacted = 0
        self.rejected: dict[int, list[Any]] = {}
        self.changes: dict[int, Change] = {}
        self.restores: list[int] = []
        self.ledger = ""

    @property
    def seed(self) -> int:
        """Of the marks of indices: no other ledger has it, nor had this one before its head."""
        return int.from_bytes(self.chain[:8], "little")

    def size(self, entry: int) -> int:
        """How many events the block of an entry has."""
        odd = self.odd.get(entry)
        return int(odd.detail[2]) if odd is not None else self.counted[entry]


def is_kept(verdict: Verdict, reason: str) -> bool:
    """Whether an event with this verdict is kept as a rejection."""
    if verdict is Verdict.DUPLICATE and reason == "sequence":
        return False  # Its digest is that of the one that is held.
    return verdict in UNCOUNTED


def free_stretches(entry: Entry) -> Iterator[tuple[int, int]]:
    """The sequences of a block that nothing held before it, as stretches [first, last]."""
    first, count = entry.detail[1], entry.detail[2]
    free = 0
    for run in entry.verdicts:
        if run.reason != "sequence":
            continue
        if free < run.first:
            yield first + free, first + run.first - 1
        free = run.last + 1
    if free < count:
        yield first + free, first + count - 1


def stretch_mark(producer: bytes, first: int, last: int) -> int:
    """The mark of a stretch of sequences: within this process, a hash of 64 bits."""
    return hash((producer, first, last)) % MARKS
