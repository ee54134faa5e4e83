"""
latency: what the slowest calls cost, at 20,000 events per second.

Alone, and beside 1 and 4 threads that are busy in Python all the time. Between events the
thread is busy itself, as in the measurement that the goals come from; after a delay it makes
up for what was due. The time is that of the call. Beside it in every repetition run a call
that does nothing, which is this machine's own noise, and `labels(4).inc()`. Once more alone,
the thread sleeps between events: then each call finds its code and data out of the caches.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from array import array
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from typing import Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter

from tallybook import Meter
from tests.bench.data import ROUTES, STATUSES, draw_tags
from tests.bench.record import kept_events, scratch
from tests.bench.table import Row, Table, at_most

__all__ = ["run"]

EVENTS_PER_SECOND: Final = 20_000
Call = Callable[[str, str], None]
Who = Literal["nothing", "prometheus", "process", "buffered"]
Beside = Literal["alone", "alone, sleeping", "beside 1 busy thread", "beside 4 busy threads"]

_BUSY: Final[dict[Beside, int]] = {
    "alone": 0,
    "alone, sleeping": 0,
    "beside 1 busy thread": 1,
    "beside 4 busy threads": 4,
}


class Latency(NamedTuple):
    """Of one repetition, in microseconds."""

    p50: float
    p99: float
    p999: float
    max: float
    per_second: float
    recorded: int
    kept: int


def _paced(call: Call, events: int, sleeps: bool) -> tuple[array[int], float]:
    """Nanoseconds of each call, and calls per second."""
    step = 1_000_000_000 // EVENTS_PER_SECOND
    clock, sleep = time.perf_counter_ns, time.sleep
    took = array("q", bytes(8 * events))
    draws = draw_tags(events)
    begun = clock()
    for at, (route, status) in enumerate(draws):
        due = begun + at * step
        while (now := clock()) < due:
            if sleeps:
                sleep((due - now) / 1e9)
        before = clock()
        call(route, status)
        took[at] = clock() - before
    return took, events / ((clock() - begun) / 1e9)


@contextmanager
def _busy(threads: int) -> Generator[None]:
    stop = False

    def turn() -> None:
        number = 0
        while not stop:
            number = (number * 31 + 7) % 1_000_003

    running = [threading.Thread(target=turn) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop = True
        for thread in running:
            thread.join()


def measure(who: Who, beside: Beside, seconds: float) -> Latency:
    """One repetition; in a process of its own."""
    events = int(EVENTS_PER_SECOND * seconds)
    recorded = 0
    with scratch() as directory:
        meter: Meter | None = None
        if who == "nothing":
            call: Call = _nothing
        elif who == "prometheus":
            call = _prometheus()
        else:
            meter = Meter("bench", directory=directory, durability=who)
            call = _recording(meter)
        for route, status in itertools.product(ROUTES, STATUSES):
            call(route, status)
        recorded = events + len(ROUTES) * len(STATUSES)
        gc.collect()
        with _busy(_BUSY[beside]):
            took, per_second = _paced(call, events, sleeps=beside == "alone, sleeping")
        kept = recorded
        if meter is not None:
            meter.close(timeout=60)
            kept = kept_events(directory)
    ordered = sorted(took)
    p50, p99, p999 = (ordered[int(len(ordered) * at)] / 1000 for at in (0.5, 0.99, 0.999))
    return Latency(p50, p99, p999, ordered[-1] / 1000, per_second, recorded, kept)


def _nothing(route: str, status: str) -> None:
    pass


def _prometheus() -> Call:
    names = ["dimension", "tenant", "route", "status"]
    counter = Counter("http_requests", "-", names, registry=CollectorRegistry())
    return lambda route, status: counter.labels("http.requests", "acme", route, status).inc()


def _recording(meter: Meter) -> Call:
    def call(route: str, status: str) -> None:
        meter.record("http.requests", tenant="acme", tags={"route": route, "status": status})

    return call


def run(*, quick: bool) -> Table:
    """Measure; about two minutes, *quick*: 15 seconds."""
    repetitions, seconds = (1, 1.0) if quick else (3, 2.0)
    whos: tuple[Who, ...] = ("nothing", "prometheus", "process", "buffered")
    found: dict[tuple[Who, Beside], list[Latency]] = {}
    # A process for each repetition: no heap and no thread is left over from the one before.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for _, beside, who in itertools.product(range(repetitions), _BUSY, whos):
            one = pool.submit(measure, who, beside, seconds).result()
            found.setdefault((who, beside), []).append(one)
    rows = [
        row for beside, who in itertools.product(_BUSY, whos) for row in _rows(found, who, beside)
    ]
    return Table(
        "latency",
        "one call at an offered 20,000 events/s, in microseconds",
        rows,
        ["medians of the repetitions; 'nothing' is the machine's own noise in the same loop"],
    )


def _rows(found: dict[tuple[Who, Beside], list[Latency]], who: Who, beside: Beside) -> list[Row]:
    mine = found[who, beside]
    ours = who in ("process", "buffered")
    recorded, kept = sum(one.recorded for one in mine), sum(one.kept for one in mine)
    words = (
        f"p50 {median(one.p50 for one in mine):.2f}, p99 {median(one.p99 for one in mine):.1f}, "
        f"p99.9 {median(one.p999 for one in mine):.1f}, max {median(one.max for one in mine):.0f}, "
        f"{median(one.per_second for one in mine):,.0f}/s"
    )
    if ours:
        words += f"; {kept:,} of {recorded:,} in the queue"
    goals: dict[Beside, dict[str, float | None]] = {
        "alone": {"p99": 10.0, "max": 5000.0},
        "alone, sleeping": {"p99": None},
    }
    rows: list[Row] = []
    for name, goal in goals.get(beside, {"p999": 50.0}).items():
        figures = [getattr(one, name) for one in mine]
        noise = median(getattr(one, name) for one in found["nothing", beside])
        labels = median(getattr(one, name) for one in found["prometheus", beside])
        rows.append(
            Row(
                what=f"{who} {beside}: {name}",
                figure=median(figures),
                unit="us",
                against=f"nothing {noise:.1f}, prometheus {labels:.1f}",
                goal=at_most(goal, "us") if ours and goal is not None else None,
                repetitions=len(mine),
                checked=words if not rows else f"worst {max(figures):,.0f}",
                correct=recorded == kept,
                more={"worst": max(figures)},
            )
        )
    return rows
