"""HTTP: one attempt, a bounded wait, and no answer that was meant for another."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tallybook.errors import ServerUnreachable
from tallybook.limits import ANSWER_BYTES_MAX
from tallybook.transport import HttpTransport, Response


class Server(ThreadingHTTPServer):
    """
    A real socket that answers as it is told to.

    Attributes:
        answer: What to do with a request.
        seen: (path, headers, body) of each.
        peers: The ports that they came from.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler], None] = lambda handler: handler.say(200, b"{}")
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.peers: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.server.peers.append(self.client_address[1])
        self.server.answer(self)

    def say(self, status: int, body: bytes, **headers: str) -> None:
        """Answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a port of its own."""
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def transport(server: Server) -> Iterator[HttpTransport]:
    """A transport to it."""
    found = HttpTransport(server.url + "/", "tb_key", 5.0)
    yield found
    found.close()


def test_a_request_is_a_post_with_the_key(server: Server, transport: HttpTransport) -> None:
    """To one address, with its type, as it was handed in."""
    assert transport.send(b"bytes", "some/type") == Response(200, b"{}")
    path, headers, body = server.seen[0]
    assert (path, body) == ("/v1/events", b"bytes")
    assert headers["Authorization"] == "Bearer tb_key"
    assert headers["Content-Type"] == "some/type"


def test_without_a_key_nothing_is_said_of_one(server: Server) -> None:
    """No empty header."""
    transport = HttpTransport(server.url, None, 5.0)
    transport.send(b"", "t")
    transport.close()
    assert "Authorization" not in server.seen[0][1]


def test_one_connection_is_kept(server: Server, transport: HttpTransport) -> None:
    """For one request after the other."""
    for _ in range(3):
        transport.send(b"", "t")
    assert len(set(server.peers)) == 1


@pytest.mark.parametrize("status", [200, 204, 301, 302, 400, 401, 409, 413, 429, 500, 503])
def test_every_status_is_a_response(server: Server, transport: HttpTransport, status: int) -> None:
    """Nothing is raised, and no redirect is followed: the key stays with its host."""
    body = b"" if status == 204 else b"words"
    server.answer = lambda handler: handler.say(status, body, Location="http://127.0.0.1:1/")
    assert transport.send(b"", "t")[:2] == (status, body)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "-5"}, None),
        (
            {
                "Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT",
                "Date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30.0,
        ),
        ({"Retry_After": "Wed, 99 Oct 2026 07:28:30 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_by_the_servers_own_clock(
    server: Server, transport: HttpTransport, headers: dict[str, str], seconds: float | None
) -> None:
    """Seconds or a date; what cannot be read is none."""

    def answer(handler: Handler) -> None:
        handler.date_time_string = lambda timestamp=None: headers.get("Date", "never")  # type: ignore[method-assign]
        handler.say(503, b"", **{k: v for k, v in headers.items() if k != "Date"})

    server.answer = answer
    assert transport.send(b"", "t").retry_after_seconds == seconds


def test_nobody_there_is_unreachable() -> None:
    """The message names the address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    transport = HttpTransport(url, None, 5.0)
    with pytest.raises(ServerUnreachable, match=url):
        transport.send(b"", "t")
    transport.close()


def test_an_answer_that_is_cut_off_is_none(server: Server, transport: HttpTransport) -> None:
    """Half an answer is not handed on."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    server.answer = answer
    with pytest.raises(ServerUnreachable):
        transport.send(b"", "t")
    server.answer = lambda handler: handler.say(200, b"{}")
    assert transport.send(b"", "t").status == 200


def test_an_answer_without_an_end_is_none(server: Server, transport: HttpTransport) -> None:
    """It is read up to a limit: the memory of the application is not the server's to fill."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * (1 << 20))
        except OSError:
            handler.close_connection = True

    server.answer = answer
    with pytest.raises(ServerUnreachable, match=f"more than {ANSWER_BYTES_MAX} bytes"):
        transport.send(b"", "t")


def test_a_request_waits_no_longer_than_it_is_told(
    server: Server, transport: HttpTransport
) -> None:
    """
    The deadline of a flush or a closing was looked at and not handed on: an exit took the
    request's ten seconds where two had been asked for.
    """
    go_on = threading.Event()

    def answer(handler: Handler) -> None:
        go_on.wait(20)
        handler.say(200, b"{}")

    server.answer = answer
    began = time.monotonic()
    with pytest.raises(ServerUnreachable):
        transport.send(b"", "t", 0.05)
    assert time.monotonic() - began < 2
    go_on.set()


def test_a_child_of_fork_has_a_connection_of_its_own(
    server: Server, transport: HttpTransport
) -> None:
    """Two who talk on one connection get each other's answers."""
    transport.send(b"parent", "t")
    child = os.fork()
    if not child:
        try:
            transport.send(b"child", "t")
            transport.close()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    transport.send(b"parent", "t")
    assert server.peers[0] == server.peers[2] != server.peers[1]


def test_closing_twice_is_closing_once(transport: HttpTransport) -> None:
    """And a closed one opens again when it is needed."""
    transport.close()
    transport.close()
    assert transport.send(b"", "t").status == 200
