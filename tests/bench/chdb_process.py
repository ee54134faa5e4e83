"""
chdb, the ClickHouse library, for the query benchmark: in a process of its own.

It is 800 MB with what it needs, and is not to be had on every machine; the benchmark goes
on without it. Two engines in one process would share allocator and signals, so it gets one
of its own, and the time is taken there.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from tests.bench.columns import TAGS
from tests.bench.questions import Dialect, Question

__all__ = ["Chdb"]

_DIALECT: Final = Dialect(quotient="intDiv({}, {})", distinct="uniqExact({})")
_session: Any = None


def _open(directory: str) -> str | None:
    """Open it, in its process; the reason, if that cannot be."""
    global _session
    try:
        # By name, since it is no part of what the project is checked with.
        _session = importlib.import_module("chdb.session").Session(directory)
    except ImportError as error:
        return str(error)
    return None


def _fill(parquet: str) -> None:
    texts = ", ".join(f"{key} LowCardinality(String)" for key in TAGS)
    _session.query("create database bench engine = Atomic")
    _session.query("use bench")
    _session.query(
        "create table events (tenant LowCardinality(String), dimension LowCardinality(String), "
        f"time Int64 codec(Delta, ZSTD), value Int64 codec(ZSTD), {texts}) "
        "engine = MergeTree order by (tenant, dimension, time)"
    )
    _session.query(f"insert into events select * from file('{parquet}', Parquet)")
    _session.query("optimize table events final")


def _ask(sql: str) -> list[Any]:
    answer = _session.query(
        f"{sql} settings output_format_json_quote_64bit_integers = 0", "JSONCompactEachRow"
    )
    return msgspec.json.Decoder().decode_lines(answer.bytes())


def _times(sql: str, times: int) -> float:
    """The median of *times* runs, in seconds."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        _ask(sql)
        taken.append(time.perf_counter() - begun)
    return median(taken)


class Chdb:
    """A MergeTree, sorted by tenant, dimension and time; tags are columns."""

    name = "chdb"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self.missing: str | None = self._process.submit(_open, str(directory)).result()
        """Why it is not there, or None."""

    def fill(self, parquet: Path) -> None:
        """Load the events."""
        self._process.submit(_fill, str(parquet)).result()

    @property
    def bytes(self) -> int:
        sql = "select sum(bytes_on_disk) from system.parts where active and table = 'events'"
        return int(self._process.submit(_ask, sql).result()[0][0])

    def asker(self, question: Question) -> Callable[[], Sequence[Sequence[Any]]]:
        sql = question.sql(_DIALECT)
        return lambda: self._process.submit(_ask, sql).result()

    def seconds(self, question: Question, times: int) -> float:
        """The median of *times* runs, taken in its process."""
        return self._process.submit(_times, question.sql(_DIALECT), times).result()

    def close(self) -> None:
        """End its process."""
        self._process.shutdown()
