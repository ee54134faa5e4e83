"""Starlette and FastAPI behind the middleware, under uvicorn on real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

import tallybook
from tallybook.middleware import UsageMiddleware, header, path_param, state

Serve = Callable[..., str]
Play = Callable[..., list[dict[str, Any]]]


def ask(
    address: str, path: str, method: str = "GET", tenant: str | None = "acme", body: bytes = b""
) -> tuple[int, list[tuple[str, str]], bytes]:
    """One request: its status, headers and body."""
    connection = http.client.HTTPConnection(address, timeout=20)
    headers = {"x-tenant-id": tenant} if tenant else {}
    connection.request(method, path, body=body or None, headers=headers)
    response = connection.getresponse()
    answer = response.status, response.getheaders(), response.read()
    connection.close()
    return answer


def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def read_everything(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


def small_app(folder: Path) -> Starlette:
    async def stream() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"chunk %d" % number

    async def streaming(request: Request) -> Response:
        return StreamingResponse(stream())

    def file(request: Request) -> Response:
        return FileResponse(folder / "file.txt")

    def not_modified(request: Request) -> Response:
        return Response(status_code=304, headers={"etag": '"x"'})

    def cookies(request: Request) -> Response:
        response = PlainTextResponse("cookies")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    def broken(request: Request) -> Response:
        raise RuntimeError("broken, on purpose")

    def there(request: Request) -> Response:
        return RedirectResponse("/cookies")

    return Starlette(
        routes=[
            Route("/body", read_everything, methods=["POST"]),
            Route("/stream", streaming),
            Route("/file", file),
            Route("/not-modified", not_modified),
            Route("/cookies", cookies),
            Route("/broken", broken),
            Route("/there", there),
        ]
    )


REQUESTS = [
    ("/body", "POST", b"x" * 100_000),
    ("/stream", "GET", b""),
    ("/file", "GET", b""),
    ("/file", "HEAD", b""),
    ("/not-modified", "GET", b""),
    ("/cookies", "GET", b""),
    ("/cookies", "HEAD", b""),
    ("/cookies", "POST", b""),
    ("/broken", "GET", b""),
    ("/there", "GET", b""),
    ("/nowhere", "GET", b""),
]


@pytest.mark.parametrize("server", ["h11", "httptools"])
def test_responses_are_byte_for_byte_the_same(
    meter: Any, serve_asgi: Serve, tmp_path: Path, server: str
) -> None:
    """With and without the middleware: status, headers in their order, and body."""
    (tmp_path / "file.txt").write_bytes(b"contents")
    plain, measured = small_app(tmp_path), small_app(tmp_path)
    measured.add_middleware(
        UsageMiddleware, meter=meter, measure={"request_bytes", "response_bytes", "duration"}
    )
    options: Any = {"http": server, "date_header": False}
    addresses = [serve_asgi(app, **options) for app in (plain, measured)]
    for path, method, body in REQUESTS:
        without, with_it = (ask(address, path, method, body=body) for address in addresses)
        assert without == with_it, path
    assert meter.total("http.requests") == len(REQUESTS)
    assert meter.total("http.request.bytes", route="/body") == 100_000
    assert meter.total("http.response.bytes", route="/stream") == 21
    assert meter.total("http.response.bytes", route="/file", method="GET") == 8
    assert meter.total("http.response.bytes", method="HEAD") == 0
    assert meter.total("http.response.bytes", status="304") == 0
    assert meter.total("http.requests", route="/broken", status="500") == 1
    assert meter.total("http.requests", route="/cookies", status="405") == 1
    (lost,) = [e for e in meter.events if e.tags["status"] == "404" and "req" in e.dimension][:1]
    assert "route" not in lost.tags


def test_who_has_the_answer_is_recorded(meter: Any, serve_asgi: Serve) -> None:
    """Over a real socket: when the last byte is read, the event is there."""
    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(UsageMiddleware, meter=meter, tenant=header("x-tenant-id"))
    address = serve_asgi(app)
    for count in range(1, 51):
        assert ask(address, "/")[0] == 200
        assert meter.total("http.requests", tenant="acme") == count


def test_endpoints_in_the_thread_pool_say_who_they_serve(meter: Any, serve_asgi: Serve) -> None:
    """FastAPI: sync and async endpoints, dependencies, and one below a BaseHTTPMiddleware."""
    app = FastAPI()

    @app.get("/sync/{name}")
    def sync(name: str) -> str:
        tallybook.tenant(name)
        return name

    @app.get("/async/{name}")
    async def not_sync(name: str) -> str:
        tallybook.tenant(name)
        return name

    class Between(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    app.add_middleware(Between)
    app.add_middleware(UsageMiddleware, meter=meter)
    address = serve_asgi(app)
    for path in ("/sync/one", "/async/two", "/sync/three"):
        assert ask(address, path)[0] == 200
    assert [event.tenant for event in meter.events] == ["one", "two", "three"]
    assert meter.events[0].tags["route"] == "/sync/{name}"


def test_requests_in_parallel_keep_their_tenants_apart(meter: Any, serve_asgi: Serve) -> None:
    """Thread-pool endpoints that all wait for each other, each with its own tenant."""
    app, together = FastAPI(), threading.Barrier(8)

    @app.get("/{name}")
    def endpoint(name: str) -> str:
        tallybook.tenant(name)
        together.wait(20)
        return str(tallybook.current_tenant())

    app.add_middleware(UsageMiddleware, meter=meter)
    address = serve_asgi(app)
    answers: list[str] = []

    def client(name: str) -> None:
        answers.append(json.loads(ask(address, f"/{name}")[2]))

    threads = [threading.Thread(target=client, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == list("abcdefgh")
    assert sorted(event.tenant for event in meter.events) == list("abcdefgh")


def test_pipelined_requests_keep_their_tenants_apart(meter: Any, serve_asgi: Serve) -> None:
    """Two requests in one packet on one connection: the second one is nobody's."""
    app = FastAPI()

    @app.get("/in")
    async def sign_in() -> str:
        tallybook.tenant("acme")
        return "in"

    @app.get("/out")
    async def nobody() -> str:
        return str(tallybook.current_tenant())

    app.add_middleware(UsageMiddleware, meter=meter)
    address = serve_asgi(app, http="httptools")
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(
            b"GET /in HTTP/1.1\r\nHost: x\r\n\r\n"
            b"GET /out HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert b'"None"' in received
    assert [event.tenant for event in meter.events] == ["acme", None]


def test_background_tasks_run_after_the_event(meter: Any, serve_asgi: Serve) -> None:
    """The client has its answer, and the event is there, before the task is let go."""
    go, done = threading.Event(), threading.Event()
    app = FastAPI()

    def task() -> None:
        assert go.wait(20)
        done.set()

    @app.get("/")
    def endpoint(background: BackgroundTasks) -> str:
        background.add_task(task)
        return "x"

    app.add_middleware(UsageMiddleware, meter=meter, measure={"duration"})
    assert ask(serve_asgi(app), "/")[0] == 200
    assert len(meter.events) == 2
    assert not done.is_set()
    go.set()
    assert done.wait(20)
    assert len(meter.events) == 2


def test_a_client_that_leaves_in_the_middle_is_an_abort(meter: Any, serve_asgi: Serve) -> None:
    """An endless stream, cut by the client: one event with the bytes of before."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0)

    def endpoint(request: Request) -> Response:
        return StreamingResponse(endless())

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(UsageMiddleware, meter=meter, measure={"response_bytes"})
    host, port = serve_asgi(app).split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(5000)
    meter.wait_for_events(2)
    assert meter.total("http.requests", status="200", outcome="aborted") == 1
    assert meter.total("http.response.bytes") >= 1000


def test_a_websocket_over_a_real_socket(meter: Any, serve_asgi: Serve) -> None:
    """Closed by either side: one event, with the route, the code, and the endpoint's tenant."""

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        tallybook.tenant(websocket.path_params["room"])
        async for text in websocket.iter_text():
            if text == "close":
                await websocket.close(4000)
                return
            await websocket.send_text(text)

    app = Starlette(routes=[WebSocketRoute("/rooms/{room}", echo)])
    app.add_middleware(UsageMiddleware, meter=meter)
    address = serve_asgi(app)
    with connect(f"ws://{address}/rooms/one") as client:
        client.send("hello")
        assert client.recv(20) == "hello"
        assert meter.events == []
        client.close(1001)
    meter.wait_for_events(1)
    with connect(f"ws://{address}/rooms/two") as client:
        client.send("close")
        with pytest.raises(Exception, match="4000"):
            client.recv(20)
        assert len(meter.events) == 2
    assert [(event.dimension, event.tenant, event.tags) for event in meter.events] == [
        ("websocket.connections", "one", {"route": "/rooms/{room}", "code": "1001"}),
        ("websocket.connections", "two", {"route": "/rooms/{room}", "code": "4000"}),
    ]


def test_the_lifespan_runs_and_flushes(meter: Any, serve_asgi: Serve) -> None:
    """Startup, state and shutdown work as without the middleware."""
    said: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[dict[str, str]]:
        said.append("up")
        yield {"tenant": "from the lifespan"}
        said.append("down")

    app = Starlette(lifespan=lifespan, routes=[Route("/", hello)])
    app.add_middleware(UsageMiddleware, meter=meter, tenant=state("tenant"))
    assert ask(serve_asgi(app, lifespan="on"), "/")[0] == 200
    assert said == ["up"]
    assert meter.total("http.requests", tenant="from the lifespan") == 1


def test_a_pathsend_of_starlette_is_counted(meter: Any, play: Play, tmp_path: Path) -> None:
    """FileResponse hands the path on where a server offers it."""
    path = tmp_path / "file"
    path.write_bytes(b"z" * 4321)

    def endpoint(request: Request) -> Response:
        return FileResponse(path)

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(UsageMiddleware, meter=meter, measure={"response_bytes"})
    sent = play(app, extensions={"http.response.pathsend": {}})
    assert sent[-1]["type"] == "http.response.pathsend"
    assert meter.total("http.response.bytes", route="/") == 4321


def test_the_exception_is_the_applications_own(meter: Any, play: Play) -> None:
    """Inside ServerErrorMiddleware the same object passes; the response is its 500."""
    error = RuntimeError("mine")
    seen: list[BaseException] = []

    def endpoint(request: Request) -> Response:
        raise error

    async def on_error(request: Request, exc: Exception) -> Response:
        seen.append(exc)
        return PlainTextResponse("sorry", 500)

    app = Starlette(routes=[Route("/", endpoint)], exception_handlers={Exception: on_error})
    app.add_middleware(UsageMiddleware, meter=meter)
    with pytest.raises(RuntimeError) as caught:
        play(app)
    assert caught.value is error
    assert seen == [error]
    assert meter.total("http.requests", status="500", route="/") == 1


def test_a_background_task_that_raises_changes_nothing(meter: Any, play: Play) -> None:
    """Starlette's own background task, after the answer."""

    def task() -> None:
        raise RuntimeError("in the background")

    def endpoint(request: Request) -> Response:
        return PlainTextResponse("x", background=BackgroundTask(task))

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(UsageMiddleware, meter=meter)
    with pytest.raises(RuntimeError, match="background"):
        play(app)
    assert [event.tags["status"] for event in meter.events] == ["200"]


# -- routes ------------------------------------------------------------------------------------


def routed() -> FastAPI:
    router = APIRouter()

    @router.get("/r/{x}")
    def included(x: str) -> str:
        return x

    deeper = APIRouter()
    deeper.include_router(router, prefix="/n/{n}")
    mounted = FastAPI()
    mounted.include_router(router, prefix="/inc/{i}")

    @mounted.get("/things/{tid}")
    def thing(tid: str) -> str:
        return tid

    app = FastAPI()
    app.include_router(router, prefix="/v2/{ver}")
    app.include_router(deeper, prefix="/m")
    app.mount("/api/{v}", mounted)
    app.mount(
        "/st",
        Starlette(
            routes=[Route("/a/{b}", hello), Mount("/deep/{d}", routes=[Route("/e/{f:int}", hello)])]
        ),
    )
    return app


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/3/r/9", "/v2/{ver}/r/{x}"),
        ("/m/n/1/r/2", "/m/n/{n}/r/{x}"),
        ("/api/v1/things/7", "/api/{v}/things/{tid}"),
        ("/api/v1/inc/3/r/4", "/api/{v}/inc/{i}/r/{x}"),
        ("/st/a/1", "/st/a/{b}"),
        ("/st/deep/2/e/3", "/st/deep/{d}/e/{f}"),
        ("/nowhere/17", None),
        ("/st/deep/2/e/nowhere", "/st/deep/{d}/{path}"),
    ],
)
def test_the_route_is_a_template(
    meter: Any, play: Play, path: str, route: str | None, root_path: str
) -> None:
    """Prefixes and mounts with their parameters' names, and never with their values."""
    app = routed()
    app.add_middleware(UsageMiddleware, meter=meter)
    play(app, path=root_path + path, root_path=root_path)
    assert meter.events[0].tags.get("route") == route


