"""The server is killed at every file system call of one compaction, and opened again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybook import Meter
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.settings import Settings
from tests.crash.counting import compare_closed
from tests.crash.events import STREAM_EVENTS, shape_of
from tests.crash.processes import Zygote
from tests.crash.serving import COMPACTION, LedgerTransport, compact_once
from tests.crash.tracing import kill_at, points_in

MONTH = 31 * 86_400_000_000


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote("tests.crash.serving") as process:
        yield process


def _open(data: Path) -> EmbeddedLedger:
    return EmbeddedLedger(Settings(directory=data).book, threads=False, compaction=COMPACTION)


def _fill(data: Path, folder: Path) -> list[int]:
    """A ledger with two segments, each of events of two months, and a tail; what is in it."""
    ledger = _open(data)
    done: list[int] = []
    now = time.time_ns() // 1000
    with Meter(
        "crash",
        directory=folder / "queue",
        endpoint="http://127.0.0.1:1",
        transport=LedgerTransport(ledger),
        threads=False,
    ) as meter:
        for part in range(3):
            # From 101 on, since the events before are bulky: every column is a few calls more.
            for n in range(101 + part * 50, 151 + part * 50):
                dimension, tenant, tags, key = shape_of(STREAM_EVENTS + n)
                then = now - n % 2 * MONTH
                value = STREAM_EVENTS + n
                meter.record(dimension, value, tenant=tenant, tags=tags, key=key, time=then)
                done.append(value)
            assert meter.flush().ok
            if part < 2:
                assert ledger.sealer.step(force=True)
    ledger.close()
    return done


def _check(data: Path, events: list[int]) -> None:
    """Everything is there once, as it is found and when it is compacted; no file is left over."""
    for compact in (False, True):
        ledger = _open(data)
        try:
            assert list(ledger.verify()) == []
            if compact:
                while ledger.compactor.step():
                    pass
                assert list(ledger.verify()) == []
            segments = ledger.snapshots.current.segments
            files = {path.name for path in (ledger.directory / "segments").iterdir()}
            assert files == {segment.name for segment in segments}
            assert not compact or {segment.level for segment in segments} == {1}
        finally:
            ledger.close()
        outcome = compare_closed(events, data, kills=1)
        assert outcome.clean, outcome
        assert outcome.held == len(events)


@pytest.mark.parametrize(
    "stride",
    [pytest.param(11, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.crash)],
)
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_a_compaction_loses_and_doubles_nothing(
    stride: int, zygote: Zygote, tmp_path: Path
) -> None:
    """
    Write, sync, rename, enter, sweep: killed before any call, the ledger holds what it held.

    Opened again, it verifies; compacted again, it verifies; each event is there once.
    """
    whole = tmp_path / "whole"
    events = _fill(whole, tmp_path)
    shutil.copytree(whole, tmp_path / "counted")
    calls = points_in(
        lambda: zygote.run(compact_once, data=tmp_path / "counted"), tmp_path / "calls"
    )
    # DuckDB reads each link of each path again and again: two calls of three. As these change
    # nothing, a kill before one of them is the same as a kill before the next other call.
    points = [point for point in calls if point.call != "readlink"][::stride]
    kills = 0
    for point in points:
        data = tmp_path / "killed"
        shutil.copytree(whole, data)
        kills += kill_at(lambda: zygote.run(compact_once, data=data), point)
        _check(data, events)
        shutil.rmtree(data)
    # Which of DuckDB's threads makes a call is not the same every time.
    assert kills > len(points) / 3
    print(
        f"compaction by system call, {len(points)} points: {kills} kills, {len(events)} events "
        "each time, lost 0, doubled 0, verify clean"
    )
