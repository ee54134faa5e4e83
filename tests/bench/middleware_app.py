"""
The application that the middleware is measured in: one route with a parameter, a JSON answer.

    python -m tests.bench.middleware_app bare|tallybook|opentelemetry DIRECTORY PORT
"""

from __future__ import annotations

import sys
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

__all__ = ["KINDS"]

KINDS: Final = ("bare", "tallybook", "opentelemetry")


async def _item(request: Request) -> JSONResponse:
    item = request.path_params["item"]
    return JSONResponse({"item": item, "name": f"Item {item}", "tags": ["a", "b"], "price": "9.95"})


def _application(kind: str, directory: str) -> Any:
    # Anything that an ASGI server takes: the three wrappers have no type in common.
    app = Starlette(routes=[Route("/v1/items/{item}", _item)])
    if kind == "tallybook":
        from tallybook import Meter
        from tallybook.middleware import UsageMiddleware, header

        meter = Meter("bench", directory=directory)
        app.add_middleware(UsageMiddleware, meter=meter, tenant=header("x-tenant-id"))
    if kind == "opentelemetry":
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.trace import NoOpTracerProvider

        provider = MeterProvider([InMemoryMetricReader()])
        tracers = NoOpTracerProvider()
        return OpenTelemetryMiddleware(app, tracer_provider=tracers, meter_provider=provider)
    return app


if __name__ == "__main__":
    kind, directory, port = sys.argv[1:]
    uvicorn.run(
        _application(kind, directory),
        host="127.0.0.1",
        port=int(port),
        log_level="warning",
        access_log=False,
    )
