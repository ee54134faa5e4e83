"""
Senders, in a process of their own: prepared bodies over plain sockets.

They do as little as they can, since they share the machine with what they measure. Bodies
are prepared once per process; what must be new in each, a name or an id, is put in on the way.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from functools import cache
from itertools import count
from typing import Final, Literal, NamedTuple, Protocol

from tallybook.wire import CONTENT_TYPE
from tests.bench.data import Producer, Tags, block_of, draw_facts

__all__ = ["Load", "Loaded", "prepare", "send"]

BLOCK_EVENTS: Final = 1_000
_BUSY_SECONDS: Final = 0.05


class Load(NamedTuple):
    """
    What to send.

    Attributes:
        port: Where to.
        kind: Blocks for tallybook, or JSON lists for FastAPI.
        seconds: For how long.
        tags: Which events.
        pool: How many prepared bodies take turns.
        blocks: Blocks in a request.
        connections: Senders, each with one request under way.
        seed: Another one for every load of one ledger: producers and ids follow from it.
    """

    port: int
    kind: Literal["blocks", "json"]
    seconds: float
    tags: Tags
    pool: int
    seed: int
    blocks: int = 1
    connections: int = 2


class Loaded(NamedTuple):
    """What was acknowledged, in how long; and how often the server said that it was busy."""

    events: int
    requests: int
    seconds: float
    busy: int
    body_bytes: int


class _Bodies(Protocol):
    def next(self) -> bytes: ...


@cache
def _blocks(tags: Tags, pool: int) -> list[bytes]:
    begin = 1_767_225_600_000_000
    return [
        block_of(draw_facts(BLOCK_EVENTS, tags=tags, seed=at, begin=begin + at * 1_000_000))
        for at in range(pool)
    ]


@cache
def _lists(tags: Tags, pool: int) -> list[list[bytes]]:
    """Each a JSON list of events, cut where an id belongs."""
    lists = []
    for at in range(pool):
        cut: list[bytes] = []
        for fact in draw_facts(BLOCK_EVENTS, tags=tags, seed=at):
            document = {
                "tenant": fact.tenant,
                "dimension": fact.dimension,
                "value": str(fact.value),
                "time": fact.time,
                "tags": fact.tags,
            }
            text = json.dumps(document, separators=(",", ":"))
            cut.append(b'",' + text[1:].encode() + b',{"id":"')
        cut[-1] = cut[-1].removesuffix(b',{"id":"') + b"]"
        lists.append(cut)
    return lists


def prepare(kind: Literal["blocks", "json"], tags: Tags, pool: int) -> int:
    """Have the bodies ready; how many."""
    return len(_blocks(tags, pool) if kind == "blocks" else _lists(tags, pool))


class _BlockBodies:
    def __init__(self, load: Load, sender: int) -> None:
        self._producer = Producer(load.seed * 100 + sender)
        self._pool = _blocks(load.tags, load.pool)
        self._at = sender * len(self._pool) // load.connections
        self._blocks = load.blocks

    def next(self) -> bytes:
        pool = self._pool
        chosen = [pool[(self._at + n) % len(pool)] for n in range(self._blocks)]
        self._at += self._blocks
        return self._producer.request(chosen)


class _ListBodies:
    def __init__(self, load: Load, sender: int) -> None:
        self._ids = count((load.seed * 100 + sender) << 64)
        self._pool = _lists(load.tags, load.pool)
        self._chance = random.Random(sender)

    def next(self) -> bytes:
        # Ids that rise: what an index likes best.
        cut = self._chance.choice(self._pool)
        parts = [b'[{"id":"']
        for number, rest in zip(self._ids, cut, strict=False):
            parts += (b"%032x" % number, rest)
        return b"".join(parts)


def send(load: Load) -> Loaded:
    """Send until the time is over; what was sent by then is waited for."""
    prepare(load.kind, load.tags, load.pool)
    done: list[Loaded] = []
    begun = time.perf_counter()
    until = begun + load.seconds
    senders = [
        threading.Thread(target=lambda at=at: done.append(_send(load, at, until)))
        for at in range(load.connections)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    seconds = time.perf_counter() - begun
    if len(done) != load.connections:
        raise RuntimeError("a sender failed")
    events, requests, _, busy, size = (sum(column) for column in zip(*done, strict=True))
    return Loaded(int(events), int(requests), seconds, int(busy), int(size))


def _send(load: Load, sender: int, until: float) -> Loaded:
    bodies: _Bodies
    if load.kind == "blocks":
        bodies, path, kind = _BlockBodies(load, sender), "/v1/events", CONTENT_TYPE
    else:
        bodies, path, kind = _ListBodies(load, sender), "/events", "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: "
    events = requests = busy = size = 0
    per_request = BLOCK_EVENTS * (load.blocks if load.kind == "blocks" else 1)
    with socket.create_connection(("127.0.0.1", load.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.perf_counter() < until:
            body = bodies.next()
            message = head.encode() + b"%d\r\n\r\n" % len(body) + body
            while True:
                connection.sendall(message)
                status, answer = _answer(connection)
                if status != 503:
                    break
                busy += 1
                time.sleep(_BUSY_SECONDS)
            if status != 200 or not _all_stored(load, answer, per_request):
                raise RuntimeError(f"HTTP {status}: {answer[:500]!r}")
            events += per_request
            requests += 1
            size += len(body)
    return Loaded(events, requests, 0.0, busy, size)


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _received(connection)
    head, body = data[:end].lower(), data[end + 4 :]
    at = head.index(b"content-length:") + 15
    length = int(head[at:].split(b"\r\n", 1)[0])
    while len(body) < length:
        body += _received(connection)
    return int(head[9:12]), body


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise RuntimeError("the server closed the connection")
    return data


def _all_stored(load: Load, answer: bytes, events: int) -> bool:
    if load.kind == "blocks":
        return (
            answer.count(b'"status":"stored"') == load.blocks and b'"exceptions":[{' not in answer
        )
    return answer == b'{"stored":%d}' % events
