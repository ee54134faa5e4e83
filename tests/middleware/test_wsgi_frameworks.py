"""Flask behind the middleware, under wsgiref and gunicorn on real sockets, and asgiref."""

from __future__ import annotations

import http.client
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, request, send_file

import tallybook
from tallybook.middleware import UsageMiddleware, UsageWSGIMiddleware, header, path_param

Serve = Callable[[Any], str]


def ask(
    address: str, path: str, method: str = "GET", body: bytes = b""
) -> tuple[int, list[tuple[str, str]], bytes]:
    """One request: its status, headers but for the date, and body."""
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request(method, path, body=body or None, headers={"x-tenant-id": "acme"})
    response = connection.getresponse()
    headers = [pair for pair in response.getheaders() if pair[0] != "Date"]
    answer = response.status, headers, response.read()
    connection.close()
    return answer


def flask_app() -> Flask:
    app = Flask(__name__)

    @app.get("/items/<int:number>")
    def item(number: int) -> str:
        tallybook.tenant(f"tenant-{number}")
        return "item"

    @app.post("/body")
    def body() -> str:
        return str(len(request.get_data()))

    @app.get("/stream")
    def stream() -> Response:
        def chunks() -> Iterator[bytes]:
            yield b"one"
            tallybook.tenant("streamed")
            yield b"two"

        return Response(chunks())

    @app.get("/file")
    def file() -> Response:
        return send_file(io.BytesIO(b"z" * 5000), mimetype="application/octet-stream")

    @app.get("/broken")
    def broken() -> str:
        raise RuntimeError("broken, on purpose")

    @app.get("/cookies")
    def cookies() -> Response:
        response = Response("cookies")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    return app


REQUESTS = [
    ("/items/1", "GET", b""),
    ("/items/1", "HEAD", b""),
    ("/body", "POST", b"x" * 100_000),
    ("/stream", "GET", b""),
    ("/file", "GET", b""),
    ("/broken", "GET", b""),
    ("/cookies", "GET", b""),
    ("/nowhere", "GET", b""),
    ("/cookies", "POST", b""),
]


def test_responses_are_byte_for_byte_the_same(meter: Any, serve_wsgi: Serve) -> None:
    """Flask under wsgiref, with and without the middleware; and what was recorded of it."""
    plain, measured = flask_app(), flask_app()
    measured.wsgi_app = UsageWSGIMiddleware(  # type: ignore[method-assign]
        measured.wsgi_app, meter=meter, measure={"request_bytes", "response_bytes"}
    )
    addresses = [serve_wsgi(app) for app in (plain, measured)]
    for path, method, body in REQUESTS:
        without, with_it = (ask(address, path, method, body) for address in addresses)
        assert without == with_it, path
    meter.wait_for_events(3 * len(REQUESTS))
    assert meter.total("http.requests") == len(REQUESTS)
    assert meter.total("http.requests", tenant="tenant-1", route="/items/<int:number>") == 2
    assert meter.total("http.requests", tenant="streamed", route="/stream") == 1
    assert meter.total("http.response.bytes", route="/stream") == 6
    assert meter.total("http.response.bytes", route="/file") == 5000
    assert meter.total("http.response.bytes", method="HEAD") == 0
    assert meter.total("http.request.bytes", route="/body") == 100_000
    assert meter.total("http.requests", status="500", route="/broken") == 1
    (lost,) = [e for e in meter.events if e.tags["status"] == "404" and e.value == (1, 0)]
    assert "route" not in lost.tags
    assert not [e for e in meter.events if "outcome" in e.tags]


def test_who_has_the_answer_is_recorded(meter: Any, serve_wsgi: Serve) -> None:
    """A response with a Content-Length: when its last byte is read, the event is there."""
    app = flask_app()
    app.wsgi_app = UsageWSGIMiddleware(app.wsgi_app, meter=meter)  # type: ignore[method-assign]
    address = serve_wsgi(app)
    for count in range(1, 31):
        ask(address, "/items/5")
        assert meter.total("http.requests", tenant="tenant-5") == count


def test_a_path_parameter_of_flask_may_be_the_tenant(meter: Any) -> None:
    """Although Flask has taken its request out of the environ by then."""
    app = flask_app()
    app.wsgi_app = UsageWSGIMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, meter=meter, tenant=path_param("number")
    )
    app.test_client().get("/items/42")
    assert meter.total("http.requests", tenant="42") == 1


