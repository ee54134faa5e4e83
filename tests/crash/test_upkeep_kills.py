"""The server is killed again and again while it seals, compacts and is backed up, under load."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybook_server.backup_directory import BackupDirectory
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.restore import check_backup
from tallybook_server.settings import Settings
from tests.crash.counting import compare, compare_closed, finish, verify
from tests.crash.processes import Zygote
from tests.crash.senders import Senders
from tests.crash.serving import ForkedServer
from tests.crash.upkeep import Backups, being_written, entered, merged

SENDERS = 4
LOOKS = 4
WAIT_SECONDS_MAX = 5.0
FILE_SECONDS = 0.02  # About what it takes to write the file of a small segment.


@pytest.fixture
def server(server_zygote: Zygote, tmp_path: Path) -> Iterator[ForkedServer]:
    """A server that seals every few hundred events, and compacts every two segments."""
    process = ForkedServer(server_zygote, tmp_path / "data", seal_events=300, seal_age_seconds=1.0)
    process.start()
    yield process
    process.kill()


def _await_a_moment(data: Path, chance: random.Random) -> None:
    """Any, from the first requests after the start on; or one beside the file of something."""
    time.sleep(10 ** chance.uniform(-1.3, 0.2))
    moment = chance.choice(["any", "seal", "compaction", "compacted"])
    if moment == "any":
        return
    before, deadline = merged(data), time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        if moment in being_written(data) or (moment == "compacted" and merged(data) - before):
            break
        time.sleep(0.001)
    time.sleep(chance.uniform(0, FILE_SECONDS))


def _look_at_a_copy(data: Path, backup: Path, folder: Path) -> None:
    """
    The ledger and the backup of a dead server: whole; what the one calls archived, the other has.

    In a copy, since whoever opens a ledger tidies up what the kill has left.
    """
    shutil.copytree(data, folder / "data")
    shutil.copytree(backup, folder / "backup")
    ledger = EmbeddedLedger(Settings(directory=folder / "data").book, threads=False)
    try:
        assert list(ledger.verify()) == []
        archived = ledger.writer.archived
    finally:
        ledger.close()
    assert list(check_backup(folder / "backup")) == []
    assert BackupDirectory(folder / "backup").finished().position >= archived
    shutil.rmtree(folder)


def _restore(backup: Path, data: Path) -> None:
    """As an operator does; it verifies what it made."""
    command = [sys.executable, "-m", "tallybook.cli", "restore", str(backup), "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done


@pytest.mark.parametrize(
    "kills",
    [pytest.param(8, marks=pytest.mark.slow), pytest.param(150, marks=pytest.mark.crash)],
)
def test_a_server_that_is_killed_in_its_upkeep_loses_and_doubles_nothing(
    kills: int, server: ForkedServer, tmp_path: Path, chance: random.Random
) -> None:
    """
    A seal every few hundred events, a compaction every two seals, one backup after the other.

    What was recorded is counted once, for every tenant; ledger and backup verify, also when
    a kill has just hit them; and the last backup is the whole ledger.
    """
    backup = tmp_path / "backup"
    backups = Backups(server, backup)
    backups.make()
    cut: Counter[str] = Counter()
    with Senders(SENDERS, server.url, tmp_path, pause_seconds=0.004) as senders:
        with backups:
            for number in range(1, kills + 1):
                _await_a_moment(server.data, chance)
                server.kill()
                cut.update(being_written(server.data))
                if number % (kills // LOOKS) == 0:
                    _look_at_a_copy(server.data, backup, tmp_path / "copy")
                server.start()
            senders.kill()
            senders.drain(server.url)
    before_last = backups.made
    backups.make()
    assert backups.made == before_last + 1, backups.refused
    assert backups.refused == []
    recorded = senders.returned
    outcome = compare(recorded, server, kills=kills)
    finish("server in its upkeep", server, outcome)
    done = entered(server.data)
    done["backup"] = backups.made
    cut["backup"] = backups.cut_short
    for kind in ("seal", "compaction", "backup"):
        print(f"{done[kind]} {kind}s came to their end, {cut[kind]} were cut short")
    _restore(backup, tmp_path / "restored")
    restored = compare_closed(recorded, tmp_path / "restored", kills=kills)
    print(f"restored: {restored}")
    assert restored.clean, restored
    assert restored.held == outcome.held
    assert verify(tmp_path / "restored") == []
    # Or this test would not be about what it says.
    for kind in ("seal", "compaction", "backup"):
        assert done[kind] >= max(kills // 10, 1)
        assert cut[kind] >= kills // 15
