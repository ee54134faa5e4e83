"""A backup and a restore are killed at every file system call, and looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tallybook.clock import SystemClock, SystemIds
from tallybook_server.backup_directory import BackupDirectory
from tallybook_server.backup_manifest import BackupDamaged
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.restore import Restore, check_backup
from tallybook_server.settings import Settings
from tests.crash.counting import held_once
from tests.crash.events import STREAM_EVENTS, record
from tests.crash.processes import Job, Zygote
from tests.crash.rounds import Tally, kill_at_each, state_of
from tests.crash.serving import backup_once, meter_into, restore_once

STRIDES = pytest.mark.parametrize(
    "stride",
    [pytest.param(13, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.crash)],
)


def _fill(folder: Path, queue: Path, *, backup: bool = True) -> tuple[set[int], set[int]]:
    """
    A ledger, its backup, and what came since: a segment and blocks that it lacks.

    Returns:
        What the backup holds, if there is one, and what the ledger does.
    """
    ledger = EmbeddedLedger(Settings(directory=folder / "data").book, threads=False)
    done: set[int] = set()
    backed_up: set[int] = set()
    with meter_into(ledger, queue) as meter:
        for part in range(4):
            for n in range(part * 100 + 1, part * 100 + 101):
                record(meter, STREAM_EVENTS + n)
                done.add(STREAM_EVENTS + n)
            assert meter.flush().ok
            if part in (0, 2):
                assert ledger.sealer.step(force=True)
            if part == 1 and backup:
                ledger.backup(str(folder / "backup"))
                backed_up = set(done)
    ledger.close()
    return backed_up, done


def _held(data: Path) -> set[int]:
    """What a ledger that verifies holds, each event once."""
    with closing(EmbeddedLedger(Settings(directory=data).book, threads=False)) as ledger:
        return held_once(ledger)


def _check_archived(folder: Path) -> None:
    """What producers were told that they need not keep is in the backup."""
    with closing(EmbeddedLedger(Settings(directory=folder / "data").book, threads=False)) as ledger:
        archived = ledger.writer.archived
    manifest = BackupDirectory(folder / "backup").manifest()
    assert archived <= (0 if manifest is None else manifest.position)


def _restored(folder: Path) -> set[int]:
    """What is in the ledger that the backup makes."""
    assert list(check_backup(folder / "backup")) == []
    data = folder / "restored"
    _restore(folder / "backup", data)
    held = _held(data)
    shutil.rmtree(data)
    return held


def _restore(backup: Path, data: Path) -> None:
    book = Settings(directory=data).book
    Restore(backup, book, clock=SystemClock(), ids=SystemIds()).make()


def _back_up(folder: Path) -> None:
    with closing(EmbeddedLedger(Settings(directory=folder / "data").book, threads=False)) as ledger:
        ledger.backup(str(folder / "backup"))


def _kill_backups(zygote: Zygote, whole: Path, stride: int, look: Callable[[Path], str]) -> Tally:
    """Kill a backup at each of its calls; *look* at what is left, and at what the next makes."""
    killed = whole.with_name("killed")

    def begin() -> Job:
        return zygote.run(backup_once, data=killed / "data", target=killed / "backup")

    def look_twice() -> str:
        _check_archived(killed)
        found = look(killed)
        _back_up(killed)
        assert look(killed) == "new"
        manifest = BackupDirectory(killed / "backup").finished()
        files = {stored.file for stored in (manifest.journal, *manifest.segments)}
        assert {path.name for path in (killed / "backup" / "files").iterdir()} == files
        return found

    return kill_at_each(begin, look_twice, whole=whole, killed=killed, stride=stride)


@STRIDES
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_a_backup_leaves_the_old_one_or_the_new_one(
    stride: int, server_zygote: Zygote, tmp_path: Path
) -> None:
    """
    Copy, sync, rename, publish, archive, tidy: killed before any call, the ledger holds what it
    held, and the directory is one of two backups, whole. The next backup is the new one.
    """
    old, new = _fill(tmp_path / "whole", tmp_path / "queue")

    def look(folder: Path) -> str:
        assert _held(folder / "data") == new
        found = _restored(folder)
        assert found in (old, new)
        return "new" if found == new else "old"

    tally = _kill_backups(server_zygote, tmp_path / "whole", stride, look)
    print(f"backup by system call, {tally}; each whole, the ledger verifies")
    # A sample may miss the one or the other.
    assert stride > 1 or tally.outcomes.keys() == {"old", "new"}


@STRIDES
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_the_first_backup_leaves_none_or_a_whole_one(
    stride: int, server_zygote: Zygote, tmp_path: Path
) -> None:
    """
    As long as it is not finished, whoever asks for it is told so; the next backup finishes it.
    """
    _, new = _fill(tmp_path / "whole", tmp_path / "queue", backup=False)

    def look(folder: Path) -> str:
        assert _held(folder / "data") == new
        try:
            found = _restored(folder)
        except BackupDamaged:
            with pytest.raises(BackupDamaged, match=r"no finished backup|there is no backup"):
                _restore(folder / "backup", folder / "restored")
            assert not (folder / "restored").exists()
            return "none"
        assert found == new
        return "new"

    tally = _kill_backups(server_zygote, tmp_path / "whole", stride, look)
    print(f"first backup by system call, {tally}; each whole, the ledger verifies")
    # A sample may miss the one or the other.
    assert stride > 1 or tally.outcomes.keys() == {"none", "new"}


@STRIDES
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_a_restore_leaves_no_ledger_or_a_whole_one(
    stride: int, server_zygote: Zygote, tmp_path: Path
) -> None:
    """
    Copy, branch, sync, rename: what is left is never served, and the next restore succeeds.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    held, _ = _fill(whole, tmp_path / "queue")
    shutil.rmtree(whole / "data")
    backup = state_of(whole / "backup")
    data = killed / "data"

    def begin() -> Job:
        return server_zygote.run(restore_once, source=killed / "backup", data=data)

    def look() -> str:
        assert state_of(killed / "backup") == backup
        book = Settings(directory=data).book
        found = "whole" if book.exists() else "none"
        if found == "none":
            _restore(killed / "backup", data)
        assert _held(data) == held
        assert [path.name for path in book.parent.iterdir()] == ["default"]
        return found

    tally = kill_at_each(begin, look, whole=whole, killed=killed, stride=stride)
    print(f"restore by system call, {tally}; the backup is untouched")
    # A sample may miss the one or the other.
    assert stride > 1 or tally.outcomes.keys() == {"none", "whole"}
