"""A disk that is full, read-only, rotten, shared with strangers, or that confirms nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tallybook import Meter, QueueFull
from tests.crash.tracing import refusal

if TYPE_CHECKING:
    from tests.conftest import ServerProcess

RECORD_AND_DIE = """
import os, signal, sys
from tallybook import Meter
meter = Meter("dead", directory=sys.argv[1], endpoint=sys.argv[2], close_seconds=0)
for number in range(300):
    meter.record("disk.calls", tenant="acme", tags={"n": str(number)})
meter.flush(float(sys.argv[3]))
for number in range(300, 400):
    meter.record("disk.calls", tenant="acme", tags={"n": str(number)})
os.kill(os.getpid(), signal.SIGKILL)
"""

RECORD_ON_A_BAD_DISK = """
import json, os, signal, sys
from tallybook import DurabilityUnknown, Meter
directory, endpoint, durability, calls = sys.argv[1:]
meter = Meter("bad", directory=directory, endpoint=endpoint, durability=durability)
meter.record("disk.calls", tenant="acme", tags={"n": "0"})
print("open", flush=True)
sys.stdin.readline()
confirmed, unknown, wrong = 0, 0, []
for number in range(1, int(calls)):
    try:
        meter.record("disk.calls", tenant="acme", tags={"n": str(number)})
        confirmed += 1
    except DurabilityUnknown:
        unknown += 1
    except BaseException as error:
        wrong.append(repr(error))
if durability == "process":
    meter.flush(1.0)
