"""
The events that questions are measured with, by column, the same in every run.

90 days from 2026-01-01, January to March, in the order of their time: 1,000 tenants by
zipf(1.1), 20 dimensions, five tags. Values are those of `tests.bench.data`: half of them
are 1, a quarter is lognormal and a quarter has three decimals. Every engine gets these
events; those without decimals of their own get values as whole thousandths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tallybook.block import Columns, encode_block
from tests.bench.data import DIMENSIONS, ROUTES, STATUSES, TENANTS

__all__ = ["BEGIN", "DAY", "DAYS", "TAGS", "Dataset", "draw"]

BEGIN: Final = 1_767_225_600_000_000
"""2026-01-01, in microseconds."""
DAY: Final = 86_400_000_000
DAYS: Final = 90

METHODS: Final = ("GET", "POST", "PUT", "DELETE")
REGIONS: Final = ("eu-central-1", "eu-west-1", "us-east-1", "us-west-2", "ap-south-1")
# Large tenants have more people, as they have more events.
_USERS_OF: Final = tuple(5 + 5_000 // rank for rank in range(1, len(TENANTS) + 1))
USERS: Final = tuple(f"u-{number:06}" for number in range(sum(_USERS_OF)))

TAGS: Final[dict[str, tuple[str, ...]]] = {
    "method": METHODS,
    "region": REGIONS,
    "route": ROUTES,
    "status": STATUSES,
    "user_id": USERS,
}
"""Each tag with its possible values."""

_Ints = NDArray[np.int64]
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class Dataset:
    """
    Events by column; a text is the number of its place in its list.

    Attributes:
        tenant: Of `tests.bench.data.TENANTS`.
        dimension: Of `tests.bench.data.DIMENSIONS`.
        time: Microseconds since 1970 UTC, rising.
        mantissa: The value is ``mantissa / 10**scale``.
        scale: 0 or 3.
        tags: By key, of `TAGS`.
    """

    tenant: _Ints
    dimension: _Ints
    time: _Ints
    mantissa: _Ints
    scale: _Ints
    tags: dict[str, _Ints]

    def __len__(self) -> int:
        return len(self.time)

    @property
    def thousandths(self) -> _Ints:
        """The values, as whole numbers of one scale."""
        return self.mantissa * np.where(self.scale == 0, 1_000, 1)

    def part(self, first: int, behind: int) -> Dataset:
        """The events from *first* on, up to *behind*."""
        cut = slice(first, behind)
        return Dataset(
            self.tenant[cut],
            self.dimension[cut],
            self.time[cut],
            self.mantissa[cut],
            self.scale[cut],
            {key: column[cut] for key, column in self.tags.items()},
        )

    def blocks(self, producer: bytes, *, first: int = 1, events: int = 2_000) -> Iterator[bytes]:
        """The events as blocks of one producer, as its SDK would have packed them."""
        users = [_encode(d) + _encode(t) for t in TENANTS for d in DIMENSIONS]
        texts = [[_encode(key) + _encode(text) for text in TAGS[key]] for key in self.tags]
        head = bytes([0x80 | len(texts)])  # A msgpack map of so many pairs.
        for at in range(0, len(self), events):
            part = self.part(at, at + events)
            halves: list[list[bytes]] = [
                [users[n] for n in (part.tenant * len(DIMENSIONS) + part.dimension).tolist()],
                *(
                    [of[n] for n in column.tolist()]
                    for of, column in zip(texts, part.tags.values(), strict=True)
                ),
            ]
            index: dict[bytes, int] = {}
            of = [
                index.setdefault(user + head + b"".join(tags), len(index))
                for user, *tags in zip(*halves, strict=True)
            ]
            times: list[int] = part.time.tolist()
            columns = Columns(
                version=1,
                source="bench",
                series=list(index),
                of=of,
                times=[times[0], *(b - a for a, b in pairwise(times))],
                mantissas=part.mantissa.tolist(),
                scales=part.scale.tolist(),
                wides=[],
                keys=[],
                ids=[],
                given=[],
            )
            yield encode_block(columns, producer=producer, first=first + at)


def draw(events: int, seed: int = 1) -> Dataset:
    """*events* of 90 days."""
    chance = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(TENANTS) + 1) ** 1.1
    tenant = chance.choice(len(TENANTS), events, p=weights / weights.sum())
    time = BEGIN + np.sort(chance.integers(0, DAYS * DAY, events))
    mantissa, scale = _draw_values(events, chance)
    users_of = np.array(_USERS_OF)
    first_user = np.cumsum(users_of) - users_of
    return Dataset(
        tenant.astype(np.int64),
        chance.integers(0, len(DIMENSIONS), events),
        time,
        mantissa,
        scale,
        {
            "method": chance.integers(0, len(METHODS), events),
            "region": chance.integers(0, len(REGIONS), events),
            "route": chance.integers(0, len(ROUTES), events),
            "status": chance.choice(len(STATUSES), events, p=(0.9, 0.04, 0.03, 0.02, 0.01)),
            "user_id": first_user[tenant] + chance.integers(0, users_of[tenant]),
        },
    )


def _draw_values(events: int, chance: Any) -> tuple[_Ints, _Ints]:
    """Mantissas and scales; a scale is the smallest that is exact."""
    kind = chance.random(events)
    whole = 1 + chance.lognormal(5, 2, events).astype(np.int64)
    decimals = chance.integers(1, 100_000, events)
    decimals += decimals % 10 == 0
    scaled = kind >= 0.75
    return np.where(kind < 0.5, 1, np.where(scaled, decimals, whole)), np.where(scaled, 3, 0)
