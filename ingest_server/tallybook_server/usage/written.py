"""
A question as it is written in a URL. Pure.

The names are those of the JSON question. What is a list there is repeated here, or has
commas in between where no name can hold one; only a tag's key in ``group_by`` can, and
there a backslash says that a comma belongs to it.
"""

from __future__ import annotations

import re
from typing import Final

from tallybook.names import split_names
from tallybook_server.parameters import Parameters, invalid
from tallybook_server.question import TagFilter
from tallybook_server.tag_filters import PREFIXES, written_filters
from tallybook_server.usage.asked import UsageQuestion, question_of

__all__ = ["PARAMETERS", "written_question"]

_TEXTS: Final = (
    "from",
    "to",
    "window",
    "time_zone",
    "aggregation",
    "unique_of",
    "percentile",
    "order",
    "as_of",
    "cursor",
)
_NUMBERS: Final = ("month_day", "top", "limit")
_FLAGS: Final = ("fill", "explain")

PARAMETERS: Final = ("dimension", "tenant", "group_by", *_TEXTS, *_NUMBERS, *_FLAGS)
"""Every parameter but the filters."""

_UNEQUAL: Final = re.compile(rb"(?:^|&)tag\.([^=&]*)!=")


def written_question(query_string: bytes) -> UsageQuestion:
    """
    The question that stands behind the question mark of a URL.

    Raises:
        Problem: A parameter is unknown, missing, there too often, or of another shape.
    """
    unequal = _UNEQUAL.search(query_string)
    if unequal is not None:
        key = unequal[1].decode("ascii", "replace")[:60]
        raise invalid(
            f"tag.{key}!",
            f"tag.{key}!=... would ask for a tag called {key + '!'!r}; to leave values out, write "
            f"not.tag.{key}=..., and if the key does end so, write tag.{key}%21=...",
        )
    parameters = Parameters(query_string, PARAMETERS, prefixes=PREFIXES)
    fields: dict[str, object] = {}
    for name in _TEXTS:
        fields[name] = parameters.one(name)
    for name in _NUMBERS:
        fields[name] = parameters.number(name)
    for name in _FLAGS:
        fields[name] = parameters.flag(name)
    dimensions = [n for text in parameters.all("dimension") for n in text.split(",")]
    if dimensions:
        fields["dimension"] = dimensions
    tenants = parameters.all("tenant")
    if tenants:
        fields["tenant"] = [tenant or None for tenant in tenants]
    fields["group_by"] = [n for text in parameters.all("group_by") for n in split_names(text)]
    fields["filters"] = [_filter(one) for one in written_filters(parameters)]
    return question_of(fields)


def _filter(one: TagFilter) -> dict[str, object]:
    """The filter as JSON has it."""
    if one.test in ("exists", "absent"):
        return {"tag": one.key, "exists": one.test == "exists"}
    return {"tag": one.key, one.test: list(one.values)}
