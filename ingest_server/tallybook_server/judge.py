"""
The judge: what becomes of each event of a block, decided once, inside the transaction
that stores the block.

The rules, and what each prevents (docs/explanation/counting-once.md):

- Exactly this block is there: it is a duplicate, and the stored verdicts are the answer.
- Sequences that are held are compared one by one. Never a high-water mark: with two
  senders, a late block that lies below a later one would be dropped as a duplicate.
  Equal is a duplicate, other content is a conflict and is kept as evidence, and what is
  not held yet counts.
- A key or id that is taken by the same content is a duplicate, by other content a
  conflict. Only an event that is accepted takes one: were a rejected event to take its
  key, the corrected event would be lost.
- An event from the future by a host's wrong clock counts, and what its host's clock was
  ahead is taken off. Losing usage over a wrong clock is worse than a corrected time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final, Literal, NamedTuple

import msgspec

from tallybook.block import BlockHeader, Columns, read_header, read_payload
from tallybook.errors import FrameDamaged, InvariantBroken
from tallybook.event import Event
from tallybook.frame import read_series
from tallybook.limits import FUTURE_SECONDS_MAX
from tallybook.wire import Exceptions, Receipt
from tallybook_server.content import event_digest, event_json, identities_of
from tallybook_server.entry import Entry, Verdict, VerdictRun
from tallybook_server.intake import OfferedBlock, OfferedRejection
from tallybook_server.journal import Held, Identity, Journal, RejectionRow
from tallybook_server.tail import Stored

__all__ = ["Judge", "Judged", "exceptions_of", "rejected_digest"]

SealedEvents = Callable[[int, Sequence[int]], Mapping[int, Event]]
"""Given an entry and places in it: the sealed events there, their times as corrected."""

VERDICT_NAMES: Final[dict[Verdict, Literal["duplicate", "conflict", "rejected", "flagged"]]] = {
    Verdict.DUPLICATE: "duplicate",
    Verdict.CONFLICT: "conflict",
    Verdict.REJECTED: "rejected",
    Verdict.FLAGGED: "flagged",
}


@dataclass(frozen=True, slots=True)
class Judged:
    """
    What became of a block.

    Attributes:
        receipt: For its sender.
        stored: For the tail; None where no entry was made.
        fresh: How many sequences are held now that were not before.
        runs: Its exceptions.
        known: Where evidence of a conflict lies that was not stored again, by index.
    """

    receipt: Receipt
    stored: Stored | None
    fresh: int
    runs: list[VerdictRun]
    known: Mapping[int, int]


class _Ruling(NamedTuple):
    """A verdict on one event."""

    verdict: Verdict
    reason: str
    reference: int
    detail: str = ""


class Judge:
    """Stores blocks and rejections in a journal's open transaction."""

    def __init__(self, journal: Journal, sealed_events: SealedEvents) -> None:
        self._journal = journal
        self._sealed_events = sealed_events

    # -- blocks ----------------------------------------------------------------------------

    def store(self, block: OfferedBlock, *, now: int, clock_ahead: int) -> Judged:
        """
        Decide *block* and store what is new.

        Args:
            block: Whole and readable.
            now: Microseconds since 1970 UTC, when it was received.
            clock_ahead: How far its host's clock is ahead, in microseconds; 0 if unknown.

        Raises:
            InvariantBroken: What must be held cannot be found.
            sqlite3.Error: The journal refused.
        """
        header = block.header
        held = self._journal.held(header.producer, header.first, header.last)
        if held:
            position = self._journal.block_position(header.producer, header.first, header.sha256)
            if position is not None:
                return self._again(header, position)
        rulings, known = self._rule(block, held, now, clock_ahead)
        if not self._is_news(block, held, rulings, known):
            return self._nothing_new(header, rulings, known)
        return self._store(block, held, rulings, now)

    def _again(self, header: BlockHeader, position: int) -> Judged:
        entry, chain = self._journal.entry_and_chain(position)
        receipt = _receipt(header, "duplicate", position, chain, entry.verdicts)
        return Judged(receipt, None, 0, entry.verdicts, {})

    def _is_news(
        self,
        block: OfferedBlock,
        held: list[Held],
        rulings: dict[int, _Ruling],
        known: dict[int, int],
    ) -> bool:
        """Whether anything would be different with an entry for this block."""
        if len(rulings) < block.header.count:
            return True
        if any(ruling.verdict is not Verdict.DUPLICATE for ruling in rulings.values()):
            if any(
                ruling.verdict is not Verdict.DUPLICATE and index not in known
                for index, ruling in rulings.items()
            ):
                return True
        # The sequences of a door are nobody's: no producer waits for them to be held.
        return not block.door and _length(held, block.header) < block.header.count

    def _nothing_new(
        self, header: BlockHeader, rulings: dict[int, _Ruling], known: dict[int, int]
    ) -> Judged:
        runs = _runs(rulings)
        position = max(run.reference for run in runs)
        _, chain = self._journal.entry_and_chain(position)
        receipt = _receipt(header, "duplicate", position, chain, runs)
        return Judged(receipt, None, 0, runs, known)

    def _store(
        self, block: OfferedBlock, held: list[Held], rulings: dict[int, _Ruling], now: int
    ) -> Judged:
        header, journal = block.header, self._journal
        runs = _runs(rulings)
        head = journal.add_entry(
            "block",
            [header.producer, header.first, header.count, header.sha256, block.columns.source],
            recorded_at=now,
            verdicts=runs,
            block=(header.producer, header.first, header.sha256),
        )
        journal.add_block(head.position, block.data)
        fresh = 0
        for first, last in _free(held, header):
            journal.hold(header.producer, first, last, head.position)
            fresh += last - first + 1
        if rulings:
            journal.add_rejections(_evidence(block, held, rulings, head.position))
        stored = Stored(
            head.position,
            block.columns,
            block.users,
            block.tagsets,
            block.times,
            runs,
            block.unfit,
        )
        receipt = _receipt(header, "stored", head.position, head.chain, runs)
        return Judged(receipt, stored, fresh, runs, {})

    # -- the rules -------------------------------------------------------------------------

    def _rule(
        self, block: OfferedBlock, held: list[Held], now: int, clock_ahead: int
    ) -> tuple[dict[int, _Ruling], dict[int, int]]:
        """A ruling for each event that does not simply count, by index."""
        rulings: dict[int, _Ruling] = {}
        known: dict[int, int] = {}
        columns = block.columns
        if held:
            self._rule_sequences(block, held, rulings)
        for index, fault in block.faults.items():
            rulings.setdefault(index, _Ruling(Verdict.REJECTED, fault.reason, 0, fault.detail))
        if columns.keys or columns.ids:
            self._rule_identities(block, rulings, known)
        latest = now + FUTURE_SECONDS_MAX * 1_000_000
        if block.latest > latest:
            flagged = _Ruling(Verdict.FLAGGED, "clock", clock_ahead)
            for index, time in enumerate(block.times):
                if time > latest:
                    rulings.setdefault(index, flagged)
        return rulings, known

    def _rule_sequences(
        self, block: OfferedBlock, held: list[Held], rulings: dict[int, _Ruling]
    ) -> None:
        header, reader = block.header, _reader(block)
        for stretch in held:
            first, last = max(stretch.first, header.first), min(stretch.last, header.last)
            digests = self._held_digests(stretch.position, first, last)
            for sequence in range(first, last + 1):
                index = sequence - header.first
                if reader.digest(index) == digests[sequence]:
                    rulings[index] = _Ruling(Verdict.DUPLICATE, "sequence", stretch.position)
                else:
                    rulings[index] = _Ruling(
                        Verdict.CONFLICT,
                        "sequence",
                        stretch.position,
                        f"sequence {sequence} holds another event: was the disk cloned?",
                    )

    def _held_digests(self, position: int, first: int, last: int) -> dict[int, bytes]:
        """What entry *position* holds at the sequences *first* to *last*."""
        entry = self._journal.entry(position)
        begin = _first_of(entry)
        indices = range(first - begin, last - begin + 1)
        data = self._journal.block(position)
        if data is not None:
            reader = _EventReader(read_payload(data, read_header(data)))
            return {begin + index: reader.digest(index) for index in indices}
        digests: dict[int, bytes] = {}
        for index in indices:
            rejected = self._journal.rejection(position, index)
            if rejected is not None:
                digests[begin + index] = rejected.digest
        counted = [index for index in indices if begin + index not in digests]
        corrections = _corrections(entry)
        for index, event in self._sealed_events(position, counted).items():
            claimed = msgspec.structs.replace(event, time=event.time + corrections.get(index, 0))
            digests[begin + index] = event_digest(claimed, entry.detail[4])
        if len(digests) != len(indices):
            raise InvariantBroken(
                f"entry {position} holds the sequences {first} to {last}, but only "
                f"{len(digests)} of their events can be found; run `tallybook verify`"
            )
        return digests

    def _rule_identities(
        self, block: OfferedBlock, rulings: dict[int, _Ruling], known: dict[int, int]
    ) -> None:
        columns, reader = block.columns, _reader(block)
        source = columns.source or ""
        position = self._journal.head.position + 1
        for index in sorted({index for index, _ in (*columns.keys, *columns.ids)}):
            if index in rulings:
                continue
            event = reader.event(index)
            if event is None:
                raise InvariantBroken(f"event {index} was accepted, but its series is unreadable")
            wanted = identities_of(event)
            taken = [
                (reason, identity, digest)
                for reason, scope, key, digest in wanted
                if (identity := self._journal.identity(source, scope, key)) is not None
            ]
            if taken:
                rulings[index] = ruling = _taken(taken)
                if block.door and ruling.verdict is Verdict.CONFLICT:
                    evidence = self._journal.rejection_of(
                        reader.digest(index), int(Verdict.CONFLICT)
                    )
                    if evidence is not None:
                        known[index] = evidence.position
                continue
            for _, scope, key, digest in wanted:
                self._journal.claim(source, scope, key, Identity(position, index, digest))

    # -- JSON that is no event -------------------------------------------------------------

    def reject(self, rejections: Sequence[OfferedRejection], *, now: int) -> dict[int, int]:
        """
        Keep what is not acceptable, each bytes once.

        Returns:
            Per place in the delivery, the entry that keeps it.
        """
        places: dict[int, int] = {}
        news: dict[bytes, list[OfferedRejection]] = {}
        for rejection in rejections:
            known = self._journal.rejection_of(rejection.digest, int(Verdict.REJECTED))
            if known is None:
                news.setdefault(rejection.digest, []).append(rejection)
            else:
                places[rejection.index] = known.position
        if not news:
            return places
        firsts = [same[0] for same in news.values()]
        detail = [len(firsts), rejected_digest(first.event.data for first in firsts)]
        head = self._journal.add_entry("rejection", detail, recorded_at=now)
        self._journal.add_rejections(
            RejectionRow.of(
                head.position,
                at,
                int(Verdict.REJECTED),
                first.event.reason,
                first.event.detail,
                first.event.data,
                first.digest,
            )
            for at, first in enumerate(firsts)
        )
        for same in news.values():
            places |= {rejection.index: head.position for rejection in same}
        return places


