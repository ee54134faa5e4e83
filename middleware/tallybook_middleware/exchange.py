"""
One HTTP request under ASGI: when its response is complete, and how it can fail to become so.

It is complete with the message that a server needs to end it: the last ``http.response.body``,
a pathsend, or the last trailers, if the start announced some. The event is recorded before
that message is handed on, so whoever has the answer is recorded; a background task that runs
afterwards neither delays nor changes the event. What ends without such a message is recorded
when the application returns or raises.

Bytes of a message count once the server took it. Only those of the last message are counted
before: a server that refuses it leaves the event too high by that message.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from tallybook.tenant import Holder
from tallybook_middleware.recorder import Recorder
from tallybook_middleware.route import asgi_route

__all__ = ["REFUSAL", "Exchange", "HttpExchange", "Message", "Receive", "Scope", "Send"]

# As ASGI types them: what a scope and a message hold depends on their type.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REFUSAL: Final = b"this request names no tenant\n"


class Exchange:
    """
    One request and what becomes of it: `receive` and `send` go between server and application.

    Attributes:
        scope: The request's scope.
        holder: Where `tallybook.tenant` leaves a tenant.
    """

    def __init__(self, recorder: Recorder, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method", "GET")  # A websocket's handshake has none in its scope.
        self.scope = scope
        self.holder = Holder()
        self.recorder = recorder
        self.usage = recorder.begin(method)
        self.settled = recorder.excludes(scope, method, scope.get("path", ""))
        self.disconnected = False
        self._tenant: str | None = None
        self._receive = receive
        self._send = send

    async def admit(self) -> bool:
        """Whether the application may run: there is a tenant, or nobody asks for one."""
        if self.settled:
            return True
        admitted, self._tenant = await self.recorder.arequire(self.scope)
        return admitted

    def begin(self, holder: Holder) -> None:
        """The application is about to run, with *holder*: with the tenant, if it is known."""
        self.holder = holder
        if self._tenant is None:
            self._tenant = self.recorder.expect(self.scope)
        holder.tenant = self._tenant

    async def receive(self) -> Message:
        """Hand on what the server says, and note it."""
        message = await self._receive()
        if not self.settled:
            try:
                last = self._note_received(message)
            except Exception as error:
                self._unread(error)
            else:
                if last:
                    await self.settle()
        return message

    async def send(self, message: Message) -> None:
        """Note what the application says, and hand it on."""
        if self.settled:
            await self._send(message)
            return
        size, last = 0, False
        try:
            size, last = self._note_sent(message)
        except Exception as error:
            self._unread(error)
        if last:
            self._count(size)
            await self.settle()
            await self._send(message)
        else:
            await self._send(message)
            self._count(size)

    def _note_received(self, message: Message) -> bool:
        """Whether the exchange ends with this message."""
        raise NotImplementedError

    def _note_sent(self, message: Message) -> tuple[int, bool]:
        """The bytes of the response in this message, and whether it is the last one."""
        raise NotImplementedError

    def _note_end(self, error: BaseException | None) -> None:
        """The application returned or raised, and the exchange had not ended."""
        raise NotImplementedError

    async def refuse(self) -> None:
        """Answer in the place of the application."""
        raise NotImplementedError

    def _count(self, size: int) -> None:
        # What is handed to a server after the client left, it throws away.
        if not self.disconnected:
            self.usage.response_bytes += size

    def _unread(self, error: Exception) -> None:
        self.recorder.faults.tell("a message could not be read", error)

    async def returned(self) -> None:
        """The application returned."""
        if not self.settled:
            self._note_end(None)
            await self.settle()

    async def raised(self, error: BaseException) -> None:
        """The application raised, and nothing but that exception is going to leave."""
        if self.settled:
            return
        self._note_end(error)
        if isinstance(error, GeneratorExit):  # The loop is gone: nothing can be awaited.
            self.settled = True
            self._note_route()
            self.recorder.settle(self.usage, self.scope, self.holder, self._tenant)
            return
        with suppress(BaseException):  # Cancelled once more: it ends now in any case.
            await self.settle()

    async def settle(self) -> None:
        """Record it, once."""
        if self.settled:
            return
        self.settled = True
        self._note_route()
        await self.recorder.asettle(self.usage, self.scope, self.holder, self._tenant)

    def _note_route(self) -> None:
        try:
            self.usage.route = asgi_route(self.scope)
        except Exception as error:
            self.recorder.faults.tell("the route is unknown", error)


class HttpExchange(Exchange):
    """A request and its response."""

    def __init__(self, recorder: Recorder, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(recorder, scope, receive, send)
        self._trailers = False

    def _note_received(self, message: Message) -> bool:
        kind = message["type"]
        if kind == "http.request":
            self.usage.request_bytes += len(message.get("body", b""))
        elif kind == "http.disconnect":
            self.disconnected = self.usage.aborted = True
        return False

    def _note_sent(self, message: Message) -> tuple[int, bool]:
        kind = message["type"]
        if kind == "http.response.body":
            last = not message.get("more_body", False) and not self._trailers
            return len(message.get("body", b"")), last
        if kind == "http.response.start":
            self.usage.status = message["status"]
            self._trailers = message.get("trailers", False)
        elif kind == "http.response.pathsend":
            return self._size(message["path"]), not self._trailers
        elif kind == "http.response.zerocopysend":
            last = not message.get("more_body", False) and not self._trailers
            return self._part(message), last
        elif kind == "http.response.trailers":
            return 0, not message.get("more_trailers", False)
        return 0, False  # Early hints, push, debug and what is yet to be invented.

    def _size(self, file: str | int) -> int:
        """A file's size; not asked for where nobody wants to know."""
        try:
            return os.stat(file).st_size if "response_bytes" in self.recorder.measures else 0
        except OSError as error:  # The server will say so too.
            self._unread(error)
            return 0

    def _part(self, message: Message) -> int:
        """The bytes of a zerocopysend: what it says, else the rest of the file."""
        if message.get("count") is not None:
            return int(message["count"])
        file = message["file"]
        size = self._size(file if isinstance(file, int) else file.fileno())
        return max(0, size - (message.get("offset") or 0))

    def _note_end(self, error: BaseException | None) -> None:
        usage = self.usage
        cancelled = error is not None and not isinstance(error, Exception)
        if usage.status is None and not cancelled and not self.disconnected:
            usage.status = 500  # What a server answers in the place of an application.
        else:
            usage.aborted = True

    async def refuse(self) -> None:
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(REFUSAL)),
        ]
        await self._send({"type": "http.response.start", "status": 403, "headers": headers})
        await self._send({"type": "http.response.body", "body": REFUSAL})
