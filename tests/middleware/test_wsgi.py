"""The WSGI middleware, call by call (PEP 3333)."""

from __future__ import annotations

import contextvars
import io
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

import tallybook
from tallybook.middleware import UsageMiddleware, UsageWSGIMiddleware, header
from tallybook.testing import FakeClock, MemoryMeter

Environ = dict[str, Any]


class Server:
    """What a server keeps of a response."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.written: list[bytes] = []

    def start_response(self, *args: Any) -> Callable[[bytes], object]:
        self.calls.append(args)
        return self.written.append


class Chunks:
    """An iterable that is no iterator, with a close() that counts its calls."""

    def __init__(self, *chunks: bytes, error: BaseException | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1


def giving(result: Any, *headers: tuple[str, str], status: str = "200 OK") -> Any:
    def app(environ: Environ, start_response: Any) -> Any:
        start_response(status, list(headers))
        return result

    return app


def test_without_a_length_it_is_recorded_when_the_iterable_ends(
    meter: MemoryMeter, environ: Environ
) -> None:
    """At StopIteration, before the server sends the end of the response."""
    app = UsageWSGIMiddleware(
        giving(Chunks(b"ab", b"cde")),
        meter=meter,
        tenant=header("x-tenant-id"),
        measure={"response_bytes"},
    )
    chunks: Any = iter(app(environ, Server().start_response))
    assert [next(chunks), next(chunks), len(meter.events)] == [b"ab", b"cde", 0]
    with pytest.raises(StopIteration):
        next(chunks)
    assert meter.total("http.requests", tenant="acme") == 1
    assert meter.total("http.response.bytes") == 5
    assert meter.events[0].tags == {"method": "GET", "status": "200"}


def test_with_a_length_it_is_recorded_before_the_chunk_that_reaches_it(
    meter: MemoryMeter, environ: Environ
) -> None:
    """The client has its answer with that chunk, whenever the iterable ends."""
    app = UsageWSGIMiddleware(
        giving(Chunks(b"ab", b"cde", b"too long"), ("content-LENGTH", "5")),
        meter=meter,
        measure={"response_bytes"},
    )
    chunks: Any = iter(app(environ, Server().start_response))
    seen = [len(meter.events) for _ in chunks]
    assert seen == [0, 2, 2]
    assert meter.total("http.response.bytes") == 5


def test_a_length_that_is_not_reached_is_an_abort(meter: MemoryMeter, environ: Environ) -> None:
    """A client that was promised 10 bytes and got 2 has no complete answer."""
    app = UsageWSGIMiddleware(giving(Chunks(b"ab"), ("Content-Length", "10")), meter=meter)
    list(app(environ, Server().start_response))
    assert meter.total("http.requests", outcome="aborted") == 1


def test_a_single_chunk_is_given_back_as_it_is(meter: MemoryMeter, environ: Environ) -> None:
    """Servers add a Content-Length to a list of one: they must see the list. Recorded before."""
    result = [b"hello"]
    app = UsageWSGIMiddleware(giving(result), meter=meter, measure={"response_bytes"})
    assert app(environ, Server().start_response) is result
    assert meter.total("http.response.bytes") == 5
    assert meter.total("http.requests") == 1


def test_close_before_the_end_is_an_abort(meter: MemoryMeter, environ: Environ) -> None:
    """Only chunks after which the server came back for more count; inner close() ran once."""
    inner = Chunks(b"taken", b"refused", b"never")
    app = UsageWSGIMiddleware(giving(inner), meter=meter, measure={"response_bytes"})
    response: Any = app(environ, Server().start_response)
    next(iter(response))
    next(response)
    response.close()
    response.close()
    assert inner.closed == 1
    assert meter.total("http.requests", status="200", outcome="aborted") == 1
    assert meter.total("http.response.bytes") == 5


def test_close_without_iterating_closes_the_inner_iterable(
    meter: MemoryMeter, environ: Environ
) -> None:
    """A generator in its place would never have run its finally."""
    inner = Chunks(b"never")
    response: Any = UsageWSGIMiddleware(giving(inner), meter=meter)(
        environ, Server().start_response
    )
    response.close()
    assert inner.closed == 1
    assert meter.total("http.requests", outcome="aborted") == 1


def test_a_head_that_is_never_iterated_is_complete(meter: MemoryMeter, environ: Environ) -> None:
    """A server needs no body for it, and sends none."""
    environ["REQUEST_METHOD"] = "HEAD"
    app = UsageWSGIMiddleware(
        giving(Chunks(b"dropped"), ("Content-Length", "7")),
        meter=meter,
        measure={"response_bytes"},
    )
    response: Any = app(environ, Server().start_response)
    response.close()
    assert meter.events[0].tags == {"method": "HEAD", "status": "200"}
    assert meter.total("http.response.bytes") == 0


def test_a_close_that_raises_passes_unchanged(meter: MemoryMeter, environ: Environ) -> None:
    """The event is there, and the exception is the same object."""
    error = RuntimeError("in close")

    class Angry(Chunks):
        def close(self) -> None:
            raise error

    response: Any = UsageWSGIMiddleware(giving(Angry(b"a", b"b")), meter=meter)(
        environ, Server().start_response
    )
    list(response)
    with pytest.raises(RuntimeError) as caught:
        response.close()
    assert caught.value is error
    assert len(meter.events) == 1


def test_an_exception_in_the_call_is_a_500(meter: MemoryMeter, environ: Environ) -> None:
    """Nothing was sent, whatever start_response was told."""
    error = RuntimeError("early")

    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])
        raise error

    with pytest.raises(RuntimeError) as caught:
        UsageWSGIMiddleware(app, meter=meter)(environ, Server().start_response)
    assert caught.value is error
    assert meter.events[0].tags == {"method": "GET", "status": "500"}


def test_an_exception_in_the_middle_is_an_abort(meter: MemoryMeter, environ: Environ) -> None:
    """The status was sent; the exception that leaves is the one that came."""
    error = RuntimeError("late")
    response: Any = UsageWSGIMiddleware(giving(Chunks(b"a", error=error)), meter=meter)(
        environ, Server().start_response
    )
    next(iter(response))
    with pytest.raises(RuntimeError) as caught:
        next(response)
    response.close()
    assert caught.value is error
    assert meter.total("http.requests", status="200", outcome="aborted") == 1
    assert len(meter.events) == 1


def test_a_worker_that_is_stopped_answers_nobody(meter: MemoryMeter, environ: Environ) -> None:
    """gunicorn's timeout raises SystemExit in the application."""

    def app(environ: Environ, start_response: Any) -> Any:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        UsageWSGIMiddleware(app, meter=meter)(environ, Server().start_response)
    assert meter.events[0].tags == {"method": "GET", "outcome": "aborted"}


