"""Servers in processes of their own, and the processor time that they take."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.data import DIMENSIONS

__all__ = ["Server", "counted", "module_server", "tallybook_server", "total_counted"]

_SETTLE_SECONDS: Final = 1.0
_SETTLE_SHARE: Final = 0.05
"""Of one processor: less than this, over a second, is a server that has nothing to do."""

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """A process that listens on *port* of this machine."""

    process: subprocess.Popen[Any]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """User and system time so far, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """The most memory that it had so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found.group(1)) * 1024 if found else 0

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(120)

    def usage(self, question: dict[str, str | Sequence[str]]) -> list[dict[str, Any]]:
        """The rows of an answer of ``GET /v1/usage``."""
        query = urllib.parse.urlencode(question, doseq=True)
        with urllib.request.urlopen(f"{self.url}/v1/usage?{query}", timeout=300) as response:
            rows: list[dict[str, Any]] = json.load(response)["data"]
        return rows

    def settle(self, seconds: float = 120.0) -> None:
        """Wait until it has done what it does behind the answers: sealing, compacting."""
        until = time.monotonic() + seconds
        busy, before = True, self.cpu_seconds()
        while busy and time.monotonic() < until:
            time.sleep(_SETTLE_SECONDS)
            now = self.cpu_seconds()
            busy, before = now - before > _SETTLE_SHARE * _SETTLE_SECONDS, now

    def stop(self) -> None:
        """SIGTERM, and wait until it has finished what it began. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


@contextmanager
def tallybook_server(data: Path) -> Generator[Server]:
    """``tallybook serve``, as it is installed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tallybook.cli", "serve", "--data", str(data), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = ""
        while True:
            line = process.stderr.readline() if process.stderr else ""
            said += line
            if not line:
                raise RuntimeError(f"the server did not start: {said}")
            if match := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                server = Server(process, int(match.group(1)))
                break
        yield server
    finally:
        Server(process, 0).stop()
        if process.stderr:
            process.stderr.close()


@contextmanager
def module_server(module: str, arguments: Sequence[str]) -> Generator[Server]:
    """``python -m tests.bench.<module> arguments... PORT``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.bench.{module}", *arguments, str(port)], cwd=ROOT
    )
    server = Server(process, port)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"tests.bench.{module} did not start") from None
                time.sleep(0.05)
        yield server
    finally:
        server.stop()


def counted(server: Server, dimension: str) -> int:
    """The events of a dimension that the ledger counts."""
    try:
        rows = server.usage({"dimension": dimension, "aggregation": "count"})
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return 0  # A dimension is there from its first event on.
    return sum(int(row["events"]) for row in rows)


def total_counted(server: Server) -> int:
    """The events of all dimensions of `tests.bench.data`."""
    return sum(counted(server, dimension) for dimension in DIMENSIONS)