def rejected_digest(data: Iterable[bytes]) -> bytes:
    """SHA-256 over rejected bytes, each behind its length, so that none can move to the next."""
    digest = sha256()
    for one in data:
        digest.update(len(one).to_bytes(8, "little") + one)
    return digest.digest()


# -- sequences -----------------------------------------------------------------------------


def _length(held: Iterable[Held], header: BlockHeader) -> int:
    return sum(
        min(stretch.last, header.last) - max(stretch.first, header.first) + 1 for stretch in held
    )


def _free(held: Iterable[Held], header: BlockHeader) -> Iterable[tuple[int, int]]:
    """The stretches of the block that are not *held*."""
    first = header.first
    for stretch in held:
        if first < stretch.first:
            yield first, stretch.first - 1
        first = stretch.last + 1
    if first <= header.last:
        yield first, header.last


def _first_of(entry: Entry) -> int:
    if entry.kind != "block":
        raise InvariantBroken(f"entry {entry.position} holds sequences, but is no block")
    first: int = entry.detail[1]
    return first


def _corrections(entry: Entry) -> dict[int, int]:
    """What was taken off the times of an entry's events."""
    return {
        index: run.reference
        for run in entry.verdicts
        if run.verdict is Verdict.FLAGGED and run.reason == "clock"
        for index in range(run.first, run.last + 1)
    }


