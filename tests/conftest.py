"""What several kinds of tests need: a real server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from hypothesis import settings

# A change is judged by the same examples each time; who looks for new ones runs without CI.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


class ServerProcess:
    """
    ``tallybook serve`` as a process that can be killed and started again on the same port.

    Attributes:
        data: Its data directory.
        port: Its port, from the first start on.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return once it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tallybook.cli", "serve", *self._options()],
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._process.stderr is None:
            raise RuntimeError("no stderr")
        said: list[str] = []
        for line in self._process.stderr:
            said.append(line)
            if match := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(match.group(1))
                return
        raise RuntimeError("the server did not start: " + "".join(said))

    def _options(self) -> list[str]:
        return ["--data", str(self.data), "--port", str(self.port)]

    def kill(self) -> None:
        """SIGKILL: no time for anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM: it finishes what is begun; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(30)
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._process = None
        return code

    def get(self, path: str, **parameters: str | int) -> dict[str, object]:
        """The JSON document at *path*."""
        response = httpx.get(f"{self.url}{path}", params=parameters, timeout=30)
        response.raise_for_status()
        document: dict[str, object] = response.json()
        return document

    def rows(self, **parameters: str) -> list[dict[str, Any]]:
        """The rows of a usage query; none of a dimension that has no event yet."""
        response = httpx.get(f"{self.url}/v1/usage", params=parameters, timeout=30)
        if response.status_code == 404:
            return []
        return cast(list[dict[str, Any]], response.raise_for_status().json()["data"])

    def total(self, dimension: str, **parameters: str) -> str:
        """The value of the one row that this query has; "0" without a row."""
        rows = self.rows(dimension=dimension, **parameters)
        if len(rows) > 1:
            raise RuntimeError(f"expected one row: {rows}")
        return str(rows[0]["value"]) if rows else "0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that listens, on an empty ledger."""
    process = ServerProcess(tmp_path / "data")
    process.start()
    yield process
    process.kill()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """TALLYBOOK_* of whoever runs the tests changes no test."""
    for name in list(os.environ):
        if name.startswith("TALLYBOOK_"):
            monkeypatch.delenv(name)
