"""The ASGI middleware, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tallybook
from tallybook.meter import FlushResult
from tallybook.middleware import UsageMiddleware, header
from tallybook.testing import FakeClock, MemoryMeter

Play = Callable[..., list[dict[str, Any]]]

START = {"type": "http.response.start", "status": 200, "headers": [(b"x", b"1"), (b"x", b"2")]}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def saying(*messages: dict[str, Any], error: BaseException | None = None) -> Any:
    """An application that says this, and then raises *error*."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


def test_a_request_is_one_event_with_method_status_and_tenant(
    meter: MemoryMeter, play: Play
) -> None:
    """A request without a known route: value 1, its tenant, method and status."""
    play(UsageMiddleware(saying(START, body(b"hi")), meter=meter, tenant=header("X-Tenant-Id")))
    (event,) = meter.events
    assert (event.dimension, event.value, event.tenant) == ("http.requests", (1, 0), "acme")
    assert event.tags == {"method": "GET", "status": "200"}


def test_the_event_is_there_before_the_last_message_goes_out(
    meter: MemoryMeter, play: Play
) -> None:
    """Answered implies recorded: nothing until the last message, one event when it goes out."""
    seen: list[int] = []

    def look(message: object) -> None:
        seen.append(len(meter.events))

    app = UsageMiddleware(saying(START, body(b"a", True), body(b"b")), meter=meter)
    play(app, on_send=look)
    assert seen == [0, 0, 1]


def test_what_is_sent_is_what_the_application_said(meter: MemoryMeter, play: Play) -> None:
    """Each message is handed on as the same object, unknown keys and types included."""
    said: list[dict[str, Any]] = [
        {"type": "http.response.early_hint", "links": [b"</x.css>; rel=preload"]},
        {"type": "http.response.debug", "info": {"template": "t"}},
        {"type": "http.response.push", "path": "/x", "headers": []},
        {**START, "later": "than this middleware"},
        {"type": "http.response.unheard_of"},
        body(b"a"),
    ]
    sent = play(UsageMiddleware(saying(*said), meter=meter))
    assert all(one is other for one, other in zip(sent, said, strict=True))
    assert len(meter.events) == 1


def test_bytes_and_duration_are_exact(play: Play) -> None:
    """Request bytes as read, response bytes as sent, and whole microseconds as a Decimal."""
    clock, meter = FakeClock(), MemoryMeter()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        clock.advance(0.1234564)
        await send(START)
        await send(body(b"x" * 700, True))
        await send(body(b"y" * 50))
        clock.advance(5)

    play(
        UsageMiddleware(
            app, meter=meter, measure=["duration", "response_bytes", "request_bytes"], clock=clock
        ),
        {"type": "http.request", "body": b"12345", "more_body": True},
        {"type": "http.request", "body": b"678", "more_body": False},
    )
    assert meter.total("http.request.bytes") == 8
    assert meter.total("http.response.bytes") == 750
    assert meter.total("http.duration") == Decimal("0.123456")
    assert len(meter.events) == 4


def test_only_what_is_asked_for_is_measured(meter: MemoryMeter, play: Play) -> None:
    """Without measure= there is one event, and with one measure two."""
    play(UsageMiddleware(saying(START, body(b"abc")), meter=meter))
    assert [event.dimension for event in meter.events] == ["http.requests"]
    meter.clear()
    play(UsageMiddleware(saying(START, body(b"abc")), meter=meter, measure={"response_bytes"}))
    assert [e.dimension for e in meter.events] == ["http.requests", "http.response.bytes"]


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)], ids=["HEAD", "304", "204"]
)
def test_a_response_without_content_has_no_bytes(
    meter: MemoryMeter, play: Play, method: str, status: int
) -> None:
    """Servers drop the body of HEAD, 204 and 304, and Content-Length says what is not sent."""
    start = {**START, "status": status, "headers": [(b"content-length", b"1000")]}
    app = UsageMiddleware(saying(start, body(b"dropped")), meter=meter, measure={"response_bytes"})
    play(app, method=method)
    assert meter.total("http.response.bytes") == 0
    assert meter.total("http.requests", status=str(status)) == 1


