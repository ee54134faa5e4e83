"""
A bad network between senders and server: answers that are cut, swallowed or late, requests
that do not arrive whole. What it does to a connection is drawn when the first byte comes.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

__all__ = ["BadNetwork"]

_CHUNK_BYTES = 1 << 16


class BadNetwork:
    """
    A TCP proxy in a thread of its own.

    Args:
        port: Where the server listens, now and after each restart.
        chance: Draws what happens.

    Attributes:
        url: Where the senders send.
        faults: How often each fault was done.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port = port
        self._chance = chance
        self.faults: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad-network")
        self._server: asyncio.Server | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connection, "127.0.0.1", 0), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            async with _closing(writer):
                there, back = await asyncio.open_connection("127.0.0.1", self._port)
                async with _closing(back):
                    requests = asyncio.ensure_future(self._requests(reader, back))
                    try:
                        await self._answers(there, writer)
                    finally:
                        requests.cancel()

    async def _requests(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                if self._chance.random() < 0.1:
                    self.faults["request cut"] += 1
                    back.write(chunk[: self._chance.randrange(len(chunk))])
                    break
                back.write(chunk)
                await back.drain()
        back.close()

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await there.read(_CHUNK_BYTES):
            fate = self._chance.random()
            if fate < 0.15:
                self.faults["answer swallowed"] += 1
                return
            if fate < 0.35:
                self.faults["answer cut"] += 1
                writer.write(chunk[: self._chance.randrange(len(chunk))])
                await writer.drain()
                return
            if fate < 0.55:
                self.faults["answer late"] += 1
                await asyncio.sleep(self._chance.expovariate(20))
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        writer.close()
