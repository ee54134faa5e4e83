"""
``/v1/dimensions``: the catalogue, in and out.

A dimension needs no declaration to be recorded or asked about; until it has one it is a sum
without a unit. ``PUT`` declares it, from a moment on or for all of its usage.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from tallybook.errors import InvalidEvent
from tallybook.event import check_dimension, check_tags, format_time
from tallybook_server.body import BodyBudget
from tallybook_server.catalogue import Declaration, UnknownDimension
from tallybook_server.documents import Document, bounded, read_document, wrong
from tallybook_server.ledger import Ledger, LedgerBusy, LedgerFull
from tallybook_server.limits import DESCRIPTION_BYTES_MAX, UNIT_BYTES_MAX
from tallybook_server.parameters import Parameters
from tallybook_server.problems import Problem, busy, full, unknown_dimension
from tallybook_server.question import Aggregation, UnanswerableQuestion, read_percentile
from tallybook_server.rfc3339 import read_rfc3339
from tallybook_server.settings import Settings

__all__ = ["DimensionDocument", "Dimensions", "DimensionsAnswer", "answer_dimensions"]

_TAG = "tag:"


class DimensionDocument(Document):
    """
    What a dimension is declared to be.

    Attributes:
        unit: What it is counted in: ``"request"``, ``"GB"``.
        aggregation: How it is added up.
        unique_of: With ``unique``: ``tag:<key>``, or ``value``.
        percentile: With ``percentile``: which, as decimal text: ``"99.9"``.
        description: For people.
        start: RFC 3339: for usage from this moment on; null or absent: for all of it. ``from``.
    """

    unit: str = ""
    aggregation: Aggregation = "sum"
    unique_of: str | None = None
    percentile: str | None = None
    description: str = ""
    start: str | None = Field(default=None, alias="from")


class ListedDimension(BaseModel):
    """
    What holds for a dimension.

    Attributes:
        dimension: Its name.
        unit: As declared.
        aggregation: As declared.
        unique_of: ``tag:<key>``, ``value``, or null.
        percentile: Decimal text, or null.
        description: As declared.
        start: Since when, RFC 3339; null: always. Called ``from``.
        position: The entry that says so; null: nothing was declared.
    """

    model_config = ConfigDict(frozen=True)

    dimension: str
    unit: str
    aggregation: Aggregation
    unique_of: str | None
    percentile: str | None
    description: str
    start: str | None = Field(serialization_alias="from")
    position: str | None


class DimensionsAnswer(BaseModel):
    """Each dimension and what holds now; or one, and everything that was ever declared of it."""

    model_config = ConfigDict(frozen=True)

    data: list[ListedDimension]


class Dimensions:
    """The way in for declarations, and one dimension out. One per application."""

    def __init__(self, ledger: Ledger, settings: Settings, budget: BodyBudget) -> None:
        self._ledger = ledger
        self._settings = settings
        self._budget = budget

    async def put(self, request: Request) -> Response:
        """
        Declare a dimension, then answer with what is declared; the same again changes nothing.

        Raises:
            Problem: It was refused.
        """
        name = _name(request)
        document = await read_document(request, DimensionDocument, self._settings, self._budget)
        future = self._ledger.declare(read_declaration(name, document))
        try:
            declared = await asyncio.shield(asyncio.wrap_future(future))
        except LedgerBusy as error:
            raise busy(error) from error
        except LedgerFull as error:
            raise full(error) from error
        body = _listed(declared, self._ledger.position().incarnation).model_dump_json(by_alias=True)
        return Response(body.encode(), media_type="application/json")

    async def get(self, request: Request) -> Response:
        """
        Everything that was ever declared of one dimension, in the ledger's order.

        Raises:
            Problem: There is no such dimension.
        """
        name = _name(request)
        Parameters(request.scope["query_string"], ())
        history = self._ledger.catalogue().history(name)
        if not history:
            known = {one.name: one for one in await asyncio.to_thread(self._ledger.dimensions)}
            if name not in known:
                raise unknown_dimension(UnknownDimension(name, known))
            history = (known[name],)
        return Response(_answer(list(history), self._ledger), media_type="application/json")


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    try:
        check_dimension(name)
    except InvalidEvent as error:
        raise Problem("document-invalid", str(error), more={"field": "dimension"}) from None
    return name


def read_declaration(name: str, document: DimensionDocument) -> Declaration:
    """
    The declaration that the document describes.

    Raises:
        Problem: A field is out of its bounds, or does not go with the aggregation.
    """
    try:
        start = None if document.start is None else read_rfc3339(document.start)
    except InvalidEvent as error:
        raise wrong("from", f"from: {error}") from None
    return Declaration(
        name=name,
        unit=bounded("unit", document.unit, UNIT_BYTES_MAX),
        aggregation=document.aggregation,
        unique_of=_unique_of(document),
        percentile=_percentile(document),
        description=bounded("description", document.description, DESCRIPTION_BYTES_MAX),
        start=start,
    )


def _unique_of(document: DimensionDocument) -> str | None:
    given = document.unique_of
    if given is None:
        if document.aggregation == "unique":
            raise wrong("unique_of", "unique_of is missing; expected tag:<key>, or value")
        return None
    if document.aggregation != "unique":
        raise wrong("unique_of", f"unique_of goes with unique, not with {document.aggregation}")
    if given == "value":
        return None
    key = given.removeprefix(_TAG)
    if key == given:
        raise wrong("unique_of", f"unique_of is {given[:80]!r}; expected tag:<key>, or value")
    try:
        check_tags({key: ""})
    except InvalidEvent as error:
        raise wrong("unique_of", str(error)) from None
    return key


def _percentile(document: DimensionDocument) -> str | None:
    if document.percentile is None:
        if document.aggregation == "percentile":
            raise wrong("percentile", 'percentile is missing; expected, for example, "99"')
        return None
    if document.aggregation != "percentile":
        raise wrong(
            "percentile", f"percentile goes with percentile, not with {document.aggregation}"
        )
    try:
        read_percentile(document.percentile)
    except UnanswerableQuestion as error:
        raise wrong("percentile", str(error)) from None
    return document.percentile


def answer_dimensions(ledger: Ledger, query_string: bytes) -> bytes:
    """The JSON of every dimension. Blocks; raises Problem for a parameter: there are none."""
    Parameters(query_string, ())
    return _answer(ledger.dimensions(), ledger)


def _answer(declarations: list[Declaration], ledger: Ledger) -> bytes:
    incarnation = ledger.position().incarnation
    rows = [_listed(one, incarnation) for one in declarations]
    return DimensionsAnswer(data=rows).model_dump_json(by_alias=True).encode()


def _listed(one: Declaration, incarnation: int) -> ListedDimension:
    unique_of = None
    if one.aggregation == "unique":
        unique_of = "value" if one.unique_of is None else f"{_TAG}{one.unique_of}"
    return ListedDimension(
        dimension=one.name,
        unit=one.unit,
        aggregation=one.aggregation,
        unique_of=unique_of,
        percentile=one.percentile,
        description=one.description,
        start=None if one.start is None else format_time(one.start),
        position=f"{incarnation}.{one.position}" if one.position else None,
    )
