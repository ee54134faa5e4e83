"""
The alternative that ingest is measured against: FastAPI, pydantic, PostgreSQL by COPY.

As good as it gets without leaving those three: the body is validated straight from its
bytes, connections are per thread, a list is copied into a temporary table and inserted
from there with its ids unique, and committed before the answer.

    python -m tests.bench.postgres_app "host=... dbname=..." PORT
"""

from __future__ import annotations

import sys
import threading
from decimal import Decimal
from typing import Annotated, Final

import psycopg
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

__all__ = ["SCHEMA"]

SCHEMA: Final = """
create table events (
    id uuid primary key,
    tenant text,
    dimension text not null,
    value numeric(38, 9) not null,
    time bigint not null,
    tags jsonb not null
)
"""
_STAGING: Final = """
create temp table staging (
    id uuid, tenant text, dimension text, value numeric(38, 9), time bigint, tags jsonb
) on commit delete rows
"""
_COPY: Final = "copy staging (id, tenant, dimension, value, time, tags) from stdin"
_INSERT: Final = "insert into events select * from staging on conflict (id) do nothing"

_TagKey = Annotated[str, Field(min_length=1, max_length=64)]
_TagValue = Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class Event(BaseModel):
    """The same fields and bounds as a tallybook event."""

    id: Annotated[str, Field(min_length=32, max_length=36)]
    tenant: Annotated[str, Field(min_length=1, max_length=255)] | None
    dimension: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-z0-9_.\-]+$")]
    value: Annotated[Decimal, Field(ge=0, max_digits=38, decimal_places=9)]
    time: int
    tags: Annotated[dict[_TagKey, _TagValue], Field(max_length=32)]


_events: Final = TypeAdapter(list[Event])
_own = threading.local()
_dsn = ""
app: Final = FastAPI()


@app.post("/events")
async def post(request: Request) -> dict[str, int]:
    """Store a list of events."""
    body = await request.body()
    return {"stored": await run_in_threadpool(_store, body)}


def _store(body: bytes) -> int:
    try:
        events = _events.validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, str(error)) from None
    connection = _connection()
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(_COPY) as copy:
            for e in events:
                copy.write_row(
                    (e.id, e.tenant, e.dimension, e.value, e.time, to_json(e.tags).decode())
                )
        cursor.execute(_INSERT)
        return cursor.rowcount


def _connection() -> psycopg.Connection:
    connection: psycopg.Connection | None = getattr(_own, "connection", None)
    if connection is None:
        connection = _own.connection = psycopg.connect(_dsn, autocommit=True)
        connection.execute(_STAGING)
    return connection


if __name__ == "__main__":
    _dsn = sys.argv[1]
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
