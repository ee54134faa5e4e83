"""
An event as JSON: the one definition of its fields, and how it is read exactly. Pure.

A number is read from its text and never becomes a float: `value` and the tags' values
stay raw until their bounds are checked. msgspec reads the struct; what it does not look
at (a field that is named twice, depth, halves of surrogate pairs) is looked at here, each
with a bound of its own, so that no event costs more than the bytes it has.

One bad event never fails its neighbours: it becomes a `RejectedEvent` with its own bytes.
Only a body that is no JSON at all is refused as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Final

import msgspec

from tallybook.errors import InvalidEvent
from tallybook.event import (
    Event,
    check_dimension,
    check_key,
    check_source,
    check_tags,
    check_tenant,
    format_time,
    read_time,
    read_value,
)
from tallybook.limits import FUTURE_SECONDS_MAX, TAGS_MAX
from tallybook_server.json_cut import cut
from tallybook_server.ledger import OfferedEvent, RejectedEvent
from tallybook_server.limits import (
    JSON_DEPTH_MAX,
    JSON_EVENT_BYTES_MAX,
    JSON_EVENTS_MAX,
)
from tallybook_server.problems import nearest
from tallybook_server.rfc3339 import read_rfc3339

__all__ = ["JsonEvent", "read_event", "read_events"]

_REQUEST_KEY_BYTES_WHOLE: Final = 240
_ONE: Final = msgspec.Raw(b"1")


class JsonEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    An event as `POST /v1/events` takes it; null is the same as absent.

    Attributes:
        dimension: What was used: ``"http.requests"``.
        value: A number, or decimal text; taken exactly as written. 1 if absent.
        tenant: Who used it; absent: nobody's.
        time: RFC 3339 with a zone, or microseconds since 1970 UTC; absent: now.
        tags: Text, numbers or booleans by key.
        key: An idempotency key, unique for ever by source and dimension.
        id: The event's id elsewhere, unique for ever by source.
        source: The application's name. Required: every JSON event has a key or an id.
    """

    dimension: str
    value: msgspec.Raw = _ONE
    tenant: str | None = None
    time: str | int | None = None
    tags: dict[str, msgspec.Raw] | None = None
    key: str | None = None
    id: str | None = None
    source: str | None = None


def read_events(
    body: bytes, *, now: int, request_key: str | None = None, events_max: int = JSON_EVENTS_MAX
) -> tuple[list[OfferedEvent | RejectedEvent], bool]:
    """
    The events of a JSON body, in order, and whether it is one object and not an array.

    Args:
        body: The body.
        now: Microseconds since 1970 UTC: the time of events that have none.
        request_key: The request's ``Idempotency-Key``: the identity of events without one.
        events_max: Events at most.

    Raises:
        Problem: As `cut`.
    """
    elements, alone = cut(body, events_max)
    if request_key is not None and len(request_key) > _REQUEST_KEY_BYTES_WHOLE:
        # The longest keys leave no room for the index within an id's bound.
        request_key = hashlib.sha256(request_key.encode()).hexdigest()
    return [
        read_event(
            element, now=now, fallback_id=None if request_key is None else f"{request_key}#{index}"
        )
        for index, element in enumerate(elements)
    ], alone


# -- one event -----------------------------------------------------------------------------


def read_event(
    raw: bytes, *, now: int, fallback_id: str | None = None
) -> OfferedEvent | RejectedEvent:
    """The event, or why it is not acceptable."""
    try:
        _check_shape(raw)
        found = _event.decode(raw)
        return _offer(found, now, fallback_id)
    except InvalidEvent as error:
        reason = _REASONS.get((error.field, error.reason)) or _field(error.field)
        return RejectedEvent(raw, reason, str(error))
    except msgspec.ValidationError as error:
        return _mistyped(raw, str(error))
    # msgspec says of half a surrogate pair that the input was truncated, and of an integer
    # that Python refuses to read, a ValueError.
    except (msgspec.DecodeError, ValueError):
        return RejectedEvent(
            raw, "text", "the event has text that is not Unicode, or half a surrogate pair"
        )


def _offer(found: JsonEvent, now: int, fallback_id: str | None) -> OfferedEvent:
    check_dimension(found.dimension)
    check_tenant(found.tenant)
    check_source(found.source)
    check_key(found.key)
    if found.id is not None:
        _check_id(found.id)
    identity = found.id
    if identity is None and found.key is None:
        identity = fallback_id
    if identity is None and found.key is None:
        raise InvalidEvent(
            "identity",
            "missing",
            "the event has neither id nor key, and the request no Idempotency-Key; expected one",
        )
    if found.source is None:
        # The ledger refuses it, too; here it is kept with the bytes that it came in.
        raise InvalidEvent(
            "source",
            "missing",
            "the event has no source; expected the application's name: an id or a key is unique "
            "within it",
        )
    event = Event(
        dimension=found.dimension,
        value=_value(found.value),
        tenant=found.tenant,
        time=now if found.time is None else _time(found.time, now),
        tags={} if found.tags is None else _tags(found.tags),
        key=found.key,
        given=found.time is not None,
        id=identity,
    )
    return OfferedEvent(event, found.source)


