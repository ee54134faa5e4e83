"""
The events that are measured with, the same in every run.

1,000 tenants by zipf(1.1), 20 dimensions, values of which half are 1, a quarter is lognormal
and a quarter has three decimals. Tags are either two, drawn from 200 routes and 5 statuses,
or five that hardly ever repeat.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Final, Literal, NamedTuple
from uuid import UUID

from tallybook.block import HEADER_BYTES, encode_block, pack, read_header
from tallybook.clock import SystemClock
from tallybook.frame import Body, encode_series
from tallybook.wire import Announcement, encode_request

__all__ = [
    "BLOCK_EVENTS",
    "DIMENSIONS",
    "ROUTES",
    "STATUSES",
    "TENANTS",
    "Fact",
    "Producer",
    "Tags",
    "announce",
    "block_of",
    "draw_facts",
    "draw_tags",
]

Tags = Literal["drawn", "distinct"]

BLOCK_EVENTS: Final = 1_000
"""Events in a block, unless a row says otherwise."""

DIMENSIONS: Final = tuple(f"dimension.{n:02}" for n in range(20))
ROUTES: Final = tuple(f"/v1/projects/{{project}}/resource-{n:03}" for n in range(200))
STATUSES: Final = ("200", "201", "304", "404", "500")

TENANTS: Final = tuple(f"tenant-{n:04}" for n in range(1000))
_ZIPF: Final = tuple(accumulate(1 / n**1.1 for n in range(1, len(TENANTS) + 1)))
_BEGIN: Final = 1_767_225_600_000_000  # 2026-01-01, in microseconds
_SHA_AT: Final = HEADER_BYTES - 32


class Fact(NamedTuple):
    """An event, before it becomes a block or a document."""

    dimension: str
    tenant: str
    mantissa: int
    scale: int
    time: int
    tags: dict[str, str]

    @property
    def value(self) -> Decimal:
        """The quantity."""
        return Decimal(self.mantissa).scaleb(-self.scale)


def draw_tags(count: int, seed: int = 1) -> list[tuple[str, str]]:
    """Route and status of *count* calls."""
    chance = random.Random(seed)
    return list(
        zip(chance.choices(ROUTES, k=count), chance.choices(STATUSES, k=count), strict=True)
    )


def draw_facts(count: int, *, tags: Tags, seed: int = 1, begin: int = _BEGIN) -> list[Fact]:
    """*count* events of a stream, about 1 ms apart."""
    chance = random.Random(seed)
    tenants = chance.choices(TENANTS, cum_weights=_ZIPF, k=count)
    facts: list[Fact] = []
    time = begin
    for tenant, (route, status) in zip(tenants, draw_tags(count, seed), strict=True):
        time += 1 + int(chance.expovariate(1e-3))
        named = {"route": route, "status": status}
        if tags == "distinct":
            named |= {
                "request": f"{chance.getrandbits(64):016x}",
                "user": f"u{chance.getrandbits(24)}",
                "host": f"10.0.{chance.getrandbits(8)}.{chance.getrandbits(8)}",
            }
        value = _draw_value(chance)
        facts.append(Fact(chance.choice(DIMENSIONS), tenant, *value, time, named))
    return facts


def _draw_value(chance: random.Random) -> tuple[int, int]:
    kind = chance.random()
    if kind < 0.5:
        return 1, 0
    if kind < 0.75:
        return 1 + int(chance.lognormvariate(5, 2)), 0
    mantissa = chance.randrange(1, 100_000)
    return (mantissa, 3) if mantissa % 10 else (mantissa * 10 + 1, 3)


def block_of(facts: list[Fact], *, keyed: bool = False) -> bytes:
    """A block of *facts*, of nobody yet: `Producer` puts its name on it."""
    chance = random.Random(facts[0].time)
    bodies = [
        Body(
            fact.time,
            False,
            fact.mantissa,
            fact.scale,
            str(UUID(int=chance.getrandbits(128), version=4)) if keyed else None,
            encode_series(fact.dimension, fact.tenant, fact.tags),
        )
        for fact in facts
    ]
    return encode_block(pack("bench", bodies), producer=bytes(16), first=1)


class Producer:
    """
    Sends prepared blocks, each time under fresh sequences, so that none is ever a duplicate.

    What is costly, columns and compression, is prepared; name and digest are new each time,
    as docs/reference/formats.md lays them out.

    Attributes:
        id: 16 bytes.
    """

    def __init__(self, seed: int) -> None:
        self.id: Final = random.Random(f"producer {seed}").randbytes(16)
        self._next = 1

    def stamp(self, block: bytes) -> bytes:
        """*block* as this producer's next one."""
        head = block[:8] + self.id + self._next.to_bytes(8, "little") + block[32:_SHA_AT]
        self._next += int.from_bytes(block[32:36], "little")
        stored = block[HEADER_BYTES:]
        return head + hashlib.sha256(head + stored).digest() + stored

    def request(self, blocks: list[bytes]) -> bytes:
        """The body of a request with *blocks*, stamped."""
        return self.stamped_request([self.stamp(block) for block in blocks])

    def stamped_request(self, blocks: list[bytes]) -> bytes:
        """The body of a request with blocks that are stamped already."""
        return encode_request(announce(self.id, blocks), blocks)


def announce(producer: bytes, blocks: Sequence[bytes]) -> Announcement:
    """What *producer* says of itself with its latest *blocks*."""
    now = SystemClock.time_ns() // 1000
    highest = read_header(blocks[-1]).last
    return Announcement(
        producer=producer,
        sent_at=now,
        blocks=len(blocks),
        recorded=highest,
        dropped=0,
        highest=highest,
        through=now,
        closed=False,
        source="bench",
    )
