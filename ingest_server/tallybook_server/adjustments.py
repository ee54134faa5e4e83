"""
``/v1/adjustments``: corrections, in and out.

An adjustment is a signed quantity beside the events; a void takes back an event, or another
correction. Each needs an id, in the document or as the ``Idempotency-Key``: a correction
that is made twice because an answer was lost is a wrong invoice.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from tallybook.clock import Clock
from tallybook.errors import InvalidEvent, TallybookError
from tallybook.event import (
    check_dimension,
    check_key,
    check_source,
    check_tags,
    check_tenant,
    format_time,
    format_value,
    read_value,
)
from tallybook.limits import FUTURE_SECONDS_MAX
from tallybook_server.body import BodyBudget
from tallybook_server.catalogue import UnknownDimension
from tallybook_server.correction import Adjustment
from tallybook_server.documents import Document, bounded, read_document, wrong
from tallybook_server.event_filter import EventFilter
from tallybook_server.ingest import request_key
from tallybook_server.ledger import (
    AlreadyVoided,
    Corrected,
    CorrectionConflict,
    EventId,
    Ledger,
    LedgerBusy,
    LedgerFull,
    NothingToVoid,
    PositionUnknown,
    TooManyRuns,
    UnfitCorrection,
    VoidRequest,
)
from tallybook_server.limits import CORRECTION_ID_BYTES_MAX, REASON_BYTES_MAX
from tallybook_server.parameters import Parameters
from tallybook_server.problems import Problem, busy, full, unknown_dimension
from tallybook_server.question import TagFilter, read_position
from tallybook_server.rfc3339 import read_rfc3339
from tallybook_server.settings import Settings

__all__ = ["Adjustments", "AdjustmentsAnswer", "CorrectionDocument", "answer_adjustments"]

_EVENT_ID: Final = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,18})", re.ASCII)
_PRODUCER: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class ChoiceDocument(Document):
    """
    Which events to take back: all that pass everything that is given, and something must be.

    Attributes:
        producer: 32 hex digits: one process's life.
        source: The application's name.
        key: The idempotency key that the caller gave.
        id: The id that the event brought.
        dimension: What was used.
        tenant: Who used it; null: nobody. Absent: whoever.
        start: RFC 3339, the first moment, of the events' own time. ``from``.
        end: The first moment that no longer counts. ``to``.
        tags: The values that tags must have.
    """

    producer: str | None = None
    source: str | None = None
    key: str | None = None
    id: str | None = None
    dimension: str | None = None
    tenant: str | None = None
    start: str | None = Field(default=None, alias="from")
    end: str | None = Field(default=None, alias="to")
    tags: dict[str, str] = Field(default_factory=dict)


class CorrectionDocument(Document):
    """
    A correction, as it is posted: an adjustment, or with `void` a void.

    Attributes:
        id: What makes it this correction and no other; else the Idempotency-Key.
        reason: Why, for people.
        void: What to take back: an event, ``<producer>-<sequence>``, or the position of a
            correction, ``1.42``. Only `id` and `reason` go with it.
        void_where: Or which events. Only `id` and `reason` go with it.
        dimension: Whose sum is adjusted.
        value: By how much: decimal text, or an integer; may be negative.
        tenant: Whose usage; absent: nobody's.
        time: RFC 3339: the window that it falls into; absent: now.
        tags: As those of an event.
    """

    id: str | None = None
    reason: str
    void: str | None = None
    void_where: ChoiceDocument | None = None
    dimension: str | None = None
    value: str | int | None = None
    tenant: str | None = None
    time: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)


class ListedCorrection(BaseModel):
    """
    A correction that is in the ledger.

    Attributes:
        position: Its entry.
        kind: ``adjustment`` or ``void``.
        id: The caller's.
        reason: Why.
        recorded_at: RFC 3339.
        dimension: Of an adjustment, as the next four.
        value: Exact decimal text.
        tenant: Null: nobody's.
        time: RFC 3339.
        tags: By key.
        voids: Of a void: the position of the correction that it takes back, or null.
        events: Of a void: how many events it takes back.
        selection: Of a void: the filter that chose them, as JSON, or null.
    """

    model_config = ConfigDict(frozen=True)

    position: str
    kind: Literal["adjustment", "void"]
    id: str
    reason: str
    recorded_at: str
    dimension: str | None = None
    value: str | None = None
    tenant: str | None = None
    time: str | None = None
    tags: dict[str, str] | None = None
    voids: str | None = None
    events: int | None = None
    selection: str | None = None


class AdjustmentsAnswer(BaseModel):
    """A page of corrections; `next` is what to pass as ``after``, null on the last page."""

    model_config = ConfigDict(frozen=True)

    data: list[ListedCorrection]
    next: str | None


class Adjustments:
    """The way in for corrections. One per application."""

    def __init__(
        self, ledger: Ledger, settings: Settings, clock: Clock, budget: BodyBudget
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._budget = budget

    async def post(self, request: Request) -> Response:
        """
        Store a correction, then answer: 201, or 200 where it was there before.

        Raises:
            Problem: It was refused.
        """
        key = request_key(request.headers)
        document = await read_document(request, CorrectionDocument, self._settings, self._budget)
        correction = read_correction(document, key, now=self._clock.time_ns() // 1_000)
        # The ledger may have to load the tail to know a dimension: not on the loop.
        future = await asyncio.to_thread(self._ledger.correct, correction)
        try:
            corrected = await asyncio.shield(asyncio.wrap_future(future))
        except TallybookError as error:
            raise _problem(error) from error
        body = _listed(corrected).model_dump_json().encode()
        status = 200 if corrected.repeated else 201
        return Response(body, status, media_type="application/json")


def read_correction(
    document: CorrectionDocument, key: str | None, *, now: int
) -> Adjustment | VoidRequest:
    """
    The correction that the document describes.

    Args:
        document: As it was posted.
        key: The request's Idempotency-Key.
        now: Microseconds since 1970 UTC.

    Raises:
        Problem: A field is missing, out of its bounds, or does not go with another.
    """
    correction_id = _id(document, key)
    reason = bounded("reason", document.reason, REASON_BYTES_MAX, bytes_min=1)
    asked = document.model_fields_set - {"id", "reason"}
    if document.void is None and document.void_where is None:
        try:
            return _adjustment(document, correction_id, reason, now)
        except InvalidEvent as error:
            raise wrong(error.field, str(error)) from None
    if len(asked) > 1:
        raise wrong("void", f"{', '.join(sorted(asked))} do not go together; expected one of them")
    if document.void_where is not None:
        return VoidRequest(correction_id, reason, events=_choice(document.void_where))
    return _void(document.void or "", correction_id, reason)


def _choice(choice: ChoiceDocument) -> EventFilter:
    given = choice.model_fields_set
    if not given:
        raise wrong("void_where", "void_where is empty, which would take back everything")
    if choice.producer is not None and not _PRODUCER.fullmatch(choice.producer):
        raise wrong(
            "producer", f"producer is {choice.producer[:60]!r}; expected 32 hex digits, lower case"
        )
    try:
        for text, check in (
            (choice.source, check_source),
            (choice.key, check_key),
            (choice.id, check_key),
            (choice.tenant, check_tenant),
        ):
            check(text)
        if choice.dimension is not None:
            check_dimension(choice.dimension)
        start = None if choice.start is None else read_rfc3339(choice.start)
        end = None if choice.end is None else read_rfc3339(choice.end)
        tags = check_tags(choice.tags)
    except InvalidEvent as error:
        raise wrong(error.field, str(error)) from None
    if start is not None and end is not None and start >= end:
        raise wrong("to", f"to is {choice.end}; expected a moment after from, {choice.start}")
    return EventFilter(
        dimensions=None if choice.dimension is None else (choice.dimension,),
        tenants=(choice.tenant,) if "tenant" in given else None,
        tags=tuple(TagFilter(key, "in", (text,)) for key, text in tags.items()),
        start=start,
        end=end,
        producer=choice.producer,
        sources=None if choice.source is None else (choice.source,),
        key=choice.key,
        id=choice.id,
    )


def _id(document: CorrectionDocument, key: str | None) -> str:
    if document.id is not None and key is not None and document.id != key:
        raise wrong("id", f"id is {document.id[:60]!r}, the Idempotency-Key {key!r}: send one")
    chosen = document.id if document.id is not None else key
    if chosen is None:
        raise wrong(
            "id",
            "there is neither an id nor an Idempotency-Key: without one a repetition could not "
            "be told from another correction",
        )
    return bounded("id", chosen, CORRECTION_ID_BYTES_MAX, bytes_min=1)


def _adjustment(
    document: CorrectionDocument, correction_id: str, reason: str, now: int
) -> Adjustment:
    if document.dimension is None or document.value is None:
        missing = "dimension" if document.dimension is None else "value"
        raise wrong(missing, f"{missing} is missing: an adjustment has a dimension and a value")
    check_dimension(document.dimension)
    check_tenant(document.tenant)
    time = now if document.time is None else read_rfc3339(document.time)
    if time > now + FUTURE_SECONDS_MAX * 1_000_000:
        raise wrong(
            "time",
            f"time is {format_time(time)}; expected at most {FUTURE_SECONDS_MAX} s ahead of the "
            f"server's clock, {format_time(now)}",
        )
    return Adjustment(
        id=correction_id,
        dimension=document.dimension,
        value=_signed(document.value),
        tenant=document.tenant,
        time=time,
        tags=check_tags(document.tags),
        reason=reason,
        given=document.time is not None,
    )


def _signed(value: str | int) -> tuple[int, int]:
    text = str(value)
    mantissa, scale = read_value(text.removeprefix("-"))
    if not mantissa:
        raise wrong("value", f"value is {text[:60]!r}; expected a quantity that is not zero")
    return (-mantissa if text.startswith("-") else mantissa), scale


def _void(what: str, correction_id: str, reason: str) -> VoidRequest:
    event, correction = _EVENT_ID.fullmatch(what), read_position(what)
    if event is not None and int(event[2]) < 2**63:
        return VoidRequest(correction_id, reason, event=EventId(event[1], int(event[2])))
    if correction is not None:
        return VoidRequest(correction_id, reason, corrects=correction)
    raise wrong(
        "void",
        f"void is {what[:80]!r}; expected an event, <32 hex digits>-<sequence>, or the position "
        "of a correction, such as 1.42",
    )


def _problem(error: TallybookError) -> TallybookError | Problem:
    """What the ledger refused, for the client; anything else is our fault, and stays what it is."""
    if isinstance(error, LedgerBusy):
        return busy(error)
    if isinstance(error, LedgerFull):
        return full(error)
    if isinstance(error, UnknownDimension):
        return unknown_dimension(error)
    if isinstance(error, CorrectionConflict):
        return Problem("correction-conflict", str(error), more={"position": error.position})
    for kind, slug in (
        (NothingToVoid, "nothing-to-void"),
        (AlreadyVoided, "already-voided"),
        (UnfitCorrection, "correction-unfit"),
        (TooManyRuns, "too-many-places"),
        (PositionUnknown, "position-unknown"),
    ):
        if isinstance(error, kind):
            return Problem(slug, str(error))
    return error


def answer_adjustments(ledger: Ledger, query_string: bytes) -> bytes:
    """The JSON of a page of corrections. Blocks; raises Problem for a wrong parameter."""
    (after, _), limit = Parameters(query_string, ("after", "limit")).page()
    rows = [_listed(one) for one in ledger.corrections(after=after, limit=limit)]
    following = rows[-1].position.partition(".")[2] if len(rows) == limit else None
    return AdjustmentsAnswer(data=rows, next=following).model_dump_json().encode()


def _listed(corrected: Corrected) -> ListedCorrection:
    one = corrected.correction
    position, recorded_at = str(corrected.position), format_time(one.recorded_at)
    if isinstance(one, Adjustment):
        return ListedCorrection(
            position=position,
            kind="adjustment",
            id=one.id,
            reason=one.reason,
            recorded_at=recorded_at,
            dimension=one.dimension,
            value=format_value(*one.value),
            tenant=one.tenant,
            time=format_time(one.time),
            tags=one.tags,
        )
    incarnation = corrected.position.incarnation
    return ListedCorrection(
        position=position,
        kind="void",
        id=one.id,
        reason=one.reason,
        recorded_at=recorded_at,
        voids=f"{incarnation}.{one.corrects}" if one.corrects else None,
        events=one.events,
        selection=one.selection or None,
    )
