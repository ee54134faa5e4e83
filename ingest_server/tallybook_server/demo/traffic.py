"""
The traffic: five tenants' requests over real connections, and what each of them was told.

Each request has an id of its own, is sent once and never again. It counts as answered when
the whole of a 2xx response has arrived; a connection that breaks leaves it unanswered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["TENANTS", "Request", "Traffic"]

TENANTS: Final = {"acme": 8, "globex": 5, "initech": 3, "umbrella": 2, "hooli": 1}
"""Each tenant's share of the requests."""

_CONNECTIONS: Final = 16
_REQUESTS_PER_SECOND: Final = 600
"""Enough for several thousand requests, and little enough to leave a laptop usable."""

_RESPONSE_SECONDS_MAX: Final = 10.0


@dataclass(slots=True)
class Request:
    """
    One request, and how it went.

    Attributes:
        id: Its ``X-Request-Id``, and a tag of its events.
        tenant: Whose it is.
        words: Of the prompt, for one that is charged by tokens; else 0.
        answered: The whole response has arrived.
        tokens: What the response says it cost; None where it says nothing.
    """

    id: str
    tenant: str
    words: int
    answered: bool = False
    tokens: int | None = None

    def encode(self) -> bytes:
        """The bytes of it."""
        body = json.dumps({"prompt": " ".join(["word"] * self.words)}) if self.words else ""
        if self.words:
            line = "POST /v1/completions"
        elif self.id.endswith("0"):
            line = "GET /v1/documents"
        else:
            line = f"GET /v1/documents/{self.id}"
        return (
            f"{line} HTTP/1.1\r\nHost: saas\r\nX-Tenant-Id: {self.tenant}\r\n"
            f"X-Request-Id: {self.id}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


def requests() -> Iterator[Request]:
    """Requests without end: a tenant as often as its share says, every third with tokens."""
    turns = [tenant for tenant, share in TENANTS.items() for _ in range(share)]
    number = 0
    while True:
        number += 1
        words = number % 97 + 1 if number % 3 == 0 else 0
        # 7 and the number of turns have no common divisor, so every turn comes.
        yield Request(f"r{number:07d}", turns[number * 7 % len(turns)], words)


class Traffic:
    """
    Sends requests to one port over several connections, until it is told to stop.

    Attributes:
        sent: Every request that was sent, by its id.
        answered: How many were answered.
        in_flight: How many are under way.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._requests = requests()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.sent: dict[str, Request] = {}
        self.answered = 0
        self.in_flight = 0

    def start(self) -> None:
        """Begin, in the running loop."""
        self._tasks = [asyncio.create_task(self._client(n)) for n in range(_CONNECTIONS)]

    def check(self) -> None:
        """Raise what a client has ended with, if it was a fault of ours."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Send nothing more, and wait for what is under way."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        """One connection after another, and one request after another on each."""
        loop = asyncio.get_running_loop()
        period = _CONNECTIONS / _REQUESTS_PER_SECOND
        due = loop.time() + period * number / _CONNECTIONS
        while not self._stopping:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(period)
                continue
            try:
                while not self._stopping:
                    await asyncio.sleep(due - loop.time())
                    if reader.at_eof() or reader.exception():
                        break  # The worker died while nothing was under way here.
                    # One that is late does not hurry to make up for it.
                    due = max(due + period, loop.time())
                    await self._ask(next(self._requests), reader, writer)
            except (OSError, EOFError, TimeoutError):
                pass  # The worker died under it, or will not answer. It was sent, that is all.
            finally:
                writer.close()

    async def _ask(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.sent[request.id] = request
        self.in_flight += 1
        try:
            writer.write(request.encode())
            async with asyncio.timeout(_RESPONSE_SECONDS_MAX):
                status, body = await _response(reader)
        finally:
            self.in_flight -= 1
        if 200 <= status < 300:
            request.tokens = json.loads(body).get("tokens")
            request.answered = True
            self.answered += 1


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body; all of it, or an error."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length))
