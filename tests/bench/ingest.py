"""
ingest: events per second into the ledger, against FastAPI, pydantic and PostgreSQL by COPY.

Both sides validate every event, count an identity once, and have it on the disk before they
answer; both get 1,000 events a request over two connections from the same sender process.
tallybook's side includes chain, verdicts and hot tail, and in the minute also sealing.
What was acknowledged is counted afterwards on both sides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Final

import psycopg

from tallybook_server.limits import SEAL_EVENTS
from tests.bench.load import Load, Loaded, send
from tests.bench.postgres import postgres
from tests.bench.postgres_app import SCHEMA
from tests.bench.record import scratch
from tests.bench.servers import Server, module_server, tallybook_server, total_counted
from tests.bench.table import Row, Table, at_least, interleave, ratio, spread

__all__ = ["Alternative", "alternative", "run"]

_PG: Final = "FastAPI + pydantic + PostgreSQL (COPY)"


@dataclass
class Alternative:
    """FastAPI and its PostgreSQL, running."""

    server: Server
    dsn: str

    def stored(self) -> int:
        """Rows in its table."""
        with psycopg.connect(self.dsn) as connection:
            found = connection.execute("select count(*) from events").fetchone()
        return int(found[0]) if found else 0


@contextmanager
def alternative() -> Generator[Alternative | None]:
    """It, or None where PostgreSQL is not installed."""
    with postgres() as dsn:
        if dsn is None:
            yield None
            return
        with psycopg.connect(dsn) as connection:
            connection.execute(SCHEMA)
        with module_server("postgres_app", [dsn]) as server:
            yield Alternative(server, dsn)


@dataclass
class Side:
    """One server under load, and what it has acknowledged."""

    server: Server
    sender: ProcessPoolExecutor
    acknowledged: int = 0
    busy: int = 0
    runs: int = 0
    cpu: list[float] = field(default_factory=list[float])

    def load(self, **options: object) -> float:
        """Events per second of one load."""
        self.runs += 1
        load = Load(port=self.server.port, seed=self.runs, **options)  # type: ignore[arg-type]
        before = self.server.cpu_seconds()
        loaded: Loaded = self.sender.submit(send, load).result()
        self.cpu.append((self.server.cpu_seconds() - before) / loaded.events * 1e9)
        self.acknowledged += loaded.events
        self.busy += loaded.busy
        return loaded.events / loaded.seconds


def run(*, quick: bool) -> Table:
    """Measure; about four minutes, *quick*: half a minute."""
    rows: list[Row] = []
    with ExitStack() as stack:
        other = stack.enter_context(alternative())
        # Bodies are prepared in the sender, once, for all loads.
        sender = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        theirs = Side(other.server, sender) if other else None
        rows += _bursts(theirs, sender, quick)
        rows += _minute(theirs, sender, quick)
        if other and theirs:
            stored = other.stored()
            rows.append(
                Row(
                    f"{_PG}: check",
                    None,
                    checked=f"{stored:,} rows of {theirs.acknowledged:,} acknowledged",
                    correct=stored == theirs.acknowledged,
                )
            )
    notes = [] if theirs else ["PostgreSQL is not installed: its rows are left out"]
    return Table(
        "ingest", "over HTTP, 2 connections, validated, on disk before the answer", rows, notes
    )


def _bursts(theirs: Side | None, sender: ProcessPoolExecutor, quick: bool) -> list[Row]:
    repetitions, pool = (1, 100) if quick else (3, 1_000)
    with scratch() as data, tallybook_server(data) as server:
        ours = Side(server, sender)
        burst = {"kind": "blocks", "seconds": 3.0, "tags": "drawn", "pool": pool}
        listed = burst | {"kind": "json", "pool": min(pool, 200)}
        contestants: dict[str, Callable[[], float]] = {
            "3 s, 1,000 events a block": lambda: ours.load(**burst),
            "3 s, 8 blocks a request": lambda: ours.load(**burst, blocks=8),
            "3 s, 5 tags that hardly repeat": lambda: ours.load(**(burst | {"tags": "distinct"})),
        }
        if theirs:
            contestants[_PG] = lambda: theirs.load(**listed)
            contestants["5 tags"] = lambda: theirs.load(**(listed | {"tags": "distinct"}))
        # The first load of each kind also prepares its bodies, before its time begins.
        rates = interleave(repetitions, contestants)
        stored = total_counted(server)
        rows = []
        for name in list(contestants)[:3]:
            against = "5 tags" if "5 tags" in name else _PG
            rows.append(_row(name, rates[name], rates.get(against), None, ours, stored))
    return rows


def _row(
    name: str,
    rates: list[float],
    baseline: list[float] | None,
    goal: float | None,
    side: Side,
    stored: int,
    kept_up: str = "",
) -> Row:
    checked = f"{stored:,} counted of {side.acknowledged:,} acknowledged{kept_up}"
    rate = median(rates)
    if baseline is None:
        return Row(name, rate, "events/s", "", None, len(rates), checked)
    return Row(
        name,
        ratio(rates, baseline),
        "x",
        f"{_PG} ({spread(rates, baseline)})",
        None if goal is None else at_least(goal),
        len(rates),
        checked,
        stored == side.acknowledged,
        {"events_per_second": rate, "baseline": median(baseline)},
    )


def _minute(theirs: Side | None, sender: ProcessPoolExecutor, quick: bool) -> list[Row]:
    seconds = 8.0 if quick else 60.0
    options = {"seconds": seconds, "tags": "drawn", "pool": 100 if quick else 1_000}
    with scratch() as data:
        with tallybook_server(data) as server:
            ours = Side(server, sender)
            listed = options | {"kind": "json", "seconds": seconds / 3, "pool": 100}
            before = theirs.load(**listed) if theirs else 0.0
            rate = ours.load(kind="blocks", **options)
            after = theirs.load(**listed) if theirs else 0.0
            stored = total_counted(server)
            memory = server.memory_bytes()
        sealed, unsealed = _sealed(data / "books" / "default", ours.acknowledged)
    keeps_up = unsealed <= 2 * SEAL_EVENTS and not ours.busy
    words = (
        f"; sealing {'kept up' if keeps_up else 'DID NOT keep up'}: {sealed:,} sealed, "
        f"{unsealed:,} not, {ours.busy} answers 503; memory at most {memory >> 20} MiB"
    )
    baseline = [(before + after) / 2] if theirs else None
    name = f"{seconds:.0f} s with sealing, 1,000 events a block"
    rows = [_row(name, [rate], baseline, 10.0, ours, stored, words)]
    if theirs and baseline:
        rows.append(
            Row(f"{name}: stretch", rate / baseline[0], "x", _PG, at_least(20.0), 1, "as above")
        )
        cpu = [median(ours.cpu) / median(theirs.cpu)]
        rows.append(
            Row(
                "the server's processor time per event",
                cpu[0],
                "x",
                "FastAPI's, without PostgreSQL's own",
                repetitions=1,
                checked=f"{ours.cpu[0]:,.0f} ns to {median(theirs.cpu):,.0f} ns",
            )
        )
    return rows


def _sealed(book: Path, acknowledged: int) -> tuple[int, int]:
    """Events in segments, and events that are not yet; of a book that nobody serves."""
    connection = sqlite3.connect(book / "journal.db")
    sealed = int(connection.execute("select ifnull(sum(rows), 0) from segments").fetchone()[0])
    connection.close()
    return sealed, acknowledged - sealed
