"""
The server's process: uvicorn around the application, from the first connection to the last.

Stopping is the part with an order: no new connections, the begun requests to their end,
then the ledger. A request that is cut off at the end was not acknowledged, so its sender
sends it again.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop

from tallybook.clock import Clock, SystemClock
from tallybook.errors import InvalidSetting
from tallybook_server.app import create_app
from tallybook_server.ledger import Ledger
from tallybook_server.limits import KEEP_ALIVE_SECONDS
from tallybook_server.protocol import bounded_protocol
from tallybook_server.settings import Settings

__all__ = ["announce", "run", "serve", "serving"]

Listening = Callable[[str, int], None]
"""Told the host and the bound port, once connections are taken."""


def announce(host: str, port: int) -> None:
    """Say on standard error where the server listens."""
    print(f"listening on {_url(host, port)}", file=sys.stderr, flush=True)


def run(
    ledger: Ledger,
    settings: Settings,
    *,
    clock: Clock | None = None,
    on_listening: Listening = announce,
) -> int:
    """
    Serve *ledger* until SIGTERM or SIGINT, then close it.

    A second SIGINT does not wait for begun requests.

    Returns:
        The port that was bound: the chosen one, where the setting is 0.

    Raises:
        InvalidSetting: The address cannot be listened on.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(ledger, settings, clock=clock, on_listening=on_listening))


@contextmanager
def serving(
    ledger: Ledger, settings: Settings, *, clock: Clock | None = None
) -> Generator[str, None, None]:
    """
    Serve *ledger* from a thread of this process; the block gets the URL.

    When the block is left, the server has stopped and the ledger is closed.

    Raises:
        InvalidSetting: The address cannot be listened on.
    """
    listening: Future[tuple[str, Callable[[], object]]] = Future()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()

        def told(host: str, port: int) -> None:
            stop = functools.partial(loop.call_soon_threadsafe, asked.set)
            listening.set_result((_url(host, port), stop))

        await serve(ledger, settings, clock=clock, on_listening=told, stop=asked)

    def body() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:
            if listening.done():
                raise
            listening.set_exception(error)

    thread = threading.Thread(target=body, name="tallybook-server")
    thread.start()
    try:
        url, stop = listening.result()
        try:
            yield url
        finally:
            stop()
    finally:
        thread.join()


async def serve(
    ledger: Ledger,
    settings: Settings,
    *,
    clock: Clock | None = None,
    on_listening: Listening = announce,
    stop: asyncio.Event | None = None,
) -> int:
    """
    Serve *ledger* in the running loop until a signal comes or *stop* is set, then close it.

    Signals are listened to in the main thread only. Returns and raises as `run`.
    """
    stopping = asyncio.Event()
    try:
        config = uvicorn.Config(
            create_app(ledger, settings, clock=clock or SystemClock(), stopping=stopping),
            host=settings.host,
            port=settings.port,
            loop="none",
            http=bounded_protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.shutdown_seconds_max,
        )
        server = _Server(config, on_listening, stopping)
        watch = asyncio.ensure_future(server.exit_when(stop or asyncio.Event()))
        try:
            await server.serve()
        finally:
            watch.cancel()
        return server.port
    finally:
        # Not on the loop: it waits for the ledger's own threads and for the disk.
        await asyncio.to_thread(ledger.close)


class _Server(uvicorn.Server):
    """
    uvicorn's, with four differences: it says its port, raises errors, outlives a signal, and
    says when it begins to stop.
    """

    def __init__(
        self, config: uvicorn.Config, on_listening: Listening, stopping: asyncio.Event
    ) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._stopping = stopping
        self.port = config.port

    async def startup(self, sockets: list[Any] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
        except SystemExit as error:
            # uvicorn logs why and leaves the process; the OSError is behind the exit.
            raise InvalidSetting(
                "port",
                f"cannot listen on {self.config.host} port {self.config.port}: "
                f"{error.__context__}; choose another port, or 0 for any free one",
            ) from error.__context__
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.port = port
        self._on_listening(host, port)

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        # A stream has no end of its own, and uvicorn waits for the end of every answer.
        self._stopping.set()
        await super().shutdown(sockets)

    async def exit_when(self, asked: asyncio.Event) -> None:
        await asked.wait()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn raises the signal again at the end, which would kill the process before the
        # ledger is closed, and would make a clean stop look like a death.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
