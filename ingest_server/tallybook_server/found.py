"""
One event by its name, with everything that the ledger knows of it.

A name is an identity, producer and sequence, or a place. Of an identity there may be
several places: a clone of a disk sends the same sequences again, in blocks that are cut
elsewhere. The place that holds the sequence is the answer, and the others are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from tallybook.errors import InvariantBroken
from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.candidates import Read
from tallybook_server.entry import CHAIN_START, Entry, Verdict, VerdictRun, read_entry
from tallybook_server.event_filter import EventId, Place
from tallybook_server.journal import Journal, RejectionRow
from tallybook_server.ledger import FoundEvent, FoundVerdict
from tallybook_server.limits import OTHER_PLACES_MAX
from tallybook_server.rows import row_at
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.tail import UNCOUNTED

__all__ = ["find"]

_NAMES: Final[dict[Verdict, FoundVerdict]] = {
    Verdict.DUPLICATE: "duplicate",
    Verdict.CONFLICT: "conflict",
    Verdict.REJECTED: "rejected",
    Verdict.FLAGGED: "flagged",
}
_SIMPLY: Final = VerdictRun(0, 0, Verdict.FLAGGED, "", 0)


class _Record(NamedTuple):
    """What the journal says of an event: the place, its entry, and the evidence against it."""

    place: Place
    entry: Entry
    data: bytes
    chain_before: bytes
    chain: bytes
    rejection: RejectionRow | None
    others: tuple[Place, ...]


def find(
    tables: Tables, directory: Path, snapshot: Snapshot, read: Read, name: EventId | Place
) -> FoundEvent | None:
    """
    The event of this name, as of *snapshot*; None: there is none.

    Args:
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        snapshot: Held by the caller.
        read: Asks the journal.
        name: Which event.
    """
    record: _Record | None = read(lambda journal: _record(journal, name, snapshot.position))
    return None if record is None else _found(tables, directory, snapshot, record)


def _found(tables: Tables, directory: Path, snapshot: Snapshot, record: _Record) -> FoundEvent:
    place, entry, rejection = record.place, record.entry, record.rejection
    is_block = entry.kind == "block"
    run = entry.verdict_at(place.at) or _SIMPLY
    verdict: FoundVerdict = "counted" if run is _SIMPLY else _NAMES[run.verdict]
    event, segment, void = None, None, None
    if is_block and run.verdict not in UNCOUNTED:
        row = row_at(tables, directory, snapshot, place)
        if row is None:
            raise InvariantBroken(f"event {place} counts, but is nowhere; run `tallybook verify`")
        event, segment = row[0].event, row[1]
        void = snapshot.corrections.void_of(*place, snapshot.position)
    return FoundEvent(
        position=place.position,
        index=place.at,
        producer=entry.detail[0].hex() if is_block else None,
        sequence=entry.detail[1] + place.at if is_block else None,
        recorded_at=entry.recorded_at,
        source=entry.detail[4] if is_block else None,
        verdict=verdict if is_block else "rejected",
        reason=run.reason if rejection is None else rejection.reason,
        reference=run.reference,
        detail="" if rejection is None else rejection.detail,
        event=event,
        data=None if rejection is None or verdict == "duplicate" else rejection.data,
        segment=segment,
        void=void,
        others=record.others,
        entry=record.data,
        chain_before=record.chain_before,
        chain=record.chain,
    )


# -- the journal ---------------------------------------------------------------------------


def _record(journal: Journal, name: EventId | Place, head: int) -> _Record | None:
    places = [name] if isinstance(name, Place) else _places(journal, name, head)
    if not places or not 1 <= places[0].position <= head:
        return None
    place, *others = places
    page = journal.entry_page(max(place.position - 2, 0), 2)
    position, data, chain, _ = page[-1] if place.position > 1 else page[0]
    entry = read_entry(data)
    if position != place.position or place.at >= _events_of(entry):
        return None
    return _Record(
        place=place,
        entry=entry,
        data=data,
        chain_before=page[0][2] if place.position > 1 else CHAIN_START,
        chain=chain,
        rejection=journal.rejection(*place),
        others=tuple(others),
    )


def _events_of(entry: Entry) -> int:
    """How many events an entry decided on."""
    if entry.kind == "block":
        return int(entry.detail[2])
    return int(entry.detail[0]) if entry.kind == "rejection" else 0


def _places(journal: Journal, name: EventId, head: int) -> list[Place]:
    """Every place of an identity; first the one that holds it."""
    producer, sequence = bytes.fromhex(name.producer), name.sequence
    held = journal.held(producer, sequence, sequence)
    if not held or held[0].position > head:
        return []
    holder = held[0].position
    # A block has no more events than this, so none that begins before has the sequence.
    begins = max(1, sequence - BLOCK_EVENTS_MAX + 1)
    found: list[Place] = []
    for position in journal.blocks_from(producer, begins, sequence):
        first, count = journal.entry(position).detail[1:3]
        if position <= head and sequence < first + count:
            found.append(Place(position, sequence - first))
    found.sort(key=lambda place: (place.position != holder, place))
    return found[: OTHER_PLACES_MAX + 1]
