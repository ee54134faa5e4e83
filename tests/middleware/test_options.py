"""Every option is obeyed, by both middlewares, and none can fail a request."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tallybook
import tallybook.meter
from tallybook.errors import QueueFull
from tallybook.meter import Meter
from tallybook.middleware import (
    UsageMiddleware,
    UsageWSGIMiddleware,
    header,
    path_param,
    state,
)
from tallybook.testing import FakeClock, MemoryMeter

Ask = Callable[..., tuple[int, bytes]]


@pytest.fixture(params=["asgi", "wsgi"])
def ask(request: pytest.FixtureRequest, play: Any, environ: dict[str, Any]) -> Ask:
    """
    Send one request to a small application behind the middleware: its status and body.

    ``headers`` are text; ``endpoint`` runs inside the application; the rest are options.
    """

    def asking(
        *,
        method: str = "GET",
        path: str = "/",
        headers: dict[str, str] | None = None,
        endpoint: Callable[[], object] = bool,
        left: dict[str, object] | None = None,
        **options: Any,
    ) -> tuple[int, bytes]:
        headers = {"x-tenant-id": "acme"} if headers is None else headers

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            endpoint()
            scope.setdefault("state", {}).update(left or {})
            scope["path_params"] = left or {}
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

        def wsgi(environ: Any, start_response: Any) -> list[bytes]:
            endpoint()
            environ.update(left or {})
            environ["wsgiorg.routing_args"] = ((), left or {})
            start_response("200 OK", [])
            return [b"hello"]

        if request.param == "asgi":
            raw = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
            app = UsageMiddleware(asgi, **options)
            start, body = play(app, method=method, path=path, headers=raw)
            return start["status"], body["body"]
        request_environ = {**environ, "REQUEST_METHOD": method, "PATH_INFO": path}
        del request_environ["HTTP_X_TENANT_ID"]
        for key, value in headers.items():
            request_environ[f"HTTP_{key.upper().replace('-', '_')}"] = value
        statuses: list[str] = []

        def start_response(status: str, headers: object) -> Callable[[bytes], object]:
            statuses.append(status)
            return print

        result = UsageWSGIMiddleware(wsgi, **options)(request_environ, start_response)
        return int(statuses[0][:3]), b"".join(result)

    return asking


def always(value: object) -> Callable[[object], Any]:
    """A resolver that finds *value* in every request."""

    def resolver(source: object) -> object:
        return value

    return resolver


# -- tenant ------------------------------------------------------------------------------------


def test_header_ignores_case_and_emptiness(meter: MemoryMeter, ask: Ask) -> None:
    """A header that is empty or not there names nobody."""
    for headers in ({"x-tenant-id": "acme"}, {"x-tenant-id": ""}, {}):
        ask(meter=meter, tenant=header("X-Tenant-ID"), headers=headers)
    assert [event.tenant for event in meter.events] == ["acme", None, None]


def test_header_finds_what_wsgi_keeps_elsewhere() -> None:
    """Content-Type and Content-Length have no HTTP_ in front in an environ."""
    assert header("content-type")({"CONTENT_TYPE": "text/plain"}) == "text/plain"


def test_of_several_headers_the_first_counts() -> None:
    """As in the frameworks, so the event and the application agree."""
    scope = {"headers": [(b"other", b"x"), (b"x-tenant", b"a"), (b"x-tenant", b"b")]}
    assert header("x-tenant")(scope) == "a"


def test_path_param_and_state(meter: MemoryMeter, ask: Ask) -> None:
    """What the router and the application left on the request, read at the end."""
    ask(meter=meter, tenant=path_param("org"), left={"org": 42})
    ask(meter=meter, tenant=state("who"), left={"who": "acme"})
    ask(meter=meter, tenant=path_param("org"))
    ask(meter=meter, tenant=state("who"))
    assert [event.tenant for event in meter.events] == ["42", "acme", None, None]


def test_a_callable_gets_the_scope_or_environ(meter: MemoryMeter, ask: Ask) -> None:
    """Anything that can be called is a resolver."""

    def path_of(source: dict[str, Any]) -> str:
        return str(source.get("path") or source["PATH_INFO"])

    ask(meter=meter, tenant=path_of, path="/t")
    assert meter.total("http.requests", tenant="/t") == 1


def test_a_resolver_may_be_async_under_asgi(meter: MemoryMeter, play: Any) -> None:
    """Tenants and tags may be looked up with an await."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def find(scope: Any) -> str:
        await asyncio.to_thread(bool)
        return "found"

    play(UsageMiddleware(app, meter=meter, tenant=find, tags={"also": find}))
    assert meter.total("http.requests", tenant="found", also="found") == 1


