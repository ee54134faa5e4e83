"""
Producers: what each has said, what of it is here, and what that says about an answer.

An announcement is no entry: it changes no answer's rows, only whether the answer is
known to be complete. What is received is counted when it is stored, never by reading
all ranges, so that ten thousand producers cost an answer four small queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tallybook.wire import Announcement
from tallybook_server.journal import Journal, ProducerRow
from tallybook_server.ledger import ProducerReport
from tallybook_server.limits import GAPS_MAX, SILENT_NAMED_MAX

__all__ = [
    "APPLICATION",
    "DERIVED",
    "DOOR",
    "Completeness",
    "Receivings",
    "completeness",
    "reports",
]

APPLICATION: Final = 0
DERIVED: Final = 1
"""Another producer's conflicting events, come again under a name made from their block."""
DOOR: Final = 2
"""The ledger itself, for events that came as JSON."""


@dataclass(slots=True)
class _Receiving:
    kind: int
    source: str | None
    fresh: int
    highest: int


class Receivings:
    """What one commit brings of each producer, and what producers announce in it."""

    def __init__(self) -> None:
        self._received: dict[bytes, _Receiving] = {}
        self._announced: list[tuple[Announcement, int]] = []
        self._parents: dict[bytes, bytes] = {}

    def receive(
        self, producer: bytes, kind: int, source: str | None, *, fresh: int, last: int
    ) -> None:
        """Note a block: *fresh* sequences that were not held, none beyond *last*."""
        so_far = self._received.setdefault(producer, _Receiving(kind, source, 0, 0))
        so_far.fresh += fresh
        if fresh:
            so_far.highest = max(so_far.highest, last)

    def descend(self, producer: bytes, parent: bytes) -> None:
        """Note whose conflicting events come again under *producer*."""
        self._parents[producer] = parent

    def announce(self, announcement: Announcement, received_at: int) -> None:
        """Note an announcement and when it came."""
        self._announced.append((announcement, received_at))

    def write(self, journal: Journal, now: int) -> None:
        """Bring the table of producers up to date, in the open transaction."""
        rows: dict[bytes, ProducerRow] = {}
        for producer, received in self._received.items():
            row = journal.producer(producer) or _new(producer, received.kind, received.source, now)
            rows[producer] = row._replace(
                last_seen=max(row.last_seen, now),
                highest=max(row.highest, received.highest),
                received=row.received + received.fresh,
                reissue_of=row.reissue_of or self._parents.get(producer),
            )
        for announcement, received_at in self._announced:
            producer = announcement.producer
            known = rows.get(producer) or journal.producer(producer)
            known = known or _new(producer, APPLICATION, announcement.source, received_at)
            rows[producer] = _announced(known, announcement, received_at)
        for row in rows.values():
            journal.put_producer(_completed(row))


def _new(producer: bytes, kind: int, source: str | None, now: int) -> ProducerRow:
    return ProducerRow(
        producer=producer,
        kind=kind,
        source=source,
        first_seen=now,
        last_seen=now,
        sent_at=-(2**63),
        recorded=0,
        dropped=0,
        highest=0,
        received=0,
        closed=False,
        claimed=None,
        through=None,
        reissue_of=None,
    )


def _announced(row: ProducerRow, announcement: Announcement, received_at: int) -> ProducerRow:
    # Counts never fall, so of announcements that overtook each other the highest holds.
    row = row._replace(
        source=announcement.source or row.source,
        last_seen=max(row.last_seen, received_at),
        recorded=max(row.recorded, announcement.recorded),
        dropped=max(row.dropped, announcement.dropped),
        highest=max(row.highest, announcement.highest),
        closed=row.closed or announcement.closed,
    )
    if announcement.sent_at <= row.sent_at:
        # An old one that was held up on the way: by now its host's clock would be taken
        # for slow by the time it was held up, and the claim would reach too far.
        return row
    through = announcement.through + received_at - announcement.sent_at
    claimed = through if row.claimed is None else max(row.claimed, through)
    return row._replace(sent_at=announcement.sent_at, claimed=claimed)


