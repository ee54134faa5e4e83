"""
Checkpoints, and the groups of events whose roots are kept for them.

Everything but the roots is compared with the chain. A root is a hash over each of its
events with a key of its tenant's; to compute all of them costs ten times all the rest, so
here it is only seen that the kept ones are as they were written (`tallies`). Whoever
proves an event computes the root of its group, and compares it with the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate

import msgspec

from tallybook.event import format_time
from tallybook_server.branching import read_lineage
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding
from tallybook_server.limits import PROOF_GROUP_ENTRIES
from tallybook_server.lineage import Lineage
from tallybook_server.proof import Checkpoint
from tallybook_server.question import read_position
from tallybook_server.verify.pages import BEFORE_ALL, Read, pages
from tallybook_server.verify.record import Record

__all__ = ["check_statements"]


def check_statements(record: Record, read: Read) -> Iterator[Finding]:
    """What was stated, and the groups that were finished for it."""
    upto = list(accumulate(record.counted))  # By entry: the events that count up to it.
    yield from _groups(record, upto, read)
    lineage: Lineage = read(read_lineage)
    for rows, head in pages(read, Journal.checkpoint_page, _key, BEFORE_ALL):
        for position, document in rows:
            if not 0 < position <= head:
                yield _wrong(position, "there is no such entry")
            elif position <= record.position:
                should = read(partial(_expected, record, position, upto[position]))
                yield from _compared(position, document, should, lineage)


def _groups(record: Record, upto: list[int], read: Read) -> Iterator[Finding]:
    for rows, head in pages(read, Journal.proof_group_page, _key, BEFORE_ALL):
        for number, _, events in rows:
            first, last = number * PROOF_GROUP_ENTRIES, (number + 1) * PROOF_GROUP_ENTRIES
            where = f"group {number}"
            if number < 0 or last > head:
                yield Finding("proof", where, "its entries are not all there")
            elif last <= record.position and upto[last] - upto[first] != events:
                words = f"{upto[last] - upto[first]} events count in it, it says {events}"
                yield Finding("proof", where, words)


def _key(row: tuple[int, bytes] | tuple[int, bytes, int]) -> int:
    return row[0]


def _expected(record: Record, position: int, events: int, journal: Journal) -> Checkpoint:
    """The checkpoint of an entry, but for its root, and the incarnation of its position."""
    entry, chain = journal.entry_and_chain(position)
    return Checkpoint(
        format=1,
        ledger=record.ledger,
        position="",
        chain=chain.hex(),
        recorded_at=format_time(entry.recorded_at),
        groups=-(-position // PROOF_GROUP_ENTRIES),
        events=events,
        root="",
    )


def _compared(
    position: int, document: bytes, should: Checkpoint, lineage: Lineage
) -> Iterator[Finding]:
    try:
        said = msgspec.json.decode(document, type=Checkpoint)
    except msgspec.MsgspecError as error:
        yield _wrong(position, f"cannot be read: {error}")
        return
    named = read_position(said.position)
    if named is None or named.n != position or not lineage.holds(named):
        yield _wrong(position, f"it says position {said.position!r}, which is another")
    for name in Checkpoint.__struct_fields__:
        if name not in ("root", "position") and getattr(said, name) != getattr(should, name):
            words = f"it says {name} {getattr(said, name)!r}, expected {getattr(should, name)!r}"
            yield _wrong(position, words)


def _wrong(position: int, detail: str) -> Finding:
    return Finding("checkpoint", f"checkpoint {position}", detail)
