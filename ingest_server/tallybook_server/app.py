"""
The application: every route in one table, each a few lines long.

Imports go one way: `serve` (the process) -> `app` -> `stream` -> `ingest`, `usage`, `events`,
`adjustments`, `listings` (one route or one family each) -> `body`, `event_json`, `tag_filters`,
`event_query`, `parameters` (reading) -> `problems`. All of them know the `Ledger` protocol,
none an engine.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Final

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tallybook._version import __version__
from tallybook.clock import Clock, SystemClock
from tallybook_server.adjustments import Adjustments, answer_adjustments
from tallybook_server.backups import Backups
from tallybook_server.body import BodyBudget
from tallybook_server.dimensions import Dimensions, answer_dimensions
from tallybook_server.edge import Edge, logger
from tallybook_server.events import answer_event, answer_events
from tallybook_server.ingest import Ingest
from tallybook_server.ledger import Delivery, Ledger
from tallybook_server.limits import READY_SECONDS_MAX
from tallybook_server.listings import (
    answer_producers,
    answer_rejections,
    answer_verify,
)
from tallybook_server.problems import PROBLEMS, Problem, problem_page
from tallybook_server.proofs import answer_checkpoint, answer_checkpoints, answer_proof
from tallybook_server.settings import Settings
from tallybook_server.stream import Streams
from tallybook_server.usage import UsageRoutes

__all__ = ["create_app"]

_Answer = Callable[[Ledger, bytes], bytes]
_SYSTEM_CLOCK: Final = SystemClock()


def create_app(
    ledger: Ledger,
    settings: Settings,
    *,
    clock: Clock = _SYSTEM_CLOCK,
    stopping: asyncio.Event | None = None,
) -> Starlette:
    """
    The HTTP interface of *ledger*, as an ASGI application.

    The ledger stays the caller's: it is neither opened nor closed here.

    Args:
        ledger: What is asked and added to.
        settings: Limits.
        clock: Now.
        stopping: Set by the caller when the server stops: answers without an end then end.
    """
    budget = BodyBudget(settings.bodies_bytes_max)
    ingest = Ingest(ledger, settings, clock, budget)
    adjustments = Adjustments(ledger, settings, clock, budget)
    dimensions = Dimensions(ledger, settings, budget)
    backups = Backups(ledger, settings, budget)
    queries = CapacityLimiter(settings.queries_max)
    usage = UsageRoutes(ledger, settings, budget, queries)
    proving = CapacityLimiter(1)
    verifying = CapacityLimiter(1)  # It takes minutes, and must not keep questions waiting.

    def ask(answer: _Answer, limiter: CapacityLimiter) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            query_string: bytes = request.scope["query_string"]
            body = await anyio.to_thread.run_sync(answer, ledger, query_string, limiter=limiter)
            return Response(body, media_type="application/json")

        return endpoint

    def ask_of_event(
        answer: Callable[[Ledger, str, bytes], bytes], limiter: CapacityLimiter
    ) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            query_string: bytes = request.scope["query_string"]
            name: str = request.path_params["id"]
            body = await anyio.to_thread.run_sync(
                answer, ledger, name, query_string, limiter=limiter
            )
            return Response(body, media_type="application/json")

        return endpoint

    streams = Streams(ledger, settings, stopping or asyncio.Event())
    routes = [
        Route("/", functools.partial(_root, ledger), methods=["GET"]),
        Route("/v1/events", ingest.post, methods=["POST"]),
        Route("/v1/events", ask(answer_events, queries), methods=["GET"]),
        Route("/v1/usage", usage.get, methods=["GET"]),
        Route("/v1/usage.{suffix}", usage.get, methods=["GET"]),
        Route("/v1/usage/query", usage.post, methods=["POST"]),
        Route("/v1/usage/query.{suffix}", usage.post, methods=["POST"]),
        Route("/v1/adjustments", adjustments.post, methods=["POST"]),
        Route("/v1/adjustments", ask(answer_adjustments, queries), methods=["GET"]),
        Route("/v1/dimensions", ask(answer_dimensions, queries), methods=["GET"]),
        Route("/v1/dimensions/{name}", dimensions.get, methods=["GET"]),
        Route("/v1/dimensions/{name}", dimensions.put, methods=["PUT"]),
        Route("/v1/events/stream", streams, methods=["GET"]),
        Route("/v1/events/{id}", ask_of_event(answer_event, queries), methods=["GET"]),
        Route("/v1/events/{id}/proof", ask_of_event(answer_proof, proving), methods=["GET"]),
        Route("/v1/checkpoints", ask(answer_checkpoint, proving), methods=["POST"]),
        Route("/v1/checkpoints", ask(answer_checkpoints, queries), methods=["GET"]),
        Route("/v1/rejections", ask(answer_rejections, queries), methods=["GET"]),
        Route("/v1/producers", ask(answer_producers, queries), methods=["GET"]),
        Route("/v1/verify", ask(answer_verify, verifying), methods=["GET"]),
        Route("/v1/backup", backups.post, methods=["POST"]),
        Route("/problems", _problems, methods=["GET"]),
        Route("/problems/{slug}", _problem, methods=["GET"]),
        Route("/healthz", _healthz, methods=["GET"]),
        Route("/readyz", functools.partial(_readyz, ledger), methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Edge)],
        exception_handlers={Problem: _refused, HTTPException: _http_exception},
    )
    # A redirect would make a sender post its events a second time, to a page.
    app.router.redirect_slashes = False
    return app


# -- small routes --------------------------------------------------------------------------


async def _root(ledger: Ledger, request: Request) -> Response:
    routes = [
        f"{method} {route.path}"
        for route in request.app.routes
        if isinstance(route, Route)
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]
    document = {
        "service": "tallybook",
        "version": __version__,
        "ledger": ledger.id,
        "position": str(ledger.position()),
        "routes": routes,
    }
    return Response(msgspec.json.encode(document), media_type="application/json")


async def _healthz(request: Request) -> Response:
    """The process lives and its loop turns; nothing else is asked."""
    return PlainTextResponse("ok\n")


async def _readyz(ledger: Ledger, request: Request) -> Response:
    """The ledger is open and its writer answers."""
    try:
        async with asyncio.timeout(READY_SECONDS_MAX):
            # Nothing is stored of an empty delivery, but it goes the way of any other.
            await asyncio.wrap_future(ledger.append(Delivery()))
    except Exception as error:
        logger.warning("not ready: %s: %s", type(error).__name__, error)
        return PlainTextResponse("not ready: the ledger does not take events\n", 503)
    return PlainTextResponse("ok\n")


async def _problems(request: Request) -> Response:
    kinds = [
        {"type": kind.path, "title": kind.title, "status": kind.status}
        for kind in PROBLEMS.values()
    ]
    return Response(msgspec.json.encode({"data": kinds}), media_type="application/json")


async def _problem(request: Request) -> Response:
    kind = PROBLEMS.get(request.path_params["slug"])
    if kind is None:
        raise HTTPException(404)
    return PlainTextResponse(problem_page(kind))


# -- refusals ------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Problem):
        raise error
    return error.response()


async def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path[:100]
    if error.status_code == 404:
        return Problem("not-found", f"there is nothing at {path!r}").response()
    if error.status_code == 405:
        # Starlette names the methods of the first route at this path only.
        allowed = ", ".join(sorted(_methods_at(request)))
        return Problem(
            "method-not-allowed",
            f"{path!r} does not take {request.method}; it takes {allowed}",
            headers={"Allow": allowed},
        ).response()
    # Starlette raises no others for the routes above; one that it learns must not pass as ours.
    raise error


def _methods_at(request: Request) -> set[str]:
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.path_regex.match(request.url.path):
            methods |= route.methods or set()
    return methods