def test_start_response_may_be_called_lazily(meter: MemoryMeter, environ: Environ) -> None:
    """An application that is a generator decides everything in its first step."""

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        tallybook.tenant("lazy")
        start_response("201 Created", [("Content-Length", "2")])
        yield b"a"
        yield b"b"

    server = Server()
    assert list(UsageWSGIMiddleware(app, meter=meter)(environ, server.start_response)) == [
        b"a",
        b"b",
    ]
    assert server.calls == [("201 Created", [("Content-Length", "2")])]
    assert meter.total("http.requests", tenant="lazy", status="201") == 1


def test_the_last_start_response_wins(meter: MemoryMeter, environ: Environ) -> None:
    """exc_info is handed on where it is given, and only there."""
    info: Any = None

    def app(environ: Environ, start_response: Any) -> Any:
        nonlocal info
        start_response("200 OK", [("Content-Length", "2")])
        try:
            raise RuntimeError("x")
        except RuntimeError:
            info = sys.exc_info()
            start_response("503 Sorry", [], info)
        return Chunks(b"xy", b"z")

    server = Server()
    list(UsageWSGIMiddleware(app, meter=meter)(environ, server.start_response))
    assert [len(call) for call in server.calls] == [2, 3]
    assert server.calls[1][2] is info
    assert meter.events[0].tags == {"method": "GET", "status": "503"}


def test_a_second_start_response_that_the_server_refuses_changes_nothing(
    meter: MemoryMeter, environ: Environ
) -> None:
    """Headers are out, the server raises exc_info, and the status that was sent stays."""

    class Strict(Server):
        def start_response(self, *args: Any) -> Callable[[bytes], object]:
            if len(args) == 3:
                raise args[2][1]
            return super().start_response(*args)

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        try:
            raise RuntimeError("x")
        except RuntimeError:
            start_response("500 No", [], sys.exc_info())

    with pytest.raises(RuntimeError, match="x"):
        list(UsageWSGIMiddleware(app, meter=meter)(environ, Strict().start_response))
    assert meter.total("http.requests", status="200", outcome="aborted") == 1