def _check_id(text: str) -> None:
    # An id has a key's bounds, and says its own name in the message.
    try:
        check_key(text)
    except InvalidEvent as error:
        message = str(error)
        raise InvalidEvent("id", error.reason, "id" + message.removeprefix("key")) from None


def _value(raw: msgspec.Raw) -> tuple[int, int]:
    text = bytes(raw)
    if text[:1] == b'"':
        return read_value(_text.decode(text))
    if text[:1] in b"-0123456789":
        return read_value(text.decode())
    raise InvalidEvent("value", "type", f"value is {_kind(text)}; expected a number")


def _time(time: str | int, now: int) -> int:
    moment = read_rfc3339(time) if isinstance(time, str) else read_time(time)
    if moment > now + FUTURE_SECONDS_MAX * 1_000_000:
        raise InvalidEvent(
            "time",
            "future",
            f"time {format_time(moment)} is more than {FUTURE_SECONDS_MAX} seconds ahead of the "
            f"server's clock, {format_time(now)}",
        )
    return moment


def _tags(tags: dict[str, msgspec.Raw]) -> dict[str, str]:
    if len(tags) > TAGS_MAX:
        return check_tags(tags)  # Raises, before 100,000 of them are read.
    return check_tags({key: _tag(key, raw) for key, raw in tags.items()})


def _tag(key: str, raw: msgspec.Raw) -> str:
    text = bytes(raw)
    if text[:1] == b'"':
        return _text.decode(text)
    if text[:1] in b"-0123456789tf":
        # A number's text as it was written: 0.10 stays 0.10, and no digit is lost to a float.
        return text.decode()
    raise InvalidEvent(
        "tags", "type", f"tag {key!r} is {_kind(text)}; expected text, a number or a boolean"
    )


def _kind(text: bytes) -> str:
    kinds = {b"{": "an object", b"[": "an array", b"n": "null", b"t": "true", b"f": "false"}
    return kinds[text[:1]]


# -- what msgspec does not look at, and what it says ---------------------------------------


def _check_shape(raw: bytes) -> None:
    if len(raw) > JSON_EVENT_BYTES_MAX:
        raise InvalidEvent(
            "size",
            "too_large",
            f"the event has {len(raw)} bytes; expected at most {JSON_EVENT_BYTES_MAX}",
        )
    # Brackets within text are counted only where there are so many that it matters.
    if raw.count(b"{") + raw.count(b"[") > JSON_DEPTH_MAX and _depth(raw) > JSON_DEPTH_MAX:
        raise InvalidEvent(
            "depth",
            "too_deep",
            f"the event is nested deeper than {JSON_DEPTH_MAX}; only tags is an object",
        )
    _repetitions.decode(raw.decode())


def _depth(raw: bytes) -> int:
    deepest = depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", raw)):
        depth += 1 if bracket in b"{[" else -1
        deepest = max(deepest, depth)
    return deepest


def _refuse_repetition(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) == len(pairs):
        return
    (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
    raise InvalidEvent("repeated_field", "repeated", f"{name[:60]!r} is named twice in one object")


def _mistyped(raw: bytes, message: str) -> RejectedEvent:
    unknown = _UNKNOWN.search(message)
    if unknown:
        name = unknown[1]
        hint = nearest(name, JsonEvent.__struct_fields__)
        return RejectedEvent(
            raw, "unknown_field", f"the event has an unknown field {name[:60]!r}.{hint}"
        )
    missing = _MISSING.search(message)
    if missing:
        return RejectedEvent(raw, _field(missing[1]), f"{missing[1]} is missing; it is required")
    place = _PLACE.search(message)
    if place is None:
        return RejectedEvent(raw, "event", f"the event is no object: {message}")
    name = place[1]
    expected = message.removesuffix(place[0]).replace("`", "")
    return RejectedEvent(raw, _field(name), f"{name}: {expected}")


def _field(name: str) -> str:
    if name in JsonEvent.__struct_fields__ or name in _OTHER_REASONS:
        return name
    # The SDK's checks call a tag by its key: "tag 'route'".
    return "tags" if name.startswith("tag") else "event"


_OTHER_REASONS: Final = frozenset({"identity", "depth", "size", "repeated_field", "text"})
_REASONS: Final = {("time", "future"): "future"}
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"missing required field `(\w+)`")
_PLACE: Final = re.compile(r" - at `\$\.(\w+).*`", re.DOTALL)
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[\]{}]")

_event: Final = msgspec.json.Decoder(JsonEvent)
_text: Final = msgspec.json.Decoder(str)
# msgspec takes the last of two fields with one name. The standard decoder shows all of them;
# numbers stay text in it, because Python refuses to read some and rounds others.
_repetitions: Final = json.JSONDecoder(
    object_pairs_hook=_refuse_repetition, parse_int=str, parse_float=str
)
