"""
What an event says, in a form that can be compared: digests, and JSON for people. Pure.

Two events are the same when they say the same, however their bytes are arranged: the
order of tags and a trailing zero of a value make no difference.
"""

from __future__ import annotations

import hashlib

import msgspec

from tallybook.event import Event, format_time, format_value

__all__ = ["event_digest", "event_json", "identities_of"]

_encode = msgspec.msgpack.Encoder().encode


def _value(event: Event) -> str:
    return format_value(*event.value)


def event_digest(event: Event, source: str | None) -> bytes:
    """SHA-256 of everything that the event says."""
    return _digest(
        "event",
        event.dimension,
        event.tenant,
        sorted(event.tags.items()),
        _value(event),
        event.time,
        event.key,
        event.id,
        event.given,
        source,
    )


def identities_of(event: Event) -> list[tuple[str, str, str, bytes]]:
    """
    What an event claims for itself within its source, its id first.

    Returns:
        Per identity: ``"id"`` or ``"key"``; its scope, which is the dimension for a key and
        ``""`` for an id; the id or key; and SHA-256 of what must be equal for two events
        with this identity to be the same. The time is part of that only if the caller gave
        it: a retry without one is made at another time, and is still the same usage.
    """
    said = (
        event.dimension,
        event.tenant,
        sorted(event.tags.items()),
        _value(event),
        event.time if event.given else None,
    )
    wanted: list[tuple[str, str, str, bytes]] = []
    if event.id is not None:
        wanted.append(("id", "", event.id, _digest("identity", *said)))
    if event.key is not None:
        wanted.append(("key", event.dimension, event.key, _digest("identity", *said)))
    return wanted


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(_encode(parts)).digest()


def event_json(event: Event, source: str | None) -> bytes:
    """The event as a JSON object, in the form in which the server takes events."""
    fields: dict[str, object] = {
        "dimension": event.dimension,
        "value": _value(event),
        "tenant": event.tenant,
        "time": format_time(event.time),
        "tags": event.tags or None,
        "key": event.key,
        "id": event.id,
        "source": source,
    }
    return msgspec.json.encode({name: part for name, part in fields.items() if part is not None})
