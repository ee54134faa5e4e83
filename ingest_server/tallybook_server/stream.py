"""
``GET /v1/events/stream``: events as they are accepted. Server-sent events, as WHATWG HTML says.

A stream has no queue. It has a cursor: each turn reads the page behind it from the ledger
and sends it, and waits for the client to take it before the next. So a slow client costs
what one page takes, whatever is recorded meanwhile, and who comes back with its last id
goes on behind it, also after a restart of the server: it is the ledger that remembers.

Between the turns a stream waits for the *bell*, which the ledger's writer rings behind each
commit. While nobody streams there is no bell, and a commit pays for a look at an empty list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tallybook_server.event_filter import INDEX_MAX
from tallybook_server.event_query import FILTERS, read_filter
from tallybook_server.events import listed
from tallybook_server.ledger import EventFilter, Ledger, Place
from tallybook_server.limits import (
    STREAM_INTERVAL_SECONDS,
    STREAM_PAGE_BYTES,
    STREAM_PAGE_EVENTS,
    STREAM_READS_MAX,
    STREAM_RETRY_SECONDS,
)
from tallybook_server.parameters import Parameters
from tallybook_server.problems import Problem
from tallybook_server.settings import Settings
from tallybook_server.tag_filters import PREFIXES

__all__ = ["CONTENT_TYPE", "Streams"]

CONTENT_TYPE: Final = "text/event-stream"
_PARAMETERS: Final = ("after", *FILTERS)


class Streams:
    """The streams of one application, as an ASGI endpoint."""

    def __init__(self, ledger: Ledger, settings: Settings, stopping: asyncio.Event) -> None:
        """
        Prepare for streams.

        Args:
            ledger: Where the events are.
            settings: Its limits of streams.
            stopping: When it is set, every stream ends.
        """
        self._ledger = ledger
        self._most = settings.streams_max
        self._keep_alive_seconds = settings.stream_keep_alive_seconds
        self._stopping = stopping
        self._bell = _Bell(ledger)
        # Reads of their own: streams keep no question waiting, however many there are.
        self._reading = CapacityLimiter(STREAM_READS_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Feed one client until it goes away or the server stops.

        Raises:
            Problem: The question is wrong, or there are too many streams; nothing was sent.
        """
        request = Request(scope)
        parameters = Parameters(scope["query_string"], _PARAMETERS, prefixes=PREFIXES)
        chosen = read_filter(parameters)
        after = _begin(self._ledger, parameters, request.headers.get("last-event-id"))
        if self._bell.hearers >= self._most:
            raise Problem(
                "too-many-streams",
                f"{self._bell.hearers} streams are open: the limit streams_max",
                headers={"Retry-After": str(STREAM_RETRY_SECONDS)},
                more={"limit": "streams_max", "streams_max": self._most},
            )
        if request.method == "HEAD":
            await Response(headers={"Content-Type": CONTENT_TYPE})(scope, receive, send)
            return
        read = partial(_read, self._ledger, chosen)
        feed = _Feed(send, read, self._bell, self._reading, self._keep_alive_seconds)
        with self._bell.heard():
            await self._serve(receive, send, feed, after)

    async def _serve(self, receive: Receive, send: Send, feed: _Feed, after: Place) -> None:
        """The whole answer: its head, what *feed* sends, and its end."""
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        feeding = asyncio.ensure_future(feed.run(after))
        gone = asyncio.ensure_future(_disconnected(receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        tasks = (feeding, gone, stopping)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not feeding.cancelled():
            feeding.result()
        if gone.cancelled():
            await send({"type": "http.response.body", "body": b""})


def _begin(ledger: Ledger, parameters: Parameters, last_id: str | None) -> Place:
    """The place behind which a stream begins; without a wish, the head."""
    head = ledger.position()
    after = parameters.place("after")
    if last_id:
        # A client that comes back asks with the same parameters as the first time.
        after = parameters.read_place("Last-Event-ID", last_id)
    if after is not None and after.position > head.n:
        raise Problem(
            "cursor-unknown",
            f"the cursor is {after}, and the ledger's head is {head}; expected a cursor of an "
            f"event up to there. after={head.n} goes on with what comes",
            more={"position": str(head)},
        )
    return after or Place(head.n, INDEX_MAX)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# -- one stream ----------------------------------------------------------------------------


class _Feed:
    """What one client is sent."""

    def __init__(
        self,
        send: Send,
        read: Callable[[Place], _Page],
        bell: _Bell,
        reading: CapacityLimiter,
        keep_alive_seconds: float,
    ) -> None:
        self._deliver = send
        self._read = read
        self._bell = bell
        self._reading = reading
        self._keep_alive_seconds = keep_alive_seconds
        self._quiet_until = 0.0

    async def run(self, after: Place) -> None:
        """Send what is behind *after*, and what comes, until it is cancelled."""
        # An id without data: who is cut off before the first event comes back to here.
        await self._send(f"id: {after}\n\n".encode())
        while True:
            rung = self._bell.next_ring  # Before the read, so that no commit goes unheard.
            page = await anyio.to_thread.run_sync(self._read, after, limiter=self._reading)
            after = page.after
            if page.data:
                await self._send(page.data)
            if not page.more:
                await self._wait(rung, after)

    async def _wait(self, rung: asyncio.Event, after: Place) -> None:
        while True:
            try:
                async with asyncio.timeout_at(self._quiet_until):
                    await rung.wait()
                break
            except TimeoutError:
                # The id spares who comes back the search in what has not passed the filter.
                await self._send(f": nothing new\nid: {after}\n\n".encode())
        # What comes in a burst is read at once.
        await asyncio.sleep(STREAM_INTERVAL_SECONDS)

    async def _send(self, data: bytes) -> None:
        await self._deliver({"type": "http.response.body", "body": data, "more_body": True})
        self._quiet_until = asyncio.get_running_loop().time() + self._keep_alive_seconds


def _read(ledger: Ledger, chosen: EventFilter, after: Place) -> _Page:
    """The next page. Blocks."""
    head = ledger.position()
    rows = ledger.scan(chosen, after=after, limit=STREAM_PAGE_EVENTS)
    blocks: list[bytes] = []
    size = 0
    for row in rows:
        after = Place(row.position, row.index)
        # ASCII, because many clients take characters of Unicode for the end of a line.
        text = listed(row, head.incarnation).model_dump_json(ensure_ascii=True)
        blocks.append(f"id: {after}\ndata: {text}\n\n".encode())
        size += len(blocks[-1])
        if size >= STREAM_PAGE_BYTES:
            break
    more = len(blocks) < len(rows) or len(rows) == STREAM_PAGE_EVENTS
    if not more:
        # All up to the head of before has been looked at, whether it passed or not.
        after = max(after, Place(head.n, INDEX_MAX))
    return _Page(b"".join(blocks), after, more)


class _Page(NamedTuple):
    """
    Events to be sent.

    Attributes:
        data: As they are sent.
        after: Where the next page begins.
        more: Whether something is known to be behind it.
    """

    data: bytes
    after: Place
    more: bool


class _Bell:
    """Rings in every stream at once when the ledger has grown. For one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending = False
        self.hearers = 0
        self.next_ring = asyncio.Event()

    @contextmanager
    def heard(self) -> Generator[None]:
        """Someone hears it while the block lasts. The first one hangs it up, the last takes it."""
        if not self.hearers:
            self._end = self._ledger.listen(partial(self._grown, asyncio.get_running_loop()))
        self.hearers += 1
        try:
            yield
        finally:
            self.hearers -= 1
            if not self.hearers:
                self._end()

    def _grown(self, loop: asyncio.AbstractEventLoop) -> None:
        # On the writer's thread: commits that come before the loop has turned ring once.
        if not self._pending:
            self._pending = True
            with suppress(RuntimeError):  # The loop is closed, and nobody hears.
                loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        self._pending = False
        rung, self.next_ring = self.next_ring, asyncio.Event()
        rung.set()