# -- identities ----------------------------------------------------------------------------


def _taken(taken: list[tuple[str, Identity, bytes]]) -> _Ruling:
    """The verdict on an event of which an identity is taken: a conflict, if it is one for any."""
    for reason, identity, digest in taken:
        if identity.digest != digest:
            detail = f"another event has this {reason}, and says something else"
            return _Ruling(Verdict.CONFLICT, reason, identity.position, detail)
    reason, identity, _ = taken[0]
    return _Ruling(Verdict.DUPLICATE, reason, identity.position)


# -- rulings -------------------------------------------------------------------------------


def _runs(rulings: dict[int, _Ruling]) -> list[VerdictRun]:
    runs: list[VerdictRun] = []
    for index in sorted(rulings):
        verdict, reason, reference, _ = rulings[index]
        same = (verdict, reason, reference)
        if runs and runs[-1].last == index - 1:
            before = runs[-1]
            if (before.verdict, before.reason, before.reference) == same:
                runs[-1] = VerdictRun(before.first, index, *same)
                continue
        runs.append(VerdictRun(index, index, *same))
    return runs


def _evidence(
    block: OfferedBlock, held: list[Held], rulings: dict[int, _Ruling], position: int
) -> Iterable[RejectionRow]:
    """The rows for events that are not counted."""
    reader = _reader(block)
    for index, ruling in sorted(rulings.items()):
        if ruling.verdict is Verdict.FLAGGED:
            continue
        duplicate = ruling.verdict is Verdict.DUPLICATE
        if duplicate and ruling.reason == "sequence":
            continue  # Its digest is that of the one that is held.
        yield RejectionRow.of(
            position,
            index,
            int(ruling.verdict),
            ruling.reason,
            ruling.detail,
            b"" if duplicate else reader.json(index),
            reader.digest(index),
        )