said = [confirmed, unknown, wrong, meter.stats().dropped]
print(json.dumps(said), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Disk:
    """A file system in memory, mounted at *path*."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, size: str) -> None:
        """Mount it, or skip the test and say why."""
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tallybook-test", str(self.path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("mount is not installed")
        if done.returncode:
            pytest.skip(f"this process may not mount: {done.stderr.strip()}")

    def remount(self, how: str) -> None:
        """``ro``, ``rw`` or ``size=...``."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)

    def umount(self) -> None:
        """Let go of it, even while a thread is still writing."""
        if os.path.ismount(self.path):
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that is not mounted yet."""
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.umount()


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip the test, and say why, where processes cannot be traced."""
    reason = refusal()
    if reason is not None:
        pytest.skip(reason)


def dead(directory: Path, server: ServerProcess, flush_seconds: float) -> str:
    """The name of a producer that recorded 400 events and was killed."""
    command = [sys.executable, "-c", RECORD_AND_DIE, str(directory), server.url, str(flush_seconds)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    (lock,) = directory.glob("*.lock")
    return lock.stem


def drain(directory: Path, server: ServerProcess) -> None:
    """Send what the dead have left there."""
    flush = [sys.executable, "-m", "tallybook.cli", "queue", "flush"]
    flush += ["--directory", str(directory), "--endpoint", server.url]
    done = subprocess.run(flush, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def counted(server: ServerProcess) -> dict[str, int]:
    """How often the server has each number."""
    rows = server.rows(dimension="disk.calls", group_by="tag:n")
    return {row["tags"]["n"]: row["events"] for row in rows}


def once(calls: int) -> dict[str, int]:
    """Every number, exactly once."""
    return {str(number): 1 for number in range(calls)}


def dropped(server: ServerProcess) -> int:
    """What producers have announced as dropped."""
    producers: Any = server.get("/v1/producers")["data"]
    return sum(producer["dropped"] for producer in producers)


def fill(meter: Meter, calls: int) -> None:
    """Record as fast as possible; 12,000 are more than a MiB takes."""
    for call in range(calls):
        tags = {"n": str(call), "chance": os.urandom(8).hex()}
        meter.record("disk.calls", tenant="acme", tags=tags)


def fill_slowly(meter: Meter) -> int:
    """Record what compresses badly, packed on the way, until a drop; how many calls it took."""
    deadline = time.monotonic() + 20
    for call in count(1):
        tags = {"n": str(call), "chance": os.urandom(100).hex()}
        meter.record("disk.calls", tenant="acme", tags=tags)
        if call % 100 == 0 and meter.stats().dropped:
            return call
        assert time.monotonic() < deadline
    raise RuntimeError("unreachable")


@pytest.mark.parametrize("pace", ["slowly", "at-once"])
def test_what_a_full_disk_took_arrives_and_what_it_did_not_is_announced(
    disk: Disk, server: ServerProcess, pace: str
) -> None:
    """1 MiB: no call raises; when the server is there, kept and dropped are all calls."""
    disk.mount("1m")
    server.kill()
    with Meter("full", directory=disk.path / "queue", endpoint=server.url) as meter:
        calls = 12_000
        if pace == "slowly":
            calls = fill_slowly(meter)
        else:
            fill(meter, calls)
        server.start()
        deadline = time.monotonic() + 30
        while not (flushed := meter.flush(5)).ok and time.monotonic() < deadline:
            time.sleep(0.1)
        assert flushed.ok, flushed
        stats = meter.stats()
        assert stats.recorded + stats.dropped == calls
        assert stats.recorded > 0
        assert stats.dropped > 0
    assert dropped(server) == stats.dropped
    numbers = counted(server)
    assert len(numbers) == stats.recorded
    assert set(numbers.values()) == {1}


def test_the_counts_hold_while_the_disk_is_full(disk: Disk) -> None:
    """What was kept and what was dropped are all calls, also while nothing can be packed."""
    disk.mount("1m")
    with Meter("full", directory=disk.path / "queue") as meter:
        fill(meter, 12_000)
        stats = meter.stats()
    assert stats.dropped > 0
    assert stats.recorded + stats.dropped == 12_000


def test_a_full_disk_raises_where_that_was_asked_for(disk: Disk) -> None:
    """on_full="raise": QueueFull at the call that finds no room, and nothing is dropped."""
    disk.mount("1m")
    with Meter("full", directory=disk.path / "queue", on_full="raise") as meter:
        with pytest.raises(QueueFull):
            fill(meter, 50_000)
        assert meter.stats().dropped == 0


def test_a_read_only_disk_drops_counts_and_recovers(disk: Disk, server: ServerProcess) -> None:
    """Read-only: record returns and counts. Writable again: it goes on, and announces."""
    disk.mount("64m")
    with Meter("readonly", directory=disk.path / "queue", endpoint=server.url) as meter:
        calls = count()

        def record() -> None:
            meter.record("disk.calls", tenant="acme", tags={"n": str(next(calls))})

        for _ in range(10):
            record()
        assert meter.close(20).ok
        disk.remount("ro")
        for _ in range(10):
            record()
        assert (meter.stats().recorded, meter.stats().dropped) == (0, 10)
        disk.remount("rw")
        deadline = time.monotonic() + 20
        while meter.stats().producer is None and time.monotonic() < deadline:
            record()
            time.sleep(0.05)
        for _ in range(10):
            record()
        stats, made = meter.stats(), next(calls)
        assert stats.recorded >= 11
        assert 10 + stats.recorded + stats.dropped == made
        assert meter.flush(20).ok
    assert dropped(server) == stats.dropped
    last = [str(number) for number in range(10 + stats.dropped, made)]
    assert counted(server) == dict.fromkeys([*map(str, range(10)), *last], 1)


@pytest.mark.parametrize("sent_before", [False, True], ids=["unsent", "partly-sent"])
def test_a_dead_producers_rotten_queue_is_made_anew_from_its_spool(
    tmp_path: Path, server: ServerProcess, sent_before: bool
) -> None:
    """Garbage where its SQLite file was, and its first spool is there: all 400, each once."""
    queue = tmp_path / "queue"
    if not sent_before:
        server.kill()
    name = dead(queue, server, 20 if sent_before else 0.2)
    if not sent_before:
        server.start()
    assert (queue / f"{name}.spool-0").exists()
    database = queue / f"{name}.db"
    database.write_bytes(b"\xa5garbage" * (database.stat().st_size // 8))
    drain(queue, server)
    assert counted(server) == once(400)
    assert list(queue.glob("*.lock")) == []
    assert server.get("/v1/verify")["findings"] == []


def test_strangers_files_are_left_alone_and_hold_nothing_up(
    tmp_path: Path, server: ServerProcess
) -> None:
    """Text, another SQLite file, directories, under our names and others: as they were."""
    queue = tmp_path / "queue"
    server.kill()
    dead(queue, server, 0.2)
    server.start()
    names = [letter * 32 for letter in "abcdef"]
    (queue / "notes.txt").write_text("not yours")
    (queue / "customers.lock").write_text("")
    for name in (names[0], "customers"):
        with closing(sqlite3.connect(queue / f"{name}.db")) as connection:
            connection.execute("create table customers (name text)")
            connection.execute("insert into customers values ('acme')")
            connection.commit()
    (queue / f"{names[1]}.db").write_text("text under the name of a queue")
    (queue / f"{names[2]}.db").mkdir()
    (queue / f"{names[3]}.spool-0").write_text("text under the name of a spool" * 200)
    for name in names[:4]:
        (queue / f"{name}.lock").write_text("")
    (queue / f"{names[4]}.lock").mkdir()
    (queue / f"{names[5]}.spool-0").mkdir()

    def strangers() -> dict[str, bytes | None]:
        return {
            path.name: None if path.is_dir() else path.read_bytes()
            for path in queue.iterdir()
            if path.suffix != ".status"
            and (path.stem in (*names, "notes", "customers") or path.suffix == ".txt")
        }

    before = strangers()
    assert len(before) == 13
    with Meter("living", directory=queue, endpoint=server.url) as meter:
        meter.record("living.began", tenant="acme")
        deadline = time.monotonic() + 30
        while len(counted(server)) < 400 and time.monotonic() < deadline:
            meter.flush(5)
            time.sleep(0.05)
        assert meter.flush(20).ok
        held = meter.stats().held
    assert counted(server) == once(400)
    assert server.total("living.began") == "1"
    assert {name: strangers().get(name, b"gone") for name in before} == before
    assert held.keys() == set(names[:5])


def test_a_short_strangers_file_under_the_name_of_a_spool_is_not_removed(
    tmp_path: Path, server: ServerProcess
) -> None:
    """Shorter than a spool's header, and not blank: nobody's dead producer that had no event."""
    spool, lock = (tmp_path / f"{'d' * 32}.{kind}" for kind in ("spool-0", "lock"))
    spool.write_text("text under the name of a spool")
    lock.write_text("")
    with Meter("living", directory=tmp_path, endpoint=server.url) as meter:
        meter.record("living.began", tenant="acme")
        deadline = time.monotonic() + 20
        while spool.exists() and not meter.stats().held and time.monotonic() < deadline:
            time.sleep(0.05)
        assert meter.stats().held.keys() == {spool.stem}
    assert spool.read_text() == "text under the name of a spool"


class BadDisk:
    """RECORD_ON_A_BAD_DISK, whose syncs fail from the moment that its queue is open."""

    def __init__(self, directory: Path, server: ServerProcess, durability: str, calls: int) -> None:
        command = [sys.executable, "-c", RECORD_ON_A_BAD_DISK, str(directory), server.url]
        self._child = subprocess.Popen(
            [*command, durability, str(calls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, when: str) -> tuple[int, int, list[str], int]:
        """Its syncs fail *when* strace says; calls confirmed, unknown and wrong, and drops."""
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        tracer: subprocess.Popen[str] | None = None
        try:
            assert child.stdout.readline() == "open\n"
            command = ["strace", "-f", "-p", str(child.pid), "-o", os.devnull]
            command += ["-e", "trace=fdatasync,fsync"]
            for call in ("fdatasync", "fsync"):
                command += ["-e", f"inject={call}:error=EIO:when={when}"]
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert tracer.stderr is not None
            assert " attached" in tracer.stderr.readline()
            child.stdin.write("go\n")
            child.stdin.flush()
            said: tuple[int, int, list[str], int] = tuple(json.loads(child.stdout.readline()))
            assert child.wait(30) == -signal.SIGKILL
            return said
        finally:
            child.kill()
            child.communicate()
            if tracer is not None:
                tracer.communicate(timeout=30)


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("when", ["1+", "2+2"], ids=["every-sync", "every-other-sync"])
def test_a_sync_that_fails_is_unknown_at_level_power_and_loses_nothing(
    tmp_path: Path, server: ServerProcess, when: str
) -> None:
    """EIO: DurabilityUnknown or success, and every one of the events is counted once."""
    queue = tmp_path / "queue"
    confirmed, unknown, wrong, drops = BadDisk(queue, server, "power", 9).run(when)
    assert (wrong, drops) == ([], 0)
    assert confirmed + unknown == 8
    assert unknown > 0
    assert when != "1+" or confirmed == 0
    drain(queue, server)
    assert counted(server) == once(9)


@pytest.mark.usefixtures("strace")
def test_a_queue_that_cannot_sync_keeps_everything_for_another_process(
    tmp_path: Path, server: ServerProcess
) -> None:
    """EIO at level process: no call notices, and a healthy process delivers all, each once."""
    queue = tmp_path / "queue"
    assert BadDisk(queue, server, "process", 400).run("1+") == (399, 0, [], 0)
    drain(queue, server)
    assert counted(server) == once(400)
    assert server.get("/v1/verify")["findings"] == []
