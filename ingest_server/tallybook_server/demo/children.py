"""
The demo's processes. None of them outlives the demo, however it ends.

Each is a child in a process group of its own, so that Ctrl-C reaches the demo alone, and it
is the demo that ends them, each by its pid. Where a demo is killed with SIGKILL, the kernel
ends them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["Child", "Children"]

_PARENT_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG of prctl(2)
_TAIL_LINES: Final = 15


class Child:
    """
    A Python program that runs.

    Attributes:
        ready: It has said on standard output that it works.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            raise RuntimeError("a child without standard output")
        self._process = process
        self._stdout = process.stdout
        self._ready = False
        os.set_blocking(self._stdout.fileno(), False)

    @property
    def ready(self) -> bool:
        if not self._ready:
            self._ready = bool(self._stdout.read(4096))
        return self._ready

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None if it does not end in time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._stdout.close()


class Children:
    """
    Every process of one demo; leaving the block ends those that still run.

    Args:
        directory: Where each has a file for what it says on standard error.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []
        self._prctl = _prctl()

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        descriptors: Sequence[int] = (),
        **variables: str,
    ) -> Child:
        """
        Run ``python -m`` *arguments*.

        Args:
            name: Of the file that takes its standard error.
            arguments: The module, and what it is told.
            descriptors: Open files that it inherits.
            variables: Its environment, beside the user's. TALLYBOOK_* of the user's and
                proxies are left out: they are for other servers than this one.
        """
        mine = os.getpid()

        def die_with_the_demo() -> None:
            if self._prctl is not None:
                self._prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != mine:
                os._exit(1)

        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=_environment() | variables,
                pass_fds=descriptors,
                process_group=0,
                preexec_fn=die_with_the_demo,
            )
        child = Child(process)
        self._children = [child, *(other for other in self._children if other.alive)]
        return child

    def said(self) -> list[str]:
        """The last lines of what each said on standard error."""
        lines: list[str] = []
        for path in sorted(self._directory.glob("*.log")):
            text = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            lines += [f"{path.stem}: {line}" for line in text]
        return lines

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)
        for child in self._children:
            child.end()


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TALLYBOOK_") and not name.lower().endswith("_proxy")
    }


def _prctl() -> Callable[[int, int], int] | None:
    """Linux's; looked up before the fork, since a child may load nothing."""
    prctl: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl
