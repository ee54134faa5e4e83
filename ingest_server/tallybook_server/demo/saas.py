"""
A small SaaS, metered by tallybook: an example to copy.

The line with the middleware makes one event of `http.requests` of every request, for the
tenant that the request names. The line in `complete` records what this SaaS really sells.
Where the events go is not in the code; it is in the environment::

    export TALLYBOOK_ENDPOINT=http://127.0.0.1:8255 TALLYBOOK_SOURCE=saas
    uvicorn tallybook_server.demo.saas:app
"""

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tallybook import default_meter
from tallybook.middleware import UsageMiddleware, header

meter = default_meter()  # The one that TALLYBOOK_* describes; the middleware uses the same.


async def list_documents(request: Request) -> JSONResponse:
    return JSONResponse({"documents": [1, 2, 3]})


async def show_document(request: Request) -> JSONResponse:
    # Usage is kept by route, `/v1/documents/{id}`, and not by each document's address.
    return JSONResponse({"id": request.path_params["id"]})


async def complete(request: Request) -> JSONResponse:
    prompt = (await request.json())["prompt"]
    await asyncio.sleep(0.02)  # The model thinks.
    tokens = len(prompt.split())
    meter.record(
        "tokens.output",
        tokens,  # A number is kept exactly: an int, or a Decimal.
        tags={"request": request.headers["x-request-id"]},
    )
    await asyncio.sleep(0.01)  # A worker that dies here has recorded and not answered.
    return JSONResponse({"tokens": tokens})


app = Starlette(
    routes=[
        Route("/v1/documents", list_documents),
        Route("/v1/documents/{id}", show_document),
        Route("/v1/completions", complete, methods=["POST"]),
    ]
)
app.add_middleware(
    UsageMiddleware, tenant=header("x-tenant-id"), tags={"request": header("x-request-id")}
)