def test_write_is_counted_and_completes(meter: MemoryMeter, environ: Environ) -> None:
    """The write callable hands its data on after the event, if the data reaches the length."""
    seen: list[int] = []

    class Writing(Server):
        def start_response(self, *args: Any) -> Callable[[bytes], object]:
            super().start_response(*args)
            return lambda data: seen.append(len(meter.events))

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "5")])
        write(b"ab")
        write(b"cde")
        return []

    measure: Any = {"response_bytes"}
    list(UsageWSGIMiddleware(app, meter=meter, measure=measure)(environ, Writing().start_response))
    assert seen == [0, 2]
    assert meter.total("http.response.bytes") == 5


def test_headers_are_handed_on_as_they_are(meter: MemoryMeter, environ: Environ) -> None:
    """The same list, with its duplicates and its order."""
    headers = [("Set-Cookie", "a=1"), ("X", "2"), ("Set-Cookie", "b=2")]

    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", headers)
        return []

    server = Server()
    list(UsageWSGIMiddleware(app, meter=meter)(environ, server.start_response))
    assert server.calls[0][1] is headers


def test_a_file_goes_back_to_the_server_unwrapped(
    meter: MemoryMeter, environ: Environ, tmp_path: Path
) -> None:
    """The server's own wrapper keeps its identity; the file is recorded before, with its size."""
    path = tmp_path / "file"
    path.write_bytes(b"z" * 1000)
    environ["wsgi.file_wrapper"] = FileWrapper
    with path.open("rb") as file:
        file.seek(100)

        def app(environ: Environ, start_response: Any) -> Any:
            start_response("200 OK", [])
            return environ["wsgi.file_wrapper"](file)

        result = UsageWSGIMiddleware(app, meter=meter, measure={"response_bytes"})(
            environ, Server().start_response
        )
        assert type(result) is FileWrapper
        assert file.tell() == 100
    assert meter.total("http.response.bytes") == 900
    assert meter.total("http.requests") == 1


def test_a_file_wrapper_that_is_a_function_works_by_identity(
    meter: MemoryMeter, environ: Environ
) -> None:
    """uWSGI looks for the very object that it made; Content-Length says how long it is."""
    made: list[object] = []

    def wrapper(file: Any, size: int = 0) -> Any:
        made.append(file)
        return file

    environ["wsgi.file_wrapper"] = wrapper

    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "7")])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"content"), 8)

    result = UsageWSGIMiddleware(app, meter=meter, measure={"response_bytes"})(
        environ, Server().start_response
    )
    assert result is made[0]
    assert meter.total("http.response.bytes") == 7


