"""
record: the cost of one call, against what applications call today.

Two costs are shown, because they differ. *The call* is the processor time of the thread that
records. *Flat out* is wall time of 100,000 calls without a pause, the committer's thread
beside it in the same interpreter: what it packs is on the application's time as well.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from posthog import Posthog
from prometheus_client import CollectorRegistry, Counter

from tallybook import Meter
from tests.bench.data import ROUTES, STATUSES, draw_tags
from tests.bench.table import Goal, Row, Table, at_most, interleave, ratio, spread

__all__ = ["kept_events", "run", "scratch"]

Level = Literal["process", "buffered", "power"]
_PROMETHEUS = "prometheus labels(4).inc()"
_OTEL = "OpenTelemetry counter.add(4 attributes)"
_TENANTS = ("acme", "globex", "initech", "umbrella", "hooli")


class Spent(NamedTuple):
    """Per call, in nanoseconds: wall time, and processor time of the calling thread."""

    wall: float
    call: float


class Counts:
    """What was recorded against what was found in the queues."""

    def __init__(self) -> None:
        self.recorded = 0
        self.kept = 0

    @property
    def words(self) -> str:
        return f"{self.kept:,} of {self.recorded:,} events in the queue"

    @property
    def exact(self) -> bool:
        return self.kept == self.recorded


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes again."""
    path = Path(tempfile.mkdtemp(prefix="tallybook-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def kept_events(directory: Path) -> int:
    """The events in the queues of *directory*, whose owners have let go of them."""
    kept = 0
    for path in directory.glob("*.db"):
        with sqlite3.connect(path) as connection:
            kept += connection.execute("select ifnull(sum(count), 0) from blocks").fetchone()[0]
        connection.close()
    return kept


def _spent(loop: Callable[[], None], calls: int) -> Spent:
    wall, call = time.perf_counter_ns(), time.thread_time_ns()
    loop()
    return Spent(
        (time.perf_counter_ns() - wall) / calls, (time.thread_time_ns() - call) / calls
    )


# -- tallybook -----------------------------------------------------------------------------


class Recorder:
    """One contestant: a Meter at one level, called in one way; a fresh one per repetition."""

    def __init__(self, level: Level, way: str, calls: int) -> None:
        self._level: Level = level
        self._way = way
        self._calls = calls
        self.counts = Counts()

    def __call__(self) -> Spent:
        with scratch() as directory:
            meter = Meter("bench", directory=directory, durability=self._level)
            for route, status in itertools.product(ROUTES, STATUSES):
                for tenant in _TENANTS if self._level != "power" else ():
                    tags = {"route": route, "status": status}
                    meter.record("http.requests", tenant=tenant, tags=tags)
                    self.counts.recorded += 1
            time.sleep(0.3)  # The committer has packed them, and sleeps or ticks.
            spent = _spent(getattr(self, f"_{self._way}")(meter), self._calls)
            self.counts.recorded += self._calls
            meter.close(timeout=60)
            self.counts.kept += kept_events(directory)
        return spent

    def _one_tenant(self, meter: Meter) -> Callable[[], None]:
        draws = draw_tags(self._calls)

        def loop() -> None:
            record = meter.record
            for route, status in draws:
                record("http.requests", tenant="acme", tags={"route": route, "status": status})

        return loop

    def _five_tenants(self, meter: Meter) -> Callable[[], None]:
        draws = list(zip(itertools.cycle(_TENANTS), draw_tags(self._calls), strict=False))

        def loop() -> None:
            record = meter.record
            for tenant, (route, status) in draws:
                record("http.requests", tenant=tenant, tags={"route": route, "status": status})

        return loop

    def _never_seen(self, meter: Meter) -> Callable[[], None]:
        draws = [(route, f"{n:08x}") for n, (route, _) in enumerate(draw_tags(self._calls))]

        def loop() -> None:
            record = meter.record
            for route, request in draws:
                record("http.requests", tenant="acme", tags={"route": route, "request": request})

        return loop

    def _handle(self, meter: Meter) -> Callable[[], None]:
        handle = meter.bind(
            "http.requests", tenant="acme", tags={"route": ROUTES[0], "status": "200"}
        )

        def loop() -> None:
            add = handle.add
            for _ in range(self._calls):
                add()

        return loop

    def _tasks(self, meter: Meter) -> Callable[[], None]:
        draws = draw_tags(self._calls)

        async def task(part: list[tuple[str, str]]) -> None:
            for route, status in part:
                tags = {"route": route, "status": status}
                await meter.arecord("http.requests", tenant="acme", tags=tags)

        async def all_tasks() -> None:
            await asyncio.gather(*(task(draws[at::256]) for at in range(256)))

        return lambda: asyncio.run(all_tasks())


# -- the others ----------------------------------------------------------------------------


def prometheus(calls: int) -> Spent:
    """``labels(4).inc()``, the labels drawn as the tags are."""
    counter = Counter(
        "http_requests", "-", ["dimension", "tenant", "route", "status"], registry=CollectorRegistry()
    )
    draws = draw_tags(calls)

    def loop() -> None:
        labels = counter.labels
        for route, status in draws:
            labels("http.requests", "acme", route, status).inc()

    for route, status in itertools.product(ROUTES, STATUSES):
        counter.labels("http.requests", "acme", route, status).inc()
    return _spent(loop, calls)


def prometheus_child(calls: int) -> Spent:
    """``child.inc()``: what a bound handle is."""
    counter = Counter("http_requests", "-", ["tenant"], registry=CollectorRegistry())
    child = counter.labels("acme")

    def loop() -> None:
        inc = child.inc
        for _ in range(calls):
            inc()

    return _spent(loop, calls)


def opentelemetry(calls: int) -> Spent:
    """``counter.add(1, 4 attributes)``, a real provider, aggregated in memory."""
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    counter = provider.get_meter("bench").create_counter("http_requests")
    draws = draw_tags(calls)

    def loop() -> None:
        add = counter.add
        for route, status in draws:
            add(
                1,
                {
                    "dimension": "http.requests",
                    "tenant": "acme",
                    "route": route,
                    "status": status,
                },
            )

    spent = _spent(loop, calls)
    provider.shutdown()
    return spent


def posthog(calls: int) -> Spent:
    """``capture``, its queue and its thread, towards a port where nobody listens."""
    logging.getLogger("posthog").disabled = True
    client = Posthog(
        "phc_bench",
        host="http://127.0.0.1:9",
        max_queue_size=calls,
        flush_at=calls,
        flush_interval=30.0,
        max_retries=0,
        timeout=1,
    )
    draws = draw_tags(calls)

    def loop() -> None:
        capture = client.capture
        for route, status in draws:
            capture("http.requests", distinct_id="acme", properties={"route": route, "status": status})

    spent = _spent(loop, calls)
    for consumer in client.consumers or ():
        consumer.pause()
    client.queue.queue.clear()
    return spent


def file_log(calls: int) -> Spent:
    """A logging call, to a FileHandler."""
    draws = draw_tags(calls)
    with scratch() as directory:
        handler = logging.FileHandler(directory / "usage.log")
        logger = logging.Logger("bench")
        logger.addHandler(handler)

        def loop() -> None:
            info = logger.info
            for route, status in draws:
                info("%s %s %s %s", "http.requests", "acme", route, status)

        spent = _spent(loop, calls)
        handler.close()
    return spent


def fdatasyncs(calls: int) -> Spent:
    """``write`` of 128 bytes and ``fdatasync``: what one event on the disk costs by itself."""
    with scratch() as directory:
        fd = os.open(directory / "file", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

        def loop() -> None:
            for _ in range(calls):
                os.write(fd, bytes(128))
                os.fdatasync(fd)

        spent = _spent(loop, calls)
        os.close(fd)
    return spent


# -- the table -----------------------------------------------------------------------------


def run(*, quick: bool) -> Table:
    """Measure; about two minutes, *quick*: some seconds."""
    repetitions, calls = (3, 20_000) if quick else (9, 100_000)
    recorders = {
        "process": Recorder("process", "one_tenant", calls),
        "process, 1 of 5 tenants": Recorder("process", "five_tenants", calls),
        "process, never-seen tag value": Recorder("process", "never_seen", calls),
        "process, Handle.add": Recorder("process", "handle", calls),
        "buffered": Recorder("buffered", "one_tenant", calls),
        "buffered, never-seen tag value": Recorder("buffered", "never_seen", calls),
        "power, one thread": Recorder("power", "one_tenant", 300),
        "power, await arecord, 256 tasks": Recorder("power", "tasks", 20_000),
    }
    others: dict[str, Callable[[], Spent]] = {
        _PROMETHEUS: lambda: prometheus(calls),
        "prometheus child.inc()": lambda: prometheus_child(calls),
        _OTEL: lambda: opentelemetry(20_000),
        "posthog capture()": lambda: posthog(2_000),
        "logging to a FileHandler": lambda: file_log(20_000),
        "write + fdatasync": lambda: fdatasyncs(300),
    }
    spent: dict[str, list[Spent]] = {}

    def measured(name: str, contestant: Callable[[], Spent]) -> Callable[[], float]:
        def turn() -> float:
            one = contestant()
            spent.setdefault(name, []).append(one)
            return one.wall

        return turn

    everybody = {**recorders, **others}
    interleave(repetitions, {name: measured(name, one) for name, one in everybody.items()})
    wall = {name: [one.wall for one in each] for name, each in spent.items()}
    call = {name: [one.call for one in each] for name, each in spent.items()}

    def row(name: str, against: str, by: str, goal: Goal | None = None) -> Row:
        figures = call if by == "the call" else wall
        counts = recorders[name].counts if name in recorders else None
        return Row(
            what=f"{name}: {by}",
            figure=ratio(figures[name], figures[against]),
            against=f"{against} ({spread(figures[name], figures[against])})",
            goal=goal,
            repetitions=repetitions,
            checked=counts.words if counts else "",
            correct=counts is None or counts.exact,
            more={"ns": min(figures[name]), "baseline_ns": min(figures[against])},
        )

    rows = []
    for by in ("the call", "flat out"):
        rows += [
            row("process", _PROMETHEUS, by, at_most(0.8)),
            row("buffered", _PROMETHEUS, by, at_most(0.5)),
            row("buffered", _OTEL, by, at_most(0.1)),
            row("process, 1 of 5 tenants", _PROMETHEUS, by),
            row("process, never-seen tag value", _PROMETHEUS, by),
            row("buffered, never-seen tag value", _PROMETHEUS, by),
            row("process, Handle.add", "prometheus child.inc()", by),
        ]
    rows += [
        row("power, one thread", "write + fdatasync", "wall"),
        row("power, await arecord, 256 tasks", "write + fdatasync", "wall"),
        row(_OTEL, _PROMETHEUS, "wall"),
        row("posthog capture()", _PROMETHEUS, "wall"),
        row("logging to a FileHandler", _PROMETHEUS, "wall"),
    ]
    return Table(
        "record",
        "one call, validated, with pid check and CRC; 2 tags of 200 x 5 values",
        rows,
        [
            "the call: processor time of the calling thread. flat out: wall time of calls without",
            f"a pause ({calls:,}), the committer packing and syncing beside them.",
        ],
    )
