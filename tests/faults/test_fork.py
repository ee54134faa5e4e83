"""Forks, preloading servers, pools, and two processes after one orphan: the count is exact."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.conftest import ServerProcess

CHILDREN = 3
EACH = 400

FORK_WHILE_RECORDING = """
import os, sys, threading
from tallybook import Meter
directory, endpoint, durability, children, each = sys.argv[1:]
meter = Meter("fork", directory=directory, endpoint=endpoint, durability=durability)

def record(who):
    for number in range(int(each)):
        meter.record("fork.calls", tenant="acme", tags={"n": f"{who}-{number}"})

record("before")
beside = threading.Thread(target=record, args=("beside",))
beside.start()
pids = []
for child in range(int(children)):
    pid = os.fork()
    if pid == 0:
        record(f"child-{child}")
        meter.close(20)
        os._exit(0)
    pids.append(pid)
    record(f"parent-{child}")
failed = [pid for pid in pids if os.waitpid(pid, 0)[1] != 0]
beside.join()
meter.close(20)
sys.exit(len(failed))
"""

WORK_IN_PROCESSES = """
import multiprocessing, sys
from tallybook import Meter
directory, endpoint, method = sys.argv[1:]
meter = Meter("pool", directory=directory, endpoint=endpoint)

def record(number):
    meter.record("pool.calls", tenant="acme", tags={"n": f"pool-{number}"})

def work(who):
    for number in range(200):
        meter.record("pool.calls", tenant="acme", tags={"n": f"{who}-{number}"})

if __name__ == "__main__":
    work("before")
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        pool.map(record, range(200), chunksize=10)  # And then it is terminated.
    processes = [context.Process(target=work, args=(f"process-{n}",)) for n in range(2)]
    for process in processes:
        process.start()
    work("beside")
    for process in processes:
        process.join()
    meter.close(20)
    sys.exit(sum(process.exitcode != 0 for process in processes))
"""

WSGI = """
import os
from tallybook import Meter
from tallybook.middleware import UsageWSGIMiddleware, header
meter = Meter("web", directory=os.environ["QUEUE"], endpoint=os.environ["LEDGER"])
meter.record("web.boots", tenant="acme")  # With preload, the threads run before the forks.

def answer(environ, start_response):
    meter.record("web.calls", tenant="acme", tags={"n": environ["HTTP_X_NUMBER"]})
    start_response("200 OK", [("content-type", "text/plain")])
    return [str(os.getpid()).encode()]

application = UsageWSGIMiddleware(
    answer, meter=meter, tenant=header("x-tenant-id"), tags={"n": header("x-number")}
)
"""

ASGI = """
import os
from tallybook import Meter
from tallybook.middleware import UsageMiddleware, header
meter = Meter("web", directory=os.environ["QUEUE"], endpoint=os.environ["LEDGER"])
meter.record("web.boots", tenant="acme")  # With preload, the threads run before the forks.

async def answer(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("http only")
    number = dict(scope["headers"])[b"x-number"].decode()
    meter.record("web.calls", tenant="acme", tags={"n": number})
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})

application = UsageMiddleware(
    answer, meter=meter, tenant=header("x-tenant-id"), tags={"n": header("x-number")}
)
"""

RECORD_500_AND_DIE = """
import os, signal, sys
from tallybook import Meter
meter = Meter("orphan", directory=sys.argv[1], endpoint=sys.argv[2], close_seconds=0)
for number in range(300):
    meter.record("orphan.calls", tenant="acme", tags={"n": str(number)})
meter.flush(0.2)  # These are packed, and nobody takes them; the others are in the spool.
for number in range(300, 500):
    meter.record("orphan.calls", tenant="acme", tags={"n": str(number)})
