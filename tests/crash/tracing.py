"""
Find every system call of a process with strace, and kill it before one of them.

The process is dead *before* the call does anything, so a kill at every call is a kill between
any two of them. What a process stores into mapped memory is no call: see test_cycle_kills.

A call is known by its name and by how many of that name came before it in its process, in
whichever thread: which of DuckDB's threads does what is different each time.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.crash import killer
from tests.crash.processes import Job

__all__ = ["Doom", "Point", "Strace", "kill_at", "points_in", "refusal"]

# Files by name, files and sockets by descriptor, sockets.
_CLASSES = "%file,%desc,%network"
_CALL = re.compile(r"\[ *(\d+)\] (\w+)\(")


class Point(NamedTuple):
    """
    A place to kill at.

    Attributes:
        call: The system call's name.
        code: Its number on this machine.
        nth: Which of that name in its process, from 1.
    """

    call: str
    code: int
    nth: int

    def __str__(self) -> str:
        return f"{self.call} {self.nth}"


class _Attached:
    """A program that traces a process, from when it says so."""

    def __init__(self, command: Sequence[str], word: str) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._said = ""
        while word not in self._said:
            line = self._process.stdout.readline() if self._process.stdout else ""
            self._said += line
            if not line:
                self._end()
                raise RuntimeError(f"{command[0]}: {self._said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        self._process.wait(30)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Strace(_Attached):
    """
    strace, attached to every thread of a process that there is and will be.

    Args:
        pid: The process.
        output: Every call is written to ``<output>.<thread>``.
    """

    def __init__(self, pid: int, output: Path) -> None:
        options = ["-f", "-ff", "-n", "-o", str(output), "-e", f"trace={_CLASSES}"]
        super().__init__(["strace", "-p", str(pid), *options], " attached")
        self._output = output

    def points(self) -> list[Point]:
        """Every call that was made, as a place to kill at; for when nothing is traced any more."""
        found: Counter[tuple[str, int]] = Counter()
        for path in self._output.parent.glob(f"{self._output.name}.*"):
            for line in path.read_text(errors="replace").splitlines():
                if match := _CALL.match(line):
                    found[match[2], int(match[1])] += 1
        return [
            Point(call, code, nth)
            for (call, code), times in sorted(found.items())
            for nth in range(1, times + 1)
        ]


class Doom(_Attached):
    """A process that is killed at a point; if it does not come there, it is let go."""

    def __init__(self, pid: int, point: Point) -> None:
        program = [sys.executable, "-I", "-S", str(killer.__file__)]
        super().__init__([*program, str(pid), str(point.code), str(point.nth)], "attached")


def refusal() -> str | None:
    """Why nothing can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with Doom(sleeper.pid, Point("none", -1, 1)):
            return None
    except RuntimeError as error:
        return f"this process may not trace another: {error}"
    finally:
        sleeper.kill()
        sleeper.wait()


def points_in(start: Callable[[], Job], output: Path) -> list[Point]:
    """Every call of every thread of a job, from where it is told to begin to its end."""
    job = start()
    job.hear("ready")
    with Strace(job.pid, output) as traced:
        job.begin()
        assert job.wait() == 0
    return traced.points()


def kill_at(start: Callable[[], Job], point: Point) -> bool:
    """Whether the job was killed there, and not at its end before."""
    job = start()
    job.hear("ready")
    with Doom(job.pid, point):
        job.begin()
        code = job.wait()
    assert code in (0, -signal.SIGKILL), point
    return code == -signal.SIGKILL
