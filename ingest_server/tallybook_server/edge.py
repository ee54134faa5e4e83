"""
What holds for every answer, whatever the route: it is not stored on the way, an unexpected
fault is a problem document and a line in the log, and a body that nobody read ends with it.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tallybook_server.limits import DRAIN_BYTES_MAX, DRAIN_SECONDS_MAX
from tallybook_server.problems import Problem

__all__ = ["Edge", "logger"]

logger = logging.getLogger("tallybook.server")


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, in any case."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            # Nobody is left to answer, and nothing was stored: the body was not complete.
            logger.info("%s %s: the sender has gone", scope["method"], scope["path"])
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if exchange.answered:
                raise
            response = Problem("internal", "the server failed; its log says why").response()
            await response(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer: whether the body has ended, and whether the answer began."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._send = send
        self._waits_for_100 = headers.get("expect", "").lower() == "100-continue"
        self._body_pending = "transfer-encoding" in headers or headers.get(
            "content-length", "0"
        ) not in ("", "0")
        self.answered = False

    async def receive(self) -> Message:
        self._waits_for_100 = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_pending = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = True
            headers = MutableHeaders(raw=message["headers"])
            headers["Cache-Control"] = "no-store"
            if self._body_pending and headers.get("Connection") != "close":
                await self._drain()
            if self._body_pending:
                # An endless body would go on arriving behind the answer, for ever.
                headers["Connection"] = "close"
        await self._send(message)

    async def _drain(self) -> None:
        """
        Throw away what is still arriving of a body that was refused, within bounds.

        A connection that is closed over unread bytes is reset, and the sender sees the
        reset instead of the problem. One that waits for ``100 Continue`` sends nothing.
        """
        if self._waits_for_100:
            return
        left = DRAIN_BYTES_MAX
        try:
            async with asyncio.timeout(DRAIN_SECONDS_MAX):
                while self._body_pending and left > 0:
                    message = await self.receive()
                    left -= len(message.get("body", b""))
        except TimeoutError:
            pass
