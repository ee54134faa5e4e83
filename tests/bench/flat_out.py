"""
queue: events per second that one process records and has on its disk, flat out.

From the first record until the last block is committed and synced, one thread recording.
Beside it the same events go into a table by `executemany`, 2,000 rows a transaction, synced
likewise: a machine that is slow today shows there.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Callable
from statistics import median
from typing import Literal

from tallybook import Meter
from tests.bench.data import ROUTES, STATUSES, draw_tags
from tests.bench.record import kept_events, scratch
from tests.bench.table import Row, Table, at_least, interleave, ratio, spread

__all__ = ["run"]

_BLOCK = 2_000
_ROWS = "executemany into SQLite"


class Queue:
    """Contestant: a Meter without an endpoint."""

    def __init__(self, level: Literal["process", "buffered"], events: int) -> None:
        self._level = level
        self._events = events
        self.recorded = 0
        self.kept = 0

    def __call__(self) -> float:
        draws = draw_tags(self._events)
        with scratch() as directory:
            # A queue that is not sent fills up: room for all, so that nothing is dropped.
            meter = Meter(
                "bench", directory=directory, durability=self._level, queue_bytes_max=8 << 30
            )
            for route, status in itertools.product(ROUTES, STATUSES):
                tags = {"route": route, "status": status}
                meter.record("http.requests", tenant="acme", tags=tags)
            meter.flush()
            begun = time.perf_counter()
            record = meter.record
            for route, status in draws:
                record("http.requests", tenant="acme", tags={"route": route, "status": status})
            meter.flush(timeout=60)
            seconds = time.perf_counter() - begun
            self.recorded += self._events + len(ROUTES) * len(STATUSES)
            meter.close(timeout=60)
            self.kept += kept_events(directory)
        return self._events / seconds


def _executemany(events: int) -> float:
    draws = draw_tags(events)
    with scratch() as directory:
        connection = sqlite3.connect(directory / "rows.db", isolation_level=None)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute(
            "create table events (dimension text, tenant text, value int, time int, tags text)"
        )
        begun = time.perf_counter()
        for at in range(0, events, _BLOCK):
            connection.execute("begin")
            connection.executemany(
                "insert into events values ('http.requests', 'acme', 1, ?, ?)",
                [
                    (time.time_ns() // 1000, json.dumps({"route": route, "status": status}))
                    for route, status in draws[at : at + _BLOCK]
                ],
            )
            connection.execute("commit")
        seconds = time.perf_counter() - begun
        connection.close()
    return events / seconds


def run(*, quick: bool) -> Table:
    """Measure; about a minute, *quick*: some seconds."""
    repetitions, events = (1, 200_000) if quick else (5, 500_000)
    queues = {"process": Queue("process", events), "buffered": Queue("buffered", events)}
    contestants: dict[str, Callable[[], float]] = {
        **queues,
        _ROWS: lambda: _executemany(events // 2),
    }
    rates = interleave(repetitions, contestants)
    rows = []
    for name, queue in queues.items():
        checked = f"{queue.kept:,} of {queue.recorded:,} events in the queue"
        correct = queue.kept == queue.recorded
        against = f"{_ROWS} ({spread(rates[name], rates[_ROWS])})"
        n = repetitions
        rows += [
            Row(
                f"{name}: recorded and synced",
                median(rates[name]),
                "events/s",
                f"{_ROWS}: {median(rates[_ROWS]):,.0f} events/s",
                at_least(500_000, "events/s"),
                n,
                checked,
                correct,
            ),
            Row(f"{name}: ratio", ratio(rates[name], rates[_ROWS]), "x", against, None, n),
        ]
    return Table("queue", f"flat out, persisted: {events:,} events, one thread", rows)
