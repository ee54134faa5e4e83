"""
One websocket connection under ASGI: an event when it closes.

A handshake that is not accepted is no connection. It is answered over HTTP, and recorded as
the HTTP request that it was: ``http.requests`` with method GET and the status.
"""

from __future__ import annotations

from tallybook_middleware.exchange import Exchange, Message, Receive, Scope, Send
from tallybook_middleware.recorder import Recorder

__all__ = ["WebSocketExchange"]

# RFC 6455, 7.4.1.
_NORMAL, _NO_CODE, _REFUSED, _INTERNAL_ERROR = 1000, 1005, 1008, 1011


class WebSocketExchange(Exchange):
    """A handshake, and the connection that follows it."""

    def __init__(self, recorder: Recorder, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(recorder, scope, receive, send)
        self._accepted = False

    def _note_received(self, message: Message) -> bool:
        if message["type"] != "websocket.disconnect":
            return False
        self.disconnected = True
        if self._accepted:
            self._close(message.get("code", _NO_CODE))
        else:
            self.usage.aborted = True
        return True

    def _note_sent(self, message: Message) -> tuple[int, bool]:
        kind = message["type"]
        if kind == "websocket.close":
            if self._accepted:
                self._close(message.get("code", _NORMAL))
            else:
                self.usage.status = 403  # What ASGI makes of a close in the handshake.
            return 0, True
        elif kind == "websocket.http.response.start":
            self.usage.status = message["status"]
        elif kind == "websocket.http.response.body":
            return len(message.get("body", b"")), not message.get("more_body", False)
        return 0, False

    async def send(self, message: Message) -> None:
        await super().send(message)
        if message["type"] == "websocket.accept":  # Only now: a server may have refused it.
            self._accepted = True

    def _note_end(self, error: BaseException | None) -> None:
        usage = self.usage
        cancelled = error is not None and not isinstance(error, Exception)
        if self._accepted and not cancelled:
            self._close(_NORMAL if error is None else _INTERNAL_ERROR)
        elif self._accepted:
            self._close(None)
            usage.aborted = True
        elif usage.status is None and not cancelled:
            usage.status = 500
        else:
            usage.aborted = True

    def _close(self, code: int | None) -> None:
        self.usage.dimension, self.usage.code = "websocket.connections", code

    async def refuse(self) -> None:
        await self._receive()  # websocket.connect, which some servers insist on.
        await self._send({"type": "websocket.close", "code": _REFUSED, "reason": ""})
