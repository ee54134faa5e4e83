"""
A real Meter that records one event a second, and one that records as fast as it can.

An event that comes alone is sent alone, so it has a block of its own: in the queue, on the
wire, and in the server's journal. This says what that costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tallybook import Meter
from tallybook.testing import FakeClock, MemoryServer
from tallybook.transport import Response
from tallybook.wire import read_request
from tests.bench.data import Fact

__all__ = ["Kept", "record"]


class Kept(NamedTuple):
    """
    What a Meter's events have taken.

    Attributes:
        wire: Bytes of request bodies per event; HTTP's own head is not among them.
        queue: Bytes per event of the queue's file, where a block stays for a while after the
            server has it.
        blocks: The blocks that were sent.
        missing: Events that the server does not have.
    """

    wire: float
    queue: float
    blocks: list[bytes]
    missing: int


class _Scale(MemoryServer):
    """A server in memory that weighs what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.blocks: list[bytes] = []

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        self.bytes += len(body)
        self.blocks += map(bytes, read_request(body)[1])
        return super().send(body, content_type, timeout_seconds)


def record(facts: list[Fact], directory: Path, *, seconds_between: float) -> Kept:
    """Record *facts*; where there is time between them, each is sent before the next one."""
    server, clock = _Scale(), FakeClock()
    meter = Meter(
        "bench",
        endpoint="http://127.0.0.1:1",
        directory=directory,
        transport=server,
        clock=clock,
        threads=False,
    )
    for fact in facts:
        meter.record(fact.dimension, fact.value, tenant=fact.tenant, tags=fact.tags)
        if seconds_between:
            meter.flush()
            clock.advance(seconds_between)
    meter.flush()
    queue = sum(path.stat().st_size for path in directory.glob("*.db*"))
    meter.close()
    count = len(facts)
    return Kept(server.bytes / count, queue / count, server.blocks, count - len(server.events))