def test_pathsend_completes_and_counts_the_file(
    meter: MemoryMeter, play: Play, tmp_path: Path
) -> None:
    """A file that the server sends: recorded before, with the file's size."""
    path = tmp_path / "file"
    path.write_bytes(b"z" * 1234)
    seen: list[int] = []

    def look(message: object) -> None:
        seen.append(len(meter.events))

    app = saying(START, {"type": "http.response.pathsend", "path": str(path)})
    play(
        UsageMiddleware(app, meter=meter, measure={"response_bytes"}),
        on_send=look,
    )
    assert seen == [0, 2]
    assert meter.total("http.response.bytes") == 1234


def test_pathsend_of_a_missing_file_is_the_servers_affair(meter: MemoryMeter, play: Play) -> None:
    """The middleware's own look at the file fails without a word to the application."""
    app = saying(START, {"type": "http.response.pathsend", "path": "/nowhere/at/all"})
    sent = play(UsageMiddleware(app, meter=meter, measure={"response_bytes"}))
    assert len(sent) == 2
    assert meter.total("http.requests") == 1


def test_zerocopysend_counts_what_it_says_or_the_rest_of_the_file(
    meter: MemoryMeter, play: Play, tmp_path: Path
) -> None:
    """A count is taken as it is; without one, the file from the offset to its end."""
    path = tmp_path / "file"
    path.write_bytes(b"z" * 100)
    with path.open("rb") as file:
        part = {"type": "http.response.zerocopysend", "file": file.fileno()}
        app = saying(
            START,
            {**part, "offset": 0, "count": 10, "more_body": True},
            {**part, "file": file, "offset": 60},
        )
        play(UsageMiddleware(app, meter=meter, measure={"response_bytes"}))
    assert meter.total("http.response.bytes") == 50


def test_with_trailers_the_last_trailers_complete_the_response(
    meter: MemoryMeter, play: Play
) -> None:
    """A start that announces trailers moves completion to the last of them."""
    seen: list[int] = []

    def look(message: object) -> None:
        seen.append(len(meter.events))

    app = saying(
        {**START, "trailers": True},
        body(b"a"),
        {"type": "http.response.trailers", "headers": [], "more_trailers": True},
        {"type": "http.response.trailers", "headers": [], "more_trailers": False},
    )
    play(UsageMiddleware(app, meter=meter), on_send=look)
    assert seen == [0, 0, 0, 1]
    assert "outcome" not in meter.events[0].tags


def test_a_background_task_neither_delays_nor_changes_the_event(play: Play) -> None:
    """What happens after the last byte is not in the duration; its exception changes nothing."""
    clock, meter = FakeClock(), MemoryMeter()
    error = RuntimeError("in the background")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b""))
        clock.advance(60)
        raise error

    with pytest.raises(RuntimeError) as caught:
        play(UsageMiddleware(app, meter=meter, measure={"duration"}, clock=clock))
    assert caught.value is error
    assert meter.total("http.duration") == 0
    assert meter.total("http.requests", status="200") == 1
    assert "outcome" not in meter.events[0].tags


def test_an_exception_before_the_response_is_a_500(meter: MemoryMeter, play: Play) -> None:
    """The server answers 500; the exception that leaves is the one that came, once recorded."""
    error = RuntimeError("early")
    with pytest.raises(RuntimeError) as caught:
        play(UsageMiddleware(saying(error=error), meter=meter, tenant=header("x-tenant-id")))
    assert caught.value is error
    assert caught.value.__context__ is None
    (event,) = meter.events
    assert (event.tenant, event.tags) == ("acme", {"method": "GET", "status": "500"})


def test_an_exception_in_the_middle_is_an_aborted_response(meter: MemoryMeter, play: Play) -> None:
    """The status is the one that was sent, the bytes those that were; outcome says aborted."""
    error = RuntimeError("late")
    app = saying(START, body(b"12345", True), error=error)
    with pytest.raises(RuntimeError) as caught:
        play(UsageMiddleware(app, meter=meter, measure={"response_bytes"}))
    assert caught.value is error
    assert meter.total("http.requests", status="200", outcome="aborted") == 1
    assert meter.total("http.response.bytes", outcome="aborted") == 5


def test_an_application_that_says_nothing_is_a_500(meter: MemoryMeter, play: Play) -> None:
    """It returned without a response, and the server answers in its place."""
    play(UsageMiddleware(saying(), meter=meter))
    assert meter.total("http.requests", status="500") == 1


