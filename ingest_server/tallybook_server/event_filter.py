"""
Which single events are asked for, and how one is named. Pure.

A `UsageQuery` adds events up; an `EventFilter` finds them. Whatever is left out of it does
not matter, so the empty filter is every event that counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from tallybook_server.question import TagFilter

__all__ = [
    "EVERY_EVENT",
    "INDEX_MAX",
    "POSITION_MAX",
    "EventFilter",
    "EventId",
    "Place",
    "read_event_name",
]

INDEX_MAX: Final = 2**31 - 1
"""The last index that a column of the ledger takes: no entry has so many events."""

POSITION_MAX: Final = 2**63 - 1
"""Likewise for positions and sequences."""

_IDENTITY: Final = re.compile(r"([0-9a-f]{32})-([0-9]{1,19})", re.ASCII)
_PLACE: Final = re.compile(r"([0-9]{1,19})\.([0-9]{1,10})", re.ASCII)


class Place(NamedTuple):
    """
    Where an event is: its cursor.

    Attributes:
        position: The entry that holds it.
        at: Its index in the entry, from 0.
    """

    position: int
    at: int

    def __str__(self) -> str:
        # Behind all that an entry holds: the position alone means that, too.
        return str(self.position) if self.at == INDEX_MAX else f"{self.position}.{self.at}"


class EventId(NamedTuple):
    """
    What an event is called, for ever, wherever it is.

    Attributes:
        producer: 32 hex digits.
        sequence: Its place in its producer's life, from 1.
    """

    producer: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.producer}-{self.sequence}"


@dataclass(frozen=True, slots=True)
class EventFilter:
    """
    Which events are asked for: those that pass everything that is given.

    Attributes:
        dimensions: Only these; None: any.
        tenants: Only these; None among them is "unattributed". None instead: any.
        tags: Only events that pass every one of them.
        start: Microseconds since 1970 UTC, or None: from the beginning. The event's time.
        end: The first microsecond that no longer counts, or None: to the end.
        producer: 32 hex digits, or None: any.
        sources: Only from these applications; None among them is "it named none". None
            instead: any.
        key: The idempotency key that the caller gave, or None: any or none.
        id: The id that the event brought, or None: any or none.
        upto: The last place that can hold one, or None: to the head. With the cursor that a
            search begins behind, a range of places.
    """

    dimensions: tuple[str, ...] | None = None
    tenants: tuple[str | None, ...] | None = None
    tags: tuple[TagFilter, ...] = ()
    start: int | None = None
    end: int | None = None
    producer: str | None = None
    sources: tuple[str | None, ...] | None = None
    key: str | None = None
    id: str | None = None
    upto: Place | None = None


EVERY_EVENT: Final = EventFilter()


def read_event_name(name: str) -> EventId | Place | None:
    """
    The event that *name* means: ``<producer>-<sequence>``, or ``<position>.<index>``.

    Returns:
        None if it is neither.
    """
    identity = _IDENTITY.fullmatch(name.lower())
    if identity is not None and 1 <= int(identity[2]) <= POSITION_MAX:
        return EventId(identity[1], int(identity[2]))
    place = _PLACE.fullmatch(name)
    if place is not None and int(place[1]) <= POSITION_MAX and int(place[2]) <= INDEX_MAX:
        return Place(int(place[1]), int(place[2]))
    return None