def test_a_route_of_another_shape_is_left_out(meter: Any, play: Play) -> None:
    """Frameworks change what they leave in the scope: no exception, and no tag."""

    class Odd:
        @property
        def path_format(self) -> str:
            raise AttributeError("gone in this version")

        @property
        def routes(self) -> str:
            raise RuntimeError("and this is new")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope.update(left)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    left: dict[str, Any] = {}
    shapes: list[dict[str, Any]] = [
        {"route": Odd()},
        {"fastapi": 3},
        {"route": "x"},
        {"route": Odd(), "fastapi": Odd},
    ]
    for shape in shapes:
        left.clear()
        left.update(shape)
        play(UsageMiddleware(app, meter=meter))
    assert [event.tags for event in meter.events] == [{"method": "GET", "status": "200"}] * 4


def test_litestar_leaves_a_template_of_its_own(meter: Any, play: Play) -> None:
    """scope["path_template"], which is what Litestar calls it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["path_template"] = "/items/{id:int}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    play(UsageMiddleware(app, meter=meter))
    assert meter.events[0].tags["route"] == "/items/{id:int}"


def test_a_path_parameter_may_be_the_tenant(meter: Any, play: Play) -> None:
    """Of the route, and of the mount that led to it."""
    app = Starlette(routes=[Mount("/orgs/{org}", routes=[Route("/x/{id}", hello)])])
    app.add_middleware(UsageMiddleware, meter=meter, tenant=path_param("org"))
    play(app, path="/orgs/acme/x/3")
    assert meter.total("http.requests", tenant="acme", route="/orgs/{org}/x/{id}") == 1


def test_an_invented_method_is_no_text_in_the_ledger(meter: Any, play: Play) -> None:
    """What clients invent becomes OTHER, however long it is."""
    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(UsageMiddleware, meter=meter)
    play(app, method="M" * 5000)
    assert meter.events[0].tags["method"] == "OTHER"


def test_the_total_is_exact_over_many_requests(meter: Any, serve_asgi: Serve) -> None:
    """Bytes in and out of many requests of different sizes, to the byte."""
    app = Starlette(routes=[Route("/", read_everything, methods=["POST"])])
    app.add_middleware(UsageMiddleware, meter=meter, measure={"request_bytes", "response_bytes"})
    address = serve_asgi(app)
    sizes = [1, 10, 999, 65_536, 65_537, 300_000]
    for size in sizes:
        ask(address, "/", "POST", body=b"b" * size)
    assert meter.total("http.request.bytes") == sum(sizes)
    assert meter.total("http.response.bytes") == Decimal(sum(len(str(size)) for size in sizes))