def test_an_application_that_stops_in_the_middle_is_aborted(meter: MemoryMeter, play: Play) -> None:
    """It returned with more_body=True as its last word."""
    play(UsageMiddleware(saying(START, body(b"a", True)), meter=meter))
    assert meter.total("http.requests", outcome="aborted") == 1


def test_a_disconnect_that_the_application_saw_is_an_abort(meter: MemoryMeter, play: Play) -> None:
    """After http.disconnect a server throws bytes away: they do not count, even at the end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send(body(b"taken", True))
        assert (await receive())["type"] == "http.disconnect"
        await send(body(b"thrown away", True))
        await send(body(b"thrown away"))

    play(UsageMiddleware(app, meter=meter, measure={"response_bytes"}))
    assert meter.total("http.requests", status="200", outcome="aborted") == 1
    assert meter.total("http.response.bytes") == 5


def test_a_disconnect_before_the_response_has_no_status(meter: MemoryMeter, play: Play) -> None:
    """Nobody was answered anything."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        raise RuntimeError("client disconnected")

    with pytest.raises(RuntimeError):
        play(UsageMiddleware(app, meter=meter))
    assert meter.events[0].tags == {"method": "GET", "outcome": "aborted"}


def test_a_send_that_raises_is_an_abort(meter: MemoryMeter, play: Play) -> None:
    """The server's OSError (ASGI 2.4) passes unchanged; the refused bytes do not count."""
    error = OSError("the client is gone")

    def refuse(message: dict[str, Any]) -> None:
        if message.get("body") == b"refused":
            raise error

    app = saying(START, body(b"taken", True), body(b"refused", True), body(b"never"))
    with pytest.raises(OSError, match="gone") as caught:
        play(UsageMiddleware(app, meter=meter, measure={"response_bytes"}), on_send=refuse)
    assert caught.value is error
    assert meter.total("http.response.bytes", outcome="aborted") == 5


def test_a_refused_last_send_over_states_by_that_message_only(
    meter: MemoryMeter, play: Play
) -> None:
    """The price of recording first: one event, complete, with the last message's bytes."""

    def refuse(message: dict[str, Any]) -> None:
        if message.get("body") == b"last":
            raise OSError("the client is gone")

    app = saying(START, body(b"123", True), body(b"last"))
    with pytest.raises(OSError, match="gone"):
        play(UsageMiddleware(app, meter=meter, measure={"response_bytes"}), on_send=refuse)
    assert meter.total("http.requests") == 1
    assert meter.total("http.response.bytes") == 7


def test_a_cancelled_request_is_recorded_and_stays_cancelled(
    meter: MemoryMeter, play: Play
) -> None:
    """The CancelledError that leaves is the one that came."""
    error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError) as caught:
        play(UsageMiddleware(saying(START, error=error), meter=meter))
    assert caught.value is error
    assert meter.total("http.requests", status="200", outcome="aborted") == 1


def test_a_request_cancelled_before_its_response_has_no_status(
    meter: MemoryMeter, play: Play
) -> None:
    """A server that is shutting down answers nothing."""
    with pytest.raises(asyncio.CancelledError):
        play(UsageMiddleware(saying(error=asyncio.CancelledError()), meter=meter))
    assert meter.events[0].tags == {"method": "GET", "outcome": "aborted"}


