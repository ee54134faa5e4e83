"""
A block: up to 2,000 events of one producer, contiguous in sequence, immutable.
Pure. docs/reference/formats.md.

The same bytes lie in the queue, go over the wire and lie in the journal. A block is
never cut again and never encoded again, so its digest is its name.

::

    4s magic "TBK1"   u8 codec   u8 flags   u16 zero
    16s producer   u64 first   u32 count   u32 raw bytes   u32 stored bytes
    32s SHA-256 of everything before it and of the payload
    payload

Event *i* has the sequence ``first + i``. The payload, once decompressed, holds the
events by column: each distinct series once, in bytes, and per event the number of its
series, its time as a difference, and its value. What few events have (a key, a given
time, a value beyond 64 bits) lies in short lists beside the columns.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Final, NamedTuple

import msgspec

from tallybook.errors import BlockDamaged, FrameDamaged
from tallybook.event import INT64_MAX, TIME_MAX, TIME_MIN, Event
from tallybook.frame import Body, read_series
from tallybook.limits import (
    BLOCK_EVENTS_MAX,
    BLOCK_RAW_BYTES_MAX,
    VALUE_DECIMALS_MAX,
    VALUE_DIGITS_MAX,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "HEADER_BYTES",
    "REISSUED",
    "BlockHeader",
    "Columns",
    "Times",
    "block_bytes",
    "check_digest",
    "columns_bodies",
    "derived_producer",
    "encode_block",
    "int64s",
    "pack",
    "read_columns",
    "read_header",
    "read_payload",
]

MAGIC: Final = b"TBK1"
RAW: Final = 0
ZSTD: Final = 1
REISSUED: Final = 0x01
"""Flag: these events met a conflict and come again under a derived producer."""

SEQUENCE_MAX: Final = INT64_MAX
_HEAD: Final = struct.Struct("<4sBBH16sQIII")
_DIGEST: Final = struct.Struct("<32s")
HEADER_BYTES: Final = _HEAD.size + _DIGEST.size

_BOUNDED: Final[dict[int, int]] = {
    zstd.DecompressionParameter.window_log_max: BLOCK_RAW_BYTES_MAX.bit_length()
}
_ZSTD_LEVEL: Final = 1  # Compressing is on the host application's time.


class BlockHeader(msgspec.Struct, frozen=True):
    """
    What a block says of itself.

    Attributes:
        producer: 16 bytes.
        first: The sequence of the first event, from 1.
        count: Events, 1 to 2,000.
        sha256: The digest; the block's name.
        codec: 0 as it is, 1 zstd.
        flags: `REISSUED` or 0.
        raw_bytes: The payload's length before compression.
        stored_bytes: The payload's length as stored.
    """

    producer: bytes
    first: int
    count: int
    sha256: bytes
    codec: int
    flags: int
    raw_bytes: int
    stored_bytes: int

    @property
    def last(self) -> int:
        """The sequence of the last event."""
        return self.first + self.count - 1


class Columns(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """
    A block's events, by column. Lists of equal length are one entry per event.

    Attributes:
        version: 1.
        source: The application's name, or None.
        series: Each distinct series: three msgpack values in bytes (dimension, tenant, tags).
        of: Per event, the index of its series.
        times: The first event's time in microseconds, then differences.
        mantissas: Per event, the value's mantissa, 0 where it is wide.
        scales: Per event, the value's scale; empty when all are 0.
        wides: (index, mantissa as decimal text) of mantissas beyond 63 bits.
        keys: (index, idempotency key): counts once per source and dimension.
        ids: (index, id) of events that another format brought: counts once per source.
        given: Indices of the events whose time the caller gave.
    """

    version: int
    source: str | None
    series: list[bytes]
    of: list[Annotated[int, msgspec.Meta(ge=0)]]
    times: list[int]
    mantissas: list[Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]]
    scales: list[Annotated[int, msgspec.Meta(ge=0, le=VALUE_DECIMALS_MAX)]]
    wides: list[tuple[int, str]]
    keys: list[tuple[int, str]]
    ids: list[tuple[int, str]]
    given: list[int]

    def absolute_times(self) -> list[int]:
        """Per event, microseconds since 1970 UTC."""
        return list(accumulate(self.times))

    def events(self) -> list[Event]:
        """
        The events themselves: for comparing and showing, not for the hot path.

        Raises:
            BlockDamaged: A series cannot be read.
        """
        try:
            series = [read_series(data) for data in self.series]
        except FrameDamaged as error:
            raise BlockDamaged(str(error)) from None
        return [
            Event(
                dimension=series[of][0],
                tenant=series[of][1],
                tags=series[of][2],
                value=(body.mantissa, body.scale),
                time=body.time,
                key=body.key,
                given=body.given,
                id=body.id,
            )
            for of, body in zip(self.of, columns_bodies(self), strict=True)
        ]


class Times(NamedTuple):
    """
    The times of a block's events, in microseconds since 1970 UTC.

    Attributes:
        each: Per event.
        latest: The latest of them.
    """

    each: array[int]
    latest: int


def int64s(values: Sequence[int]) -> array[int]:
    """
    *values* as an array of 64 bits each.

    By way of bytes, which takes 13 ns a value; `array` itself takes 40 (measured).

    Raises:
        struct.error: A value does not fit.
    """
    return array("q", struct.pack(f"{len(values)}q", *values))


def pack(source: str | None, bodies: Sequence[Body]) -> Columns:
    """The columns of *bodies*, in order."""
    index: dict[bytes, int] = {}
    of = [index.setdefault(body.series, len(index)) for body in bodies]
    times = [body.time for body in bodies]
    mantissas = [body.mantissa for body in bodies]
    scales = [body.scale for body in bodies]
    wides = [(at, str(m)) for at, m in enumerate(mantissas) if m > INT64_MAX]
    for at, _ in wides:
        mantissas[at] = 0
    return Columns(
        version=1,
        source=source,
        series=list(index),
        of=of,
        times=[times[0], *(b - a for a, b in pairwise(times))],
        mantissas=mantissas,
        scales=scales if any(scales) else [],
        wides=wides,
        keys=[(at, body.key) for at, body in enumerate(bodies) if body.key is not None],
        ids=[(at, body.id) for at, body in enumerate(bodies) if body.id is not None],
        given=[at for at, body in enumerate(bodies) if body.given],
    )


def columns_bodies(columns: Columns) -> list[Body]:
    """The events of *columns* as bodies, their series still in bytes: `pack` turned round."""
    wides = {index: int(text) for index, text in columns.wides}
    keys, ids, given = dict(columns.keys), dict(columns.ids), set(columns.given)
    return [
        Body(
            time=time,
            given=index in given,
            mantissa=wides.get(index, mantissa),
            scale=columns.scales[index] if columns.scales else 0,
            key=keys.get(index),
            series=columns.series[of],
            id=ids.get(index),
        )
        for index, (of, time, mantissa) in enumerate(
            zip(columns.of, columns.absolute_times(), columns.mantissas, strict=True)
        )
    ]


def encode_block(
    columns: Columns, *, producer: bytes, first: int, flags: int = 0, codec: int = ZSTD
) -> bytes:
    """
    The block's bytes.

    Args:
        columns: 1 to 2,000 events.
        producer: 16 bytes.
        first: The sequence of the first event, 1 or more.
        flags: `REISSUED` or 0.
        codec: `ZSTD`, or `RAW` for bytes that do not depend on a compressor's version.
    """
    raw = _encode(columns)
    stored = zstd.compress(raw, _ZSTD_LEVEL) if codec == ZSTD else raw
    head = _HEAD.pack(
        MAGIC, codec, flags, 0, producer, first, len(columns.of), len(raw), len(stored)
    )
    return head + hashlib.sha256(head + stored).digest() + stored


def read_header(block: bytes | memoryview) -> BlockHeader:
    """
    The header of a block, its bounds checked; the digest is not.

    Raises:
        BlockDamaged: Too short, another format, or a count, sequence or size out of bounds.
    """
    if len(block) < HEADER_BYTES:
        raise BlockDamaged(
            f"a block's header has {HEADER_BYTES} bytes; this one ends after {len(block)}"
        )
    magic, codec, flags, zero, producer, first, count, raw, stored = _HEAD.unpack_from(block)
    if magic != MAGIC:
        raise BlockDamaged(f"not a block of format 1: it begins with {magic!r}")
    if codec not in (RAW, ZSTD) or flags & ~REISSUED or zero:
        raise BlockDamaged(f"codec {codec}, flags {flags}: not of format 1")
    if not 1 <= count <= BLOCK_EVENTS_MAX:
        raise BlockDamaged(f"a block of {count} events; expected 1 to {BLOCK_EVENTS_MAX}")
    if not 1 <= first <= SEQUENCE_MAX - count:
        raise BlockDamaged(f"a block from sequence {first}; expected 1 to 2**63")
    if raw > BLOCK_RAW_BYTES_MAX or stored > BLOCK_RAW_BYTES_MAX:
        raise BlockDamaged(
            f"a payload of {max(raw, stored)} bytes; expected at most {BLOCK_RAW_BYTES_MAX}"
        )
    (sha256,) = _DIGEST.unpack_from(block, _HEAD.size)
    return BlockHeader(producer, first, count, sha256, codec, flags, raw, stored)


def block_bytes(header: BlockHeader) -> int:
    """The length of the whole block."""
    return HEADER_BYTES + header.stored_bytes


def check_digest(block: bytes | memoryview, header: BlockHeader) -> None:
    """Raise BlockDamaged unless the block is whole and its digest holds."""
    if len(block) != block_bytes(header):
        raise BlockDamaged(
            f"a block of {block_bytes(header)} bytes; this one has {len(block)}: cut off"
        )
    digest = hashlib.sha256(block[: _HEAD.size])
    digest.update(block[HEADER_BYTES:])
    if digest.digest() != header.sha256:
        raise BlockDamaged("the block's digest does not hold: a byte was changed on the way")


def read_payload(block: bytes | memoryview, header: BlockHeader) -> Columns:
    """
    The columns of a block: whole, digest checked, every index and time within bounds.

    The series are not read: who needs them, reads them once and remembers.

    Raises:
        BlockDamaged: The first thing that does not hold.
    """
    return read_columns(block, header)[0]


def read_columns(block: bytes | memoryview, header: BlockHeader) -> tuple[Columns, Times]:
    """
    What `read_payload` returns, with the times, which checking computes anyway.

    Raises:
        BlockDamaged: The first thing that does not hold.
    """
    check_digest(block, header)
    stored = block[HEADER_BYTES:]
    if header.codec == ZSTD:
        raw = _decompress(stored, header.raw_bytes)
    else:
        raw = bytes(stored)
    if len(raw) != header.raw_bytes:
        raise BlockDamaged(f"a payload of {len(raw)} bytes; its header says {header.raw_bytes}")
    try:
        columns = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BlockDamaged(f"a block's payload cannot be read: {error}") from None
    return columns, _check_columns(columns, header.count)


def _decompress(stored: bytes | memoryview, raw_bytes: int) -> bytes:
    # The bounds are on what comes out and on what the decompressor may take for it, whatever
    # the compressed frame says of itself.
    decompressor = zstd.ZstdDecompressor(options=_BOUNDED)
    try:
        raw = decompressor.decompress(stored, max_length=raw_bytes + 1)
    except zstd.ZstdError as error:
        raise BlockDamaged(f"a block's payload cannot be decompressed: {error}") from None
    if not decompressor.eof or decompressor.unused_data:
        raise BlockDamaged(f"a block's payload is not {raw_bytes} bytes once decompressed")
    return raw


def _check_columns(columns: Columns, count: int) -> Times:
    if columns.version != 1:
        raise BlockDamaged(f"a payload of version {columns.version}; expected 1")
    lengths = (len(columns.of), len(columns.times), len(columns.mantissas))
    if lengths != (count,) * 3 or len(columns.scales) not in (0, count):
        raise BlockDamaged(f"columns of {lengths} events; the header says {count}")
    if max(columns.of) >= len(columns.series):
        raise BlockDamaged("an event of a series that the block does not hold")
    times = columns.absolute_times()
    latest = max(times)
    if min(times) < TIME_MIN or latest > TIME_MAX:
        raise BlockDamaged("a time outside the years 1 to 9999")
    for rows in (columns.wides, columns.keys, columns.ids):
        _check_indices([index for index, _ in rows], count)
    _check_indices(columns.given, count)
    for index, text in columns.wides:
        if not (text.isascii() and text.isdigit() and len(text) <= VALUE_DIGITS_MAX):
            raise BlockDamaged(f"event {index}: {text[:40]!r} is no mantissa of 38 digits")
    return Times(int64s(times), latest)


def _check_indices(indices: list[int], count: int) -> None:
    # Rising without repetition: an event has one key, one wide value.
    if any(b <= a for a, b in pairwise(indices)) or (
        indices and not (indices[0] >= 0 and indices[-1] < count)
    ):
        raise BlockDamaged("an index beside the columns is out of order or out of bounds")


def derived_producer(producer: bytes, first: int, sha256: bytes) -> bytes:
    """
    The producer under which the conflicting events of a block come again.

    It follows from the block alone, so that any number of clones that re-issue the
    same block do it under the same name, and count once.
    """
    return hashlib.sha256(
        b"tallybook reissue" + producer + first.to_bytes(8, "little") + sha256
    ).digest()[:16]


_encode = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Columns)
