"""
Which raw events are asked for, as it is written in a URL.

The same parameters hold for a page of events and for the stream of those that come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from tallybook.errors import InvalidEvent
from tallybook.event import (
    check_dimension,
    check_key,
    check_source,
    check_tenant,
    format_time,
)
from tallybook_server.ledger import EventFilter, Place
from tallybook_server.parameters import Parameters, invalid, read_moment
from tallybook_server.tag_filters import check_filters, written_filters

__all__ = ["FILTERS", "read_filter"]

FILTERS: Final = ("dimension", "tenant", "from", "to", "producer", "source", "key", "id")
"""What both take; beside them there are the filters on tags: `tag_filters`."""

_PRODUCER: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


def read_filter(parameters: Parameters, *, upto: Place | None = None) -> EventFilter:
    """
    The filter.

    Args:
        parameters: Those of the question.
        upto: The last place that is asked about, or None: to the head.

    Raises:
        Problem: ``parameter-invalid``: what is wrong with it; nothing is passed over.
    """
    start, end = _moment(parameters, "from"), _moment(parameters, "to")
    if start is not None and end is not None and start >= end:
        raise invalid(
            "to",
            f"to is {format_time(end)}; expected a moment after from, {format_time(start)}: the "
            "range is half-open",
        )
    return EventFilter(
        dimensions=_texts(parameters, "dimension", check_dimension) or None,
        tenants=_texts_or_none(parameters, "tenant", check_tenant) or None,
        tags=check_filters(written_filters(parameters)),
        start=start,
        end=end,
        producer=_producer(parameters),
        sources=_texts_or_none(parameters, "source", check_source) or None,
        key=_identity(parameters, "key"),
        id=_identity(parameters, "id"),
        upto=upto,
    )


def _texts(parameters: Parameters, name: str, check: Callable[[str], None]) -> tuple[str, ...]:
    """The different values of a parameter that may be repeated."""
    texts = tuple(dict.fromkeys(parameters.all(name)))
    for text in texts:
        _check(name, text, check)
    return texts


def _texts_or_none(
    parameters: Parameters, name: str, check: Callable[[str], None]
) -> tuple[str | None, ...]:
    """Likewise; an empty one is None: events that have none."""

    def check_unless_empty(text: str) -> None:
        if text:
            check(text)

    return tuple(text or None for text in _texts(parameters, name, check_unless_empty))


def _identity(parameters: Parameters, name: str) -> str | None:
    text = parameters.one(name)
    if text is not None:
        _check(name, text, check_key)
    return text


def _check(name: str, text: str, check: Callable[[str], None]) -> None:
    try:
        check(text)
    except InvalidEvent as error:
        # An id has the bounds of a key, and its message begins with that name.
        message = str(error).removeprefix(error.field)
        raise invalid(name, name + message) from None


def _moment(parameters: Parameters, name: str) -> int | None:
    text = parameters.one(name)
    return None if text is None else read_moment(name, text)


def _producer(parameters: Parameters) -> str | None:
    text = parameters.one("producer")
    if text is not None and not _PRODUCER.fullmatch(text.lower()):
        raise invalid("producer", f"producer is {text[:60]!r}; expected 32 hex digits")
    return None if text is None else text.lower()
