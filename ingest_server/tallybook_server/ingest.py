"""
``POST /v1/events``: bytes to a delivery, and an acknowledgement to an answer.

Blocks are the hot path: they are cut apart and handed on as views of the body, and the
ledger looks into them. JSON events are read one by one, each accepted or kept as a
rejection. Either way the answer goes out after the durable commit, and says of each block
or event what became of it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Literal, TypeVar

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from tallybook import wire
from tallybook.clock import Clock
from tallybook.errors import MessageDamaged
from tallybook.wire import Exceptions
from tallybook_server.body import BodyBudget, read_body
from tallybook_server.event_json import read_events
from tallybook_server.json_body import JSON, check_content_type
from tallybook_server.ledger import (
    Acknowledgement,
    Delivery,
    Ledger,
    LedgerBusy,
    LedgerFull,
    OfferedEvent,
    Position,
    RejectedEvent,
)
from tallybook_server.limits import (
    IDEMPOTENCY_KEY_BYTES_MAX,
    INGEST_THREADS_MAX,
    INLINE_BYTES_MAX,
)
from tallybook_server.problems import PROBLEMS, Problem, busy, full, slug_of
from tallybook_server.settings import Settings

__all__ = ["EventResult", "Ingest", "JsonAnswer", "request_key"]

_T = TypeVar("_T")


class EventResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What became of one JSON event.

    Attributes:
        index: Its place in the request, from 0.
        status: ``accepted``; ``duplicate``: held already, success as well; ``conflict``:
            another event has its identity; ``rejected``: not acceptable, kept all the same.
        position: Its place in the ledger.
        reason: A stable word, unless accepted.
        detail: What is wrong and what to do, unless accepted.
        type: The address of the problem's page, with ``conflict`` and ``rejected``.
    """

    index: int
    status: Literal["accepted", "duplicate", "conflict", "rejected"]
    position: str | None = None
    reason: str | None = None
    detail: str | None = None
    type: str | None = None


class JsonAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """
    The answer to JSON events, sent after the durable commit.

    Attributes:
        ledger: The ledger's id.
        incarnation: From 1; one more after each restore.
        position: The ledger's head.
        accepted: Events counted.
        duplicates: Events held already.
        conflicts: Events whose identity another event holds; not counted.
        rejected: Events not acceptable; not counted, kept.
        results: One per event, in order.
    """

    ledger: str
    incarnation: int
    position: str
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    results: list[EventResult]


class Ingest:
    """The way in. One per application."""

    def __init__(
        self, ledger: Ledger, settings: Settings, clock: Clock, budget: BodyBudget
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._budget = budget
        self._threads = CapacityLimiter(INGEST_THREADS_MAX)

    async def post(self, request: Request) -> Response:
        """
        Store what the request brings, then answer.

        Raises:
            Problem: The request is refused as a whole; nothing of it was stored.
        """
        headers = request.headers
        kind = check_content_type(headers, JSON, wire.CONTENT_TYPE)
        # Checked before the body is read: what is refused anyway should not cost the sender.
        key = request_key(headers) if kind == JSON else None
        # The body's memory is held, and counted, until the ledger has it on disk.
        async with read_body(request.receive, headers, self._settings, self._budget) as body:
            if kind == wire.CONTENT_TYPE:
                return await self._blocks(body)
            return await self._events(body, key)

    async def _blocks(self, body: bytes) -> Response:
        try:
            announcement, blocks = wire.read_request(body)
        except MessageDamaged as error:
            raise Problem("request-damaged", str(error)) from None
        if announcement.ledger is not None and announcement.ledger != self._ledger.id:
            raise Problem(
                "wrong-ledger",
                f"the queue belongs to the ledger {announcement.ledger[:64]!r}; this one is "
                f"{self._ledger.id!r}",
                more={"ledger": self._ledger.id},
            )
        done = await self._append(len(body), Delivery(announcement=announcement, blocks=blocks))
        return Response(wire.encode_answer(done.answer()), media_type=JSON)

    async def _events(self, body: bytes, request_key: str | None) -> Response:
        read = functools.partial(
            read_events,
            body,
            now=self._clock.time_ns() // 1_000,
            request_key=request_key,
            events_max=self._settings.events_max,
        )
        events, alone = await self._work(len(body), read)
        if events:
            done = await self._append(len(body), Delivery(events=events))
        else:
            done = Acknowledgement(self._ledger.id, self._ledger.position(), 0)
        answer = _json_answer(done, events)
        if alone and answer.rejected:
            return _lone_rejection(answer.results[0])
        return Response(msgspec.json.encode(answer), media_type=JSON)

    async def _append(self, size: int, delivery: Delivery) -> Acknowledgement:
        try:
            # The ledger decodes and validates before it returns the future.
            future = await self._work(size, functools.partial(self._ledger.append, delivery))
            # The shield: a request that is given up must not cancel a commit under way.
            return await asyncio.shield(asyncio.wrap_future(future))
        except LedgerBusy as error:
            raise busy(error) from error
        except LedgerFull as error:
            raise full(error) from error

    async def _work(self, size: int, work: Callable[[], _T]) -> _T:
        """The result of *work*, in a thread if the body's *size* makes it long."""
        if size <= INLINE_BYTES_MAX:
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self._threads)