os.kill(os.getpid(), signal.SIGKILL)
"""

ADOPT = """
import sys
from tallybook import Meter
meter = Meter("adopter", directory=sys.argv[1], endpoint=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
meter.record("adopter.began", tenant="acme")
sys.stdin.read()
meter.close(20)
"""


def run(script: str, *arguments: object) -> int:
    """Run a script to its end; its exit code."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, timeout=60).returncode


def drain(directory: Path, server: ServerProcess) -> None:
    """Send what is left there; everybody who recorded is dead."""
    flush = [sys.executable, "-m", "tallybook.cli", "queue", "flush"]
    flush += ["--directory", str(directory), "--endpoint", server.url]
    done = subprocess.run(flush, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(directory.glob("*.lock")) == []


def counted(server: ServerProcess, dimension: str) -> dict[str, int]:
    """How often the server has each number."""
    rows = server.rows(dimension=dimension, group_by="tag:n")
    return {row["tags"]["n"]: row["events"] for row in rows}


def once(*names: str, each: int) -> dict[str, int]:
    """Every number of these, exactly once."""
    return {f"{name}-{number}": 1 for name in names for number in range(each)}


@pytest.mark.parametrize("durability", ["process", "buffered"])
def test_a_fork_in_the_middle_of_recording_loses_and_doubles_nothing(
    tmp_path: Path, server: ServerProcess, durability: str
) -> None:
    """Parent, its second thread and every child go on recording: the union, each once."""
    queue = tmp_path / "queue"
    assert run(FORK_WHILE_RECORDING, queue, server.url, durability, CHILDREN, EACH) == 0
    drain(queue, server)
    sides = [f"{who}-{child}" for who in ("parent", "child") for child in range(CHILDREN)]
    assert counted(server, "fork.calls") == once("before", "beside", *sides, each=EACH)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_is_counted_exactly(
    tmp_path: Path, server: ServerProcess, method: str
) -> None:
    """A Meter at module level, a pool that is terminated, two processes, and the parent."""
    queue, script = tmp_path / "queue", tmp_path / "work.py"
    script.write_text(WORK_IN_PROCESSES)
    command = [sys.executable, str(script), str(queue), server.url, method]
    assert subprocess.run(command, timeout=60).returncode == 0
    drain(queue, server)
    expected = once("before", "pool", "process-0", "process-1", "beside", each=200)
    assert counted(server, "pool.calls") == expected


@contextmanager
def gunicorn(folder: Path, application: str, worker: str, ledger: str) -> Generator[str]:
    """gunicorn with preload and two workers, on a queue in *folder*; its address."""
    (folder / "application.py").write_text(application)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--preload"]
        command += ["--workers", "2", "--worker-class", worker, "--worker-tmp-dir", str(folder)]
        command += ["--bind", f"fd://{listener.fileno()}", "application"]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "QUEUE": str(folder / "queue"), "LEDGER": ledger},
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            process.terminate()
            assert process.wait(40) == 0
        finally:
            process.kill()
            process.wait()


def ask_and_kill(address: str, requests: int, kill_at: int) -> tuple[set[str], Counter[int]]:
    """
    Ask *requests* times, four at once, and kill the worker that gives answer *kill_at*.

    Returns:
        The numbers that were answered, and how often each process answered.
    """
    answered: set[str] = set()
    by: Counter[int] = Counter()
    lock = Lock()

    def ask(client: httpx.Client, number: str) -> None:
        headers = {"x-number": number, "x-tenant-id": "acme", "connection": "close"}
        with suppress(httpx.TransportError):  # The worker died over it: counted or not.
            response = client.get(address, headers=headers)
            response.raise_for_status()
            with lock:
                answered.add(number)
                by[int(response.text)] += 1
                if len(answered) == kill_at:
                    os.kill(int(response.text), signal.SIGKILL)

    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(4) as pool:
        for asked in [pool.submit(ask, client, str(number)) for number in range(requests)]:
            asked.result()
    return answered, by


@pytest.mark.parametrize(
    ("application", "worker"),
    [(WSGI, "sync"), (ASGI, "uvicorn_worker.UvicornWorker")],
    ids=["sync", "uvicorn"],
)
def test_gunicorn_with_preload_counts_every_answered_request_once(
    tmp_path: Path, server: ServerProcess, application: str, worker: str
) -> None:
    """Two workers forked off a Meter that runs, one killed under load: no answer uncounted."""
    pytest.importorskip("gunicorn")
    pytest.importorskip(worker.partition(".")[0] if "." in worker else "gunicorn")
    with gunicorn(tmp_path, application, worker, server.url) as address:
        answered, by = ask_and_kill(address, requests=300, kill_at=120)
    drain(tmp_path / "queue", server)
    assert len(by) >= 2
    assert len(answered) >= 300 - 64  # What was under way and queued at the one that died.
    for dimension in ("web.calls", "http.requests"):
        numbers = counted(server, dimension)
        assert answered - numbers.keys() == set()
        assert {number: count for number, count in numbers.items() if count != 1} == {}
    assert server.total("web.boots") == "1"


def test_two_processes_that_adopt_one_orphan_count_it_once(
    tmp_path: Path, server: ServerProcess
) -> None:
    """500 events of a dead producer, two that begin at the same moment: exactly 500."""
    queue = tmp_path / "queue"
    server.kill()
    assert run(RECORD_500_AND_DIE, queue, server.url) == -signal.SIGKILL
    (orphan,) = queue.glob("*.lock")
    server.start()
    command = [sys.executable, "-c", ADOPT, str(queue), server.url]
    adopters = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for adopter in adopters:
            assert adopter.stdout is not None
            assert adopter.stdout.readline() == "ready\n"
        for adopter in adopters:
            assert adopter.stdin is not None
            adopter.stdin.write("go\n")
            adopter.stdin.flush()
        deadline = time.monotonic() + 30
        while orphan.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not orphan.exists()
    finally:
        for adopter in adopters:
            adopter.communicate(timeout=40)
    assert [adopter.returncode for adopter in adopters] == [0, 0]
    assert counted(server, "orphan.calls") == {str(number): 1 for number in range(500)}
    assert server.total("adopter.began") == "2"
    assert server.get("/v1/verify")["findings"] == []
