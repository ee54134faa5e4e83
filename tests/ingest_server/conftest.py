"""
A real server on a real socket for every test of the HTTP interface.

The ledger behind it is the real one. `FaultyLedger` stands around it only where a test
needs what a healthy ledger does not do: be busy, be full, break, take its time.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from tallybook.block import encode_block, pack
from tallybook.clock import SystemClock
from tallybook.event import Event
from tallybook.frame import encode_body, split_body
from tallybook.wire import Announcement, encode_request
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import (
    EVERY_EVENT,
    Acknowledgement,
    Delivery,
    EventFilter,
    LedgerEvent,
    Usage,
    UsageQuery,
)
from tallybook_server.serve import serving
from tallybook_server.settings import Settings

PRODUCER = bytes(range(16))
BLOCKS = {"Content-Type": "application/vnd.tallybook.blocks"}
JSON = {"Content-Type": "application/json"}


class FaultyLedger(EmbeddedLedger):
    """
    The real ledger, with faults to order.

    Attributes:
        fault: What the next appends end with, None: nothing.
        appended: Deliveries that came.
        gate: Queries wait for it.
        asked: Set when a query has come.
        answer: What queries are answered with, in pages; None: what the ledger holds.
        queries: Those that came.
        broken: Whether events cannot be read.
    """

    fault: Exception | None = None
    appended = 0
    gate: threading.Event | None = None
    asked: threading.Event | None = None
    answer: Usage | None = None
    queries: tuple[UsageQuery, ...] = ()
    broken = False

    def append(self, delivery: Delivery) -> Future[Acknowledgement]:
        self.appended += 1
        if self.fault is None:
            return super().append(delivery)
        failed: Future[Acknowledgement] = Future()
        failed.set_exception(self.fault)
        return failed

    def aggregate(self, query: UsageQuery) -> Usage:
        if self.asked is not None:
            self.asked.set()
        if self.gate is not None:
            self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        self.queries = (*self.queries, query)
        if self.answer is None:
            return super().aggregate(query)
        behind = query.skip + query.limit
        return replace(
            self.answer,
            rows=self.answer.rows[query.skip : behind],
            more=len(self.answer.rows) > behind,
            position=query.as_of or self.position(),
        )

    def scan(
        self, chosen: EventFilter = EVERY_EVENT, *, after: tuple[int, int], limit: int
    ) -> list[LedgerEvent]:
        if self.broken:
            raise OSError("the disk is gone, on purpose")
        return super().scan(chosen, after=after, limit=limit)


@dataclass(frozen=True)
class Running:
    """A server that runs, a client of it, and the ledger behind."""

    http: httpx.Client
    ledger: FaultyLedger

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.http.base_url.host, self.http.base_url.port or 0

    def post(self, body: bytes | str, **headers: str) -> httpx.Response:
        """Post *body* as JSON events."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post("/v1/events", content=body, headers=JSON | fields)

    def post_blocks(self, *blocks: bytes, ledger: str | None = None) -> httpx.Response:
        """Post *blocks* as a producer does."""
        return self.http.post(
            "/v1/events", content=request_of(*blocks, ledger=ledger), headers=BLOCKS
        )

    def usage(self, **parameters: str) -> str:
        """The total of ``calls``, as decimal text; "0" without a row."""
        answer = self.http.get("/v1/usage", params={"dimension": "calls"} | parameters)
        if answer.status_code == 404:  # A dimension is there from its first event on.
            return "0"
        rows: list[dict[str, str]] = answer.raise_for_status().json()["data"]
        return rows[0]["value"] if rows else "0"

    def rejections(self) -> list[dict[str, str]]:
        """Everything that was not counted."""
        rows: list[dict[str, str]] = self.http.get("/v1/rejections?limit=1000").json()["data"]
        return rows


class Start(Protocol):
    """Starts a server with other settings than the defaults."""

    def __call__(self, **settings: object) -> Running: ...


@contextmanager
def running(directory: Path, **settings: object) -> Generator[Running]:
    """A server, and a client of it, while the block lasts."""
    made = Settings.model_validate({"directory": directory, "port": 0} | settings)
    ledger = FaultyLedger(made.book)
    with serving(ledger, made) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield Running(http, ledger)


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    """Servers that stop with the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(tmp_path, **settings))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """One server for a whole file, for tests to which it does not matter what it holds."""
    with running(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def server(start: Start) -> Running:
    """A server with the default settings and an empty ledger."""
    return start()


def request_of(*blocks: bytes, ledger: str | None = None) -> bytes:
    """A producer's request with *blocks*."""
    now = SystemClock.time_ns() // 1_000
    announcement = Announcement(
        producer=PRODUCER,
        sent_at=now,
        blocks=len(blocks),
        recorded=100,
        dropped=0,
        highest=100,
        through=now,
        closed=False,
        source="api",
        ledger=ledger,
    )
    return encode_request(announcement, blocks)


def block_of(
    *values: int, first: int = 1, dimension: str = "calls", key: str | None = None
) -> bytes:
    """A block of one event per value, of the first minute of 2026."""
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    events = [
        Event(
            dimension=dimension, value=(value, 0), tenant="acme", time=start + at, tags={}, key=key
        )
        for at, value in enumerate(values)
    ]
    columns = pack("api", [split_body(encode_body(event)) for event in events])
    return encode_block(columns, producer=PRODUCER, first=first)