def test_a_coroutine_that_is_thrown_away_is_recorded(meter: MemoryMeter) -> None:
    """GeneratorExit, when a loop ends under it: recorded without awaiting anything."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.get_running_loop().create_future()

    async def tenant(scope: Any) -> str:
        return "acme"

    async def begin() -> Any:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
        running: Any = UsageMiddleware(app, meter=meter, tenant=tenant)(scope, None, None)  # type: ignore[arg-type]
        running.send(None)
        return running

    asyncio.run(begin()).close()
    assert meter.events[0].tags == {"method": "GET", "outcome": "aborted"}


def test_nested_copies_count_once(meter: MemoryMeter, play: Play) -> None:
    """The outermost middleware records; those inside see its mark in the scope."""
    other = MemoryMeter()
    app = UsageMiddleware(saying(START, body(b"")), meter=other)
    play(UsageMiddleware(UsageMiddleware(app, meter=other), meter=meter))
    assert len(meter.events) == 1
    assert other.events == []


def test_the_mark_survives_a_copy_of_the_scope(meter: MemoryMeter, play: Play) -> None:
    """A framework that hands a copy of the scope on, as mounts may, still counts once."""
    inside = UsageMiddleware(saying(START, body(b"")), meter=meter)

    async def mount(scope: Any, receive: Any, send: Any) -> None:
        await inside({**scope, "root_path": "/mounted"}, receive, send)

    play(UsageMiddleware(mount, meter=meter))
    assert len(meter.events) == 1


def test_the_scope_keeps_what_is_not_ours(meter: MemoryMeter, play: Play) -> None:
    """The same scope object, with one more key, which is ours."""
    headers = [(b"x-tenant-id", b"acme")]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    before = dict(scope)

    async def app(inner: Any, receive: Any, send: Any) -> None:
        assert inner is scope
        assert inner["headers"] is headers

    play(UsageMiddleware(app, meter=meter, tenant=header("x-tenant-id")), scope=scope)
    assert {key: scope[key] for key in scope.keys() - before.keys()} == {"tallybook.seen": True}
    assert {key: scope[key] for key in before} == before


def test_the_endpoint_says_who_it_is(meter: MemoryMeter, play: Play) -> None:
    """tallybook.tenant() reaches the event, also from a thread in a copied context."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(tallybook.tenant, "initech")
        await send(START)
        await send(body(b""))

    play(UsageMiddleware(app, meter=meter))
    assert meter.total("http.requests", tenant="initech") == 1


def test_an_explicit_resolver_wins_over_the_endpoint(meter: MemoryMeter, play: Play) -> None:
    """The resolver first; where it finds nothing, the endpoint decides."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tallybook.tenant("endpoint")
        await send(START)
        await send(body(b""))

    wrapped = UsageMiddleware(app, meter=meter, tenant=header("x-tenant-id"))
    play(wrapped)
    play(wrapped, headers=[])
    assert [event.tenant for event in meter.events] == ["acme", "endpoint"]


def test_a_request_does_not_inherit_the_tenant_of_the_one_before(meter: MemoryMeter) -> None:
    """Pipelined requests run in the context that the previous one left."""
    scopes: list[dict[str, Any]] = [
        {"type": "http", "method": "GET", "path": path, "headers": []} for path in "ab"
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "a":
            tallybook.tenant("acme")
        else:
            assert tallybook.current_tenant() is None
        await send(START)
        await send(body(b""))

    async def connection() -> None:
        async def send(message: Any) -> None:
            pass

        tallybook.tenant("whoever served this connection before")
        for scope in scopes:
            await UsageMiddleware(app, meter=meter)(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(connection())
    assert [event.tenant for event in meter.events] == ["acme", None]


def test_other_scopes_pass_untouched(meter: MemoryMeter, play: Play) -> None:
    """A protocol of tomorrow gets its own scope, receive and send."""
    scope = {"type": "carrier.pigeon"}

    async def app(inner: Any, receive: Any, send: Any) -> None:
        assert inner is scope
        assert inner == {"type": "carrier.pigeon"}
        assert receive.__name__ == "receive"
        assert send.__name__ == "send"

    play(UsageMiddleware(app, meter=meter), scope=scope)
    assert meter.events == []


# -- lifespan ----------------------------------------------------------------------------------


class FlushedMeter(MemoryMeter):
    """Notes when it was flushed, and for how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[object] = []

    async def aflush(self, timeout: float = 10.0) -> FlushResult:
        self.said.append(timeout)
        return self.flush(timeout)


async def living(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


def test_the_meter_is_flushed_before_the_shutdown_is_complete(play: Play) -> None:
    """The application cleans up first, then at most 2 s of sending, then the server is told."""
    meter = FlushedMeter()

    def note(message: dict[str, Any]) -> None:
        meter.said.append(message["type"])

    play(
        UsageMiddleware(living, meter=meter),
        {"type": "lifespan.startup"},
        {"type": "lifespan.shutdown"},
        scope={"type": "lifespan"},
        on_send=note,
    )
    assert meter.said == ["lifespan.startup.complete", 2.0, "lifespan.shutdown.complete"]


def test_a_flush_that_fails_does_not_fail_the_shutdown(play: Play) -> None:
    """What could not be sent is kept; the server is told that the application ended well."""

    class Failing(MemoryMeter):
        async def aflush(self, timeout: float = 10.0) -> FlushResult:
            raise RuntimeError("no network")

    sent = play(
        UsageMiddleware(living, meter=Failing()),
        {"type": "lifespan.startup"},
        {"type": "lifespan.shutdown"},
        scope={"type": "lifespan"},
    )
    assert [message["type"] for message in sent][-1] == "lifespan.shutdown.complete"


def test_an_application_without_lifespan_says_so_itself(meter: MemoryMeter, play: Play) -> None:
    """Servers take the exception as the sign that there is no lifespan: it passes unchanged."""
    error = RuntimeError("no lifespan here")
    with pytest.raises(RuntimeError) as caught:
        play(UsageMiddleware(saying(error=error), meter=meter), scope={"type": "lifespan"})
    assert caught.value is error


# -- websockets --------------------------------------------------------------------------------

WEBSOCKET = {"type": "websocket", "path": "/ws", "headers": [(b"x-tenant-id", b"acme")]}
CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}


