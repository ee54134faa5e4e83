"""The server is killed at every system call of one request; its sender asks again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybook import Meter
from tallybook.transport import HttpTransport
from tests.crash.counting import compare, finish
from tests.crash.draining import HastyIds
from tests.crash.events import STREAM_EVENTS, record
from tests.crash.processes import Zygote
from tests.crash.serving import ForkedServer
from tests.crash.tracing import Doom, Point, Strace

_ATTEMPTS_MAX = 100


@pytest.fixture
def server(server_zygote: Zygote, tmp_path: Path) -> Iterator[ForkedServer]:
    """A server that is quick to start again."""
    process = ForkedServer(server_zygote, tmp_path / "data")
    process.start()
    yield process
    process.kill()


class Sender:
    """One producer that sends one event after the other, each on a connection of its own."""

    def __init__(self, server: ForkedServer, directory: Path) -> None:
        self._server = server
        self._transport = HttpTransport(server.url, None, 10.0)
        self._meter = Meter(
            "crash",
            directory=directory,
            endpoint=server.url,
            transport=self._transport,
            ids=HastyIds(),
            threads=False,
        )
        self._next = STREAM_EVENTS + 1
        self.returned: list[int] = []

    def record(self) -> None:
        """Have a block wait."""
        record(self._meter, self._next)
        self.returned.append(self._next)
        self._next += 1
        self._transport.close()

    def attempt(self) -> bool:
        """Send it; whether the server has answered."""
        worker = vars(self._meter)["_worker"]
        worker.producer.step(cut=True)
        threading.Event().wait(worker.flusher.wait_seconds())
        worker.flush_step()
        return not worker.producer.queue.counts().pending_blocks

    def points(self, folder: Path) -> list[Point]:
        """Every call of every thread of the server during one request."""
        self.record()
        with Strace(self._server.pid, folder / "calls") as traced:
            assert self.attempt()
        return traced.points()

    def survive(self, point: Point) -> bool:
        """One event, with the server killed at *point*; whether it was."""
        self.record()
        with Doom(self._server.pid, point):
            answered = self.attempt()
        if self._server.alive():
            assert answered, point
            return False
        assert self._server.died() == -9, point
        self._server.start()
        for _ in range(_ATTEMPTS_MAX):
            if answered or self.attempt():
                return True
        raise AssertionError(f"{point}: the server does not answer any more")

    def close(self) -> None:
        """Say that this was all."""
        assert self._meter.close().ok


@pytest.mark.parametrize(
    "stride",
    [pytest.param(4, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.crash)],
)
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_a_request_loses_and_doubles_nothing(
    stride: int, server: ForkedServer, tmp_path: Path
) -> None:
    """
    Accept, read, store, sync, answer: the server is killed before any call of any thread.

    It is started again, the sender sends the same bytes again, and the event counts once.
    """
    sender = Sender(server, tmp_path / "queue")
    sender.record()
    assert sender.attempt()
    points = sender.points(tmp_path)[::stride]
    kills = sum(map(sender.survive, points))
    sender.close()
    assert kills > len(points) * 0.8
    outcome = compare(sender.returned, server, kills=kills)
    finish(f"request by system call, {len(points)} points", server, outcome)
