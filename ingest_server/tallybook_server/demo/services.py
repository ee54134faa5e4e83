"""
What the children are: the tallybook server, and the sample SaaS with its workers.

The SaaS is supervised here and not by uvicorn, so that it is known who was killed, and so
that a worker that ends by itself is a fault and no part of the show.
"""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from tallybook.cli.output import Exit, Failure
from tallybook.clock import Ids
from tallybook_server.demo.children import Child, Children

__all__ = ["Saas", "Server", "free_port"]

_PORTS: Final = range(20_000, 30_000)
_BACKLOG: Final = 1_024


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
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
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

    def check(self) -> None:
        """
        See that all of them run.

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
    ports: list[int] = [*_PORTS[first:], *_PORTS[:first]]
    for port in ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise Failure(f"no port of {_PORTS[0]} to {_PORTS[-1]} is free", Exit.USAGE)
