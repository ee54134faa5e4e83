"""The process: its address, its bounds on connections, and how it stops."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from tallybook.errors import InvalidSetting
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.serve import serving
from tallybook_server.settings import Settings
from tests.ingest_server.conftest import FaultyLedger, Running, Start

PROCESS = """
import sys
from pathlib import Path
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.serve import run
from tallybook_server.settings import Settings

settings = Settings(directory=Path(sys.argv[1]), port=0)

class Ledger(EmbeddedLedger):
    def close(self):
        super().close()
        print("closed", flush=True)

port = run(Ledger(settings.book), settings)
print("port", port, flush=True)
"""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_an_address_of_others_is_refused(tmp_path: Path, host: str) -> None:
    """Until there are keys, whoever reaches the server reads and writes usage."""
    with pytest.raises(ValidationError, match="no API keys yet"):
        Settings(directory=tmp_path, host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_an_address_of_this_machine_is_taken(tmp_path: Path, host: str) -> None:
    """Loopback, by any of its names."""
    assert Settings(directory=tmp_path, host=host).port == 8255


def test_a_port_that_is_taken_is_said(start: Start, tmp_path: Path) -> None:
    """With the address, and what to do."""
    _, port = start().address
    ledger = EmbeddedLedger(tmp_path / "other")
    with (
        pytest.raises(InvalidSetting, match=f"127.0.0.1 port {port}.*choose another"),
        serving(ledger, Settings(directory=tmp_path, port=port)),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_the_ledger_and_ends_well(tmp_path: Path, number: int) -> None:
    """The process says where it listens, stops in order, and its exit is no death."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, os.fspath(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.fullmatch(r"listening on (http://127\.0\.0\.1:(\d+))\n", line)
        assert match, line
        assert httpx.get(f"{match[1]}/readyz").status_code == 200
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, f"closed\nport {match[2]}\n")


def test_a_begun_request_is_finished_before_the_end(tmp_path: Path) -> None:
    """Stopping waits for it; its answer arrives whole."""
    settings = Settings(directory=tmp_path, port=0)
    answers: list[int] = []
    ledger = FaultyLedger(settings.book)
    ledger.gate, ledger.asked = threading.Event(), threading.Event()
    with serving(ledger, settings) as url:
        httpx.put(f"{url}/v1/dimensions/a", json={}).raise_for_status()
        asker = threading.Thread(
            target=lambda: answers.append(httpx.get(f"{url}/v1/usage?dimension=a").status_code)
        )
        asker.start()
        ledger.asked.wait(10)
        # The gate opens only after the server was told to stop.
        threading.Timer(0.1, ledger.gate.set).start()
    asker.join()
    assert answers == [200]


def test_more_connections_than_the_limit_are_turned_away(start: Start) -> None:
    """With a problem document, and those that are there go on."""
    server = start(connections_max=1)
    assert server.http.get("/healthz").status_code == 200
    with socket.create_connection(server.address, timeout=20) as line:
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connections_max" in answer
    assert server.http.get("/healthz").status_code == 200


def test_a_second_head_that_trickles_is_given_up(start: Start) -> None:
    """uvicorn's timer starts anew with each byte; this one does not."""
    server = start(head_seconds_max=0.1)
    with socket.create_connection(server.address, timeout=20) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HT")
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


def test_hundreds_of_slow_heads_keep_nobody_waiting(server: Running) -> None:
    """They hold a socket each, and no more."""
    lines = [socket.create_connection(server.address) for _ in range(300)]
    try:
        for line in lines:
            line.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert server.http.get("/healthz").status_code == 200
    finally:
        for line in lines:
            line.close()
