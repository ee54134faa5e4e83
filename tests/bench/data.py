"""
The events that are measured with, the same in every run.

1,000 tenants by zipf(1.1), 20 dimensions, values of which half are 1, a quarter is lognormal
and a quarter has three decimals. Tags are either two, drawn from 200 routes and 5 statuses,
or five that hardly ever repeat.
"""

from __future__ import annotations

import hashlib
import random
from decimal import Decimal
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from tallybook.block import HEADER_BYTES, encode_block, pack
from tallybook.clock import SystemClock
from tallybook.frame import Body, encode_series
from tallybook.wire import Announcement, encode_request

__all__ = [
    "DIMENSIONS",
    "Fact",
    "Producer",
    "Tags",
    "block_of",
    "draw_facts",
    "draw_tags",
]

Tags = Literal["drawn", "distinct"]

DIMENSIONS: Final = tuple(f"dimension.{n:02}" for n in range(20))
ROUTES: Final = tuple(f"/v1/projects/{{project}}/resource-{n:03}" for n in range(200))
STATUSES: Final = ("200", "201", "304", "404", "500")

_TENANTS: Final = tuple(f"tenant-{n:04}" for n in range(1000))
_ZIPF: Final = tuple(accumulate(1 / n**1.1 for n in range(1, len(_TENANTS) + 1)))
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
    tenants = chance.choices(_TENANTS, cum_weights=_ZIPF, k=count)
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


def block_of(facts: list[Fact]) -> bytes:
    """A block of *facts*, of nobody yet: `Producer` puts its name on it."""
    bodies = [
        Body(
            fact.time,
            False,
            fact.mantissa,
            fact.scale,
            None,
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
    """

    def __init__(self, seed: int) -> None:
        self._id = random.Random(f"producer {seed}").randbytes(16)
        self._next = 1

    def stamp(self, block: bytes) -> bytes:
        """*block* as this producer's next one."""
        head = block[:8] + self._id + self._next.to_bytes(8, "little") + block[32:_SHA_AT]
        self._next += int.from_bytes(block[32:36], "little")
        stored = block[HEADER_BYTES:]
        return head + hashlib.sha256(head + stored).digest() + stored

    def request(self, blocks: list[bytes]) -> bytes:
        """The body of a request with *blocks*, stamped."""
        stamped = [self.stamp(block) for block in blocks]
        now = SystemClock.time_ns() // 1000
        return encode_request(
            Announcement(
                producer=self._id,
                sent_at=now,
                blocks=len(blocks),
                recorded=self._next - 1,
                dropped=0,
                highest=self._next - 1,
                through=now,
                closed=False,
                source="bench",
            ),
            stamped,
        )
