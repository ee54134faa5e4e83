"""The question of ``tallybook usage``: its options, as the server takes them in JSON."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tallybook.cli.output import Exit, Failure
from tallybook.names import split_names

__all__ = ["Question", "question_of"]

Question = dict[str, object]

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SAME: Final = (
    "dimension",
    "window",
    "month_day",
    "time_zone",
    "aggregation",
    "unique_of",
    "percentile",
    "order",
    "top",
    "cursor",
)
"""Options that are passed on as they are: the server says what is wrong with them."""


def question_of(arguments: Namespace) -> Question:
    """
    What to ask the server.

    Raises:
        Failure: A bare date is no day, or its time zone is none.
    """
    zone = arguments.time_zone or "UTC"
    question: Question = {name: getattr(arguments, name) for name in _SAME}
    question |= {
        "from": _moment(arguments.start, zone),
        "to": _moment(arguments.end, zone),
        "as_of": _moment(arguments.as_of, zone),
        "fill": arguments.fill,
        "explain": arguments.explain,
        "group_by": [name for names in arguments.group_by for name in split_names(names)],
        "filters": [
            *_compared("in", arguments.tag),
            *_compared("not_in", arguments.not_tag),
            *_compared("prefix", arguments.prefix_tag),
            *_existing(arguments.exists_tag),
        ],
    }
    if arguments.tenant:
        question["tenant"] = [tenant or None for tenant in arguments.tenant]
    return question


def _compared(test: str, pairs: Sequence[tuple[str, str]]) -> list[Question]:
    """One filter per tag: to name a tag again is to name another value."""
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return [{"tag": key, test: some} for key, some in values.items()]


def _existing(pairs: Sequence[tuple[str, str]]) -> list[Question]:
    for key, value in pairs:
        if value not in ("true", "false"):
            raise Failure(
                f"--exists-tag {key}={value} says neither true nor false; expected {key}=true, or "
                f"{key}=false",
                Exit.USAGE,
            )
    return [{"tag": key, "exists": value == "true"} for key, value in pairs]


def _moment(text: str | None, zone: str) -> str | None:
    """*text* as RFC 3339; a bare date is the beginning of that day in *zone*."""
    if text is None or not _DATE.fullmatch(text):
        return text  # The server reads it, and says what is wrong with it.
    try:
        midnight = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(
            f"there is no day {text}; expected one such as 2026-11-01", Exit.USAGE
        ) from None
    try:
        return midnight.replace(tzinfo=ZoneInfo(zone)).isoformat()
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # A name that is no zone may still be a path, or a directory of zones.
        raise Failure(
            f"--time-zone is {zone!r}; expected an IANA name such as Europe/Berlin", Exit.USAGE
        ) from None
