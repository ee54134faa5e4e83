"""A backup and a restore are killed at every file system call, and looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tallybook import Meter
from tallybook.clock import SystemClock, SystemIds
from tallybook_server.backup_directory import BackupDirectory
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.restore import Restore, check_backup
from tallybook_server.settings import Settings
from tests.crash.counting import held_events
from tests.crash.events import STREAM_EVENTS, record
from tests.crash.processes import Job, Zygote
from tests.crash.serving import LedgerTransport, backup_once, restore_once
from tests.crash.tracing import Point, Strace, points_of, threads_of

STRIDES = pytest.mark.parametrize(
    "stride",
    [pytest.param(13, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.crash)],
)


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote("tests.crash.serving") as process:
        yield process


def _fill(folder: Path) -> tuple[set[int], set[int]]:
    """
    A ledger, its backup, and what came since: a segment and blocks that it lacks.

    Returns:
        What the backup holds, and what the ledger does.
    """
    ledger = EmbeddedLedger(Settings(directory=folder / "data").book, threads=False)
    done: set[int] = set()
    backed_up: set[int] = set()
    with Meter(
        "crash",
        directory=folder / "queue",
        endpoint="http://127.0.0.1:1",
        transport=LedgerTransport(ledger),
        threads=False,
    ) as meter:
        for part in range(4):
            for n in range(part * 100 + 1, part * 100 + 101):
                record(meter, STREAM_EVENTS + n)
                done.add(STREAM_EVENTS + n)
            assert meter.flush().ok
            if part in (0, 2):
                assert ledger.sealer.step(force=True)
            if part == 1:
                ledger.backup(str(folder / "backup"))
                backed_up = set(done)
    ledger.close()
    return backed_up, done


def _points(begin: Callable[[], Job], output: Path) -> list[Point]:
    job = begin()
    job.hear("ready")
    threads = threads_of(job.pid)
    with Strace(job.pid, output=output):
        job.begin()
        assert job.wait() == 0
    return points_of(output, threads)


def _kill(begin: Callable[[], Job], point: Point) -> bool:
    """Whether it was killed there."""
    job = begin()
    job.hear("ready")
    with Strace(threads_of(job.pid)[point.thread], kill_at=point):
        job.begin()
        code = job.wait()
    assert code in (0, -9), point
    return code == -9


def _held(data: Path) -> set[int]:
    """What a ledger that verifies holds, each event once."""
    ledger = EmbeddedLedger(Settings(directory=data).book, threads=False)
    try:
        assert list(ledger.verify()) == []
    finally:
        ledger.close()
    held, strange = held_events(data)
    assert (set(held.values()), strange) == ({1}, [])
    return set(held)


def _restored(folder: Path) -> set[int]:
    """What is in the ledger that the backup makes."""
    assert list(check_backup(folder / "backup")) == []
    data = folder / "restored"
    book = Settings(directory=data).book
    Restore(folder / "backup", book, clock=SystemClock(), ids=SystemIds()).make()
    held = _held(data)
    shutil.rmtree(data)
    return held


def _back_up(data: Path, target: Path) -> None:
    ledger = EmbeddedLedger(Settings(directory=data).book, threads=False)
    ledger.backup(str(target))
    ledger.close()


@STRIDES
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_a_backup_leaves_the_old_one_or_the_new_one(
    stride: int, zygote: Zygote, tmp_path: Path
) -> None:
    """
    Copy, sync, rename, publish, archive, tidy: killed before any call, the ledger holds what it
    held, and the directory is one of two backups, whole. The next backup is the new one.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    old, new = _fill(whole)

    def begin() -> Job:
        return zygote.run(backup_once, data=killed / "data", target=str(killed / "backup"))

    shutil.copytree(whole, killed)
    points = _points(begin, tmp_path / "calls")[::stride]
    shutil.rmtree(killed)
    kills = olds = 0
    for point in points:
        shutil.copytree(whole, killed)
        kills += _kill(begin, point)
        assert _held(killed / "data") == new, point
        found = _restored(killed)
        assert found in (old, new), point
        olds += found == old
        _back_up(killed / "data", killed / "backup")
        assert _restored(killed) == new, point
        manifest = BackupDirectory(killed / "backup").finished()
        files = {stored.file for stored in (manifest.journal, *manifest.segments)}
        assert {path.name for path in (killed / "backup" / "files").iterdir()} == files
        shutil.rmtree(killed)
    assert kills > len(points) / 2
    assert 0 < olds < len(points)
    print(
        f"backup by system call, {len(points)} points: {kills} kills, {olds} times the old backup "
        f"was there and {len(points) - olds} times the new one, both whole; ledger verifies"
    )


@STRIDES
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_a_restore_leaves_no_ledger_or_a_whole_one(
    stride: int, zygote: Zygote, tmp_path: Path
) -> None:
    """Copy, branch, sync, rename: what is left is never served, and the next restore succeeds."""
    whole = tmp_path / "whole"
    held, _ = _fill(whole)
    data = tmp_path / "new"

    def begin() -> Job:
        return zygote.run(restore_once, source=str(whole / "backup"), data=data)

    points = _points(begin, tmp_path / "calls")[::stride]
    shutil.rmtree(data)
    kills = finished = 0
    for point in points:
        kills += _kill(begin, point)
        book = Settings(directory=data).book
        if book.exists():
            finished += 1
        else:
            Restore(whole / "backup", book, clock=SystemClock(), ids=SystemIds()).make()
        assert _held(data) == held, point
        assert [path.name for path in book.parent.iterdir()] == ["default"], point
        shutil.rmtree(data)
    assert list(check_backup(whole / "backup")) == []
    assert kills > len(points) / 2
    print(
        f"restore by system call, {len(points)} points: {kills} kills, {finished} times a whole "
        f"ledger, {len(points) - finished} times none; the backup is untouched"
    )