def test_an_async_resolver_under_wsgi_is_a_fault(meter: MemoryMeter, environ: Any) -> None:
    """Nobody can await it: recorded as unattributed, said in the log."""

    async def find(environ: Any) -> str:
        return "found"

    app = UsageWSGIMiddleware(lambda environ, start: [b"x"], meter=meter, tenant=find)
    list(app(environ, lambda *args: print))
    assert [event.tenant for event in meter.events] == [None]


def test_a_request_cancelled_in_a_resolver_is_recorded(meter: MemoryMeter) -> None:
    """The lookup never ends, the task is cancelled: the event has what is known by then."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        asked = asyncio.Event()

        async def find(scope: Any) -> str:
            asked.set()
            return str(await asyncio.get_running_loop().create_future())

        async def send(message: Any) -> None:
            assert message["type"] == "http.response.start"

        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
        wrapped: Any = UsageMiddleware(app, meter=meter, tenant=find)
        task = asyncio.create_task(wrapped(scope, None, send))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [event.tenant for event in meter.events] == [None]


# -- on_missing --------------------------------------------------------------------------------


def test_unattributed_is_recorded(meter: MemoryMeter, ask: Ask) -> None:
    """By default usage without a tenant is kept, for somebody to look at."""
    ask(meter=meter, tenant=header("x-tenant-id"), headers={})
    assert [event.tenant for event in meter.events] == [None]


def test_skip_records_only_what_has_a_tenant(meter: MemoryMeter, ask: Ask) -> None:
    """The endpoint's word counts as a tenant, too."""
    options: Any = {"meter": meter, "tenant": header("x-tenant-id"), "on_missing": "skip"}
    ask(headers={}, **options)
    assert meter.events == []
    ask(headers={}, endpoint=lambda: tallybook.tenant("initech"), **options)
    ask(**options)
    assert [event.tenant for event in meter.events] == ["initech", "acme"]


@pytest.mark.parametrize("value", ["", "x" * 256])
def test_refuse_answers_403_before_the_application(
    meter: MemoryMeter, ask: Ask, value: str
) -> None:
    """Nothing ran, and nothing is recorded; a tenant that cannot be one names nobody either."""
    options: Any = {"meter": meter, "tenant": header("x-tenant-id"), "on_missing": "refuse"}
    ran: list[int] = []
    status, body = ask(headers={"x-tenant-id": value}, endpoint=lambda: ran.append(1), **options)
    assert (status, body) == (403, b"this request names no tenant\n")
    assert (ran, meter.events) == ([], [])
    assert ask(endpoint=lambda: ran.append(1), **options) == (200, b"hello")
    assert (ran, [event.tenant for event in meter.events]) == ([1], ["acme"])


def test_refuse_lets_excluded_requests_through(meter: MemoryMeter, ask: Ask) -> None:
    """A preflight cannot carry a tenant."""
    status, _ = ask(
        meter=meter,
        method="OPTIONS",
        headers={},
        tenant=header("x-tenant-id"),
        on_missing="refuse",
    )
    assert status == 200


def test_a_resolver_that_fails_refuses_nobody(meter: MemoryMeter, ask: Ask) -> None:
    """A lookup that is down is no reason to turn customers away."""

    def broken(source: Any) -> str:
        raise ConnectionError("the database is down")

    status, _ = ask(meter=meter, tenant=broken, on_missing="refuse")
    assert status == 200
    assert [event.tenant for event in meter.events] == [None]


