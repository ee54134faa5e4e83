"""
A ledger without threads: each step happens when a test says so, and time stands still.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tallybook.block import REISSUED, derived_producer, encode_block, pack, read_header
from tallybook.event import Event, read_value
from tallybook.testing import FakeClock, FakeIds
from tallybook.wire import Announcement, Receipt
from tallybook_server.catalogue import UnknownDimension
from tallybook_server.compaction import Policy
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.journal import open_connection
from tallybook_server.ledger import (
    Acknowledgement,
    Delivery,
    Finding,
    OfferedEvent,
    RejectedEvent,
    UsageQuery,
)
from tallybook_server.verify import Progress, verify_book
from tests.ledger_conformance.deliveries import body

START = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z in microseconds
ONE = b"\x01" * 16
TWO = b"\x02" * 16


def event(
    value: int | str = 1,
    *,
    dimension: str = "api.calls",
    tenant: str | None = "acme",
    time: int = START - 1_000_000,
    tags: dict[str, str] | None = None,
    key: str | None = None,
    id: str | None = None,
    given: bool = False,
) -> Event:
    """An event with something in every field."""
    return Event(
        dimension=dimension,
        value=read_value(value),
        tenant=tenant,
        time=time,
        tags=tags or {},
        key=key,
        id=id,
        given=given,
    )


def block(
    first: int,
    *events: Event,
    producer: bytes = ONE,
    source: str | None = "shop",
    flags: int = 0,
) -> bytes:
    """A block of *events* from sequence *first* on."""
    columns = pack(source, [body(one) for one in events])
    return encode_block(columns, producer=producer, first=first, flags=flags)


def reissue(refused: bytes, *events: Event) -> bytes:
    """The conflicting *events* of a block, as their producer sends them again."""
    header = read_header(refused)
    producer = derived_producer(header.producer, header.first, header.sha256)
    return block(header.first, *events, producer=producer, flags=REISSUED)


class Faults:
    """
    What goes wrong with the next commits.

    Attributes:
        commits: How many of the next commits fail.
        durable: Whether they reach the disk all the same.
        opens: How many of the next attempts to open the journal fail.
        seen: Commits that were tried.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.durable = False
        self.opens = 0
        self.seen = 0


class Desk:
    """A ledger, and what a test does to it."""

    def __init__(
        self,
        directory: Path,
        clock: FakeClock | None = None,
        ids: FakeIds | None = None,
        compaction: Policy | None = None,
    ) -> None:
        self.compaction = compaction
        self.clock = clock or FakeClock()
        self.ids = ids or FakeIds()  # One for all lives of a ledger: an id is never given twice.
        self.faults = Faults()
        self.directory = directory
        self.ledger = self._open(directory)

    def _open(self, directory: Path) -> EmbeddedLedger:
        faults = self.faults

        class Faulty(sqlite3.Connection):
            def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
                if sql == "COMMIT":
                    faults.seen += 1
                    if faults.commits:
                        faults.commits -= 1
                        super().execute("COMMIT" if faults.durable else "ROLLBACK")
                        raise sqlite3.OperationalError("disk I/O error, on purpose")
                return super().execute(sql, parameters)

        def connect(path: Path) -> sqlite3.Connection:
            if faults.opens:
                faults.opens -= 1
                raise sqlite3.OperationalError("unable to open, on purpose")
            return open_connection(path, Faulty)

        return EmbeddedLedger(
            directory,
            clock=self.clock,
            ids=self.ids,
            threads=False,
            connect=connect,
            compaction=self.compaction,
        )

    # -- in --

    def send(self, *blocks: bytes, announcement: Announcement | None = None) -> list[Receipt]:
        """Deliver blocks, and return their receipts."""
        return self.deliver(Delivery(announcement=announcement, blocks=blocks)).receipts

    def offer(self, *events: Event | RejectedEvent, source: str | None = "shop") -> Acknowledgement:
        """Deliver JSON events."""
        offered = [
            one if isinstance(one, RejectedEvent) else OfferedEvent(one, source) for one in events
        ]
        return self.deliver(Delivery(events=offered))

    def deliver(self, delivery: Delivery) -> Acknowledgement:
        return self.ledger.append(delivery).result(timeout=0)

    def announce(
        self,
        producer: bytes = ONE,
        *,
        highest: int = 0,
        closed: bool = False,
        dropped: int = 0,
        sent_at: int | None = None,
        through: int | None = None,
    ) -> Announcement:
        """What a producer says of itself, its clock being right unless told otherwise."""
        now = self.now if sent_at is None else sent_at
        return Announcement(
            producer=producer,
            sent_at=now,
            blocks=0,
            recorded=highest,
            dropped=dropped,
            highest=highest,
            through=now if through is None else through,
            closed=closed,
            source="shop",
        )

    # -- out --

    @property
    def now(self) -> int:
        return self.clock.time_ns() // 1000

    def total(self, dimension: str = "api.calls", **query: Any) -> str:
        """The sum over everything, as text."""
        try:
            rows = self.ledger.aggregate(UsageQuery((dimension,), **query)).rows
        except UnknownDimension:
            return "0"
        return (rows[0].value or "0") if rows else "0"

    def findings(self) -> list[str]:
        """What verify finds, in short."""
        return [f"{one.what}: {one.where}: {one.detail}" for one in self.ledger.verify()]

    def findings_while(self, happens: Callable[[], object]) -> list[Finding]:
        """What verify finds if this *happens* in the middle of it, between two checks."""

        def report(progress: Progress) -> None:
            if progress == Progress("rejections"):
                happens()

        ledger = self.ledger
        with ledger.snapshots.hold() as snapshot:
            found = verify_book(ledger._book, ledger.tables, snapshot, ledger._read, report)
            return list(found)

    # -- life --

    def seal(self) -> None:
        """Seal whatever there is."""
        self.ledger.sealer.step(force=True)

    def compact(self) -> int:
        """Merge until there is nothing to merge; how often that was."""
        times = 0
        while self.ledger.compactor.step():
            times += 1
        return times

    def reopen(self) -> None:
        """Close and open again."""
        self.ledger.close()
        self.ledger = self._open(self.directory)

    def crash(self) -> Desk:
        """The ledger that a new process finds if this one is killed now."""
        copy = self.directory.with_name(self.directory.name + "-after")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.directory, copy)
        return Desk(copy, self.clock, self.ids, self.compaction)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A new ledger; at the end of every test it has to verify."""
    desk = Desk(tmp_path / "book")
    yield desk
    desk.ledger.close()


@pytest.fixture(params=["tail", "sealed", "both"])
def where(request: pytest.FixtureRequest) -> str:
    """Where the events lie when they are asked for."""
    return str(request.param)


def fill(desk: Desk, where: str, *blocks: bytes) -> None:
    """Deliver *blocks*, and seal all of them, none, or all but the last."""
    for at, data in enumerate(blocks):
        if where == "both" and at == len(blocks) - 1:
            desk.seal()
        desk.send(data)
    if where == "sealed":
        desk.seal()
