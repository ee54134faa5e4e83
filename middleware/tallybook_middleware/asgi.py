"""
Raw ASGI: `UsageMiddleware`. What happens to one request is in `exchange`.

Raw, and not a BaseHTTPMiddleware: that one runs the application in another task, where
background tasks are cancelled and context variables are lost (Kludex/starlette#919, #1438).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from tallybook import Meter
from tallybook.clock import Clock
from tallybook.tenant import hold, release
from tallybook_middleware.exchange import Exchange, HttpExchange, Message, Receive, Scope, Send
from tallybook_middleware.measure import Measure
from tallybook_middleware.recorder import SEEN, Exclude, OnMissing, Recorder
from tallybook_middleware.resolve import Resolver
from tallybook_middleware.websocket import WebSocketExchange

__all__ = ["UsageMiddleware"]

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FLUSH_SECONDS_MAX: Final = 2.0
"""How long the flush may hold up the server's shutdown. What is not sent by then is on disk."""


class UsageMiddleware:
    """
    Records each HTTP request and websocket connection of an ASGI application.

    ::

        app.add_middleware(UsageMiddleware, tenant=header("x-tenant-id"))

    A request is recorded before the message that completes its response is handed on. No
    request fails, and none waits for the network, because of it.

    Args:
        app: The application.
        meter: Where it records; by default `tallybook.default_meter()`, from the first
            request on.
        tenant: A resolver: ``header(...)``, ``path_param(...)``, ``state(...)``, or a
            callable of the scope, sync or async. It is asked before the application runs,
            so that what the application records has the tenant, too, and again when the
            response is complete, if it found nothing or is async. Where it finds nothing
            then, `tallybook.tenant` decides.
        tags: More tags by name: fixed text, or a resolver. One that finds nothing, or
            something invalid, is left out.
        measure: Beside the number of requests: ``"request_bytes"``, ``"response_bytes"``,
            ``"duration"``.
        exclude: What is not recorded: methods and exact paths, or a callable of the scope.
        on_missing: Without a tenant: ``"unattributed"`` records without one, ``"skip"``
            records nothing, ``"refuse"`` answers 403 before the application runs.
        clock: For tests.

    Raises:
        ValueError: An option has a value that it cannot have.
    """

    def __init__(
        self,
        app: Application,
        *,
        meter: Meter | None = None,
        tenant: Resolver | None = None,
        tags: Mapping[str, str | Resolver] | None = None,
        measure: Collection[Measure] = (),
        exclude: Exclude = ("OPTIONS",),
        on_missing: OnMissing = "unattributed",
        clock: Clock | None = None,
    ) -> None:
        self.app = app
        self._recorder = Recorder(
            meter=meter,
            tenant=tenant,
            tags=tags,
            measure=measure,
            exclude=exclude,
            on_missing=on_missing,
            clock=clock,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if SEEN in scope or kind not in ("http", "websocket", "lifespan"):
            await self.app(scope, receive, send)
            return
        scope[SEEN] = True
        if kind == "lifespan":
            await self.app(scope, receive, self._flush_at_the_end(send))
            return
        exchange = self._begin(scope, receive, send)
        if exchange is None:
            await self.app(scope, receive, send)
        elif self._recorder.refuses and not await exchange.admit():
            await exchange.refuse()
        else:
            await self._run(exchange)

    def _begin(self, scope: Scope, receive: Receive, send: Send) -> Exchange | None:
        kind = HttpExchange if scope["type"] == "http" else WebSocketExchange
        try:
            return kind(self._recorder, scope, receive, send)
        except Exception as error:
            self._recorder.faults.tell("a request could not be observed", error)
            return None

    async def _run(self, exchange: Exchange) -> None:
        # A new holder, and no tenant: the next request of a connection begins in the context
        # that the one before it left.
        tokens = hold()
        try:
            exchange.begin(tokens[0])
            await self.app(exchange.scope, exchange.receive, exchange.send)
        except BaseException as error:
            await exchange.raised(error)
            raise
        else:
            await exchange.returned()
        finally:
            release(tokens)

    def _flush_at_the_end(self, send: Send) -> Send:
        async def flush_then_send(message: Message) -> None:
            if message.get("type") in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._recorder.writer.aflush(FLUSH_SECONDS_MAX)
            await send(message)

        return flush_then_send
