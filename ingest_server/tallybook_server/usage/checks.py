"""
Whether a question makes sense, and the same question as the ledger takes it. Pure.

What contradicts itself, or lacks what it needs, is refused by name: half of a question
that is passed over would be the answer to another one, and an invoice is sent from it.
"""

from __future__ import annotations

import functools
from typing import Final
from zoneinfo import available_timezones

from tallybook.errors import InvalidEvent
from tallybook.event import (
    check_dimension,
    check_tag_key,
    check_tenant,
    format_time,
    format_value,
    read_value,
)
from tallybook.limits import TAGS_MAX
from tallybook_server.limits import USAGE_ROWS_MAX
from tallybook_server.parameters import invalid, one_of, read_moment
from tallybook_server.problems import Problem, nearest
from tallybook_server.question import (
    AGGREGATIONS,
    ORDERS,
    WINDOWS,
    Aggregation,
    Order,
    Position,
    UnanswerableQuestion,
    UsageQuery,
    Window,
    read_percentile,
    read_position,
)
from tallybook_server.rfc3339 import read_rfc3339
from tallybook_server.tag_filters import check_filters
from tallybook_server.usage.asked import UsageQuestion

__all__ = ["query_of"]

_TAG: Final = "tag:"
_MONTH_DAY_MAX: Final = 31


def query_of(asked: UsageQuestion) -> UsageQuery:
    """
    The question as the ledger takes it; its cursor is left to `tallybook_server.usage.pages`.

    Raises:
        Problem: What is wrong with it: ``parameter-invalid``, ``parameter-missing``,
            ``parameters-conflict`` or ``time-zone-unknown``.
    """
    start, end = _moment("from", asked.start), _moment("to", asked.end)
    window = _window(asked, start, end)
    aggregation = _aggregation(asked, end)
    by_tenant, by_tags = _groups(asked.group_by)
    as_of, as_of_time = _as_of(asked.as_of)
    return UsageQuery(
        dimensions=_dimensions(asked.dimension),
        tenants=_tenants(asked.tenant),
        start=start,
        end=end,
        window=window,
        month_day=asked.month_day or 1,
        time_zone=_time_zone(asked.time_zone),
        fill=asked.fill or False,
        by_tenant=by_tenant,
        by_tags=by_tags,
        filters=check_filters(asked.tag_filters()),
        aggregation=aggregation,
        unique_of=_unique_of(asked.unique_of),
        percentile=_percentile(asked.percentile),
        order=_order(asked),
        top=_within("top", asked.top, 1, USAGE_ROWS_MAX),
        as_of=as_of,
        as_of_time=as_of_time,
        limit=_within("limit", asked.limit, 1, USAGE_ROWS_MAX) or USAGE_ROWS_MAX,
        explain=asked.explain or False,
    )


def _within(name: str, value: int | None, least: int, most: int) -> int | None:
    if value is not None and not least <= value <= most:
        raise invalid(name, f"{name} is {value}; expected {least} to {most}")
    return value


def _missing(name: str, detail: str) -> Problem:
    return Problem("parameter-missing", detail, more={"parameter": name})


def _conflict(names: tuple[str, str], detail: str) -> Problem:
    return Problem("parameters-conflict", detail, more={"parameters": list(names)})


# -- whose and what ------------------------------------------------------------------------


def _dimensions(names: list[str]) -> tuple[str, ...]:
    try:
        for name in names:
            check_dimension(name)
    except InvalidEvent as error:
        raise invalid("dimension", str(error)) from None
    return tuple(dict.fromkeys(names))


def _tenants(tenants: list[str | None]) -> tuple[str | None, ...] | None:
    try:
        for tenant in tenants:
            check_tenant(tenant)
    except InvalidEvent as error:
        raise invalid("tenant", str(error)) from None
    return tuple(dict.fromkeys(tenants)) or None