def test_a_websocket_is_one_event_when_the_application_closes_it(
    meter: MemoryMeter, play: Play
) -> None:
    """websocket.connections, with the code, before the close goes out."""
    seen: list[int] = []

    def look(message: object) -> None:
        seen.append(len(meter.events))

    app = saying(
        ACCEPT, {"type": "websocket.send", "text": "x"}, {"type": "websocket.close", "code": 1001}
    )
    play(
        UsageMiddleware(app, meter=meter, tenant=header("x-tenant-id")),
        scope=dict(WEBSOCKET),
        on_send=look,
    )
    assert seen == [0, 0, 1]
    (event,) = meter.events
    assert (event.dimension, event.tenant) == ("websocket.connections", "acme")
    assert event.tags == {"code": "1001"}


@pytest.mark.parametrize(("said", "code"), [({"code": 1001}, "1001"), ({}, "1005")])
def test_a_websocket_is_one_event_when_the_client_leaves(
    meter: MemoryMeter, play: Play, said: dict[str, int], code: str
) -> None:
    """It is recorded before the application hears of the disconnect."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        assert (await receive())["type"] == "websocket.disconnect"
        assert len(meter.events) == 1

    play(
        UsageMiddleware(app, meter=meter, measure={"response_bytes", "duration"}),
        CONNECT,
        {"type": "websocket.disconnect", **said},
        scope=dict(WEBSOCKET),
    )
    assert meter.total("websocket.connections", code=code) == 1
    assert len(meter.events) == 1


@pytest.mark.parametrize(("error", "code"), [(None, "1000"), (RuntimeError("x"), "1011")])
def test_a_websocket_that_the_application_leaves_open(
    meter: MemoryMeter, play: Play, error: Exception | None, code: str
) -> None:
    """The server closes it: 1000 if the application returned, 1011 if it raised."""
    app = UsageMiddleware(saying(ACCEPT, error=error), meter=meter)
    with pytest.raises(RuntimeError) if error else nullcontext():
        play(app, scope=dict(WEBSOCKET))
    assert meter.total("websocket.connections", code=code) == 1


def test_a_cancelled_websocket_has_no_code(meter: MemoryMeter, play: Play) -> None:
    """What a server says when it stops is its own affair."""
    with pytest.raises(asyncio.CancelledError):
        play(
            UsageMiddleware(saying(ACCEPT, error=asyncio.CancelledError()), meter=meter),
            scope=dict(WEBSOCKET),
        )
    assert meter.events[0].tags == {"outcome": "aborted"}


REFUSALS: list[tuple[list[dict[str, Any]], Exception | None, str]] = [
    ([{"type": "websocket.close", "code": 1000}], None, "403"),
    (
        [
            {"type": "websocket.http.response.start", "status": 401, "headers": []},
            {"type": "websocket.http.response.body", "body": b"no"},
        ],
        None,
        "401",
    ),
    ([], RuntimeError("x"), "500"),
]


@pytest.mark.parametrize(("said", "error", "status"), REFUSALS, ids=["closed", "denied", "raised"])
def test_a_refused_handshake_is_an_http_request(
    meter: MemoryMeter,
    play: Play,
    said: list[dict[str, Any]],
    error: Exception | None,
    status: str,
) -> None:
    """There was no connection; there was an HTTP answer."""
    with pytest.raises(RuntimeError) if error else nullcontext():
        play(UsageMiddleware(saying(*said, error=error), meter=meter), scope=dict(WEBSOCKET))
    assert [event.dimension for event in meter.events] == ["http.requests"]
    assert meter.events[0].tags == {"method": "GET", "status": status}
