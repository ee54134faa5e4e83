"""
growth: what changes while a ledger grows from 1 million events to 100 million.

One server, one year of events in the order of their time, 100 million of them unless another
number is given. At each size, once sealing and whatever comes behind it has nothing more to
do: January's invoice input and one day of one tenant, over HTTP; the most memory that the
process ever had; how long a killed server takes until it answers again; and how fast it
takes events, beside a server that has just begun with an empty ledger, turn by turn.

A copy is kept of the ledger as it was soon after January. At the end a server with the
copy and the one with the whole year are asked for January's invoice in turns: that is what
a year of history costs.

Takes about a quarter of an hour for 100 million, and 5 GB of disk; the sender is not what it
waits for. --events 20000000 measures a fifth of it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from tests.bench.columns import BEGIN, DAY
from tests.bench.data import BLOCK_EVENTS, DIMENSIONS, TENANTS
from tests.bench.load import Load, Loaded, Stretch, send
from tests.bench.record import scratch
from tests.bench.servers import Server, tallybook_server, total_counted
from tests.bench.table import Goal, Row, Table, at_least, at_most, interleave, ratio, spread
from tests.bench.timeline import MONTH_DAYS, YEAR_DAYS, Amount, Timeline

__all__ = ["run"]

EVENTS: Final = 100_000_000
_EVENTS_QUICK: Final = 3_000_000
_BLOCKS_A_REQUEST: Final = 8
_BURST_BLOCKS_MAX: Final = 2_000
"""Of one turn when ingest is compared: two million events, some seconds."""
_ASKED: Final = 5
_Question = dict[str, str | Sequence[str]]
_FROM: Final = "2026-01-01T00:00:00Z"
_INVOICE: Final[_Question] = {
    "dimension": DIMENSIONS,
    "group_by": "tenant",
    "aggregation": "sum",
    "from": _FROM,
    "to": "2026-02-01T00:00:00Z",
}
_POINT: Final[_Question] = {
    "dimension": DIMENSIONS[7],
    "tenant": TENANTS[2],
    "group_by": "tenant",
    "aggregation": "sum",
    "from": _FROM,
    "to": "2026-01-02T00:00:00Z",
}


def sizes_of(events: int) -> list[int]:
    """The sizes at which is measured: of 100 million also 1, 10 and 50 million."""
    parts = (100, 10, 2, 1) if events >= EVENTS // 10 else (3, 1)
    return [events // part for part in parts]


class Answers(NamedTuple):
    """
    What a ledger answered.

    Attributes:
        seconds: The median of some times.
        correct: Whether each one was what the blocks that were sent make it.
        events: On how many events it rests.
    """

    seconds: float
    correct: bool
    events: int


class Measured(NamedTuple):
    """
    What was measured at one size.

    Attributes:
        events: How many were sent.
        counted: How many the ledger counts, before and after SIGKILL.
        invoice: January's.
        point: One day of one tenant.
        memory: The most that a server had, in bytes.
        start_seconds: From SIGKILL to an answer.
        disk_bytes: All files.
    """

    events: int
    counted: tuple[int, int]
    invoice: Answers
    point: Answers
    memory: int
    start_seconds: float
    disk_bytes: int


@dataclass
class Ledger:
    """
    A ledger that grows, and the server that has it.

    Attributes:
        data: The server's directory.
        timeline: The year.
        sender: Where events are sent from.
        blocks: How many blocks of the year it has.
        memory: The most memory that a server of it had.
        loads: How often it was sent to.
        busy: How often it said that it was busy.
    """

    data: Path
    timeline: Timeline
    sender: ProcessPoolExecutor
    blocks: int = 0
    memory: int = 0
    loads: int = 0
    busy: int = 0
    _server: Server | None = None
    _stack: ExitStack | None = None

    @property
    def server(self) -> Server:
        if self._server is None:
            raise RuntimeError("the server is not running")
        return self._server

    def start(self) -> None:
        """Start the server."""
        self._stack = ExitStack()
        self._server = self._stack.enter_context(tallybook_server(self.data))

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server; or end it in the middle of whatever it does."""
        if self._server is None or self._stack is None:
            return
        self.memory = max(self.memory, self._server.memory_bytes())
        if kill:
            self._server.kill()
        self._stack.close()
        self._server = self._stack = None

    def grow(self, blocks: int) -> float:
        """Send the next *blocks* of the year; events per second."""
        self.loads += 1
        load = Load(
            self.server.port,
            "blocks",
            3_600.0,
            "drawn",
            0,
            seed=self.loads,
            blocks=_BLOCKS_A_REQUEST,
            stretch=Stretch(self.timeline, self.blocks, self.blocks + blocks),
        )
        loaded: Loaded = self.sender.submit(send, load).result()
        if loaded.events != blocks * BLOCK_EVENTS:
            raise RuntimeError(f"{loaded.events} of {blocks * BLOCK_EVENTS} events were taken")
        self.blocks += blocks
        self.busy += loaded.busy
        return loaded.events / loaded.seconds

    def ask(self, question: _Question, times: int = _ASKED) -> Answers:
        """January's invoice, or one day of it; the first time is for warming up."""
        right = self._expected(question)
        correct, seconds = True, []
        for _ in range(times + 1):
            begun = time.perf_counter()
            rows = self.server.usage(question)
            seconds.append(time.perf_counter() - begun)
            correct = correct and _amounts(rows) == right
        return Answers(median(seconds[1:]), correct, sum(int(row["events"]) for row in rows))

    def _expected(self, question: _Question) -> tuple[Amount, Amount]:
        if question is _INVOICE:
            return self.timeline.amounts(self.blocks, BEGIN, BEGIN + MONTH_DAYS * DAY)
        group = (str(question["dimension"]), str(question["tenant"]))
        amounts = self.timeline.amounts(self.blocks, BEGIN, BEGIN + DAY)
        thousandths, events = (Amount({group: amount[group]}) for amount in amounts)
        return thousandths, events

    def measure(self) -> Measured:
        """Everything that one size shows; in the middle of it the server is killed."""
        self.server.settle()
        counted = total_counted(self.server)
        invoice, point = self.ask(_INVOICE), self.ask(_POINT)
        self.stop(kill=True)
        begun = time.perf_counter()
        self.start()
        self.server.usage(_POINT)
        start_seconds = time.perf_counter() - begun
        recounted = total_counted(self.server)
        self.memory = max(self.memory, self.server.memory_bytes())
        return Measured(
            self.blocks * BLOCK_EVENTS,
            (counted, recounted),
            invoice,
            point,
            self.memory,
            start_seconds,
            sum(path.stat().st_size for path in self.data.rglob("*") if path.is_file()),
        )


