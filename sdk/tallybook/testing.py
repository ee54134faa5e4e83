"""
Stand-ins for tests, ours and our users': a Meter without files, a clock that jumps, a
server in memory that can fail.

::

    meter = MemoryMeter()
    serve_request(meter)
    assert meter.total("http.requests", tenant="acme") == 1
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

from tallybook.block import read_header, read_payload
from tallybook.errors import BlockDamaged, MessageDamaged, ServerUnreachable
from tallybook.event import Event, Value, format_value
from tallybook.frame import body_event
from tallybook.limits import VALUE_DECIMALS_MAX
from tallybook.meter import FlushResult, Meter, Tags
from tallybook.tenant import current_tenant
from tallybook.transport import Response
from tallybook.wire import Announcement, Answer, Exceptions, Receipt, encode_answer, read_request

__all__ = ["FakeClock", "FakeIds", "MemoryMeter", "MemoryServer"]


class FakeClock:
    """
    A clock that moves when it is told to.

    Args:
        time_ns: Where it begins, in nanoseconds since 1970 UTC.
    """

    def __init__(self, time_ns: int = 1_767_225_600_000_000_000) -> None:
        self._time_ns = time_ns
        self._monotonic = 0.0

    @property
    def time_ns(self) -> Callable[[], int]:
        return lambda: self._time_ns

    @property
    def monotonic(self) -> Callable[[], float]:
        return lambda: self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        self._time_ns += round(seconds * 1e9)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock, forward or back; no time passes."""
        self._time_ns += round(seconds * 1e9)


class FakeIds:
    """Producers 1, 2, 3 ..., and chance that is always the same."""

    def __init__(self, fraction: float = 0.5) -> None:
        self._next = itertools.count(1)
        self._fraction = fraction

    def producer(self) -> bytes:
        return next(self._next).to_bytes(16, "big")

    def fraction(self) -> float:
        return self._fraction


class MemoryServer:
    """
    A transport and the server behind it: counts each event once, in memory.

    It keeps the rules of the real one for producers and sequences: an event that is held
    already is a duplicate, another one under the same sequence a conflict. It knows none for
    keys. Any number of Meters may share it, from any thread.

    Attributes:
        events: What is held, by (producer, sequence).
        announcements: The last announcement of each producer.
        conflicts: Events that met another one under their sequence; kept, and not counted.
        requests: How many requests arrived.
        faults: What happens to the next requests, first come first: ``"refuse"``: the
            connection fails and nothing is stored; ``"lose"``: everything is stored and the
            answer is lost; ``"portal"``: a 200 that is no answer; an int: that HTTP status.
        archived: Up to which request everything is in a backup, as producers are told.
    """

    def __init__(self, ledger: str = "00" * 16) -> None:
        self.ledger = ledger
        self.events: dict[tuple[bytes, int], Event] = {}
        self.announcements: dict[bytes, Announcement] = {}
        self.conflicts: list[Event] = []
        self.requests = 0
        self.archived = 0
        self._positions: dict[tuple[bytes, int], int] = {}
        self._branches: list[tuple[str, int]] = []
        self._lock = threading.RLock()  # A signal handler may send in the middle of this.
        self.faults: list[str | int] = []

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        with self._lock:
            return self._answer(body)

    def _answer(self, body: bytes) -> Response:
        self.requests += 1
        fault = self.faults.pop(0) if self.faults else None
        if fault == "refuse":
            raise ServerUnreachable("connection refused, on purpose")
        if fault == "portal":
            return Response(200, b"<html>Welcome to the hotel</html>")
        if isinstance(fault, int):
            return Response(fault, b"{}")
        try:
            announcement, blocks = read_request(body)
        except MessageDamaged as error:
            return Response(400, str(error).encode())
        if announcement.ledger not in (None, self.ledger):
            return Response(409, b"{}")
        self.announcements[announcement.producer] = announcement
        answer = Answer(
            ledger=self.ledger,
            incarnation=1 + len(self._branches),
            position=self.requests,
            archived=self.archived,
            receipts=[self._store(block) for block in blocks],
            branch=self._branch(len(self._branches)) if self._branches else msgspec.UNSET,
            holds=self._branches or msgspec.UNSET,
        )
        if fault == "lose":
            raise ServerUnreachable("the answer is lost, on purpose")
        return Response(200, encode_answer(answer))

    def _store(self, block: memoryview) -> Receipt:
        header = read_header(block)
        receipt = Receipt(
            producer=header.producer.hex(),
            first=header.first,
            count=header.count,
            sha256=header.sha256.hex(),
            status="stored",
            position=self.requests,
        )
        try:
            events = read_payload(block, header).events()
        except BlockDamaged as error:
            return msgspec.structs.replace(
                receipt, status="damaged", position=None, reason=str(error)
            )
        exceptions: list[Exceptions] = []
        for sequence, event in enumerate(events, header.first):
            held = self.events.setdefault((header.producer, sequence), event)
            if held is event:
                self._positions[header.producer, sequence] = self.requests
                continue
            if held != event:
                self.conflicts.append(event)
            verdict: Literal["duplicate", "conflict"] = "duplicate" if held == event else "conflict"
            exceptions.append(Exceptions(sequence, sequence, verdict, "sequence", 0))
        if sum(run.verdict == "duplicate" for run in exceptions) == header.count:
            return msgspec.structs.replace(receipt, status="duplicate")
        return msgspec.structs.replace(receipt, exceptions=exceptions)

    def restore(self, position: int) -> None:
        """Be as after a restore from a backup: what came after request *position* is lost."""
        with self._lock:
            self._branches.append((self._branch(len(self._branches)), position))
            for name in [name for name, at in self._positions.items() if at > position]:
                del self.events[name], self._positions[name]

    def _branch(self, number: int) -> str:
        return f"{number:032x}" if number else self.ledger

    def total(self, dimension: str, *, tenant: str | None = None) -> Decimal:
        """The sum of a dimension, of one tenant or of all."""
        return _total(self.events.values(), dimension, tenant, {})

    def close(self) -> None:
        """There is nothing to let go of."""


