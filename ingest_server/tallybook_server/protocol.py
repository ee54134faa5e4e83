"""
Bounds on connections, on the heads of requests and on the taking of answers, which uvicorn
leaves open.

uvicorn waits for ever for a head, its timer of idle connections starts anew with each
byte, the parser keeps a header field of any length, and an answer that nobody takes waits
for ever, too. A few hundred sockets that send a byte a minute, or read none, would hold the
server. Bodies are bounded by the application, in `body`.
"""

from __future__ import annotations

import asyncio
from array import array
from fcntl import ioctl
from http import HTTPStatus
from termios import TIOCOUTQ
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tallybook_server.limits import BODIES_RETRY_SECONDS
from tallybook_server.problems import CONTENT_TYPE, Problem
from tallybook_server.settings import Settings

__all__ = ["bounded_protocol"]


def bounded_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn that obeys *settings*; uvicorn makes the instances."""

    class BoundedProtocol(_BoundedProtocol):
        bounds = settings

    return BoundedProtocol


class _BoundedProtocol(HttpToolsProtocol):
    bounds: Settings

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.bounds.connections_max
        if len(self.connections) > most:
            self._refuse(
                Problem(
                    "busy",
                    f"there are more than {most} connections: the limit connections_max",
                    headers={"Retry-After": str(BODIES_RETRY_SECONDS)},
                )
            )
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        most = self.bounds.head_bytes_max
        if self._head_bytes > most:
            self._refuse(
                Problem(
                    "head-too-large",
                    f"the request's head has more than {most} bytes: the limit head_bytes_max",
                    more={"limit": "head_bytes_max", "bytes_max": most},
                )
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says to bytes that are not HTTP, as a problem document."""
        self._refuse(Problem("not-http", "the request cannot be read as HTTP/1.1"))

    def _await_head(self) -> None:
        self._stop_timer()
        self._in_head = True
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.bounds.head_seconds_max, self._head_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(
                Problem(
                    "head-too-slow",
                    "the request's head did not arrive within the limit head_seconds_max of "
                    f"{self.bounds.head_seconds_max:g} seconds",
                )
            )

    def _await_reader(self) -> None:
        """Cut the connection unless the client takes something of what waits for it."""
        self._stop_stall_timer()
        waiting = self._waiting_bytes()

        def look() -> None:
            if self._waiting_bytes() < waiting:
                self._await_reader()
            else:
                self.transport.abort()

        self._stall_timer = self.loop.call_later(self.bounds.stall_seconds_max, look)

    def _waiting_bytes(self) -> int:
        """What is written and not taken: here, and in the kernel, which asks for more in leaps."""
        kernel = array("i", [0])
        ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, kernel)
        return self.transport.get_write_buffer_size() + kernel[0]

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _refuse(self, problem: Problem) -> None:
        self._stop_timer()
        body = problem.document()
        fields = {
            "content-type": CONTENT_TYPE,
            "content-length": str(len(body)),
            "cache-control": "no-store",
            "connection": "close",
            **problem.headers,
        }
        status = HTTPStatus(problem.kind.status)
        lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self.transport.close()