def test_refuse_closes_a_websocket_before_it_is_accepted(meter: MemoryMeter, play: Any) -> None:
    """Which a server turns into 403."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it ran")

    sent = play(
        UsageMiddleware(app, meter=meter, tenant=header("x-tenant-id"), on_missing="refuse"),
        {"type": "websocket.connect"},
        scope={"type": "websocket", "path": "/", "headers": []},
    )
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert meter.events == []


# -- tags, exclude -----------------------------------------------------------------------------


def test_tags_are_fixed_or_found(meter: MemoryMeter, ask: Ask) -> None:
    """What is not found is left out; a tag of the application replaces one of ours."""
    ask(
        meter=meter,
        headers={"x-request-id": "r-1"},
        tags={
            "plan": "pro",
            "request": header("x-request-id"),
            "missing": header("x-none"),
            "count": always(3),
            "route": always("/by/{hand}"),
        },
    )
    assert meter.events[0].tags == {
        "method": "GET",
        "status": "200",
        "plan": "pro",
        "request": "r-1",
        "count": "3",
        "route": "/by/{hand}",
    }


@pytest.mark.parametrize("value", ["x" * 257, "a\x00b", object()], ids=["long", "control", "type"])
def test_an_invalid_tag_is_left_out(meter: MemoryMeter, ask: Ask, value: object) -> None:
    """The request is recorded with the rest of its tags."""
    ask(
        meter=meter,
        tenant=header("x-tenant-id"),
        tags={"bad": always(value), "good": "yes"},
    )
    assert meter.total("http.requests", tenant="acme", good="yes") == 1
    assert "bad" not in meter.events[0].tags


def test_options_are_excluded_and_nothing_else(meter: MemoryMeter, ask: Ask) -> None:
    """By default: a CORS preflight names no tenant, and nobody used anything."""
    for method in ("OPTIONS", "GET", "HEAD", "POST", "TRACE"):
        ask(meter=meter, method=method)
    assert [event.tags["method"] for event in meter.events] == ["GET", "HEAD", "POST", "TRACE"]


def test_exclude_takes_methods_and_exact_paths(meter: MemoryMeter, ask: Ask) -> None:
    """A path is excluded as a whole, not what begins with it."""
    for path in ("/healthz", "/healthz/deep", "/"):
        ask(meter=meter, path=path, exclude={"/healthz", "HEAD"})
    ask(meter=meter, method="HEAD", exclude={"/healthz", "HEAD"})
    ask(meter=meter, method="OPTIONS", exclude=())
    assert len(meter.events) == 3


def test_exclude_may_be_a_callable(meter: MemoryMeter, ask: Ask) -> None:
    """It decides alone; if it fails, the request is recorded."""

    def broken(source: Any) -> bool:
        raise RuntimeError("x")

    ask(meter=meter, exclude=always(True))
    assert meter.events == []
    ask(meter=meter, exclude=always(False), method="OPTIONS")
    ask(meter=meter, exclude=broken)
    assert len(meter.events) == 2


def test_a_tenant_set_in_an_excluded_request_ends_with_it(meter: MemoryMeter, ask: Ask) -> None:
    """The thread is clean afterwards."""
    ask(meter=meter, exclude=always(True), endpoint=lambda: tallybook.tenant("acme"))
    assert tallybook.current_tenant() is None


@pytest.mark.parametrize(
    "options",
    [
        {"on_missing": "raise"},
        {"on_missing": "refuse"},
        {"measure": "duration"},
        {"measure": ["seconds"]},
        {"tenant": "acme"},
        {"exclude": "OPTIONS"},
        {"exclude": ["healthz"]},
        {"tags": {"": "x"}},
        {"tags": {"x": "y" * 300}},
        {"tags": {str(number): "x" for number in range(28)}},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [UsageMiddleware, UsageWSGIMiddleware])
def test_a_wrong_option_raises_at_once(kind: Any, options: Any) -> None:
    """A wrong program is told when it is started, not by its customers."""
    with pytest.raises(ValueError, match=r"expected|needs"):
        kind(print, **options)


def test_there_is_no_option_to_sample() -> None:
    """Nothing that bills may be left to chance."""
    assert set(inspect.signature(UsageMiddleware).parameters) == {
        "app",
        "meter",
        "tenant",
        "tags",
        "measure",
        "exclude",
        "on_missing",
        "clock",
    }


# -- the Meter ---------------------------------------------------------------------------------


def test_the_default_meter_is_made_at_the_first_request(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the application is put together."""
    meter = MemoryMeter()
    made: list[int] = []

    def default() -> Meter:
        made.append(1)
        return meter

    monkeypatch.setattr("tallybook_middleware.writer.default_meter", default)
    UsageMiddleware(print)  # type: ignore[arg-type]
    assert made == []
    ask()
    assert (made, len(meter.events)) == ([1], 1)