def exceptions_of(first: int, runs: Iterable[VerdictRun]) -> list[Exceptions]:
    """Runs of indices as runs of sequences; *first* is the sequence of index 0."""
    return [
        Exceptions(
            first + run.first,
            first + run.last,
            VERDICT_NAMES[run.verdict],
            run.reason,
            run.reference,
        )
        for run in runs
    ]


def _receipt(
    header: BlockHeader,
    status: Literal["stored", "duplicate"],
    position: int,
    chain: bytes,
    runs: Iterable[VerdictRun],
) -> Receipt:
    return Receipt(
        producer=header.producer.hex(),
        first=header.first,
        count=header.count,
        sha256=header.sha256.hex(),
        status=status,
        position=position,
        chain=chain.hex(),
        exceptions=exceptions_of(header.first, runs),
    )


# -- one event at a time -------------------------------------------------------------------


def _reader(block: OfferedBlock) -> _EventReader:
    return _EventReader(block.columns)


class _EventReader:
    """Single events of a block, unreadable series included. For exceptions, not the hot path."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._series: dict[int, tuple[str, str | None, dict[str, str]] | None] = {}

    @cached_property
    def _times(self) -> array[int]:
        return array("q", self._columns.absolute_times())

    @cached_property
    def _wides(self) -> dict[int, str]:
        return dict(self._columns.wides)

    @cached_property
    def _keys(self) -> dict[int, str]:
        return dict(self._columns.keys)

    @cached_property
    def _ids(self) -> dict[int, str]:
        return dict(self._columns.ids)

    @cached_property
    def _given(self) -> frozenset[int]:
        return frozenset(self._columns.given)

    def event(self, index: int) -> Event | None:
        """The event, or None: its series cannot be read."""
        columns = self._columns
        of = columns.of[index]
        if of not in self._series:
            try:
                self._series[of] = read_series(columns.series[of])
            except FrameDamaged:
                self._series[of] = None
        series = self._series[of]
        if series is None:
            return None
        mantissa = int(self._wides.get(index, columns.mantissas[index]))
        return Event(
            dimension=series[0],
            tenant=series[1],
            tags=series[2],
            value=(mantissa, columns.scales[index] if columns.scales else 0),
            time=self._times[index],
            key=self._keys.get(index),
            id=self._ids.get(index),
            given=index in self._given,
        )

    def digest(self, index: int) -> bytes:
        """SHA-256 of what the event says, or of its bytes where it cannot be read."""
        event = self.event(index)
        if event is not None:
            return event_digest(event, self._columns.source)
        return sha256(b"unreadable\0" + self._raw(index)).digest()

    def json(self, index: int) -> bytes:
        """The event as JSON; its series in hex where that cannot be read."""
        event = self.event(index)
        if event is not None:
            return event_json(event, self._columns.source)
        return self._raw(index)

    def _raw(self, index: int) -> bytes:
        columns = self._columns
        return msgspec.json.encode(
            {
                "series": columns.series[columns.of[index]].hex(),
                "mantissa": self._wides.get(index, str(columns.mantissas[index])),
                "scale": columns.scales[index] if columns.scales else 0,
                "time": self._times[index],
                "key": self._keys.get(index),
                "id": self._ids.get(index),
                "given": index in self._given,
                "source": columns.source,
            }
        )
