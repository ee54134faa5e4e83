"""
Senders, in a process of their own: prepared bodies over plain sockets.

They do as little as they can, since they share the machine with what they measure. Bodies
are prepared once per process; what must be new in each, a name, an id or a time, is put in on
the way.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from functools import cache
from itertools import count as count_from
from itertools import islice
from typing import Final, Literal, NamedTuple, Protocol

from tallybook.wire import CONTENT_TYPE
from tests.bench.data import BLOCK_EVENTS, Producer, Tags, block_of, draw_facts
from tests.bench.timeline import Timeline

__all__ = ["Load", "Loaded", "Stretch", "prepare", "send"]

_WHERE: Final = {"blocks": ("/v1/events", CONTENT_TYPE), "json": ("/events", "application/json")}
_BUSY_SECONDS: Final = 0.05


class Stretch(NamedTuple):
    """
    A part of a timeline, in place of the blocks that are always the same.

    Attributes:
        timeline: Of which.
        first: The first block of it.
        behind: The first block that no longer belongs to it.
    """

    timeline: Timeline
    first: int
    behind: int


class Load(NamedTuple):
    """
    What to send.

    Attributes:
        port: Where to.
        kind: Blocks for tallybook, or JSON lists for FastAPI.
        seconds: For how long; a stretch ends earlier when all of it is sent.
        tags: Which events.
        pool: How many prepared bodies take turns.
        blocks: Blocks in a request.
        connections: Senders, each with one request under way.
        seed: Another one for every load of one ledger: producers and ids follow from it.
        stretch: Which blocks to send, instead of `tags` and `pool`.
        rate: Events per second of all connections, or None: as fast as they are taken.
    """

    port: int
    kind: Literal["blocks", "json"]
    seconds: float
    tags: Tags
    pool: int
    seed: int
    blocks: int = 1
    connections: int = 2
    stretch: Stretch | None = None
    rate: float | None = None


class Loaded(NamedTuple):
    """What was acknowledged, in how long; and how often the server said that it was busy."""

    events: int
    requests: int
    seconds: float
    busy: int
    body_bytes: int


class _Bodies(Protocol):
    def next(self) -> tuple[bytes, int] | None:
        """A body, and how many events are in it; None behind the last one."""
        ...


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


def prepare(load: Load) -> None:
    """Have the bodies ready."""
    if load.kind == "json":
        _lists(load.tags, load.pool)
    elif load.stretch is None:
        _blocks(load.tags, load.pool)
    else:
        load.stretch.timeline.prepare()


class _BlockBodies:
    def __init__(self, load: Load, sender: int) -> None:
        self._producer = Producer(load.seed * 100 + sender)
        self._pool = _blocks(load.tags, load.pool)
        self._at = sender * len(self._pool) // load.connections
        self._blocks = load.blocks

    def next(self) -> tuple[bytes, int]:
        pool = self._pool
        chosen = [pool[(self._at + n) % len(pool)] for n in range(self._blocks)]
        self._at += self._blocks
        return self._producer.request(chosen), BLOCK_EVENTS * self._blocks


class _StretchBodies:
    """Of a stretch, each connection sends every so-manieth block, in the order of time."""

    def __init__(self, load: Load, stretch: Stretch, sender: int) -> None:
        self._producer = Producer(load.seed * 100 + sender)
        self._timeline = stretch.timeline
        self._numbers = iter(range(stretch.first + sender, stretch.behind, load.connections))
        self._blocks = load.blocks

    def next(self) -> tuple[bytes, int] | None:
        numbers = list(islice(self._numbers, self._blocks))
        if not numbers:
            return None
        blocks = [self._producer.stamp(self._timeline.block(number)) for number in numbers]
        return self._producer.stamped_request(blocks), BLOCK_EVENTS * len(blocks)


class _ListBodies:
    def __init__(self, load: Load, sender: int) -> None:
        self._ids = count_from((load.seed * 100 + sender) << 64)
        self._pool = _lists(load.tags, load.pool)
        self._chance = random.Random(sender)

    def next(self) -> tuple[bytes, int]:
        # Ids that rise: what an index likes best.
        cut = self._chance.choice(self._pool)
        parts = [b'[{"id":"']
        for number, rest in zip(self._ids, cut, strict=False):
            parts += (b"%032x" % number, rest)
        return b"".join(parts), BLOCK_EVENTS


def _bodies(load: Load, sender: int) -> _Bodies:
    if load.kind == "json":
        return _ListBodies(load, sender)
    if load.stretch is not None:
        return _StretchBodies(load, load.stretch, sender)
    return _BlockBodies(load, sender)


def send(load: Load) -> Loaded:
    """Send until the time is over; what was sent by then is waited for."""
    prepare(load)
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
    bodies = _bodies(load, sender)
    path, kind = _WHERE[load.kind]
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: "
    events = requests = busy = size = 0
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", load.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (now := time.perf_counter()) < until:
            if load.rate is not None:
                due = begun + events * load.connections / load.rate
                if due > now:
                    time.sleep(min(due, until) - now)
                    continue
            following = bodies.next()
            if following is None:
                break
            body, count = following
            message = head.encode() + b"%d\r\n\r\n" % len(body) + body
            while True:
                connection.sendall(message)
                status, answer = _answer(connection)
                if status != 503:
                    break
                busy += 1
                time.sleep(_BUSY_SECONDS)
            if status != 200 or not _all_stored(load, answer, count):
                raise RuntimeError(f"HTTP {status}: {answer[:500]!r}")
            events += count
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
        blocks = events // BLOCK_EVENTS
        return answer.count(b'"status":"stored"') == blocks and b'"exceptions":[{' not in answer
    return answer == b'{"stored":%d}' % events