def test_an_environment_without_a_valid_meter_fails_no_request(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """InvalidSetting goes to the log; the customers of the application get their answers."""
    monkeypatch.setenv("TALLYBOOK_DURABILITY", "eternal")
    monkeypatch.setattr(tallybook.meter, "_default", None)
    assert ask() == (200, b"hello")


class Broken:
    """A Meter that raises at everything."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_meter_that_raises_at_everything_changes_no_response(ask: Ask) -> None:
    """Status and body are those of the application."""
    assert ask(meter=Broken(), measure={"duration"}) == (200, b"hello")


def test_a_clock_that_raises_changes_no_response(ask: Ask) -> None:
    """Even what is handed in for tests is behind the firewall."""

    class Stopped(FakeClock):
        @property
        def monotonic(self) -> Callable[[], float]:
            def broken() -> float:
                raise RuntimeError("stopped")

            return broken

    meter = MemoryMeter()
    assert ask(meter=meter, measure={"duration"}, clock=Stopped()) == (200, b"hello")


def test_a_full_queue_fails_no_request(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    """on_full="raise" is for those who call record(); a request goes on."""

    class Full(MemoryMeter):
        def record(self, *args: Any, **options: Any) -> None:
            raise QueueFull("full")

    assert ask(meter=Full()) == (200, b"hello")
    assert "a request was not recorded" in caplog.text


def test_the_log_is_told_once_a_minute(
    play: Any, meter: MemoryMeter, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand faults are one line, and the next minute another one that says how many."""
    clock = FakeClock()

    def broken(scope: Any) -> str:
        raise RuntimeError("x")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    wrapped = UsageMiddleware(app, meter=meter, tenant=broken, clock=clock)
    with caplog.at_level(logging.WARNING, "tallybook"):
        for _ in range(10):
            play(wrapped)
            clock.advance(5)
        assert len(caplog.records) == 1
        clock.advance(10)
        play(wrapped)
    assert len(caplog.records) == 2
    assert "11 faults so far" in caplog.text
    assert {record.name for record in caplog.records} == {"tallybook"}
    assert len(meter.events) == 11


@pytest.mark.parametrize("tenant", ["s3cret" * 60, 42, ["acme"]], ids=["long", "int", "list"])
def test_an_invalid_tenant_is_unattributed_and_not_lost(
    meter: MemoryMeter, ask: Ask, caplog: pytest.LogCaptureFixture, tenant: object
) -> None:
    """What was used stays in the ledger; the text, which may be a key, stays out of the log."""
    ask(meter=meter, tenant=always(tenant), measure={"response_bytes"})
    assert [event.tenant for event in meter.events] == [None, None]
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("options", [{"durability": "power"}, {"on_full": "block"}], ids=str)
def test_what_may_block_is_awaited_while_the_loop_goes_on(
    play: Any, tmp_path: Path, options: Any
) -> None:
    """The last message waits for arecord; record, which would block, is not called."""
    meter = Meter("test", directory=tmp_path, **options)
    awaited: list[str] = []

    async def arecord(dimension: str, *args: Any, **options: Any) -> None:
        await asyncio.to_thread(bool)
        awaited.append(dimension)
        await Meter.arecord(meter, dimension, *args, **options)

    meter.arecord = arecord  # type: ignore[method-assign]
    meter.record = None  # type: ignore[method-assign,assignment]
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def look(message: object) -> None:
        seen.append(meter.stats().recorded)

    try:
        play(
            UsageMiddleware(app, meter=meter, measure={"response_bytes"}),
            on_send=look,
        )
    finally:
        meter.close()
    assert sorted(awaited) == ["http.requests", "http.response.bytes"]
    assert seen == [0, 2]


def test_cancelling_the_wait_for_the_disk_does_not_cancel_the_record() -> None:
    """At level power: the request is cancelled, and its event is recorded all the same."""
    release = asyncio.Event()

    class Slow(MemoryMeter):
        @property
        def may_block(self) -> bool:
            return True

        async def arecord(self, *args: Any, **options: Any) -> None:
            await release.wait()
            self.record(*args, **options)

    meter = Slow()

    async def main() -> None:
        waiting = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            waiting.set()
            await send({"type": "http.response.body", "body": b""})

        async def send(message: Any) -> None:
            assert message["type"] == "http.response.start"

        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
        wrapped: Any = UsageMiddleware(app, meter=meter)
        task = asyncio.create_task(wrapped(scope, None, send))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)

    asyncio.run(main())
    assert len(meter.events) == 1


def test_every_option_and_every_dimension_is_documented() -> None:
    """The page of the reference names each of them."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "middleware.md"
    text = page.read_text(encoding="utf-8")
    for name in inspect.signature(UsageMiddleware).parameters:
        assert f"`{name}`" in text, name
    for name in ("http.requests", "http.request.bytes", "http.response.bytes", "http.duration"):
        assert f"`{name}`" in text, name
    assert "`websocket.connections`" in text


@pytest.mark.parametrize("known", ["before", "after"])
def test_what_the_application_records_has_the_tenant_of_the_request(
    meter: MemoryMeter, known: str
) -> None:
    """What `record` in an endpoint finds is the resolver's tenant, where it is known by then."""

    def find(environ: Any) -> str | None:
        return "acme" if known == "before" or "found" in environ else None

    def app(environ: Any, start_response: Any) -> list[bytes]:
        environ["found"] = True
        meter.record("tokens.output", 5)
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    wrapped = UsageWSGIMiddleware(app, meter=meter, tenant=find)
    list(wrapped({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *args: print))
    tenants = {event.dimension: event.tenant for event in meter.events}
    inside = "acme" if known == "before" else None
    assert tenants == {"tokens.output": inside, "http.requests": "acme"}