def request_key(headers: Headers) -> str | None:
    """
    The request's ``Idempotency-Key``, or None.

    Raises:
        Problem: There are several, or it is out of its bounds.
    """
    keys = headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or not (
        1 <= len(key) <= IDEMPOTENCY_KEY_BYTES_MAX and key.isascii() and key.isprintable()
    ):
        raise Problem(
            "idempotency-key-invalid",
            f"{len(keys)} Idempotency-Key fields, the first of {len(key)} bytes; expected one, of "
            f"1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters",
        )
    return key


# -- the answer to JSON events -------------------------------------------------------------


def _json_answer(done: Acknowledgement, events: list[OfferedEvent | RejectedEvent]) -> JsonAnswer:
    results = [
        _result(index, event, verdict, Position(done.position.incarnation, n), done.position)
        for index, (event, verdict, n) in enumerate(
            zip(events, done.verdicts, done.position_of, strict=True)
        )
    ]
    statuses = [result.status for result in results]
    return JsonAnswer(
        ledger=done.ledger,
        incarnation=done.position.incarnation,
        position=str(done.position),
        accepted=statuses.count("accepted"),
        duplicates=statuses.count("duplicate"),
        conflicts=statuses.count("conflict"),
        rejected=statuses.count("rejected"),
        results=results,
    )


def _result(
    index: int,
    event: OfferedEvent | RejectedEvent,
    verdict: Exceptions | None,
    position: Position,
    head: Position,
) -> EventResult:
    if verdict is None or verdict.verdict == "flagged":
        return EventResult(
            index=index,
            status="accepted",
            position=str(position),
            reason=verdict.reason if verdict else None,
        )
    holder = Position(head.incarnation, verdict.reference)
    if verdict.verdict == "duplicate":
        return EventResult(
            index=index,
            status="duplicate",
            position=str(position),
            reason=verdict.reason,
            detail=f"held already, at position {holder}: nothing to do",
        )
    kind = PROBLEMS[slug_of(verdict.verdict, verdict.reason)]
    if verdict.verdict == "conflict":
        detail = f"another event holds this {verdict.reason}, at position {holder}. {kind.advice}"
    elif isinstance(event, RejectedEvent):
        detail = event.detail
    else:
        detail = f"{kind.title} {kind.advice}"
    return EventResult(
        index=index,
        status=verdict.verdict,
        position=str(position),
        reason=verdict.reason,
        detail=detail,
        type=kind.path,
    )


def _lone_rejection(result: EventResult) -> Response:
    """A problem document, so that whoever posts one event by hand sees what is wrong."""
    slug = slug_of(result.status, result.reason or "event")
    kind = PROBLEMS[slug]
    more = {"status": 422, "reason": result.reason, "position": result.position, "kept": True}
    response = Problem(slug, result.detail or kind.title, more=more).response()
    response.status_code = 422
    return response
