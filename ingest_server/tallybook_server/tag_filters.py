"""
Filters on tags as they are written in a URL, and what makes no sense among them. Pure.

    tag.region=eu           the tag is eu; repeated: it is one of these
    not.tag.region=eu       it is not, or is not there; repeated: it is none of these
    prefix.tag.route=/v1/   it begins so; repeated: with one of these
    exists.tag.region=true  the tag is there; false: it is not

What stands behind the first ``tag.`` is the key, whatever it looks like: ``tag.not.tag.a``
is about the tag ``not.tag.a``. So no key is out of reach, and none is read in two ways.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from tallybook.errors import InvalidEvent
from tallybook.event import check_tag_key, check_tags
from tallybook_server.limits import FILTER_VALUES_MAX, FILTERS_MAX
from tallybook_server.parameters import Parameters, invalid
from tallybook_server.problems import Problem
from tallybook_server.question import TagFilter, TagTest

__all__ = ["PREFIXES", "check_filters", "name_of", "written_filters"]

_COMPARED: Final[tuple[tuple[str, TagTest], ...]] = (
    ("tag.", "in"),
    ("not.tag.", "not_in"),
    ("prefix.tag.", "prefix"),
)
_EXISTS: Final = "exists.tag."

PREFIXES: Final = (*(prefix for prefix, _ in _COMPARED), _EXISTS)
"""What the names of filters begin with in a URL."""


def name_of(one: TagFilter) -> str:
    """What the parameter of a filter is called in a URL."""
    return next((prefix for prefix, test in _COMPARED if test == one.test), _EXISTS) + one.key


def written_filters(parameters: Parameters) -> list[TagFilter]:
    """
    The filters of a URL, as they are written there.

    Raises:
        Problem: ``parameter-invalid``: neither ``true`` nor ``false``, or both.
    """
    filters = [
        TagFilter(key, test, tuple(dict.fromkeys(values)))
        for prefix, test in _COMPARED
        for key, values in parameters.behind(prefix).items()
    ]
    for key in parameters.behind(_EXISTS):
        there = parameters.flag(_EXISTS + key)
        filters.append(TagFilter(key, "exists" if there else "absent"))
    return filters


def check_filters(filters: Sequence[TagFilter]) -> tuple[TagFilter, ...]:
    """
    The same filters, if they make sense, each and together.

    Raises:
        Problem: ``parameter-invalid``: a key or a value that no tag can have, or too many.
            ``parameters-conflict``: no event can pass them all.
    """
    if len(filters) > FILTERS_MAX:
        raise invalid("filters", f"{len(filters)} filters; expected at most {FILTERS_MAX}")
    by_key: defaultdict[str, list[TagFilter]] = defaultdict(list)
    for one in filters:
        _check(one)
        by_key[one.key].append(one)
    for alike in by_key.values():
        _check_together(alike)
    return tuple(filters)


def _check(one: TagFilter) -> None:
    name = name_of(one)
    if len(one.values) > FILTER_VALUES_MAX:
        raise invalid(
            name, f"{name} has {len(one.values)} values; expected at most {FILTER_VALUES_MAX}"
        )
    try:
        key = check_tag_key(one.key)
        for text in one.values:
            check_tags({key: text})
    except InvalidEvent as error:
        raise invalid(name, f"{name}: {error}") from None
    if one.test == "prefix" and "" in one.values:
        raise invalid(
            name,
            f"{name} is empty, and every text begins so; to ask for events that have the tag, "
            f"write {_EXISTS}{one.key}=true",
        )


def _check_together(filters: Sequence[TagFilter]) -> None:
    """Of one key: that an event could pass them all."""
    absent = next((one for one in filters if one.test == "absent"), None)
    there = next((one for one in filters if one.test in ("in", "prefix", "exists")), None)
    if absent is not None and there is not None:
        raise _conflict(absent, there, f"asks for events without the tag {absent.key!r}")
    for refused in filters:
        for wanted in filters:
            if refused.test == "not_in" and wanted.test == "in":
                both = set(refused.values) & set(wanted.values)
                if both:
                    raise _conflict(refused, wanted, f"refuses {min(both)!r}")


def _conflict(one: TagFilter, other: TagFilter, what: str) -> Problem:
    names = [name_of(one), name_of(other)]
    return Problem(
        "parameters-conflict",
        f"{names[0]} {what}, and {names[1]} asks for it; no event can pass both",
        more={"parameters": names},
    )