def _completed(row: ProducerRow) -> ProducerRow:
    """What was claimed holds as soon as nothing up to the highest sequence is missing."""
    if row.received > row.highest or row.claimed is None or row.received < row.highest:
        return row
    return row._replace(through=row.claimed)


# -- out -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completeness:
    """
    What is known to be missing. See `Usage`.

    Attributes:
        complete: Nothing.
        through: By the server's clock, everything recorded before is in; None: nobody
            records, or one that does has never yet been complete.
        counts: open, closed, silent, written_off, missing, dropped; ``silent_producers``: the
            first of them by name.
    """

    complete: bool
    through: int | None
    counts: dict[str, int | list[str]]


def completeness(journal: Journal, now: int, silent_seconds: int) -> Completeness:
    """What is known to be missing, by *now*, in microseconds since 1970 UTC."""
    since = now - silent_seconds * 1_000_000
    live = "WHERE kind = 0 AND closed = 0"
    living = journal.count("producers", live)
    silent = journal.count("producers", f"{live} AND last_seen < ?", (since,))
    # Rows are numbered from 1 and never removed; only applications' producers can be missed.
    all_of_them = journal.count("producers", "WHERE kind = 0")
    missing = journal.value(
        "SELECT sum(highest - received) FROM producers WHERE kind = 0 AND highest > received"
    )
    lost = journal.count("producers", "WHERE kind = 0 AND highest > received AND closed = 1")
    dropped = journal.value("SELECT sum(dropped) FROM producers WHERE kind = 0 AND dropped > 0")
    unknown = journal.count("producers", f"{live} AND through IS NULL")
    through = journal.value(f"SELECT min(through) FROM producers {live}")
    named = journal.producers(
        f"{live} AND last_seen < ? ORDER BY last_seen LIMIT {SILENT_NAMED_MAX}", (since,)
    )
    counts: dict[str, int | list[str]] = {
        "open": living - silent,
        "closed": all_of_them - living,
        "silent": silent,
        "written_off": 0,
        "missing": missing or 0,
        "dropped": dropped or 0,
        "silent_producers": [row.producer.hex() for row in named],
    }
    complete = not silent and not lost and not dropped
    return Completeness(complete, None if unknown else through, counts)


def reports(journal: Journal, now: int, silent_seconds: int) -> list[ProducerReport]:
    """Every producer but the ledger's own, the last seen first."""
    since = now - silent_seconds * 1_000_000
    rows = list(journal.producers("WHERE kind <> 2 ORDER BY last_seen DESC, number DESC"))
    return [_report(journal, row, since) for row in rows]


def _report(journal: Journal, row: ProducerRow, silent_before: int) -> ProducerReport:
    missing = row.highest - row.received if row.kind == APPLICATION else 0
    return ProducerReport(
        producer=row.producer.hex(),
        source=row.source,
        state=_state(row, silent_before),
        recorded=row.recorded,
        received=row.received,
        highest=row.highest,
        dropped=row.dropped,
        missing=missing,
        gaps=_gaps(journal, row) if missing else [],
        through=row.through,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        reissue_of=None if row.reissue_of is None else row.reissue_of.hex(),
    )


def _state(row: ProducerRow, silent_before: int) -> Literal["open", "closed", "silent"]:
    # A derived producer never speaks for itself: what it brings is said by its parent.
    if row.closed or row.kind == DERIVED:
        return "closed"
    return "silent" if row.last_seen < silent_before else "open"


def _gaps(journal: Journal, row: ProducerRow) -> list[tuple[int, int]]:
    gaps: list[tuple[int, int]] = []
    expected = 1
    for _, first, last, _ in journal.ranges(row.producer):
        if first > expected:
            gaps.append((expected, first - 1))
            if len(gaps) == GAPS_MAX:
                return gaps
        expected = last + 1
    if expected <= row.highest:
        gaps.append((expected, row.highest))
    return gaps
