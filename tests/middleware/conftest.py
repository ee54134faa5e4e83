"""What the tests of the middleware share: a Meter to wait on, requests to play, real servers."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
import uvicorn

from tallybook.meter import Tags
from tallybook.testing import MemoryMeter


class WatchedMeter(MemoryMeter):
    """A MemoryMeter that one can wait on, from another thread."""

    def __init__(self) -> None:
        super().__init__()
        self._some = threading.Condition()

    def record(
        self,
        dimension: str,
        value: int | float | Decimal = 1,
        *,
        tenant: str | None = None,
        tags: Tags | None = None,
        time: Any = None,
        key: str | None = None,
    ) -> None:
        with self._some:
            super().record(dimension, value, tenant=tenant, tags=tags, time=time, key=key)
            self._some.notify_all()

    def wait_for_events(self, count: int) -> None:
        """Return once there are *count* events."""
        with self._some:
            assert self._some.wait_for(lambda: len(self.events) >= count, timeout=20)


@pytest.fixture
def meter() -> WatchedMeter:
    return WatchedMeter()


def http_scope(**changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"x-tenant-id", b"acme")],
        **changes,
    }


@pytest.fixture
def play() -> Callable[..., list[dict[str, Any]]]:
    """
    Play one request to an ASGI application, and give back what it sent.

    ``received`` are the server's messages, and then disconnects; ``on_send`` sees each
    message as a server does, and may raise.
    """

    def playing(
        app: Any,
        *received: dict[str, Any],
        on_send: Callable[[dict[str, Any]], None] | None = None,
        scope: dict[str, Any] | None = None,
        **changes: Any,
    ) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        waiting = list(received or ({"type": "http.request", "body": b"", "more_body": False},))

        async def receive() -> dict[str, Any]:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if on_send:
                on_send(message)
            sent.append(message)

        if scope is None:
            scope = http_scope(**changes)
        asyncio.run(app(scope, receive, send))
        return sent

    return playing


@pytest.fixture
def environ() -> dict[str, Any]:
    """A WSGI request of tenant acme, as a server would make it."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_X_TENANT_ID": "acme",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b""),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


@pytest.fixture
def serve_asgi() -> Iterator[Callable[..., str]]:
    """Serve an ASGI application with uvicorn on a real socket; its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(app: Any, **options: Any) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        options = {"log_config": None, "lifespan": "off", "ws": "websockets-sansio", **options}
        server = uvicorn.Server(uvicorn.Config(app, **options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve_wsgi() -> Iterator[Callable[[Any], str]]:
    """Serve a WSGI application with wsgiref on a real socket; its address."""
    running: list[tuple[WSGIServer, threading.Thread]] = []

    def serve(app: Any) -> str:
        server = WSGIServer(("127.0.0.1", 0), _Quiet)
        server.set_app(app)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return f"127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in running:
        server.shutdown()
        thread.join(20)
        server.server_close()
