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
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tallybook.cli.output import Exit, Failure
from tallybook.clock import Ids

__all__ = ["Child", "Children", "Saas", "Server", "free_port"]

_PARENT_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG of prctl(2)
_PORTS: Final = range(20_000, 30_000)
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


class Server:
    """
    ``tallybook serve``, which can be killed and comes back on the same port and ledger.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, children: Children, data: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._children = children
        self._arguments = ["tallybook.cli", "serve", "--json"]
        self._arguments += ["--data", str(data), "--port", str(port)]
        self._child: Child | None = None

    @property
    def up(self) -> bool:
        """It has been started; whether it listens yet is `ready`."""
        return self._child is not None

    @property
    def ready(self) -> bool:
        return self._child is not None and self._child.ready

    def start(self) -> None:
        self._child = self._children.start("server", self._arguments)

    def kill(self) -> None:
        """SIGKILL: it has no time for anything."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def check(self) -> None:
        """
        See that it runs, if it should.

        Raises:
            Failure: It ended, and nobody had asked it to.
        """
        if self._child is not None and not self._child.alive:
            raise Failure("the demo's server ended by itself", Exit.FINDING)


class Saas:
    """
    The workers of the sample SaaS, on one port; one that dies is started again at once.

    Args:
        children: Where they run.
        endpoint: The tallybook server.
        queue: The directory that their queues share.
        workers: How many.

    Attributes:
        port: Where they listen.
        kills: How many were killed.
    """

    def __init__(self, children: Children, endpoint: str, queue: Path, *, workers: int) -> None:
        self._children = children
        self._variables = {
            "TALLYBOOK_ENDPOINT": endpoint,
            "TALLYBOOK_DIRECTORY": str(queue),
            "TALLYBOOK_SOURCE": "demo",
        }
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        self._workers = [self._start() for _ in range(workers)]
        self.port: int = self._listening.getsockname()[1]
        self.kills = 0

    def _start(self) -> Child:
        descriptor = self._listening.fileno()
        return self._children.start(
            "workers",
            ["tallybook_server.demo.worker", str(descriptor)],
            descriptors=[descriptor],
            **self._variables,
        )

    @property
    def ready(self) -> bool:
        """Every worker takes requests."""
        return all(worker.ready for worker in self._workers)

    def watch(self) -> None:
        """
        Start again those that were killed. The oldest stands first.

        Raises:
            Failure: One ended by itself: that is no chaos of ours.
        """
        for worker in self._workers:
            if not worker.alive:
                raise Failure("a worker of the demo's SaaS ended by itself", Exit.FINDING)

    def kill_one(self) -> bool:
        """SIGKILL to the oldest worker that takes requests, if there is one; a new one starts."""
        for worker in self._workers:
            if worker.ready:
                worker.end()
                self.kills += 1
                self._workers.remove(worker)
                self._workers.append(self._start())
                return True
        return False

    def stop(self, seconds: float) -> None:
        """SIGTERM: they finish what is begun, and send what they can; then they are ended."""
        for worker in self._workers:
            worker.signal(signal.SIGTERM)
        for worker in self._workers:
            worker.wait(seconds)
            worker.end()
        self._workers = []
        self._listening.close()


def free_port(ids: Ids) -> int:
    """
    A port of this machine that nobody listens on.

    It lies below those that the kernel gives to outgoing connections: else one of them could
    take it while the server is away.
    """
    first = int(ids.fraction() * len(_PORTS))
    for port in (*_PORTS[first:], *_PORTS[:first]):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise Failure(f"no port of {_PORTS[0]} to {_PORTS[-1]} is free", Exit.USAGE)


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TALLYBOOK_") and not name.lower().endswith("_proxy")
    }


def _prctl() -> ctypes._NamedFuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    """Linux's; loaded before the fork, since a child may load nothing."""
    if sys.platform != "linux":
        return None
    return ctypes.CDLL(None).prctl
