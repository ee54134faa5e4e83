"""
pipeline: an application and the server on the same machine, end to end.

The application records flat out on a real Meter that sends to `tallybook serve`: one
producer, one sender. The time is from the first record to the answer to the last block;
then the ledger is asked, and has to count exactly what was recorded. Beside it an
application posts the same events as JSON lists of 1,000 to FastAPI and PostgreSQL.

freshness: recorded to visible in an answer, at 1,000 events per second.
"""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from statistics import median
from typing import Final, NamedTuple

from tallybook import Meter
from tests.bench.data import draw_tags
from tests.bench.ingest import alternative
from tests.bench.load import Load, send
from tests.bench.record import scratch
from tests.bench.servers import Server, counted, tallybook_server
from tests.bench.table import Row, Table, at_least, at_most, interleave, ratio, spread

__all__ = ["run"]

_DIMENSION: Final = "http.requests"
_ONE_SENDER: Final = "FastAPI + pydantic + PostgreSQL, 1 sender"
_POLL_SECONDS: Final = 0.02


def record(url: str, directory: str, events: int) -> float:
    """Record, and send it all; the seconds that it took. In a process of its own."""
    draws = draw_tags(events)
    with Meter("bench", directory=directory, endpoint=url, queue_bytes_max=8 << 30) as meter:
        begun = time.perf_counter()
        call = meter.record
        for route, status in draws:
            call(_DIMENSION, tenant="acme", tags={"route": route, "status": status})
        flushed = meter.flush(timeout=300)
        seconds = time.perf_counter() - begun
    if not flushed.ok:
        raise RuntimeError(f"not all was sent: {flushed}")
    return seconds


class Ages(NamedTuple):
    """How old events were when an answer first showed them, in seconds; how many are missing."""

    p50: float
    p99: float
    missing: int
    polls: int


def watch(server: Server, directory: str, seconds: float, per_second: int) -> Ages:
    """Record at a steady pace, ask all the time, and compare."""
    recorded: list[float] = []
    seen: list[tuple[float, int]] = []
    before = counted(server, _DIMENSION)
    events = int(seconds * per_second)

    def ask() -> None:
        while not seen or seen[-1][1] < events:
            found = counted(server, _DIMENSION) - before
            seen.append((time.perf_counter(), found))
            if len(recorded) == events and time.perf_counter() - recorded[-1] > 30:
                return
            time.sleep(_POLL_SECONDS)

    asking = threading.Thread(target=ask)
    with Meter("bench", directory=directory, endpoint=server.url) as meter:
        asking.start()
        begun = time.perf_counter()
        for at, (route, status) in enumerate(draw_tags(events)):
            due = begun + at / per_second
            while (now := time.perf_counter()) < due:
                time.sleep(due - now)
            recorded.append(time.perf_counter())
            meter.record(_DIMENSION, tenant="acme", tags={"route": route, "status": status})
        asking.join()
    counts = [found for _, found in seen]
    # One producer, in order: an answer that counts n shows the first n.
    shown = [bisect.bisect_left(counts, at + 1) for at in range(counts[-1])]
    ages = sorted(seen[poll][0] - recorded[at] for at, poll in enumerate(shown))
    return Ages(ages[len(ages) // 2], ages[int(len(ages) * 0.99)], events - counts[-1], len(seen))


def run(*, quick: bool) -> Table:
    """Measure; about two minutes, *quick*: half a minute."""
    repetitions, events = (1, 200_000) if quick else (3, 1_000_000)
    acknowledged = recorded = 0
    rows: list[Row] = []
    with ExitStack() as stack:
        server = stack.enter_context(tallybook_server(stack.enter_context(scratch())))
        other = stack.enter_context(alternative())
        # Each repetition is an application of its own: imports and threads begin anew.
        context = get_context("spawn")
        pool = stack.enter_context(ProcessPoolExecutor(1, context, max_tasks_per_child=1))
        sender = stack.enter_context(ProcessPoolExecutor(1, context))
        seeds = itertools.count(1)

        def ours() -> float:
            nonlocal recorded
            with scratch() as directory:
                seconds = pool.submit(record, server.url, str(directory), events).result()
            recorded += events
            return events / seconds

        def theirs() -> float:
            nonlocal acknowledged
            if other is None:
                return 0.0
            port = other.server.port
            load = Load(port, "json", 3.0, "drawn", 100, next(seeds), connections=1)
            loaded = sender.submit(send, load).result()
            acknowledged += loaded.events
            return loaded.events / loaded.seconds

        contestants: dict[str, Callable[[], float]] = {"pipeline": ours}
        if other:
            contestants[_ONE_SENDER] = theirs
        rates = interleave(repetitions, contestants)
        found = counted(server, _DIMENSION)
        rows.append(
            Row(
                "application + server: recorded to counted",
                median(rates["pipeline"]),
                "events/s",
                f"{min(rates['pipeline']):,.0f} to {max(rates['pipeline']):,.0f}",
                at_least(250_000, "events/s"),
                repetitions,
                f"{found:,} counted of {recorded:,} recorded",
                found == recorded,
            )
        )
        if other:
            stored = other.stored()
            mine, its = rates["pipeline"], rates[_ONE_SENDER]
            rows.append(
                Row(
                    "application + server: ratio",
                    ratio(mine, its),
                    "x",
                    f"{_ONE_SENDER} ({spread(mine, its)})",
                    None,
                    repetitions,
                    f"{stored:,} rows of {acknowledged:,} acknowledged",
                    stored == acknowledged,
                )
            )
        with scratch() as directory:
            ages = watch(server, str(directory), 3.0 if quick else 15.0, 1_000)
        checked = f"{ages.missing} missing; {ages.polls} answers"
        for name, age, goal in (("p50", ages.p50, None), ("p99", ages.p99, at_most(1.0, "s"))):
            what = f"freshness at 1,000 events/s: {name}"
            rows.append(Row(what, age, "s", "", goal, 1, checked, ages.missing == 0))
    title = f"one process that records, one that serves; {events:,} events"
    return Table("pipeline", title, rows)
