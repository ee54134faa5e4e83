"""
A JSON body, cut into the bytes of its events. Pure.

The body is either JSON, and then each event is judged by itself, or it is not, and then
nothing of it is taken. Nothing is built of it on the way but the pieces: not the numbers,
which would be rounded, and not the nesting, which would be memory.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tallybook_server.limits import JSON_COMMAS_MAX, JSON_DEPTH_MAX
from tallybook_server.problems import Problem

__all__ = ["cut"]


def cut(body: bytes, events_max: int) -> tuple[list[bytes], bool]:
    """
    The bytes of each event, and whether the body is one object and not an array.

    Raises:
        Problem: ``not-json``, ``nested-too-deeply`` or ``too-many-events``; nothing of
            the body can be taken.
    """
    start = _START.match(body)
    if start is None:
        raise Problem(
            "not-json",
            f"the body begins with {body[:20]!r}; expected a JSON object or an array of objects",
        )
    alone = start[1] == b"{"
    if not alone and body.count(b",") > JSON_COMMAS_MAX:
        raise Problem(
            "too-many-events",
            f"the body has more than {JSON_COMMAS_MAX} commas, too many for {events_max} events",
            more={"limit": "JSON_COMMAS_MAX"},
        )
    try:
        elements = _elements(body, alone)
    except RecursionError:
        raise Problem(
            "nested-too-deeply",
            f"the body is nested deeper than an event may be: {JSON_DEPTH_MAX}",
            more={"limit": "JSON_DEPTH_MAX"},
        ) from None
    if len(elements) > events_max:
        raise Problem(
            "too-many-events",
            f"the request has {len(elements)} events; expected at most {events_max}",
            more={"limit": "events_max", "events_max": events_max},
        )
    return elements, alone


def _elements(body: bytes, alone: bool) -> list[bytes]:
    try:
        return _cut(body, alone)
    except msgspec.DecodeError:
        pass
    # Half of a surrogate pair is JSON by its grammar, and msgspec refuses the whole body for
    # it. So each is covered up, keeping its length, and the cuts are made in the original.
    covered = _SURROGATE.sub(_cover, body)
    try:
        pieces = _cut(covered, alone)
    except msgspec.DecodeError as error:
        hint = "; NaN and Infinity are not JSON" if b"NaN" in body or b"Infinity" in body else ""
        raise Problem("not-json", f"the body is not JSON: {error}{hint}") from None
    elements: list[bytes] = []
    at = 0
    for piece in pieces:
        # Nothing but commas and space lies between two elements, so the first find is the place.
        at = covered.index(piece, at)
        elements.append(body[at : at + len(piece)])
        at += len(piece)
    return elements


def _cut(body: bytes, alone: bool) -> list[bytes]:
    if alone:
        _one.decode(body)
        return [body.strip(b" \t\n\r")]
    return [bytes(raw) for raw in _many.decode(body)]


def _cover(match: re.Match[bytes]) -> bytes:
    return match[0] if match["lone"] is None else b"\\ufffd"


_START: Final = re.compile(rb"[ \t\n\r]*([\[{])")
# Every escape is matched, so that the second half of `\\` is never taken for the start of one.
_SURROGATE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_one: Final = msgspec.json.Decoder(msgspec.Raw)
_many: Final = msgspec.json.Decoder(list[msgspec.Raw])