class MemoryMeter(Meter):
    """
    A Meter that keeps its events in a list: no file, no thread, no network.

    Every check is the real one, so a call that is wrong raises here too.

    Attributes:
        events: What was recorded, in order.
    """

    def __init__(self, source: str | None = "test", *, clock: FakeClock | None = None) -> None:
        # Whatever the environment says: nothing is opened, so nothing can be full or synced.
        super().__init__(
            source, directory="unused", durability="process", on_full="drop", clock=clock
        )
        self.events: list[Event] = []

    def record(
        self,
        dimension: str,
        value: Value = 1,
        *,
        tenant: str | None = None,
        tags: Tags | None = None,
        time: datetime | int | None = None,
        key: str | None = None,
    ) -> None:
        if tenant is None:
            tenant = current_tenant()
        self._keep(self._checked_body(dimension, value, tenant, tags, time, key))

    def _keep(self, body: bytes) -> None:
        event = body_event(body)
        if event.key is not None and any(
            (event.dimension, event.key) == (known.dimension, known.key) for known in self.events
        ):
            return
        self.events.append(event)

    def total(self, dimension: str, *, tenant: str | None = None, **tags: str) -> Decimal:
        """The sum of a dimension: of one tenant or of all, of events with these tags."""
        return _total(self.events, dimension, tenant, tags)

    def clear(self) -> None:
        """Forget what was recorded."""
        self.events.clear()

    def flush(self, timeout: float = 10.0) -> FlushResult:
        return FlushResult(ok=True, sent=0, pending=0, error=None)

    def close(self, timeout: float | None = None) -> FlushResult:
        return FlushResult(ok=True, sent=0, pending=0, error=None)


def _total(
    events: Iterable[Event], dimension: str, tenant: str | None, tags: dict[str, str]
) -> Decimal:
    # Scaled integers, summed at one scale: Decimal's context would round beyond 28 digits.
    scaled = sum(
        event.value[0] * 10 ** (VALUE_DECIMALS_MAX - event.value[1])
        for event in events
        if event.dimension == dimension
        and tenant in (None, event.tenant)
        and tags.items() <= event.tags.items()
    )
    return Decimal(format_value(scaled, VALUE_DECIMALS_MAX))