def test_the_request_body_is_counted_as_it_is_read(meter: MemoryMeter, environ: Environ) -> None:
    """Every way to read is counted, and no call reads more than it was asked for."""

    asked: list[tuple[str, tuple[int, ...]]] = []

    class Stream(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            asked.append(("read", args))
            return super().read(*args)

        def readline(self, *args: Any) -> bytes:
            asked.append(("readline", args))
            return super().readline(*args)

    environ["wsgi.input"] = Stream(b"12345678\nab\ncd\nefg\nhij\nk\nlmnop")

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        stream = environ["wsgi.input"]
        assert stream.read(3) == b"123"
        assert stream.readline() == b"45678\n"
        assert stream.readline(2) == b"ab"
        assert stream.readlines(3) == [b"\n", b"cd\n"]
        assert next(iter(stream)) == b"efg\n"
        assert stream.read1(4) == b"hij\n"
        assert stream.readinto(bytearray(2)) == 2
        assert not stream.closed
        start_response("200 OK", [])
        return []

    measured = UsageWSGIMiddleware(app, meter=meter, measure={"request_bytes"})
    list(measured(environ, Server().start_response))
    assert asked[:3] == [("read", (3,)), ("readline", ()), ("readline", (2,))]
    assert meter.total("http.request.bytes") == 25


def test_the_stream_is_the_servers_own_unless_it_is_measured(
    meter: MemoryMeter, environ: Environ
) -> None:
    """Without measure= nothing of ours stands between."""
    stream = environ["wsgi.input"]
    list(UsageWSGIMiddleware(giving([]), meter=meter)(environ, Server().start_response))
    assert environ["wsgi.input"] is stream


def test_durations_are_exact(environ: Environ) -> None:
    """From the call to the end of the response, in whole microseconds."""
    clock, meter = FakeClock(), MemoryMeter()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        clock.advance(1.5)
        yield b""
        clock.advance(0.000001)

    list(
        UsageWSGIMiddleware(app, meter=meter, measure={"duration"}, clock=clock)(
            environ, Server().start_response
        )
    )
    assert meter.total("http.duration") == Decimal("1.500001")


def test_iteration_may_go_on_in_another_thread(meter: MemoryMeter, environ: Environ) -> None:
    """The tenant of the request goes with it, and the thread's own tenant stays out of it."""

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        assert tallybook.current_tenant() is None
        tallybook.tenant("initech")
        yield b"a"
        assert tallybook.current_tenant() == "initech"
        yield b"b"

    response: Any = UsageWSGIMiddleware(app, meter=meter)(environ, Server().start_response)
    for _ in range(3):
        thread = threading.Thread(target=lambda: (tallybook.tenant("thread"), next(response, None)))
        thread.start()
        thread.join()
    assert meter.total("http.requests", tenant="initech") == 1


def test_an_unattributed_request_takes_nobody_elses_tenant(
    meter: MemoryMeter, environ: Environ
) -> None:
    """The thread that ends the response serves another tenant; the event stays unattributed."""
    response: Any = UsageWSGIMiddleware(giving(Chunks(b"a")), meter=meter)(
        environ, Server().start_response
    )

    def elsewhere() -> None:
        tallybook.tenant("somebody else")
        assert list(response) == [b"a"]
        assert tallybook.current_tenant() == "somebody else"

    contextvars.copy_context().run(elsewhere)
    assert [event.tenant for event in meter.events] == [None]


def test_a_thread_does_not_keep_the_tenant_of_its_last_request(
    meter: MemoryMeter, environ: Environ
) -> None:
    """Neither for the next request nor for whatever else the thread does."""

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/first":
            tallybook.tenant("acme")
        start_response("200 OK", [])
        return [b""]

    wrapped = UsageWSGIMiddleware(app, meter=meter)
    wrapped({**environ, "PATH_INFO": "/first"}, Server().start_response)
    assert tallybook.current_tenant() is None
    wrapped({**environ, "PATH_INFO": "/second"}, Server().start_response)
    assert [event.tenant for event in meter.events] == ["acme", None]


def test_nested_copies_count_once(meter: MemoryMeter, environ: Environ) -> None:
    """Inside another copy, and inside an ASGI application that is recorded itself."""
    app: Any = UsageWSGIMiddleware(giving([b"x"]), meter=meter)
    list(UsageWSGIMiddleware(app, meter=meter)(environ, Server().start_response))
    assert len(meter.events) == 1
    scope = {"type": "http", "tallybook.seen": True}
    del environ["tallybook.seen"]
    list(app({**environ, "asgi.scope": scope}, Server().start_response))
    assert len(meter.events) == 1


@pytest.mark.parametrize("shape", ["list", "one", "empty", "generator", "lazy", "write"])
def test_both_sides_obey_the_protocol(meter: MemoryMeter, environ: Environ, shape: str) -> None:
    """wsgiref's validator finds nothing on either side, for every shape of application."""
    results: dict[str, Any] = {"list": [b"a", b"b"], "one": [b"a"], "empty": []}

    def app(environ: Environ, start_response: Any) -> Any:
        environ["wsgi.input"].read(3)
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        if shape == "write":
            write(b"written")
        return results.get(shape, (chunk for chunk in (b"a", b"b")))

    def lazy(environ: Environ, start_response: Any) -> Any:
        yield from app(environ, start_response)

    inner: Any = validator(lazy if shape == "lazy" else app)
    if shape == "lazy":  # The validator wants start_response before the first chunk.
        inner = lazy
    wrapped: Any = UsageWSGIMiddleware(
        inner, meter=meter, measure={"request_bytes", "response_bytes"}
    )
    environ["wsgi.input"] = io.BytesIO(b"abc")
    outer = wrapped if shape == "lazy" else validator(wrapped)
    response: Any = outer(environ, Server().start_response)
    list(response)
    response.close()
    assert meter.total("http.requests") == 1
    assert meter.total("http.request.bytes") == 3


def test_the_same_options_for_both() -> None:
    """What can be said to one middleware can be said to the other."""
    import inspect

    asgi, wsgi = (inspect.signature(kind) for kind in (UsageMiddleware, UsageWSGIMiddleware))
    assert asgi.parameters.keys() == wsgi.parameters.keys()
