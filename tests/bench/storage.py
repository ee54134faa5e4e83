"""
storage: what an event weighs on the disk, before it is sealed and afterwards.

Unsealed is the journal's file. Sealed is the segment and what the journal keeps for ever of
a block whose bytes have left it: its place, its name, its producer and range, its verdicts,
and the chain; for an event with a key also the key. So what is weighed is all that it takes
to say of each event where it lies and who it is, and that is checked: the ledger is verified
as a whole, and events are read back and compared with what was sent, identity included.

An event that comes alone has a block of its own, and is dear. A thousand applications at one
event a second are rows of their own: on the way, by a real Meter, and in the ledger.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from tallybook.wire import Receipt
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Delivery
from tests.bench.data import Fact, Producer, Tags, announce, block_of, draw_facts
from tests.bench.record import scratch
from tests.bench.slow import record
from tests.bench.table import Goal, Row, Table, at_most

__all__ = ["run"]

_BEGIN: Final = 1_767_225_600_000_000
_IN_FLIGHT: Final = 256
_SAMPLES: Final = 20
_PRODUCERS: Final = 1_000
_UNSEALED: Final = at_most(25, "bytes/event")
_SEALED: Final = at_most(10, "bytes/event")


class Kind(NamedTuple):
    """
    Events of one kind.

    Attributes:
        name: What they are called in the table.
        tags: Which tags they have.
        per_block: How many are in a block.
        keyed: Whether each has a key of its own.
        goals: Whether the goals are about them.
    """

    name: str
    tags: Tags
    per_block: int
    keyed: bool = False
    goals: bool = False


_KINDS: Final = (
    Kind("2 tags, 1,000 a block", "drawn", 1_000, goals=True),
    Kind("2 tags, 2,000 a block", "drawn", 2_000, goals=True),
    Kind("5 tags that hardly repeat, 1,000 a block", "distinct", 1_000),
    Kind("2 tags and a key, 1,000 a block", "drawn", 1_000, keyed=True),
)


class Sent(NamedTuple):
    """A block, and what its receipt has to lead to."""

    producer: bytes
    block: bytes
    first: int
    facts: list[Fact]


class Weights(NamedTuple):
    """
    What a ledger weighs, in bytes per event.

    Attributes:
        unsealed: The journal, before anything is sealed.
        segment: The segments.
        journal: What the journal holds once everything is sealed.
        events: How many events there are.
        faults: What was found wrong.
    """

    unsealed: float
    segment: float
    journal: float
    events: int
    faults: list[str]


def weigh(blocks: Iterable[Sent], directory: Path) -> Weights:
    """Have *blocks* stored and sealed, and weigh both."""
    places: list[tuple[int, Sent]] = []
    EmbeddedLedger(directory).close()
    empty = _journal_bytes(directory)  # What it takes to be there at all is no event's.
    # Nothing is sealed on its own: first all of it is to be weighed as it comes.
    with closing(EmbeddedLedger(directory, seal_events=1 << 40, seal_bytes=1 << 40)) as ledger:
        for sent, position in _stored(ledger, blocks):
            places.append((position, sent))
    events = sum(len(sent.facts) for _, sent in places)
    unsealed = _journal_bytes(directory) - empty
    with closing(EmbeddedLedger(directory, threads=False)) as ledger:
        ledger.sealer.step(force=True)
        while ledger.compactor.step():
            pass
        segments = ledger.snapshots.current.segments
        faults = [f"{one.what} {one.where}: {one.detail}" for one in ledger.verify()]
        if sum(segment.rows for segment in segments) != events:
            faults.append("not everything is sealed")
        chance = random.Random(1)
        for position, sent in chance.sample(places, min(_SAMPLES, len(places))):
            faults += _read_back(ledger, position, sent)
    return Weights(
        unsealed / events,
        sum(segment.bytes for segment in segments) / events,
        (_journal_bytes(directory) - empty) / events,
        events,
        faults,
    )


def _stored(ledger: EmbeddedLedger, blocks: Iterable[Sent]) -> Iterator[tuple[Sent, int]]:
    """Each block and the position of its entry; many are on their way at the same time."""
    waiting = []
    for sent in blocks:
        delivery = Delivery(announce(sent.producer, [sent.block]), [sent.block])
        waiting.append((sent, ledger.append(delivery)))
        if len(waiting) < _IN_FLIGHT:
            continue
        yield from ((one, _position(done.result().receipts)) for one, done in waiting)
        waiting.clear()
    yield from ((one, _position(done.result().receipts)) for one, done in waiting)


def _position(receipts: list[Receipt]) -> int:
    (receipt,) = receipts
    if receipt.status != "stored" or receipt.exceptions or receipt.position is None:
        raise RuntimeError(f"not stored: {receipt}")
    return receipt.position


def _read_back(ledger: EmbeddedLedger, position: int, sent: Sent) -> list[str]:
    """What is wrong with the events of one block, as the ledger gives them back."""
    found = ledger.scan(after=(position, -1), limit=len(sent.facts))
    for index, (fact, one) in enumerate(zip(sent.facts, found, strict=True)):
        event = one.event
        place = (one.position, one.index, bytes.fromhex(one.producer), one.sequence)
        content = (event.dimension, event.tenant, event.value, event.time, dict(event.tags))
        wanted = (fact.dimension, fact.tenant, (fact.mantissa, fact.scale), fact.time, fact.tags)
        if place != (position, index, sent.producer, sent.first + index) or content != wanted:
            return [f"event {index} of entry {position} is not the one that was sent"]
    return []


def _journal_bytes(directory: Path) -> int:
    """The pages of the journal's file that hold something."""
    with closing(sqlite3.connect(directory / "journal.db")) as connection:
        pages, free, size = (
            connection.execute(f"pragma {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


# -- the blocks ----------------------------------------------------------------------------


def _blocks(kind: Kind, events: int) -> Iterator[Sent]:
    """Blocks of one busy producer."""
    producer = Producer(1)
    for at in range(0, events, kind.per_block):
        facts = draw_facts(kind.per_block, tags=kind.tags, seed=at, begin=_BEGIN + at * 1_000)
        block = producer.stamp(block_of(facts, keyed=kind.keyed))
        yield Sent(producer.id, block, at + 1, facts)


def _single_blocks(seconds: int) -> Iterator[Sent]:
    """Blocks of one event, a second apart, of each of a thousand producers."""
    producers = [Producer(number) for number in range(_PRODUCERS)]
    for second in range(seconds):
        drawn = draw_facts(_PRODUCERS, tags="drawn", seed=second, begin=_BEGIN + second * 1_000_000)
        for producer, fact in zip(producers, drawn, strict=True):
            block = producer.stamp(block_of([fact]))
            yield Sent(producer.id, block, second + 1, [fact])


# -- the benchmark -------------------------------------------------------------------------


def run(*, quick: bool) -> Table:
    """Measure; about three minutes, *quick*: half a minute."""
    events, seconds, slow_events = (50_000, 10, 600) if quick else (1_000_000, 300, 3_600)
    rows: list[Row] = []
    for kind in _KINDS:
        with scratch() as directory:
            weights = weigh(_blocks(kind, events), directory / "book")
        goals = (_UNSEALED, _SEALED) if kind.goals else (None, None)
        rows += _rows(kind.name, weights, *goals)
    rows += _slow(slow_events)
    with scratch() as directory:
        weights = weigh(_single_blocks(seconds), directory / "book")
    rows += _rows("1,000 producers at 1 event/s", weights, None, None)
    return Table("storage", "bytes per event on the disk, with position and identity", rows)


def _rows(name: str, weights: Weights, unsealed: Goal | None, sealed: Goal | None) -> list[Row]:
    found = "; ".join(weights.faults[:3]) or f"verified, {_SAMPLES} blocks read back"
    checked, correct = f"{weights.events:,} events: {found}", not weights.faults
    unit = "bytes/event"
    return [
        Row(f"unsealed: {name}", weights.unsealed, unit, "", unsealed, 1, checked, correct),
        Row(
            f"sealed: {name}",
            weights.segment + weights.journal,
            unit,
            f"segment {weights.segment:.2f} and journal {weights.journal:.2f}",
            sealed,
            1,
            checked,
            correct,
            {"segment": weights.segment, "journal": weights.journal},
        ),
    ]


def _slow(events: int) -> list[Row]:
    """A producer of one event a second beside a busy one."""
    facts = draw_facts(events, tags="drawn")
    many = draw_facts(50_000, tags="drawn", seed=2)
    with scratch() as directory:
        slow = record(facts, directory / "slow", seconds_between=1.0)
        busy = record(many, directory / "busy", seconds_between=0.0)
    missing = slow.missing + busy.missing
    checked = f"{len(facts):,} and {len(many):,} events sent, {missing} missing"
    return [
        Row(
            f"{where} at 1 event/s: {alone:,.0f} bytes/event",
            alone / beside,
            "x",
            f"flat out, {beside:.1f} bytes/event",
            at_most(3.0),
            1,
            checked,
            missing == 0,
        )
        for where, alone, beside in (
            ("wire", slow.wire, busy.wire),
            ("queue", slow.queue, busy.queue),
        )
    ]
