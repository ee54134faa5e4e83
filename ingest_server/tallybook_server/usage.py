"""
``GET /v1/usage``: who used how much of what, when.

The question is read strictly and the answer names what it rests on: the ledger's position,
whether anything is known to be missing, and the version of the time zone rules.
"""

from __future__ import annotations

import functools
from typing import Final
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field

from tallybook.errors import InvalidEvent
from tallybook.event import check_dimension, check_tags, check_tenant, format_time
from tallybook.limits import TAGS_MAX
from tallybook_server.ledger import Ledger, TooManyRows
from tallybook_server.parameters import Parameters, invalid
from tallybook_server.problems import Problem, nearest
from tallybook_server.question import (
    Aggregation,
    TagFilter,
    Usage,
    UsageQuery,
    UsageRow,
    Window,
)

__all__ = ["UsageAnswer", "UsageAnswerRow", "answer_usage", "read_query"]

_PARAMETERS: Final = (
    "dimension",
    "tenant",
    "from",
    "to",
    "window",
    "time_zone",
    "group_by",
    "aggregation",
)
_TAG: Final = "tag."
_WINDOWS: Final[tuple[Window, ...]] = ("none", "hour", "day")
_AGGREGATIONS: Final[tuple[Aggregation, ...]] = ("sum", "count")


class UsageAnswerRow(BaseModel):
    """
    One row.

    Attributes:
        start: The window's beginning, or the question's; null: open. Called ``from``.
        end: The first moment behind it; null: open. Called ``to``.
        tenant: With ``group_by=tenant``; null is unattributed.
        tags: The values of the tags that were grouped by; one that the events lack is absent.
        value: Exact decimal text.
        events: How many events it rests on.
    """

    model_config = ConfigDict(frozen=True)

    start: str | None = Field(serialization_alias="from")
    end: str | None = Field(serialization_alias="to")
    tenant: str | None
    tags: dict[str, str]
    value: str | None
    events: int


class UsageAnswer(BaseModel):
    """
    An answer.

    Attributes:
        dimension: As asked.
        aggregation: As asked.
        start: As asked, in UTC. Called ``from``.
        end: As asked, in UTC. Called ``to``.
        window: As asked.
        time_zone: As asked.
        position: The ledger's position that the answer holds for.
        complete: Nothing is known to be missing.
        through: Everything recorded before is in; null: nobody records, or some is missing.
        producers: The counts behind `complete`.
        tzdata: The version of the time zone rules.
        data: Ordered by window, tenant, tags.
    """

    model_config = ConfigDict(frozen=True)

    dimension: str
    aggregation: Aggregation
    start: str | None = Field(serialization_alias="from")
    end: str | None = Field(serialization_alias="to")
    window: Window
    time_zone: str
    position: str
    complete: bool
    through: str | None
    producers: dict[str, int | list[str]]
    tzdata: str
    data: list[UsageAnswerRow]


def answer_usage(ledger: Ledger, query_string: bytes) -> bytes:
    """
    The answer's JSON. Blocks for as long as the ledger takes: call it in a thread.

    Raises:
        Problem: A parameter is wrong, or the answer has too many rows.
    """
    query = read_query(query_string)
    try:
        usage = ledger.aggregate(query)
    except TooManyRows as error:
        raise Problem("too-many-rows", str(error), more={"rows_max": query.limit}) from None
    return _answer(query, usage).model_dump_json(by_alias=True).encode()


def read_query(query_string: bytes) -> UsageQuery:
    """
    The question.

    Raises:
        Problem: What is wrong with it; nothing is passed over.
    """
    parameters = Parameters(query_string, _PARAMETERS, prefix=_TAG)
    try:
        by_tenant, by_tags = _groups(parameters)
        start, end = parameters.moment("from"), parameters.moment("to")
        window = parameters.word("window", _WINDOWS)
        _check_range(start, end, window)
        tenant = parameters.one("tenant")
        if tenant:
            check_tenant(tenant)
        dimension = parameters.required("dimension", "http.requests")
        check_dimension(dimension)
        where = check_tags(dict(parameters.tagged(_TAG)))
    except InvalidEvent as error:
        raise invalid(error.field, str(error)) from None
    return UsageQuery(
        dimensions=(dimension,),
        tenants=None if tenant is None else (tenant or None,),
        start=start,
        end=end,
        window=window,
        time_zone=_time_zone(parameters),
        by_tenant=by_tenant,
        by_tags=by_tags,
        filters=tuple(TagFilter(key, "in", (text,)) for key, text in where.items()),
        aggregation=parameters.word("aggregation", _AGGREGATIONS),
    )


def _groups(parameters: Parameters) -> tuple[bool, tuple[str, ...]]:
    by_tenant = False
    keys: dict[str, str] = {}
    for name in ",".join(parameters.all("group_by")).split(","):
        if name == "tenant":
            by_tenant = True
        elif name.removeprefix("tag:"):
            keys[name.removeprefix("tag:")] = ""
        elif parameters.all("group_by"):
            raise invalid(
                "group_by",
                f"group_by has an empty name in {parameters.all('group_by')}; expected tenant, or "
                "tag:<key>",
            )
    if len(keys) > TAGS_MAX:
        raise invalid("group_by", f"group_by names {len(keys)} tags; expected at most {TAGS_MAX}")
    return by_tenant, tuple(check_tags(keys))


def _check_range(start: int | None, end: int | None, window: Window) -> None:
    if window != "none" and (start is None or end is None):
        raise Problem(
            "parameter-missing",
            f"window={window} needs both from and to: without them there is no first window or "
            "no last one",
            more={"parameter": "from" if start is None else "to"},
        )
    if start is not None and end is not None and start >= end:
        raise invalid(
            "to",
            f"to is {format_time(end)}; expected a moment after from, {format_time(start)}: the "
            "range is half-open",
        )


def _time_zone(parameters: Parameters) -> str:
    name = parameters.one("time_zone")
    if name is None:
        return "UTC"
    # Membership, not ZoneInfo(name): that one opens a file that the name leads to.
    if name not in _zones():
        raise Problem(
            "time-zone-unknown",
            f"time_zone is {name[:60]!r}; expected an IANA name such as Europe/Berlin."
            f"{nearest(name, _zones())}",
            more={"parameter": "time_zone"},
        )
    return name


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


# -- the answer ----------------------------------------------------------------------------


def _answer(query: UsageQuery, usage: Usage) -> UsageAnswer:
    return UsageAnswer(
        dimension=query.dimensions[0],
        aggregation=query.aggregation or "sum",
        start=_moment(query.start),
        end=_moment(query.end),
        window=query.window,
        time_zone=query.time_zone,
        position=str(usage.position),
        complete=usage.complete,
        through=_moment(usage.through),
        producers=usage.producers,
        tzdata=usage.tzdata,
        data=[_row(row) for row in usage.rows],
    )


def _row(row: UsageRow) -> UsageAnswerRow:
    return UsageAnswerRow(
        start=_moment(row.start),
        end=_moment(row.end),
        tenant=row.tenant,
        tags=row.tags,
        value=row.value,
        events=row.events,
    )


def _moment(time: int | None) -> str | None:
    return None if time is None else format_time(time)
