"""
record: the cost of one call, against what applications call today.

Two costs are shown, because they differ. *The call* is the processor time of the thread that
records, by slices of 200 calls, of which the lower quartile counts: a slice is short enough to
fall between two turns of other threads and processes. Slices of the baseline are between those
of the contestant, since the speed of this machine is another one from second to second. *Flat
out* is wall time of 100,000 calls without a pause, the committer's thread beside it in the same
interpreter: what it packs is on the application's time as well.
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
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
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
_SLICE = 200
_PAIRED = 20_000
_CHILD = "prometheus child.inc()"
_Draw = tuple[str, str]
_Loop = Callable[[list[_Draw]], None]
_Turns = tuple[_Loop, list[_Draw]]
_OTEL = "OpenTelemetry counter.add(4 attributes)"
_TENANTS = ("acme", "globex", "initech", "umbrella", "hooli")


class Spent(NamedTuple):
    """
    Per call, in nanoseconds.

    Attributes:
        wall: Wall time of all calls.
        call: Processor time of the calling thread, the lower quartile of its slices.
        beside: The same of each baseline whose slices were between them.
    """

    wall: float
    call: float
    beside: dict[str, float]


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
def scratch() -> Generator[Path]:
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


def _spent(loop: _Loop, draws: list[_Draw], beside: dict[str, _Loop] | None = None) -> Spent:
    paired = _PAIRED if beside else 0
    flat_out, draws = draws[: len(draws) - paired], draws[len(draws) - paired :]
    wall = time.perf_counter_ns()
    for at in range(0, len(flat_out), _SLICE):
        loop(flat_out[at : at + _SLICE])
    wall = time.perf_counter_ns() - wall
    loops = {"": loop, **beside} if beside else {}
    calls: dict[str, list[float]] = {name: [] for name in loops}
    # What the contestant has never seen, the baseline has: it draws its own.
    seen = draw_tags(paired)
    for at in range(0, paired, _SLICE):
        for name, one in loops.items():
            part = (seen if name else draws)[at : at + _SLICE]
            begun = time.thread_time_ns()
            one(part)
            calls[name].append((time.thread_time_ns() - begun) / len(part))
    quartiles = {name: sorted(each)[len(each) // 4] for name, each in calls.items() if each}
    return Spent(wall / len(flat_out), quartiles.pop("", 0.0), quartiles)


# -- tallybook -----------------------------------------------------------------------------


class Recorder:
    """One contestant: a Meter at one level, called in one way; a fresh one per repetition."""

    def __init__(
        self, level: Level, way: str, calls: int, beside: dict[str, Callable[[], _Loop]]
    ) -> None:
        self._level: Level = level
        self._way = way
        self._calls = calls
        self._beside = beside
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
            beside = {name: make() for name, make in self._beside.items()}
            calls = self._calls + (_PAIRED if beside else 0)
            loop, draws = getattr(self, f"_{self._way}")(meter, draw_tags(calls))
            spent = _spent(loop, draws, beside)
            self.counts.recorded += calls
            meter.close(timeout=60)
            self.counts.kept += kept_events(directory)
        return spent

    def _one_tenant(self, meter: Meter, draws: list[_Draw]) -> _Turns:
        def loop(part: list[_Draw]) -> None:
            record = meter.record
            for route, status in part:
                record("http.requests", tenant="acme", tags={"route": route, "status": status})

        return loop, draws

    def _five_tenants(self, meter: Meter, draws: list[_Draw]) -> _Turns:
        tenants = itertools.cycle(_TENANTS)

        def loop(part: list[_Draw]) -> None:
            record = meter.record
            for route, status in part:
                tags = {"route": route, "status": status}
                record("http.requests", tenant=next(tenants), tags=tags)

        return loop, draws

    def _never_seen(self, meter: Meter, draws: list[_Draw]) -> _Turns:
        def loop(part: list[_Draw]) -> None:
            record = meter.record
            for route, request in part:
                record("http.requests", tenant="acme", tags={"route": route, "request": request})

        return loop, [(route, f"{n:08x}") for n, (route, _) in enumerate(draws)]

    def _handle(self, meter: Meter, draws: list[_Draw]) -> _Turns:
        handle = meter.bind("http.requests", tenant="acme", tags=dict([draws[0]]))

        def loop(part: list[_Draw]) -> None:
            add = handle.add
            for _ in part:
                add()

        return loop, draws

    def _tasks(self, meter: Meter, draws: list[_Draw]) -> _Turns:
        """All of them in one slice: 256 tasks on one loop."""

        async def task(part: list[_Draw]) -> None:
            for route, status in part:
                tags = {"route": route, "status": status}
                await meter.arecord("http.requests", tenant="acme", tags=tags)

        async def all_tasks() -> None:
            await asyncio.gather(*(task(draws[at::256]) for at in range(256)))

        def loop(part: list[_Draw]) -> None:
            if part[0] is draws[0]:  # The other slices are done with the first.
                asyncio.run(all_tasks())

        return loop, draws


# -- the others ----------------------------------------------------------------------------


def prometheus() -> _Loop:
    """``labels(4).inc()``, the labels drawn as the tags are."""
    counter = Counter(
        "http_requests",
        "-",
        ["dimension", "tenant", "route", "status"],
        registry=CollectorRegistry(),
    )

    def loop(part: list[_Draw]) -> None:
        labels = counter.labels
        for route, status in part:
            labels("http.requests", "acme", route, status).inc()

    for route, status in itertools.product(ROUTES, STATUSES):
        counter.labels("http.requests", "acme", route, status).inc()
    return loop


def prometheus_child() -> _Loop:
    """``child.inc()``: what a bound handle is."""
    counter = Counter("http_requests", "-", ["tenant"], registry=CollectorRegistry())
    child = counter.labels("acme")

    def loop(part: list[_Draw]) -> None:
        inc = child.inc
        for _ in part:
            inc()

    return loop


def opentelemetry() -> _Loop:
    """``counter.add(1, 4 attributes)``, a real provider, aggregated in memory."""
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    counter = provider.get_meter("bench").create_counter("http_requests")

    def loop(part: list[_Draw]) -> None:
        add = counter.add
        for route, status in part:
            add(
                1,
                {
                    "dimension": "http.requests",
                    "tenant": "acme",
                    "route": route,
                    "status": status,
                },
            )

    return loop


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

    def loop(part: list[_Draw]) -> None:
        capture = client.capture
        for route, status in part:
            capture(
                "http.requests", distinct_id="acme", properties={"route": route, "status": status}
            )

    spent = _spent(loop, draw_tags(calls))
    for consumer in client.consumers or ():
        consumer.running = False
    client.queue.queue.clear()
    return spent


def file_log(calls: int) -> Spent:
    """A logging call, to a FileHandler."""
    with scratch() as directory:
        handler = logging.FileHandler(directory / "usage.log")
        logger = logging.Logger("bench")
        logger.addHandler(handler)

        def loop(part: list[_Draw]) -> None:
            info = logger.info
            for route, status in part:
                info("%s %s %s %s", "http.requests", "acme", route, status)

        spent = _spent(loop, draw_tags(calls))
        handler.close()
    return spent


def fdatasyncs(calls: int) -> Spent:
    """``write`` of 128 bytes and ``fdatasync``: what one event on the disk costs by itself."""
    with scratch() as directory:
        fd = os.open(directory / "file", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

        def loop(part: list[_Draw]) -> None:
            for _ in part:
                os.write(fd, bytes(128))
                os.fdatasync(fd)

        spent = _spent(loop, draw_tags(calls))
        os.close(fd)
    return spent


# -- the table -----------------------------------------------------------------------------


def run(*, quick: bool) -> Table:
    """Measure; about two minutes, *quick*: some seconds."""
    repetitions, calls = (3, 50_000) if quick else (11, 100_000)
    counter = {_PROMETHEUS: prometheus}
    recorders = {
        "process": Recorder("process", "one_tenant", calls, counter),
        "process, 1 of 5 tenants": Recorder("process", "five_tenants", calls, counter),
        "process, never-seen tag value": Recorder("process", "never_seen", calls, counter),
        "process, Handle.add": Recorder("process", "handle", calls, {_CHILD: prometheus_child}),
        "buffered": Recorder("buffered", "one_tenant", calls, counter | {_OTEL: opentelemetry}),
        "buffered, never-seen tag value": Recorder("buffered", "never_seen", calls, counter),
        "power, one thread": Recorder("power", "one_tenant", 300, {}),
        "power, await arecord, 256 tasks": Recorder("power", "tasks", 20_000, {}),
    }
    others: dict[str, Callable[[], Spent]] = {
        _PROMETHEUS: lambda: _spent(prometheus(), draw_tags(calls)),
        _CHILD: lambda: _spent(prometheus_child(), draw_tags(calls)),
        _OTEL: lambda: _spent(opentelemetry(), draw_tags(20_000)),
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

    # Neighbours in time are compared: what is slow to set up has a turn of its own.
    everybody: dict[str, Callable[[], Spent]] = {**recorders, **others}
    slow = ("power", "posthog", "write", "logging")
    for group in (False, True):
        turns = {
            name: measured(name, one)
            for name, one in everybody.items()
            if name.startswith(slow) is group
        }
        interleave(3 if group else repetitions, turns)

    def row(name: str, against: str, by: str, goal: Goal | None = None) -> Row:
        counts = recorders[name].counts if name in recorders else None
        if by == "the call":
            mine = [one.call for one in spent[name]]
            its = [one.beside[against] for one in spent[name]]
        else:
            mine = [one.wall for one in spent[name]]
            its = [one.wall for one in spent[against]][: len(mine)]
        return Row(
            what=f"{name}: {by}",
            figure=ratio(mine, its),
            against=f"{against} ({spread(mine, its)})",
            goal=goal,
            repetitions=len(mine),
            checked=counts.words if counts else "",
            correct=counts is None or counts.exact,
            more={"ns": median(mine), "baseline_ns": median(its)},
        )

    rows: list[Row] = []
    for by in ("the call", "flat out"):
        rows += [
            row("process", _PROMETHEUS, by, at_most(0.8)),
            row("buffered", _PROMETHEUS, by, at_most(0.5)),
            row("buffered", _OTEL, by, at_most(0.1)),
            row("process, 1 of 5 tenants", _PROMETHEUS, by),
            row("process, never-seen tag value", _PROMETHEUS, by),
            row("buffered, never-seen tag value", _PROMETHEUS, by),
            row("process, Handle.add", _CHILD, by),
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
            "the call: processor time of the calling thread, lower quartile of slices of 200,",
            "between them those of the baseline;",
            f"flat out: wall time of {calls:,} without a pause, the committer packing beside them.",
        ],
    )
