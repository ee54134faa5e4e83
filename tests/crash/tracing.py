"""
strace: count the system calls of one thread, or kill its process at the k-th call of a name.

The process is dead *before* the call does anything, so a kill at every call is a kill between
any two of them. What a process stores into mapped memory is no call: see test_line_kills.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.crash.processes import Job

__all__ = [
    "Point",
    "Strace",
    "counted",
    "kill_at",
    "points_in",
    "points_of",
    "refusal",
    "threads_of",
]

# Files by name, files and sockets by descriptor, sockets.
_CLASSES = "%file,%desc,%network"


class Point(NamedTuple):
    """
    A place to kill at.

    Attributes:
        thread: The thread's place among those of its process.
        call: The system call's name.
        number: The how-manieth of that name in that thread, from 1.
    """

    thread: int
    call: str
    number: int

    def __str__(self) -> str:
        return f"thread {self.thread}, {self.call} {self.number}"


class Strace:
    """
    strace attached to one thread, or to a whole process.

    Args:
        pid: The thread.
        output: With it, every call is written to ``<output>.<thread>``, also of other threads.
        kill_at: With it, the process is killed there.
    """

    def __init__(
        self, pid: int, *, output: Path | None = None, kill_at: Point | None = None
    ) -> None:
        command = ["strace", "-p", str(pid)]
        if output is not None:
            command += ["-f", "-ff", "-o", str(output), "-e", f"trace={_CLASSES}"]
        if kill_at is not None:
            inject = f"{kill_at.call}:signal=SIGKILL:when={kill_at.number}"
            command += ["-o", os.devnull, "-e", f"trace={kill_at.call}", "-e", f"inject={inject}"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said = ""
        while " attached" not in self.said:
            line = self._process.stderr.readline() if self._process.stderr else ""
            self.said += line
            if not line:
                self.__exit__(None, None, None)
                raise RuntimeError(f"strace: {self.said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        if self._process.stderr is not None:
            self._process.stderr.close()


def refusal() -> str | None:
    """Why nothing can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with Strace(sleeper.pid):
            return None
    except RuntimeError as error:
        return f"this process may not trace another: {error}"
    finally:
        sleeper.kill()
        sleeper.wait()


def threads_of(pid: int) -> list[int]:
    """The threads of a process, in the order in which they began."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))


def counted(output: Path, thread: int) -> Counter[str]:
    """How often a thread made each call."""
    path = output.with_name(f"{output.name}.{thread}")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return Counter(match[1] for line in lines if (match := re.match(r"(\w+)\(", line)))


def points_of(output: Path, threads: list[int]) -> list[Point]:
    """Every call of these threads, as a place to kill at."""
    return [
        Point(place, call, number)
        for place, thread in enumerate(threads)
        for call, times in sorted(counted(output, thread).items())
        for number in range(1, times + 1)
    ]


def points_in(start: Callable[[], Job], output: Path) -> list[Point]:
    """Every call of every thread of a job, from where it is told to begin to its end."""
    job = start()
    job.hear("ready")
    threads = threads_of(job.pid)
    with Strace(job.pid, output=output):
        job.begin()
        assert job.wait() == 0
    return points_of(output, threads)


def kill_at(start: Callable[[], Job], point: Point) -> bool:
    """Whether the job was killed there; which of DuckDB's threads does what may differ."""
    job = start()
    job.hear("ready")
    with Strace(threads_of(job.pid)[point.thread], kill_at=point):
        job.begin()
        code = job.wait()
    assert code in (0, -9), point
    return code == -9
