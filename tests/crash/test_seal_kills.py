"""The server is killed at every file system call of one seal, and opened again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybook import Meter
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.settings import Settings
from tests.crash.counting import compare_closed
from tests.crash.events import STREAM_EVENTS, record
from tests.crash.processes import Zygote
from tests.crash.serving import LedgerTransport, seal_once
from tests.crash.tracing import kill_at, points_in


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote("tests.crash.serving") as process:
        yield process


def _fill(data: Path, folder: Path) -> list[int]:
    """A ledger with a segment, and blocks that are due to be the next; what is in it."""
    ledger = EmbeddedLedger(Settings(directory=data).book, threads=False)
    done: list[int] = []
    with Meter(
        "crash",
        directory=folder / "queue",
        endpoint="http://127.0.0.1:1",
        transport=LedgerTransport(ledger),
        threads=False,
    ) as meter:
        for part in range(4):
            for n in range(part * 200 + 1, part * 200 + 201):
                record(meter, STREAM_EVENTS + n)
                done.append(STREAM_EVENTS + n)
            assert meter.flush().ok
            if part == 0:
                assert ledger.sealer.step(force=True)
    ledger.close()
    return done


def _check(data: Path, events: list[int]) -> None:
    """Everything is there once, as it is found and when it is sealed again."""
    for seal in (False, True):
        ledger = EmbeddedLedger(Settings(directory=data).book, threads=False)
        try:
            assert list(ledger.verify()) == []
            if seal:
                ledger.sealer.step(force=True)
                assert list(ledger.verify()) == []
        finally:
            ledger.close()
        outcome = compare_closed(events, data, kills=1)
        assert outcome.clean, outcome
        assert outcome.held == len(events)


@pytest.mark.parametrize(
    "stride",
    [pytest.param(13, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.crash)],
)
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_a_seal_loses_and_doubles_nothing(
    stride: int, zygote: Zygote, tmp_path: Path
) -> None:
    """
    Write, sync, rename, enter, sweep: killed before any call, the ledger holds what it held.

    Opened again, it verifies; sealed again, it verifies; each event is there once.
    """
    whole = tmp_path / "whole"
    events = _fill(whole, tmp_path)
    shutil.copytree(whole, tmp_path / "counted")
    calls = points_in(lambda: zygote.run(seal_once, data=tmp_path / "counted"), tmp_path / "calls")
    points = calls[::stride]
    kills = 0
    for point in points:
        data = tmp_path / "killed"
        shutil.copytree(whole, data)
        kills += kill_at(lambda: zygote.run(seal_once, data=data), point)
        _check(data, events)
        shutil.rmtree(data)
    # Which of DuckDB's threads makes a call is not the same every time.
    assert kills > len(points) / 3
    print(
        f"seal by system call, {len(points)} points: {kills} kills, {len(events)} events each "
        "time, lost 0, doubled 0, verify clean"
    )
