"""
verify: how fast a closed ledger is computed anew and compared with what is there.

It is what `tallybook verify --data` does, on the events that `query` is measured with: most
of them sealed and merged, the last ones still blocks of the journal. Beside it runs what
anybody would do to files that should not have changed, `sha256sum`; and DuckDB reads the
columns out of which it is seen that each event is there once. Neither of them knows what
should be there. Verify has to find nothing; that it finds what is wrong is shown by tests.

What an event with a key says is hashed anew, one after the other, so a ledger in which each
event has a key has a row of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import duckdb

from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.verify import Progress, verify_directory
from tests.bench.columns import draw
from tests.bench.data import Producer, block_of, draw_facts
from tests.bench.filled import append, fill
from tests.bench.record import scratch
from tests.bench.table import Row, Table, at_least, interleave, ratio, spread

__all__ = ["run"]

EVENTS: Final = 10_000_000
_EVENTS_QUICK: Final = 300_000
_KEYED: Final = 300_000
_KEYED_QUICK: Final = 30_000
_PER_BLOCK: Final = 1_000
_BEGIN: Final = 1_767_225_600_000_000
_RATE: Final = "events/s"

_OURS: Final = "verify"
_SHA256SUM: Final = "sha256sum of the same files"
_DUCKDB: Final = "DuckDB, entry and index of the same Parquet"


class Verifying:
    """
    Runs of verify over one closed book.

    Attributes:
        stages: Per check, its seconds in each run.
        findings: What was found, in all runs.
    """

    def __init__(self, book: Path) -> None:
        self._book = book
        self.stages: dict[str, list[float]] = {}
        self.findings: list[str] = []

    def __call__(self) -> float:
        """One run's seconds."""
        marks: list[tuple[str, float]] = [("opening", perf_counter())]

        def report(progress: Progress) -> None:
            if progress.check != marks[-1][0]:
                marks.append((progress.check, perf_counter()))

        found = [f"{one.what} {one.where}" for one in verify_directory(self._book, report=report)]
        self.findings += found
        ends = [*(at for _, at in marks[1:]), perf_counter()]
        for (name, begun), ended in zip(marks, ends, strict=True):
            self.stages.setdefault(name, []).append(ended - begun)
        return ends[-1] - marks[0][1]


def run(*, quick: bool, events: int | None = None) -> Table:
    """Measure; about three minutes with 10 million events, *quick*: half a minute."""
    count = events or (_EVENTS_QUICK if quick else EVENTS)
    repetitions = 3 if quick else 5
    with scratch() as home:
        with closing(fill(home / "book", draw(count))) as ledger:
            segments = len(ledger.snapshots.current.segments)
        rows = list(_rows(home / "book", count, repetitions))
        with closing(EmbeddedLedger(home / "keyed", threads=False)) as ledger:
            keyed = _KEYED_QUICK if quick else _KEYED
            append(ledger, Producer(1).id, _keyed_blocks(keyed))
            ledger.sealer.step(force=True)
        rows.append(_keyed(home / "keyed", keyed, repetitions))
    title = f"{count:,} events in {segments} segments and a hot tail, computed anew"
    return Table("verify", title, rows)


def _rows(book: Path, events: int, repetitions: int) -> Iterator[Row]:
    verifying = Verifying(book)
    contestants: dict[str, Callable[[], float]] = {
        _OURS: verifying,
        _SHA256SUM: lambda: _sha256sum(book),
        _DUCKDB: lambda: _read(book),
    }
    figures = interleave(repetitions, contestants)
    ours = figures[_OURS]
    checked = _checked(verifying)
    correct = not verifying.findings
    yield Row(
        "events verified",
        events / median(ours),
        _RATE,
        "",
        at_least(1_000_000, _RATE),
        repetitions,
        checked,
        correct,
    )
    for name in (_SHA256SUM, _DUCKDB):
        against = f"{name} ({spread(ours, figures[name])})"
        yield Row("time", ratio(ours, figures[name]), "x", against, None, repetitions)
    for stage, seconds in verifying.stages.items():
        share = median(seconds)
        if share >= 0.02 * median(ours):
            words = f"{share:.2f} s of {median(ours):.2f} s"
            yield Row(f"of that, {stage}", events / share, _RATE, words, None, repetitions)


def _keyed(book: Path, events: int, repetitions: int) -> Row:
    verifying = Verifying(book)
    seconds = [verifying() for _ in range(repetitions)]
    return Row(
        f"{events:,} events, each with a key",
        events / median(seconds),
        _RATE,
        "",
        None,
        repetitions,
        _checked(verifying),
        not verifying.findings,
    )


def _checked(verifying: Verifying) -> str:
    return "; ".join(verifying.findings[:3]) or "nothing found in any run"


def _keyed_blocks(events: int) -> Iterator[bytes]:
    producer = Producer(1)
    for at in range(0, events, _PER_BLOCK):
        facts = draw_facts(_PER_BLOCK, tags="drawn", seed=at, begin=_BEGIN + at * 1_000)
        yield producer.stamp(block_of(facts, keyed=True))


def _sha256sum(book: Path) -> float:
    files = [str(path) for path in book.rglob("*") if path.is_file()]
    begun = perf_counter()
    subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - begun


def _read(book: Path) -> float:
    with closing(duckdb.connect()) as db:
        begun = perf_counter()
        db.execute(
            'SELECT entry, count(*), sum(hash("index"))::HUGEINT '
            f"FROM read_parquet('{book}/segments/*.parquet', union_by_name = true) GROUP BY entry"
        ).fetchall()
        return perf_counter() - begun
