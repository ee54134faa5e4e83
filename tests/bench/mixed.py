"""
mixed: questions while events arrive, on one server.

First its top speed is measured, flat out. Then, in turns: four clients ask while nothing
arrives, and four clients ask while events arrive at half of the top speed. What changes is
the clients' 99th percentile; what must not change is the pace of the events. Meanwhile an
application records 1,000 events per second on a real Meter, and a fifth client asks until it
sees each of them: that is how old an answer can be.

The ledger has events of a year before anything is measured, and sealing and whatever comes
behind it go on as they do in production.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median
from typing import Final, NamedTuple

from tests.bench.clients import Asked, Asking, ask, percentile
from tests.bench.data import BLOCK_EVENTS
from tests.bench.load import Load, Loaded, Stretch, send
from tests.bench.pipeline import Ages, watch
from tests.bench.record import scratch
from tests.bench.servers import Server, tallybook_server, total_counted
from tests.bench.table import Row, Table, at_least, at_most, spread
from tests.bench.timeline import Timeline

__all__ = ["run"]

_CLIENTS: Final = 4
_RECORDED_PER_SECOND: Final = 1_000
_BLOCKS_BEHIND: Final = 1 << 30
"""A stretch without an end: its time ends first."""


class Plan(NamedTuple):
    """
    How long and how much.

    Attributes:
        events: In the ledger before anything is measured.
        rounds: Of idle and busy clients.
        seconds: Of each of the two.
        top_seconds: Of the load that finds the top speed.
    """

    events: int
    rounds: int
    seconds: float
    top_seconds: float


@dataclass
class Mixed:
    """
    One server under load and questions.

    Attributes:
        server: The server.
        timeline: What is sent.
        sender: Where it is sent from.
        asker: Where the clients are.
        blocks: How many blocks were sent.
        loads: How many loads there were.
        busy: How often the server said that it was busy.
        rounds: How many rounds of questions there were.
    """

    server: Server
    timeline: Timeline
    sender: ProcessPoolExecutor
    asker: ProcessPoolExecutor
    blocks: int = 0
    loads: int = 0
    busy: int = 0
    rounds: int = 0
    idle: list[Asked] = field(default_factory=list[Asked])
    loaded: list[Asked] = field(default_factory=list[Asked])
    rates: list[float] = field(default_factory=list[float])
    ages: list[Ages] = field(default_factory=list[Ages])

    def load(self, seconds: float, *, rate: float | None = None, blocks: int | None = None) -> Load:
        """The next stretch of the year, for so long or so many blocks."""
        self.loads += 1
        behind = _BLOCKS_BEHIND if blocks is None else self.blocks + blocks
        stretch = Stretch(self.timeline, self.blocks, behind)
        port = self.server.port
        return Load(
            port, "blocks", seconds, "drawn", 0, seed=self.loads, stretch=stretch, rate=rate
        )

    def sent(self, loaded: Loaded) -> float:
        """Take note of what was sent; its events per second."""
        self.blocks += loaded.events // BLOCK_EVENTS
        self.busy += loaded.busy
        return loaded.events / loaded.seconds

    def fill(self, events: int) -> None:
        """Have *events* in the ledger, and nothing to do."""
        load = self.load(3_600.0, blocks=events // BLOCK_EVENTS)
        self.sent(self.sender.submit(send, load._replace(blocks=8)).result())
        self.server.settle()

    def top(self, seconds: float) -> float:
        """Events per second, flat out."""
        rate = self.sent(self.sender.submit(send, self.load(seconds)).result())
        self.server.settle()
        return rate

    def round(self, seconds: float, rate: float) -> None:
        """Idle clients, and then busy ones."""
        self.rounds += 1
        asking = Asking(self.server.port, seconds, _CLIENTS, self.rounds)
        self.idle.append(self.asker.submit(ask, asking).result())
        sending = self.sender.submit(send, self.load(seconds + 1, rate=rate))
        answering = self.asker.submit(ask, asking)
        with scratch() as directory:
            self.ages.append(watch(self.server, str(directory), seconds, _RECORDED_PER_SECOND))
        self.loaded.append(answering.result())
        self.rates.append(self.sent(sending.result()))
        self.server.settle()


def run(*, quick: bool) -> Table:
    """Measure; about four minutes, *quick*: half a minute."""
    plan = Plan(200_000, 1, 5.0, 2.0) if quick else Plan(5_000_000, 5, 15.0, 10.0)
    with ExitStack() as stack:
        server = stack.enter_context(tallybook_server(stack.enter_context(scratch())))
        context = get_context("spawn")
        sender = stack.enter_context(ProcessPoolExecutor(1, context))
        asker = stack.enter_context(ProcessPoolExecutor(1, context))
        timeline = Timeline(plan.events, 100 if quick else 500)
        mixed = Mixed(server, timeline, sender, asker)
        mixed.fill(plan.events)
        top = mixed.top(plan.top_seconds)
        for _ in range(plan.rounds):
            mixed.round(plan.seconds, top / 2)
        counted = total_counted(server)
    rows = [*_answers(mixed), *_pace(mixed, top, counted), *_ages(mixed)]
    title = f"{_CLIENTS} clients ask while {top / 2:,.0f} events/s arrive, half of the top speed"
    return Table("mixed", title, rows)


def _answers(mixed: Mixed) -> list[Row]:
    rows = []
    for percent, goal in ((50, None), (99, at_most(5.0))):
        idle = [percentile(one.seconds, percent) for one in mixed.idle]
        loaded = [percentile(one.seconds, percent) for one in mixed.loaded]
        answers = sum(len(one.seconds) for one in mixed.loaded)
        rows.append(
            Row(
                f"an answer while events arrive: p{percent}",
                median(a / b for a, b in zip(loaded, idle, strict=True)),
                "x",
                f"idle ({spread(loaded, idle)})",
                goal,
                mixed.rounds,
                f"{answers:,} answers with {sum(one.rows for one in mixed.loaded):,} rows; "
                f"{median(loaded) * 1e3:,.0f} ms, idle {median(idle) * 1e3:,.0f} ms",
                answers > 0,
            )
        )
    return rows


def _pace(mixed: Mixed, top: float, counted: int) -> list[Row]:
    sent = mixed.blocks * BLOCK_EVENTS
    return [
        Row(
            "ingest while clients ask",
            median(mixed.rates) / (top / 2),
            "x",
            f"the pace that was set, {top / 2:,.0f} events/s",
            at_least(0.98),
            mixed.rounds,
            f"{counted:,} counted of {sent:,} sent; {mixed.busy} answers 503",
            counted == sent,
        ),
    ]


def _ages(mixed: Mixed) -> list[Row]:
    missing = sum(one.missing for one in mixed.ages)
    checked = f"{missing} missing; {sum(one.polls for one in mixed.ages)} answers"
    return [
        Row(
            f"recorded to visible, {_RECORDED_PER_SECOND:,} events/s of an application: {name}",
            median(each),
            "s",
            f"{min(each):.2g} to {max(each):.2g} s",
            goal,
            mixed.rounds,
            checked,
            missing == 0,
        )
        for name, each, goal in (
            ("p50", [one.p50 for one in mixed.ages], None),
            ("p99", [one.p99 for one in mixed.ages], at_most(1.0, "s")),
        )
    ]
