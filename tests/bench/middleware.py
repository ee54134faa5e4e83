"""
middleware: requests per second of a small application, without, with ours, with another's.

Starlette under uvicorn in a process of its own for each, a real socket, eight connections
from a client process, each with one request under way. What ours has recorded is counted
when its server has stopped: as many events as answers.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Final, NamedTuple, cast

import uvloop

from tests.bench.middleware_app import KINDS
from tests.bench.record import kept_events, scratch
from tests.bench.servers import Server, module_server
from tests.bench.table import Row, Table, interleave, ratio, spread

__all__ = ["run"]

_CONNECTIONS: Final = 8
_REQUEST: Final = (
    b"GET /v1/items/%d HTTP/1.1\r\nHost: bench\r\nx-tenant-id: tenant-%03d\r\n"
    b"accept: application/json\r\nuser-agent: bench\r\n\r\n"
)


class Answered(NamedTuple):
    """Answers with status 200, and the seconds that they took."""

    answers: int
    seconds: float


class _Client(asyncio.Protocol):
    """One connection; the next request leaves when the answer is whole."""

    def __init__(self, number: int, until: float) -> None:
        self.answers = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number = number
        self._until = until
        self._data = b""
        self._clock = asyncio.get_running_loop().time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one by its methods, and not by its class.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._send()

    def _send(self) -> None:
        self._number += 1
        self._transport.write(_REQUEST % (self._number % 1000, self._number % 50))

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end or not body.endswith(b"}"):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"{head[:200]!r}"))
            return
        self._data = b""
        self.answers += 1
        if self._clock() < self._until:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError("the server closed the connection"))


def ask(port: int, seconds: float) -> Answered:
    """Ask for so long; in a process of its own."""

    async def main() -> Answered:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        clients = []
        for at in range(_CONNECTIONS):
            make = partial(_Client, at * 1000, begun + seconds)
            _, client = await loop.create_connection(make, "127.0.0.1", port)
            clients.append(client)
        async with asyncio.timeout(seconds + 30):
            await asyncio.gather(*(client.done for client in clients))
        return Answered(sum(client.answers for client in clients), loop.time() - begun)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def run(*, quick: bool) -> Table:
    """Measure; about a minute and a half, *quick*: ten seconds."""
    repetitions, seconds = (2, 1.0) if quick else (5, 3.0)
    kinds = list(KINDS)
    notes = []
    try:
        importlib.import_module("tallybook.middleware")
    except ImportError as error:
        kinds.remove("tallybook")
        notes.append(f"tallybook.middleware cannot be imported: {error}")
    answers: dict[str, int] = dict.fromkeys(kinds, 0)
    with scratch() as directory:
        with ExitStack() as stack:
            pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            servers = {
                kind: stack.enter_context(module_server("middleware_app", [kind, str(directory)]))
                for kind in kinds
            }

            def turn(kind: str, server: Server, seconds: float = seconds) -> float:
                before = server.cpu_seconds()
                asked = pool.submit(ask, server.port, seconds).result()
                answers[kind] += asked.answers
                cpu[kind].append((server.cpu_seconds() - before) / asked.answers * 1e6)
                return asked.answers / asked.seconds

            cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
            for kind, server in servers.items():
                turn(kind, server, 0.5)  # Warm: imports, first event, first spool.
                cpu[kind].clear()
            contestants: dict[str, Callable[[], float]] = {
                kind: partial(turn, kind, server) for kind, server in servers.items()
            }
            rates = interleave(repetitions, contestants)
        kept = kept_events(directory)
    rows = []
    for kind in kinds:
        if kind == "bare":
            continue
        ours = kind == "tallybook"
        checked = f"{kept:,} events of {answers[kind]:,} answers" if ours else ""
        correct = not ours or kept == answers[kind]
        name = "UsageMiddleware" if ours else "opentelemetry-instrumentation-asgi"
        rows += [
            Row(
                f"{name}: requests/s",
                ratio(rates[kind], rates["bare"]),
                "x",
                f"without ({spread(rates[kind], rates['bare'])})",
                None,
                repetitions,
                checked,
                correct,
                {"per_second": median(rates[kind]), "without": median(rates["bare"])},
            ),
            Row(
                f"{name}: processor time a request adds",
                median(cpu[kind]) - median(cpu["bare"]),
                "us",
                f"without: {median(cpu['bare']):.0f} us",
                None,
                repetitions,
            ),
        ]
    if "tallybook" in kinds:
        both = ratio(rates["tallybook"], rates["opentelemetry"])
        rows.append(
            Row("UsageMiddleware: requests/s", both, "x", "opentelemetry", None, repetitions)
        )
    title = f"Starlette under uvicorn, {_CONNECTIONS} connections"
    return Table("middleware", title, rows, notes)
