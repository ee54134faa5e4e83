"""Bodies within bounds: bytes, decompressed bytes, time and memory."""

from __future__ import annotations

import gzip
import resource
import socket
import struct
import sys
import zlib
from hashlib import sha256

import pytest

from tallybook.block import read_header
from tests.ingest_server.conftest import (
    BLOCKS,
    JSON,
    PRODUCER,
    Running,
    Start,
    block_of,
    request_of,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GOOD = b'{"dimension": "calls", "id": "good", "source": "api", "value": 7}'


def zstd_bomb(raw_bytes: int) -> bytes:
    """About 16 KB that become *raw_bytes* zeros."""
    compressor = zstd.ZstdCompressor(level=3)
    piece = bytes(1 << 20)
    parts = [compressor.compress(piece) for _ in range(raw_bytes >> 20)]
    return b"".join((*parts, compressor.flush()))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", gzip.compress(GOOD)), ("zstd", zstd.compress(GOOD)), ("identity", GOOD)],
)
def test_a_compressed_body_is_read(server: Running, encoding: str, body: bytes) -> None:
    """Whatever its Content-Encoding, the event counts."""
    assert server.post(body, Content_Encoding=encoding).status_code == 200
    assert server.usage() == "7"


def test_a_request_of_blocks_may_be_compressed(server: Running) -> None:
    """A proxy or a client may do so."""
    fields = BLOCKS | {"Content-Encoding": "gzip"}
    body = gzip.compress(request_of(block_of(1)))
    assert server.http.post("/v1/events", content=body, headers=fields).status_code == 200


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate"])
def test_another_encoding_is_refused(shared: Running, encoding: str) -> None:
    """The answer names those that are taken, in the header of RFC 7694."""
    answer = shared.post(GOOD, Content_Encoding=encoding)
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "gzip, zstd")
    assert answer.json()["type"] == "/problems/encoding-unsupported"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", GOOD),
        ("zstd", GOOD),
        ("gzip", b""),
        ("zstd", b""),
        ("gzip", gzip.compress(GOOD)[:-1]),
        ("zstd", zstd.compress(GOOD)[:-1]),
        ("gzip", gzip.compress(GOOD) * 2),
        ("zstd", zstd.compress(GOOD) * 2),
    ],
)
def test_what_is_not_one_whole_stream_is_refused(
    shared: Running, encoding: str, body: bytes
) -> None:
    """Cut off, something else, or something behind it: nothing is stored."""
    answer = shared.post(body, Content_Encoding=encoding)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/body-undecodable")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused_in_bounded_memory(server: Running, encoding: str) -> None:
    """A few KB that become 512 MB are refused at 16 MB, and cost no more."""
    size = 512 << 20
    bomb = zstd_bomb(size) if encoding == "zstd" else _gzip_bomb(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = server.post(bomb, Content_Encoding=encoding)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (answer.status_code, answer.json()["limit"]) == (413, "body_raw_bytes_max")
    assert grown < 64 << 10  # in KiB


def test_a_bomb_in_a_block_is_refused_in_bounded_memory(server: Running) -> None:
    """The payload's length is promised in the header, and no byte more is read."""
    whole = read_header(block_of(1))
    stored = zstd_bomb(512 << 20)
    head = struct.pack(
        "<4sBBH16sQIII", b"TBK1", 1, 0, 0, PRODUCER, 1, 1, whole.raw_bytes, len(stored)
    )
    bomb = head + sha256(head + stored).digest() + stored
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = server.post_blocks(bomb, block_of(5, first=2)).json()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert [receipt["status"] for receipt in answer["receipts"]] == ["refused", "stored"]
    assert server.usage() == "5"
    assert grown < 64 << 10


def _gzip_bomb(size: int) -> bytes:
    compressor = zlib.compressobj(1, wbits=31)
    piece = bytes(1 << 20)
    parts = [compressor.compress(piece) for _ in range(size >> 20)]
    return b"".join((*parts, compressor.flush()))


def test_a_body_over_the_limit_is_refused_by_name(start: Start) -> None:
    """The sender sees the limit and not a broken connection, though it sent all of it."""
    server = start(body_bytes_max=1024)
    answer = server.post(GOOD + b" " * 4_000_000)
    assert answer.status_code == 413
    assert (answer.json()["limit"], answer.json()["bytes_max"]) == ("body_bytes_max", 1024)


def test_a_body_over_the_limit_without_a_length_is_refused(start: Start) -> None:
    """Chunks are counted as they arrive."""
    server = start(body_bytes_max=1024)
    answer = server.http.post(
        "/v1/events", content=iter([b"[", *[b" " * 1000] * 50, b"]"]), headers=JSON
    )
    assert (answer.status_code, answer.json()["limit"]) == (413, "body_bytes_max")


def test_a_body_that_trickles_is_given_up(start: Start) -> None:
    """A sender that never ends is answered and cut off."""
    server = start(body_seconds_max=0.1)
    with socket.create_connection(server.address, timeout=20) as line:
        line.sendall(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n["
        )
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/body-too-slow" in answer


def test_a_sender_that_waits_for_100_gets_the_refusal_at_once(start: Start) -> None:
    """It has sent nothing yet, so there is nothing to throw away."""
    server = start(body_bytes_max=1024)
    with socket.create_connection(server.address, timeout=20) as line:
        line.sendall(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9999\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_bodies_in_memory_have_one_bound_for_all(start: Start) -> None:
    """Beyond it the answer is busy, not an exhausted machine."""
    server = start(bodies_bytes_max=1024)
    answer = server.post(GOOD + b" " * 2000)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/busy")
    assert server.post(GOOD).status_code == 200


def test_a_sender_that_goes_away_stores_nothing(server: Running) -> None:
    """Half a body is no body, and the server goes on."""
    with socket.create_connection(server.address) as line:
        line.sendall(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n" + GOOD
        )
    assert server.usage() == "0"