def test_a_list_of_one_chunk_keeps_the_length_that_the_server_adds(
    meter: Any, serve_wsgi: Serve
) -> None:
    """wsgiref adds Content-Length to it, which it could not do through a wrapper."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    _, headers, body = ask(serve_wsgi(UsageWSGIMiddleware(app, meter=meter)), "/")
    assert ("Content-Length", "5") in headers
    assert body == b"hello"
    assert len(meter.events) == 1


def test_asgiref_carries_a_wsgi_application(meter: Any, play: Any) -> None:
    """WsgiToAsgi around the WSGI middleware: recorded, inside or outside of the bridge."""
    asgiref = pytest.importorskip("asgiref.wsgi")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hel", b"lo"]

    inside = asgiref.WsgiToAsgi(UsageWSGIMiddleware(app, meter=meter, measure={"response_bytes"}))
    outside = UsageMiddleware(asgiref.WsgiToAsgi(app), meter=meter, measure={"response_bytes"})
    for bridged in (inside, outside):
        meter.clear()
        sent = play(bridged, server=("127.0.0.1", 80), client=("127.0.0.1", 1))
        assert b"".join(message.get("body", b"") for message in sent) == b"hello"
        assert meter.total("http.requests", status="200") == 1
        assert meter.total("http.response.bytes") == 5


APPLICATION = """
import pathlib
from tallybook.middleware import UsageWSGIMiddleware, header
from tallybook.testing import MemoryMeter

class Printing(MemoryMeter):
    def record(self, *args, **options):
        super().record(*args, **options)
        event = self.events[-1]
        print("EVENT", event.dimension, event.value[0], event.tenant, event.tags, flush=True)

def application(environ, start_response):
    if environ["PATH_INFO"] == "/file":
        path = pathlib.Path("file.bin")
        start_response("200 OK", [("Content-Length", "70000")])
        return environ["wsgi.file_wrapper"](path.open("rb"))
    if environ["PATH_INFO"] == "/endless":
        start_response("200 OK", [])
        return iter(lambda: b"x" * 10000, b"")
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"read ", str(len(body)).encode()]

application = UsageWSGIMiddleware(
    application, meter=Printing(), tenant=header("x-tenant-id"),
    measure={"request_bytes", "response_bytes"},
)
"""


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """gunicorn with one worker, and its address."""
    pytest.importorskip("gunicorn")
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "file.bin").write_bytes(b"z" * 70000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--no-control-socket", "application"),
                *("--bind", f"fd://{listener.fileno()}", "--worker-tmp-dir", str(tmp_path)),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[listener.fileno()],
        )
        yield f"127.0.0.1:{listener.getsockname()[1]}", process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_under_gunicorn(gunicorn: tuple[str, subprocess.Popen[str]]) -> None:
    """A body that is read, a file by sendfile, a client that leaves: each recorded exactly."""
    address, process = gunicorn
    if process.stdout is None:
        raise RuntimeError("no stdout")

    def events(count: int) -> list[str]:
        return [process.stdout.readline().strip() for _ in range(count)]  # type: ignore[union-attr]

    status, _, body = ask(address, "/", "POST", b"b" * 1234)
    assert (status, body) == (200, b"read 1234")
    tags = "{'method': 'POST', 'status': '200'}"
    assert sorted(events(3)) == [
        f"EVENT http.request.bytes 1234 acme {tags}",
        f"EVENT http.requests 1 acme {tags}",
        f"EVENT http.response.bytes 9 acme {tags}",
    ]
    assert len(ask(address, "/file")[2]) == 70000
    assert "EVENT http.response.bytes 70000 acme {'method': 'GET', 'status': '200'}" in events(3)
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\nx-tenant-id: acme\r\n\r\n")
        assert client.recv(5000)
    tags = "{'method': 'GET', 'status': '200', 'outcome': 'aborted'}"
    assert f"EVENT http.requests 1 acme {tags}" in events(3)


def test_the_line_of_the_documentation_for_flask(meter: Any) -> None:
    """app.wsgi_app = UsageWSGIMiddleware(app.wsgi_app, ...) and nothing more."""
    app = flask_app()
    app.wsgi_app = UsageWSGIMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, meter=meter, tenant=header("x-tenant-id")
    )
    app.test_client().get("/cookies", headers={"x-tenant-id": "acme"})
    assert meter.events[0].tags == {"method": "GET", "status": "200", "route": "/cookies"}
    assert meter.events[0].tenant == "acme"
