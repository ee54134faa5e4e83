"""
Blocks for a year of usage, in the order of time, without encoding each event anew.

What is costly, the columns, is prepared for some hundred blocks that take turns. A block of
the year gets a time of its own, which is eight bytes of the prepared payload, and is then
compressed, as docs/reference/formats.md lays it out. That costs a quarter of a microsecond
per event (measured), far less than the server takes for it. What is known of the prepared
blocks says exactly what the ledger has to answer.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random
from typing import Final

import msgspec

from tallybook.block import pack
from tallybook.frame import Body, encode_series
from tests.bench.columns import BEGIN, DAY
from tests.bench.data import BLOCK_EVENTS, Fact, draw_facts

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["MONTH_DAYS", "YEAR_DAYS", "Amount", "Timeline"]

YEAR_DAYS: Final = 365
MONTH_DAYS: Final = 31
"""January, the month whose invoice is asked for."""

_HEAD: Final = struct.Struct("<4sBBH16sQIII")
_encode: Final = msgspec.msgpack.Encoder().encode
# A time of 64 bits that no other number of a payload is: its place is looked for.
_SENTINEL: Final = 0xFEDC_BA98_7654_3210
_MARK: Final = b"\xcf" + _SENTINEL.to_bytes(8, "big")

Amount = Counter[tuple[str, str]]
"""Thousandths of the unit, or events, by dimension and tenant."""


@dataclass(frozen=True)
class _Prepared:
    """A payload, where its time is, and what is in it."""

    raw: bytes
    at: int
    thousandths: Amount
    events: Amount
    offsets: tuple[int, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Timeline:
    """
    A year of blocks, one behind the other.

    Attributes:
        events: In the year; the blocks behind it go on into the next one.
        pool: How many blocks are prepared.
    """

    events: int
    pool: int

    @property
    def step(self) -> int:
        """Microseconds from the beginning of a block to that of the next one."""
        return YEAR_DAYS * DAY * BLOCK_EVENTS // self.events

    def prepare(self) -> None:
        """Have the payloads ready, in this process."""
        _prepare(self.step, self.pool)

    def block(self, number: int) -> bytes:
        """Block *number* of the year, without name and digest: `Producer.stamp` brings them."""
        prepared = _prepare(self.step, self.pool)[number % self.pool]
        at, time = prepared.at, BEGIN + number * self.step
        raw = prepared.raw[:at] + time.to_bytes(8, "big") + prepared.raw[at + 8 :]
        stored = zstd.compress(raw, 1)
        head = _HEAD.pack(b"TBK1", 1, 0, 0, bytes(16), 1, BLOCK_EVENTS, len(raw), len(stored))
        return head + bytes(32) + stored

    def amounts(self, blocks: int, start: int, end: int) -> tuple[Amount, Amount]:
        """
        What the first *blocks* have in the time from *start* up to *end*.

        Returns:
            Thousandths, and events.
        """
        prepared = _prepare(self.step, self.pool)
        whole: Counter[int] = Counter()
        thousandths, events = Amount(), Amount()
        for number in range(blocks):
            begin = BEGIN + number * self.step
            if start <= begin and begin + self.step <= end:
                whole[number % self.pool] += 1
            elif begin < end and start < begin + self.step:
                _add_some(prepared[number % self.pool], begin, start, end, thousandths, events)
        for at, times in whole.items():
            for key, amount in prepared[at].thousandths.items():
                thousandths[key] += amount * times
            for key, count in prepared[at].events.items():
                events[key] += count * times
        return thousandths, events


def _add_some(
    prepared: _Prepared, begin: int, start: int, end: int, thousandths: Amount, events: Amount
) -> None:
    for offset, fact in zip(prepared.offsets, prepared.facts, strict=True):
        if start <= begin + offset < end:
            thousandths[fact.dimension, fact.tenant] += _thousandths(fact)
            events[fact.dimension, fact.tenant] += 1


def _thousandths(fact: Fact) -> int:
    return int(fact.value.scaleb(3))


@cache
def _prepare(step: int, pool: int) -> list[_Prepared]:
    """In each process once."""
    return [_prepare_one(step, seed) for seed in range(pool)]


def _prepare_one(step: int, seed: int) -> _Prepared:
    facts = draw_facts(BLOCK_EVENTS, tags="drawn", seed=seed)
    # The first event of a block is at its beginning, the others are anywhere in its time.
    offsets = [0, *sorted(Random(seed).choices(range(step), k=BLOCK_EVENTS - 1))]
    columns = pack("bench", [_body(fact) for fact in facts])
    times = [_SENTINEL, *(b - a for a, b in pairwise(offsets))]
    raw = _encode(msgspec.structs.replace(columns, times=times))
    if raw.count(_MARK) != 1:
        raise RuntimeError("the place of a payload's first time is not certain")
    thousandths, events = Amount(), Amount()
    for fact in facts:
        thousandths[fact.dimension, fact.tenant] += _thousandths(fact)
        events[fact.dimension, fact.tenant] += 1
    at = raw.index(_MARK) + 1
    return _Prepared(raw, at, thousandths, events, tuple(offsets), tuple(facts))


def _body(fact: Fact) -> Body:
    series = encode_series(fact.dimension, fact.tenant, fact.tags)
    return Body(fact.time, False, fact.mantissa, fact.scale, None, series)
