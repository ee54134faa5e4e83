"""The test's side of the zygote: start a job, hear from it, kill it, know that it is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Job", "Zygote"]

_ROOT = Path(__file__).parents[2]


class Zygote:
    """
    A process that forks one child at a time.

    Args:
        modules: What it imports before it forks.
    """

    def __init__(self, *modules: str) -> None:
        self._job: Job | None = None
        self._process = subprocess.Popen(
            # A program that is a file: DuckDB takes any other for a person at a terminal, and
            # draws on stdout how far it has come once a statement takes two seconds.
            [sys.executable, "-m", "tests.crash.zygote", *modules],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def run(self, function: Callable[..., None], **arguments: object) -> Job:
        """Start a job; it must be dead before the next one."""
        job = {"module": function.__module__, "function": function.__name__, **arguments}
        if self._process.stdin is None:
            raise RuntimeError("no stdin")
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        kind, _, pid = self.line().partition(" ")
        if kind != "pid":
            raise RuntimeError(f"expected a pid, not {kind!r}")
        self._job = Job(self, int(pid))
        return self._job

    def line(self) -> str:
        """The next line that it, or a child of it, says."""
        if self._process.stdout is None:
            raise RuntimeError("no stdout")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote has died")
        return line.rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._job is not None and self._job.code is None:
            self._job.kill()  # The test has failed in its middle; nobody else would end it.
        self._process.kill()
        self._process.wait(30)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


class Job:
    """
    A child of a zygote.

    Attributes:
        pid: Of the child, and of the group of its own children.
        code: Its exit code, or minus the signal that killed it; None while it lives.
        killed_at: When the first SIGKILL went out, on the monotonic clock in nanoseconds.
    """

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote = zygote
        self.pid = pid
        self.code: int | None = None
        self.killed_at: int | None = None

    def hear(self, word: str | None) -> str | None:
        """Wait until it says *word*; what follows the word, or None if it died before."""
        while self.code is None:
            first, _, rest = self._zygote.line().partition(" ")
            if first == "dead":
                self.code = int(rest)
            elif first == word:
                return rest
        return None

    def begin(self) -> None:
        """Let go of a job that waits for it."""
        os.kill(self.pid, signal.SIGUSR1)

    def kill(self, *, alone: bool = False) -> None:
        """SIGKILL to it, and to its children unless *alone*. It may be dead already."""
        self.killed_at = self.killed_at or time.monotonic_ns()
        with suppress(ProcessLookupError):
            if alone:
                os.kill(self.pid, signal.SIGKILL)
            else:
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait until it and its children are gone; its exit code."""
        self.hear(None)
        if self.code is None:
            raise RuntimeError("no exit code")
        return self.code
