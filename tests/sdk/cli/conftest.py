"""The command as a user runs it: a process of its own, with nothing set but what a test sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.conftest import ServerProcess

_DIE = """
import os, signal, sys
from tallybook import Meter
directory, endpoint, *tenants = sys.argv[1:]
meter = Meter("api", endpoint=endpoint or None, directory=directory)
for tenant in tenants:
    meter.record("http.requests", tenant=tenant)
os.kill(os.getpid(), signal.SIGKILL)
"""

NOWHERE = "http://127.0.0.1:1"
"""An endpoint where nothing listens."""


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    code: int
    out: str
    words: str

    @property
    def json(self) -> Any:
        """The document on standard output."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The lines on standard output, cut at blanks."""
        return [line.split() for line in self.out.splitlines()]


class Command(Protocol):
    """Runs ``tallybook`` with these arguments, and these variables beside the usual ones."""

    def __call__(self, *arguments: str, **variables: str) -> Ran: ...


@pytest.fixture
def tallybook(tmp_path: Path) -> Command:
    """The command; its queues lie in ``tmp_path/queue`` and it works in ``tmp_path``."""

    def run(*arguments: str, **variables: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "tallybook.cli", *arguments],
            cwd=tmp_path,
            env=os.environ | {"TALLYBOOK_DIRECTORY": str(tmp_path / "queue")} | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """Where the command's queues lie."""
    return tmp_path / "queue"


class Die(Protocol):
    """Records an event per tenant in a process that is killed at once; its producer's id."""

    def __call__(self, endpoint: str, *tenants: str) -> str: ...


@pytest.fixture
def die(queue: Path) -> Die:
    """Leaves a dead producer in the queue's directory."""

    def record(endpoint: str, *tenants: str) -> str:
        before = set(queue.glob("*.lock"))
        subprocess.run([sys.executable, "-c", _DIE, str(queue), endpoint, *tenants], timeout=60)
        (lock,) = set(queue.glob("*.lock")) - before
        return lock.stem

    return record


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """One server for a whole file."""
    process = ServerProcess(tmp_path_factory.mktemp("shared"))
    process.start()
    yield process
    process.stop()
