"""
query: the questions that invoices and dashboards ask, beside PostgreSQL and other engines.

The same events everywhere: 10 million of 1,000 tenants, 20 dimensions, five tags, 90 days.
tallybook has the last 200,000 of them in its hot tail, as a server that is running has;
whatever else it does on its own, sealing and what comes behind it, it has done before. It
answers in this process as the others do; a server adds HTTP. Every engine is warm, the
contestants take turns, and a time runs until the last row is a Python object.

Every answer is compared, value by value, before anything is timed. The invoice is compared
with numpy as well, whose sum over its four columns is how fast memory can be read at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import numpy as np

from tallybook_server.embedded import EmbeddedLedger
from tests.bench.chdb_process import Chdb
from tests.bench.columns import Dataset, draw
from tests.bench.data import DIMENSIONS, TENANTS
from tests.bench.engines import DuckDB, Engine, PostgreSQL, SQLite, export_csv, export_parquet
from tests.bench.filled import fill
from tests.bench.postgres import postgres
from tests.bench.questions import (
    INVOICE,
    POINT,
    QUESTIONS,
    Line,
    Question,
    lines_of_rows,
    lines_of_usage,
)
from tests.bench.record import scratch
from tests.bench.table import Goal, Row, Table, at_least, at_most, interleave, ratio, spread

__all__ = ["run"]

EVENTS: Final = 10_000_000
_EVENTS_QUICK: Final = 100_000
_QUICK_SECONDS: Final = 0.05
_OURS: Final = "tallybook"
_FLOOR: Final = "numpy sum"


class _Found(NamedTuple):
    """What a comparison of the answers found."""

    words: str
    correct: bool


@dataclass
class Contest:
    """
    All engines with the same events.

    Attributes:
        ledger: tallybook's.
        events: What they hold.
        engines: The others.
        chdb: The one of them that takes its own time; None: it is not there.
        repetitions: Turns of each.
        notes: Who is not there, and why.
    """

    ledger: EmbeddedLedger
    events: Dataset
    engines: list[Engine]
    chdb: Chdb | None
    repetitions: int
    notes: list[str] = field(default_factory=list[str])

    def rows(self, question: Question) -> list[Row]:
        """What one question shows."""
        found = self._compare(question)
        figures = interleave(self.repetitions, self._contestants(question))
        if question is POINT:
            rows = [self._against(question, figures, DuckDB.name, at_most(3.0))]
        elif question is INVOICE:
            rows = self._invoice(question, figures)
        else:
            others = [name for name in figures if name != _OURS]
            best = min(others, key=lambda name: median(figures[name]))
            rows = [self._against(question, figures, best, at_most(1.5))]
        times = {f"{name}_ms": median(each) * 1e3 for name, each in figures.items()}
        shown = ", ".join(f"{name.removesuffix('_ms')} {ms:,.4g}" for name, ms in times.items())
        whole = replace(
            rows[0], checked=f"{found.words}; ms: {shown}", correct=found.correct, more=times
        )
        return [whole, *(replace(row, checked="as above") for row in rows[1:])]

    def _contestants(self, question: Question) -> dict[str, Callable[[], float]]:
        contestants = {_OURS: self._timed(lambda: self.ledger.aggregate(question.asked))}
        for engine in self.engines:
            if engine is self.chdb:
                continue
            contestants[engine.name] = self._timed(engine.asker(question))
        if (chdb := self.chdb) is not None:
            contestants[chdb.name] = lambda: chdb.seconds(question, 3)
        if question is INVOICE:
            columns = [
                self.events.tenant,
                self.events.dimension,
                self.events.time,
                self.events.thousandths,
            ]
            contestants[_FLOOR] = self._timed(lambda: [column.sum() for column in columns])
        return contestants

    def _timed(self, ask: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            taken: list[float] = []
            # A question of some milliseconds is asked some times: the middle one counts.
            while not taken or (len(taken) < 5 and taken[0] < _QUICK_SECONDS):
                begun = time.perf_counter()
                ask()
                taken.append(time.perf_counter() - begun)
            return median(taken)

        return seconds

    def _compare(self, question: Question) -> _Found:
        """Whether all have tallybook's answer. It also warms every engine."""
        ours = lines_of_usage(question, self.ledger.aggregate(question.asked).rows)
        others = {
            engine.name: lines_of_rows(question, engine.asker(question)())
            for engine in self.engines
        }
        if question is INVOICE:
            others["numpy"] = self._by_numpy(question)
        unequal = [name for name, lines in others.items() if lines != ours]
        shown = f"{len(ours):,} rows on {sum(line.events for line in ours):,} events"
        if unequal:
            return _Found(f"{shown}, NOT the answer of {', '.join(unequal)}", False)
        return _Found(f"{shown}, the answer of {', '.join(others)}", bool(ours))

    def _invoice(self, question: Question, figures: dict[str, list[float]]) -> list[Row]:
        floor = self._against(question, figures, _FLOOR, at_most(15.0))
        ours, theirs = figures[_OURS], figures.get(PostgreSQL.name)
        if theirs is None:
            return [floor]
        faster = Row(
            f"{question.name}: faster than PostgreSQL",
            ratio(theirs, ours),
            "x",
            f"{PostgreSQL.name} ({spread(theirs, ours)})",
            at_least(10.0),
            self.repetitions,
        )
        return [faster, floor]

    def _against(
        self, question: Question, figures: dict[str, list[float]], name: str, goal: Goal
    ) -> Row:
        ours, theirs = figures[_OURS], figures[name]
        return Row(
            f"{question.name}: time",
            ratio(ours, theirs),
            "x",
            f"{name} ({spread(ours, theirs)})",
            goal,
            self.repetitions,
        )

    def _by_numpy(self, question: Question) -> list[Line]:
        """The invoice, added by nobody's engine."""
        asked, events = question.asked, self.events
        chosen = (events.time >= (asked.start or 0)) & (events.time < (asked.end or 0))
        groups = (events.dimension * len(TENANTS) + events.tenant)[chosen]
        totals = np.zeros(len(DIMENSIONS) * len(TENANTS), np.int64)
        np.add.at(totals, groups, events.thousandths[chosen])
        counts = np.bincount(groups, minlength=len(totals))
        return sorted(
            Line((DIMENSIONS[n // len(TENANTS)], TENANTS[n % len(TENANTS)]), int(totals[n]), count)
            for n, count in enumerate(counts.tolist())
            if count
        )

    def weights(self) -> Row:
        """What an event takes on the disk."""
        size = sum(path.stat().st_size for path in self.ledger.directory.rglob("*.*"))
        figures = {engine.name: engine.bytes / len(self.events) for engine in self.engines}
        return Row(
            "on the disk",
            size / len(self.events),
            "bytes/event",
            ", ".join(f"{name} {figure:,.0f}" for name, figure in figures.items()),
            checked=f"{len(self.events):,} events; tallybook's with journal and tail",
            more=figures,
        )


def run(*, quick: bool, events: int | None = None) -> Table:
    """Measure; about ten minutes with 10 million events, *quick*: half a minute."""
    count = events or (_EVENTS_QUICK if quick else EVENTS)
    drawn = draw(count)
    with ExitStack() as stack:
        home = stack.enter_context(scratch())
        ledger = stack.enter_context(closing(fill(home / "book", drawn)))
        contest = Contest(ledger, drawn, [], None, 3 if quick else 5)
        _set_up(contest, home, stack)
        rows = [row for question in QUESTIONS for row in contest.rows(question)]
        rows.append(contest.weights())
        tail = sum(part.generation.events for part in ledger.snapshots.current.tail)
        segments = len(ledger.snapshots.current.segments)
    if count < EVENTS:
        contest.notes.append(
            f"the goals are about {EVENTS:,} events; with fewer, asking outweighs reading"
        )
    title = f"{count:,} events of 90 days; {tail:,} of them in the hot tail, segments: {segments}"
    return Table("query", title, rows, contest.notes)


def _set_up(contest: Contest, home: Path, stack: ExitStack) -> None:
    native = DuckDB(home / "native.duckdb", contest.events)
    stack.callback(native.connection.close)
    contest.engines += [native, stack.enter_context(closing(SQLite(home / "rows.db", native)))]
    dsn = stack.enter_context(postgres(PostgreSQL.SETTINGS))
    if dsn is None:
        contest.notes.append("PostgreSQL is not installed: its rows are left out")
    else:
        csv = home / "events.csv"
        export_csv(native, csv)
        contest.engines.append(stack.enter_context(closing(PostgreSQL(dsn, csv))))
        csv.unlink()
    chdb = stack.enter_context(closing(Chdb(home / "chdb")))
    if chdb.missing is not None:
        contest.notes.append(f"chdb is not installed, and left out: {chdb.missing}")
    else:
        export_parquet(native, home / "events.parquet")
        chdb.fill(home / "events.parquet")
        contest.engines.append(chdb)
        contest.chdb = chdb