def _groups(names: list[str] | None) -> tuple[bool, tuple[str, ...]]:
    groups = dict.fromkeys(names or ())
    tags = tuple(_tag_key("group_by", name, "tenant") for name in groups if name != "tenant")
    if len(tags) > TAGS_MAX:
        raise invalid("group_by", f"group_by names {len(tags)} tags; expected at most {TAGS_MAX}")
    return "tenant" in groups, tags


def _tag_key(parameter: str, name: str, word: str) -> str:
    """The key in ``tag:<key>``, which stands where *word* may stand as well."""
    if not name.startswith(_TAG):
        raise invalid(
            parameter,
            f"{parameter} has {name[:60]!r}; expected {word}, or tag:<key>."
            f"{nearest(name, (word, f'{_TAG}{name}')) if name else ''}",
        )
    try:
        return check_tag_key(name.removeprefix(_TAG))
    except InvalidEvent as error:
        raise invalid(parameter, f"{parameter}: {error}; expected tag:<key>") from None


# -- when ----------------------------------------------------------------------------------


def _moment(name: str, text: str | None) -> int | None:
    return None if text is None else read_moment(name, text)


def _window(asked: UsageQuestion, start: int | None, end: int | None) -> Window:
    window = one_of("window", asked.window or "none", WINDOWS)
    if window != "none" and (start is None or end is None):
        raise _missing(
            "from" if start is None else "to",
            f"window={window} needs both from and to: without them there is no first window or "
            "no last one",
        )
    if start is not None and end is not None and start >= end:
        raise invalid(
            "to",
            f"to is {format_time(end)}; expected a moment after from, {format_time(start)}: the "
            "range is half-open",
        )
    if asked.fill and window == "none":
        raise _missing("window", "fill needs a window: it adds the windows without usage")
    if _within("month_day", asked.month_day, 1, _MONTH_DAY_MAX) and window != "month":
        raise _conflict(
            ("month_day", "window"),
            f"month_day says when a month begins, and window is {window}; expected month",
        )
    return window


def _time_zone(name: str | None) -> str:
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


def _as_of(text: str | None) -> tuple[Position | None, int | None]:
    if text is None:
        return None, None
    position = read_position(text)
    if position is not None:
        return position, None
    try:
        return None, read_rfc3339(text)
    except InvalidEvent as error:
        raise invalid("as_of", f"as_of: {error}; or a position, such as 1.42") from None


# -- how -----------------------------------------------------------------------------------


def _aggregation(asked: UsageQuestion, end: int | None) -> Aggregation | None:
    if asked.aggregation is None:
        aggregation = None
    else:
        aggregation = one_of("aggregation", asked.aggregation, AGGREGATIONS)
    _goes_with("percentile", asked.percentile, aggregation, "percentile", "percentile=99.9")
    _goes_with("unique_of", asked.unique_of, aggregation, "unique", "unique_of=tag:user or value")
    if aggregation == "time_weighted" and end is None:
        raise _missing(
            "to", "time_weighted needs to: a level holds until something ends it, or to does"
        )
    return aggregation


def _goes_with(
    name: str, given: str | None, aggregation: str | None, needed: Aggregation, example: str
) -> None:
    """One makes no sense without the other."""
    if aggregation == needed and given is None:
        raise _missing(name, f"aggregation={needed} needs {name}; expected, for example, {example}")
    if given is not None and aggregation is None:
        raise _missing("aggregation", f"{name} needs aggregation={needed}")
    if given is not None and aggregation != needed:
        raise _conflict(
            (name, "aggregation"),
            f"{name} is of {needed}, and aggregation is {aggregation}; expected {needed}",
        )


def _unique_of(text: str | None) -> str | None:
    """The tag; None is the value, as in the ledger's question."""
    return None if text in (None, "value") else _tag_key("unique_of", text or "", "value")


def _percentile(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        read_percentile(text)
    except UnanswerableQuestion as error:
        raise invalid("percentile", str(error)) from None
    return format_value(*read_value(text))


def _order(asked: UsageQuestion) -> Order:
    if asked.order is None:
        # Whoever asks for the first ten means the largest ten.
        return "group" if asked.top is None else "-value"
    return one_of("order", asked.order, ORDERS)
