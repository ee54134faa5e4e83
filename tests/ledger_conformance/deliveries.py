"""
What is delivered to a ledger: events, and blocks of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from tallybook.block import encode_block, pack
from tallybook.event import Event, read_value
from tallybook.frame import Body, encode_series
from tallybook.wire import Announcement

# Not an id that a ledger with counted ids gives itself.
ONE = b"\xf1" * 16
TWO = b"\xf2" * 16
NOON = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z in microseconds; before every ledger's clock
SECOND = 1_000_000
HOUR = 3_600 * SECOND


def event(
    value: int | str = 1,
    *,
    dimension: str = "api.calls",
    tenant: str | None = "acme",
    time: int = NOON,
    tags: dict[str, str] | None = None,
    key: str | None = None,
    id: str | None = None,
) -> Event:
    """An event with something in every field that must have something."""
    return Event(
        dimension=dimension,
        value=read_value(value),
        tenant=tenant,
        time=time,
        tags=tags or {},
        key=key,
        id=id,
        given=True,
    )


def block(
    first: int, events: Sequence[Event], *, producer: bytes = ONE, source: str | None = "shop"
) -> bytes:
    """A block of *events*, from sequence *first* on."""
    columns = pack(source, [body(one) for one in events])
    return encode_block(columns, producer=producer, first=first)


def body(one: Event) -> Body:
    """An event as it is packed."""
    series = encode_series(one.dimension, one.tenant, one.tags)
    return Body(one.time, one.given, *one.value, one.key, series, one.id)


def announcement(
    now: int,
    *,
    producer: bytes = ONE,
    highest: int = 0,
    dropped: int = 0,
    closed: bool = False,
) -> Announcement:
    """What a producer whose clock is right says of itself."""
    return Announcement(
        producer=producer,
        sent_at=now,
        blocks=0,
        recorded=highest,
        dropped=dropped,
        highest=highest,
        through=now,
        closed=closed,
        source="shop",
    )
