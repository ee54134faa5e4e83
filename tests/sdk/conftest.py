"""A workbench for the SDK: its parts over real files, with a clock that jumps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tallybook import Meter
from tallybook.adoption import Adopter
from tallybook.clock import SystemIds
from tallybook.directory import Lock
from tallybook.event import Event
from tallybook.flusher import Flusher
from tallybook.frame import SpoolIdentity, encode_body, encode_frame, frame_seed
from tallybook.producer import Producer
from tallybook.queue import Packed, Queue
from tallybook.settings import read_settings
from tallybook.spool import Spool
from tallybook.testing import FakeClock, FakeIds, MemoryServer
from tallybook.worker import Worker

ENDPOINT = "http://127.0.0.1:1"
PRODUCER = bytes(range(16))
QUEUE_BYTES = 1 << 22  # A quarter of it is a spool: files that are quick to make.


def body(number: int = 0, **changes: Any) -> bytes:
    """The body of an event that is told from others by its value."""
    fields: dict[str, Any] = {
        "dimension": "d",
        "value": (number, 0),
        "tenant": "t",
        "time": 1_700_000_000_000_000 + number,
        "tags": {},
    }
    return encode_body(Event(**(fields | changes)))


def frame(number: int = 0, producer: bytes = PRODUCER, **changes: Any) -> bytes:
    """That event as a whole frame."""
    return encode_frame(body(number, **changes), frame_seed(producer))


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for what a thread or another process is about to do."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.005)


class Bench:
    """
    One queue directory, one clock, one server in memory.

    Attributes:
        directory: Where queues lie.
        clock: The clock of everything that is made here.
        server: Where everything is sent.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.server = MemoryServer()
        self._meters: list[Meter] = []
        self._producers: list[Producer] = []
        self._names = itertools.count()

    def meter(self, source: str | None = "app", **changes: Any) -> Meter:
        """A Meter without threads, which sends to the server."""
        options: dict[str, Any] = {
            "endpoint": ENDPOINT,
            "directory": self.directory,
            "transport": self.server,
            "clock": self.clock,
            "threads": False,
            "queue_bytes_max": QUEUE_BYTES,
        } | changes
        meter = Meter(source, **options)
        self._meters.append(meter)
        return meter

    def worker(self, meter: Meter) -> Worker:
        """The worker of a Meter that has recorded."""
        worker = meter._worker
        assert worker is not None
        return worker

    def crash(self, meter: Meter) -> str:
        """What SIGKILL leaves of a Meter: its files, without an owner. The producer's name."""
        worker = self.worker(meter)
        meter._producer, meter._worker = None, None
        meter._guard[0] = 0
        worker.producer.release(finished=False)
        if worker.adopter is not None:
            worker.adopter.close()
        return worker.producer.id.hex()

    def producer(self, **changes: Any) -> Producer:
        """A producer without a Meter around it."""
        options: dict[str, Any] = {
            "source": "app",
            "endpoint": ENDPOINT,
            "directory": self.directory,
            "queue_bytes_max": QUEUE_BYTES,
        } | changes
        settings = read_settings({}, **options)
        producer = Producer(settings, self.clock, SystemIds())
        self._producers.append(producer)
        return producer

    def store(self, producer: Producer, *numbers: int) -> None:
        """Store events as an application's thread does."""
        for number in numbers:
            stored = frame(number, producer.id)
            try:
                producer.slot[0](stored)
            except ValueError:
                producer.store(stored)

    def flusher(self) -> Flusher:
        """A flusher to the server, whose waits are never drawn long."""
        return Flusher(self.server, self.clock, FakeIds())

    def adopter(self, endpoint: str = ENDPOINT, **options: Any) -> Adopter:
        """An adopter with a flusher of its own."""
        return Adopter(self.directory, endpoint, self.flusher(), self.clock, **options)

    def spool(self, number: int = 0, size: int = 1 << 16) -> Spool:
        """A spool file."""
        identity = SpoolIdentity(
            producer=PRODUCER,
            number=number,
            boot="boot",
            source="app",
            endpoint=ENDPOINT,
            level="process",
            created=0,
        )
        return Spool(self.directory, identity, size)

    def adopt_all(self) -> None:
        """Adopt and send until every dead producer's files are gone."""
        adopter = self.adopter()
        for _ in range(200):
            adopter.step()
            self.clock.advance(60)
            if not self.names("*.lock"):
                return
        raise TimeoutError(f"left: {self.names('*')}, held: {adopter.held}")

    def living(self) -> str:
        """The name of the last Meter's producer."""
        return self.worker(self._meters[-1]).producer.id.hex()

    def adopt_all_but_the_living(self) -> None:
        """Let the last Meter look for dead producers, and send, until there is none left."""
        worker = self.worker(self._meters[-1])
        for _ in range(20):
            self.clock.advance(6)
            worker.flush_step()

    def names(self, pattern: str) -> list[str]:
        """The names of the files there."""
        return sorted(path.name for path in self.directory.glob(pattern))

    def counted(self) -> list[int]:
        """The values that the server has counted, each as often as it was."""
        return sorted(event.value[0] for event in self.server.events.values())

    def close(self) -> None:
        """Let go of everything, without a request."""
        for meter in self._meters:
            for worker in [*meter._retired, meter._worker]:
                if worker is not None:
                    worker.flusher = None
            meter.close(timeout=5)
        for producer in self._producers:
            producer.release(finished=False)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """The workbench."""
    directory = tmp_path / "queue"
    directory.mkdir()
    found = Bench(directory)
    yield found
    found.close()
    # Whatever a test does, at the end nobody holds a lock.
    until(lambda: not Lock.descriptors)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """A queue file."""
    found = Queue(tmp_path / f"{PRODUCER.hex()}.db")
    yield found
    found.close()


def behind(offset: int, sequence: int) -> Packed:
    """A position in the first spool."""
    return Packed(0, offset, sequence)
