"""
Random deliveries, restarts, seals and compactions, against a model that is a few dictionaries.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from decimal import Decimal, localcontext
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallybook.block import derived_producer, read_header
from tallybook.event import Event, format_value
from tallybook_server.compaction import Policy
from tallybook_server.ledger import UsageQuery
from tests.ingest_server.ledger.conftest import START, Desk, block, event

HOUR = 3_600_000_000
BEGIN, END = START - 40 * HOUR, START

# Few of everything, so that sequences, keys and contents meet often.
EVENTS = st.builds(
    event,
    st.sampled_from([0, 1, "0.5", "0.000000001", 2**63, 10**38 - 1]),
    dimension=st.sampled_from(["a", "b"]),
    tenant=st.sampled_from([None, "t", "u", "x" * 256]),
    time=st.sampled_from([BEGIN, START - 25 * HOUR, START - 1]),
    tags=st.dictionaries(st.sampled_from(["k", "K", "z"]), st.sampled_from(["", "v"]), max_size=2),
    key=st.sampled_from([None, None, None, "key1", "key2"]),
    id=st.sampled_from([None, None, None, "id1"]),
    given=st.booleans(),
)
BLOCKS = st.tuples(
    st.sampled_from([b"\x01" * 16, b"\x02" * 16]),
    st.integers(1, 12),
    st.lists(EVENTS, min_size=1, max_size=6),
)
STEPS = st.lists(
    st.one_of(
        st.lists(BLOCKS, min_size=1, max_size=3),
        st.lists(EVENTS, min_size=1, max_size=4),
        st.sampled_from(["seal", "compact", "restart", "crash", "again", "fail", "fail durably"]),
    ),
    max_size=12,
)


class Model:
    """What a ledger is, without any of what makes it fast."""

    def __init__(self) -> None:
        self.held: dict[tuple[bytes, int], Event] = {}
        self.taken: dict[tuple[str, str], object] = {}
        self.counted: list[Event] = []

    def block(self, producer: bytes, first: int, events: list[Event]) -> None:
        """Each event by itself, in order."""
        for at, one in enumerate(events):
            if (producer, first + at) not in self.held:
                self.held[producer, first + at] = one
                self.one(one)

    def one(self, one: Event) -> None:
        """An event that is under no sequence yet."""
        if one.tenant is not None and len(one.tenant) > 255:
            return
        time = one.time if one.given else None
        said = (one.dimension, one.tenant, one.value, tuple(sorted(one.tags.items())), time)
        wanted = [
            *([("", one.id)] if one.id else []),
            *([(one.dimension, one.key)] if one.key else []),
        ]
        if any(identity in self.taken for identity in wanted):
            return
        self.taken |= dict.fromkeys(wanted, said)
        self.counted.append(one)

    def sums(self, dimension: str, tag: str) -> dict[tuple[int, str | None, str | None], Decimal]:
        """Exact totals per day, tenant and tag."""
        totals: defaultdict[tuple[int, str | None, str | None], Decimal] = defaultdict(Decimal)
        for one in self.counted:
            if one.dimension == dimension:
                day = one.time // (24 * HOUR)
                totals[day, one.tenant, one.tags.get(tag)] += Decimal(format_value(*one.value))
        return totals


def check(desk: Desk, model: Model) -> None:
    """Every total, in every slice, and every event."""
    for dimension in {one.dimension for one in model.counted}:
        for tag in ("k", "K", "z"):
            query = UsageQuery(
                (dimension,), start=BEGIN, end=END, window="day", by_tenant=True, by_tags=(tag,)
            )
            found = {
                (row.start // (24 * HOUR), row.tenant, row.tags.get(tag)): Decimal(row.value)
                for row in desk.ledger.aggregate(query).rows
                if row.start is not None and row.value is not None
            }
            assert found == model.sums(dimension, tag)
    scanned = [one.event for one in desk.ledger.scan(after=(0, -1), limit=10_000)]
    assert len(scanned) == len(model.counted)
    for one in model.counted:
        scanned.remove(one)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_ledger_is_the_model(
    steps: list[list[tuple[bytes, int, list[Event]]] | list[Event] | str],
) -> None:
    """Whatever comes in whatever order, through seals, restarts, crashes and failed commits."""
    directory = Path(tempfile.mkdtemp())
    desk = Desk(directory / "book", compaction=Policy(fan_in=2, rows_min=2))
    model = Model()
    sent: list[bytes] = []
    try:
        with localcontext() as context:
            context.prec = 100
            for step in steps:
                desk = take(desk, model, step, sent)
            check(desk, model)
            assert desk.findings() == []
            desk.seal()
            desk.compact()
            desk.reopen()
            check(desk, model)
            assert desk.findings() == []
    finally:
        desk.ledger.close()
        shutil.rmtree(directory)


def take(
    desk: Desk,
    model: Model,
    step: list[tuple[bytes, int, list[Event]]] | list[Event] | str,
    sent: list[bytes],
) -> Desk:
    """One step, for the ledger and for the model; the desk that goes on."""
    if step == "seal":
        desk.seal()
    elif step == "compact":
        desk.compact()
    elif step == "restart":
        desk.reopen()
    elif step == "crash":
        after = desk.crash()
        desk.ledger.close()
        shutil.rmtree(desk.directory)
        after.ledger.close()
        after.directory.rename(desk.directory)
        after.directory = desk.directory
        after.reopen()
        return after
    elif step == "again":
        if sent:
            desk.send(*sent)
    elif step in ("fail", "fail durably"):
        desk.faults.commits, desk.faults.durable = 1, step == "fail durably"
    elif isinstance(step, list):
        deliver(desk, model, step, sent)
    return desk


def deliver(
    desk: Desk,
    model: Model,
    step: list[tuple[bytes, int, list[Event]]] | list[Event],
    sent: list[bytes],
) -> None:
    """Blocks or JSON events."""
    events = [one for one in step if isinstance(one, Event)]
    if events:
        desk.offer(*events)
        for one in events:
            model.one(one)
        return
    offered = [one for one in step if not isinstance(one, Event)]
    data = [block(first, *events, producer=producer) for producer, first, events in offered]
    desk.send(*data)
    sent += data
    for producer, first, inside in offered:
        model.block(producer, first, inside)


def test_reissued_conflicts_count_once_however_often() -> None:
    """Two clones that conflict all the way: with their re-issues, every event is counted."""
    directory = Path(tempfile.mkdtemp())
    desk = Desk(directory / "book")
    try:
        for clone in range(3):
            for at in range(5):
                data = block(1 + at * 2, event(10**clone), event(10**clone))
                (receipt,) = desk.send(data)
                header = read_header(data)
                if any(run.verdict == "conflict" for run in receipt.exceptions):
                    producer = derived_producer(header.producer, header.first, header.sha256)
                    again = block(
                        header.first, event(10**clone), event(10**clone), producer=producer, flags=1
                    )
                    desk.send(again, again)
        assert desk.total() == "1110"
    finally:
        desk.ledger.close()
        shutil.rmtree(directory)
