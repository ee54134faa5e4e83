"""
Reading request bodies within bounds: bytes, time, and memory for all of them together.

What a body decompresses to is bounded while it is decompressed, piece by piece, so that
16 KB that would become 512 MB are refused after 16 MB. The memory for all bodies is
counted as bytes arrive and not as they are announced: a thousand senders that trickle
hold next to nothing, and one that announces 8 MiB and sends none takes nothing.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NamedTuple

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from tallybook_server.limits import BODIES_RETRY_SECONDS, ZSTD_WINDOW_LOG_MAX
from tallybook_server.problems import Problem
from tallybook_server.settings import Settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["BodyBudget", "Bound", "Lease", "read_body"]

_PIECE_BYTES: Final = 1 << 20
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS


class BodyBudget:
    """
    The memory that all bodies together may take.

    Attributes:
        bytes_max: The bound.
        held: Bytes taken now.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0

    @contextmanager
    def lease(self) -> Generator[Lease, None, None]:
        """A share for one request, given back when the block is left."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.held -= lease.held


class Lease:
    """One request's share of a `BodyBudget`."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, size: int) -> None:
        """Take *size* bytes more, or raise the problem ``busy`` and take none."""
        budget = self._budget
        if budget.held + size > budget.bytes_max:
            raise Problem(
                "busy",
                f"request bodies hold {budget.held} bytes of memory; the limit "
                f"bodies_bytes_max is {budget.bytes_max}",
                headers={"Retry-After": str(BODIES_RETRY_SECONDS)},
            )
        budget.held += size
        self.held += size


class Bound(NamedTuple):
    """
    A limit of the size of bodies.

    Attributes:
        name: The setting that says so.
        bytes_max: Its value.
    """

    name: str
    bytes_max: int


@asynccontextmanager
async def read_body(
    receive: Receive,
    headers: Headers,
    settings: Settings,
    budget: BodyBudget,
    *,
    bound: Bound | None = None,
) -> AsyncGenerator[bytes, None]:
    """
    The body, decompressed; its memory counts against *budget* until the block is left.

    Args:
        receive: Where it comes from.
        headers: The request's.
        settings: The limits of a body that brings events.
        budget: What all bodies together may take.
        bound: Another limit than those, on the wire and decompressed.

    Raises:
        Problem: ``body-too-large``, ``body-too-slow``, ``body-undecodable``,
            ``encoding-unsupported`` or ``busy``.
        ClientDisconnect: The sender has gone.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in _DECODERS:
        raise Problem(
            "encoding-unsupported",
            f"Content-Encoding is {encoding[:60]!r}; expected one of {', '.join(_DECODERS)}",
            headers={"Accept-Encoding": "gzip, zstd"},  # RFC 7694 section 3.
        )
    on_wire = bound or Bound("body_bytes_max", settings.body_bytes_max)
    unpacked = bound or Bound("body_raw_bytes_max", settings.body_raw_bytes_max)
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > on_wire.bytes_max:
        raise _too_large(on_wire, "on the wire")
    with budget.lease() as lease:
        body = await _arrive(receive, settings.body_seconds_max, on_wire, lease)
        decode = _DECODERS[encoding]
        if decode is not None:
            body = await _unpack(decode(body), unpacked, lease)
        yield body


async def _arrive(receive: Receive, seconds_max: float, bound: Bound, lease: Lease) -> bytes:
    chunks: list[bytes] = []
    size = 0
    more = True
    try:
        async with asyncio.timeout(seconds_max):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(chunk)
                if size > bound.bytes_max:
                    raise _too_large(bound, "on the wire")
                lease.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            "body-too-slow",
            f"{size} bytes of the body arrived, and not all of it, within the limit "
            f"body_seconds_max of {seconds_max:g} seconds",
            headers={"Connection": "close"},  # It has had its time: nothing more is read of it.
        ) from None
    # A body that came in one piece, as most do, is not copied.
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _unpack(pieces: Iterator[bytes], bound: Bound, lease: Lease) -> bytes:
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > bound.bytes_max:
            raise _too_large(bound, "decompressed")
        lease.take(len(piece))
        held.append(piece)
        await asyncio.sleep(0)  # Other requests go on between two pieces of a large body.
    return held[0] if len(held) == 1 else b"".join(held)


def _too_large(bound: Bound, where: str) -> Problem:
    return Problem(
        "body-too-large",
        f"the body has more than {bound.bytes_max} bytes {where}: the limit {bound.name}",
        more={"limit": bound.name, "bytes_max": bound.bytes_max},
    )


def _gunzip(body: bytes) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(_GZIP_BITS)
    try:
        while not decompressor.eof:
            piece = decompressor.decompress(body, _PIECE_BYTES)
            body = decompressor.unconsumed_tail
            if not piece and not body and not decompressor.eof:
                raise _undecodable("gzip", "it is cut off")
            yield piece
    except zlib.error as error:
        raise _undecodable("gzip", str(error)) from None
    # Members behind the first are refused: 8 MiB of empty ones would cost a second each time.
    if decompressor.unused_data:
        raise _undecodable("gzip", "something follows the first member")


def _unzstd(body: bytes) -> Iterator[bytes]:
    decompressor = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    )
    try:
        while not decompressor.eof:
            yield decompressor.decompress(body, max_length=_PIECE_BYTES)
            body = b""
            if decompressor.needs_input and not decompressor.eof:
                raise _undecodable("zstd", "it is cut off")
    except zstd.ZstdError as error:
        raise _undecodable("zstd", str(error)) from None
    if decompressor.unused_data:
        raise _undecodable("zstd", "something follows the first frame")


def _undecodable(encoding: str, why: str) -> Problem:
    return Problem("body-undecodable", f"the body is not a whole {encoding} stream: {why}")


_Decoder = Callable[[bytes], Iterator[bytes]]
_DECODERS: Final[Mapping[str, _Decoder | None]] = {
    "identity": None,
    "": None,
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "zstd": _unzstd,
}