def _amounts(rows: list[dict[str, Any]]) -> tuple[Amount, Amount]:
    """Thousandths and events of an answer, as the timeline says them."""
    thousandths, events = Amount(), Amount()
    for row in rows:
        group = (row["dimension"], row["tenant"])
        thousandths[group] = int(Decimal(row["value"]) * 1000)
        events[group] = row["events"]
    return thousandths, events


@contextmanager
def _ledger(timeline: Timeline, sender: ProcessPoolExecutor, data: Path) -> Generator[Ledger]:
    ledger = Ledger(data, timeline, sender)
    try:
        ledger.start()
        yield ledger
    finally:
        ledger.stop()


# -- the benchmark -------------------------------------------------------------------------


def run(*, quick: bool, events: int | None = None) -> Table:
    """Measure; about a quarter of an hour, *quick*: half a minute."""
    events = events or (_EVENTS_QUICK if quick else EVENTS)
    timeline = Timeline(events, 100 if quick else 500)
    turns, burst = 2 if quick else 3, min(events // BLOCK_EVENTS // 20, _BURST_BLOCKS_MAX)
    rows: list[Row] = []
    with ExitStack() as stack:
        home = stack.enter_context(scratch())
        sender = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        ledger = stack.enter_context(_ledger(timeline, sender, home / "grown"))
        kept: tuple[Path, int] | None = None
        for size in sizes_of(events):
            ledger.grow(max(size // BLOCK_EVENTS - ledger.blocks, 0))
            measured = ledger.measure()
            rows += _rows(measured)
            if kept is None and measured.events >= events * (MONTH_DAYS + 1) // YEAR_DAYS:
                kept = _keep(ledger, home / "kept"), ledger.blocks
            rows.append(_speed(ledger, timeline, burst, turns, home / f"empty-{size}"))
        if kept is not None:
            rows += _history(ledger, *kept, turns=2 * turns + 1)
        busy = ledger.busy
    notes = [f"{busy} answers of 503 while it grew"] if busy else []
    if events < EVENTS:
        notes.append(f"the goals are about {EVENTS:,} events")
    title = f"one ledger, one year of {events:,} events, 2 connections, 8 blocks a request"
    return Table("growth", title, rows, notes)


def _rows(measured: Measured) -> list[Row]:
    size = f"{measured.events / 1e6:,.4g}M"
    before, after = measured.counted
    counted = f"{before:,} counted of {measured.events:,} sent, {after:,} after SIGKILL"
    correct = before == after == measured.events
    weight = measured.disk_bytes / measured.events
    return [
        _asked(f"{size}: January's invoice", measured.invoice),
        _asked(f"{size}: one day of one tenant", measured.point),
        Row(
            f"{size}: memory at most",
            measured.memory / (1 << 20),
            "MiB",
            goal=at_most(1_024, "MiB"),
            checked=f"{counted}; on the disk {weight:.1f} bytes/event",
            correct=correct,
        ),
        Row(
            f"{size}: from SIGKILL to an answer",
            measured.start_seconds,
            "s",
            goal=at_most(10.0, "s"),
            checked=counted,
            correct=correct,
        ),
    ]


def _asked(what: str, answers: Answers) -> Row:
    found = "exactly" if answers.correct else "NOT exactly"
    return Row(
        what,
        answers.seconds * 1e3,
        "ms",
        "HTTP and JSON included",
        repetitions=_ASKED,
        checked=f"{answers.events:,} events, {found} what was sent",
        correct=answers.correct,
    )


def _keep(ledger: Ledger, place: Path) -> Path:
    """A copy of the ledger as it is now."""
    ledger.stop()
    shutil.copytree(ledger.data, place)
    ledger.start()
    return place


def _speed(ledger: Ledger, timeline: Timeline, burst: int, turns: int, place: Path) -> Row:
    """Ingest of the grown ledger and of one that begins, in turns."""
    size = f"{ledger.blocks * BLOCK_EVENTS / 1e6:,.4g}M"
    with _ledger(timeline, ledger.sender, place) as empty:
        # The same part of the year: blocks of another time may compress otherwise.
        begin = empty.blocks = ledger.blocks
        empty.grow(burst)  # What is slow about a beginning is nothing that growth makes slow.
        contestants: dict[str, Callable[[], float]] = {
            "grown": lambda: ledger.grow(burst),
            "empty": lambda: empty.grow(burst),
        }
        rates = interleave(turns, contestants)
        counted, sent = total_counted(empty.server), (empty.blocks - begin) * BLOCK_EVENTS
    shutil.rmtree(place)
    grown = rates["grown"]
    return Row(
        f"{size}: ingest",
        ratio(grown, rates["empty"]),
        "x",
        f"a ledger that begins, {median(rates['empty']):,.0f}/s ({spread(grown, rates['empty'])})",
        at_least(0.8),
        turns,
        f"{median(grown):,.0f}/s; {counted:,} of {sent:,} counted in the other one",
        counted == sent,
    )


def _history(ledger: Ledger, kept: Path, blocks: int, *, turns: int) -> list[Row]:
    """What the rest of the year costs a question about January."""
    ledger.server.settle()
    with _ledger(ledger.timeline, ledger.sender, kept) as short:
        short.blocks = blocks
        short.server.settle()
        return [
            _compared(ledger, short, _INVOICE, "January's invoice", at_most(1.3), turns),
            _compared(ledger, short, _POINT, "one day of one tenant", None, turns),
        ]


def _compared(
    ledger: Ledger, short: Ledger, question: _Question, what: str, goal: Goal | None, turns: int
) -> Row:
    answers: list[Answers] = []

    def seconds(asked: Ledger) -> float:
        answers.append(asked.ask(question, 1))
        return answers[-1].seconds

    times = interleave(turns, {"year": lambda: seconds(ledger), "short": lambda: seconds(short)})
    year, early = times["year"], times["short"]
    correct = all(one.correct for one in answers)
    return Row(
        f"{what}: what a year of history costs",
        ratio(year, early),
        "x",
        f"{short.blocks * BLOCK_EVENTS:,} events ({spread(year, early)})",
        goal,
        turns,
        f"{answers[0].events:,} events, {'exactly' if correct else 'NOT exactly'} what was sent; "
        f"{median(year) * 1e3:,.0f} ms and {median(early) * 1e3:,.0f} ms",
        correct,
    )
