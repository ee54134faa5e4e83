"""
Formats of an answer, and which one is asked for: by a suffix, else by ``Accept``. Pure.

RFC 9110 section 12.5.1: of the ranges that fit a format, the most specific one says how
welcome it is; of equally welcome ones, the first of the table is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from tallybook_server.problems import Problem

__all__ = ["CSV", "FORMATS", "JSON", "NDJSON", "PARQUET", "Format", "accepted", "by_suffix"]


@dataclass(frozen=True, slots=True)
class Format:
    """
    A format of answers.

    Attributes:
        suffix: What the address ends with behind a point.
        media_type: What ``Accept`` says.
        content_type: The same with its parameters, in an answer.
        is_file: A browser is to save it: it has nothing to show.
    """

    suffix: str
    media_type: str
    content_type: str
    is_file: bool = False


JSON: Final = Format("json", "application/json", "application/json")
CSV: Final = Format("csv", "text/csv", "text/csv; charset=utf-8; header=present", is_file=True)
NDJSON: Final = Format("ndjson", "application/x-ndjson", "application/x-ndjson")
PARQUET: Final = Format(
    "parquet",
    "application/vnd.apache.parquet",
    "application/vnd.apache.parquet",
    is_file=True,
)
FORMATS: Final = (JSON, CSV, NDJSON, PARQUET)

# RFC 9110: a token; q has at most three decimals.
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE: Final = re.compile(rf"({_TOKEN})/({_TOKEN})", re.ASCII)
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", re.ASCII)


def by_suffix(suffix: str) -> Format:
    """
    The format that an address ends with.

    Raises:
        Problem: ``not-found``: there is none.
    """
    for one in FORMATS:
        if one.suffix == suffix:
            return one
    raise Problem(
        "not-found",
        f"there is no format {suffix[:60]!r}; expected one of "
        f"{', '.join(one.suffix for one in FORMATS)}",
    )


def accepted(accept: str | None) -> Format:
    """
    The format that is most welcome.

    Args:
        accept: The ``Accept`` header; None: it is not there, and JSON is taken.

    Raises:
        Problem: ``not-acceptable``: none is welcome.
    """
    if accept is None:
        return JSON
    ranges = _ranges(accept)
    welcome = [(_quality(one, ranges), one) for one in FORMATS]
    quality, best = max(welcome, key=lambda pair: pair[0])
    if quality == 0:
        raise Problem(
            "not-acceptable",
            f"Accept is {accept[:100]!r}; there is {', '.join(one.media_type for one in FORMATS)}",
            more={"available": [one.media_type for one in FORMATS]},
        )
    return best


def _ranges(accept: str) -> dict[str, int]:
    """By media range: how welcome it is, in thousandths. What cannot be read is left out."""
    ranges: dict[str, int] = {}
    for element in accept.split(","):
        name, *parameters = [part.strip() for part in element.split(";")]
        if _RANGE.fullmatch(name):
            ranges[name.lower()] = _weight(parameters)
    return ranges


def _weight(parameters: list[str]) -> int:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            # A weight that cannot be read makes nothing welcome.
            text = value.strip()
            return int(Decimal(text) * 1000) if _QUALITY.fullmatch(text) else 0
    return 1000


def _quality(one: Format, ranges: dict[str, int]) -> int:
    family = one.media_type.partition("/")[0]
    for name in (one.media_type, f"{family}/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0
