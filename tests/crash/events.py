"""
What the crash tests record: event *n* has the value *n*, and everything else follows from it.

So an event in the ledger says which one it is, and any change to its tenant, dimension or
tags shows as well as its loss. Both sides use this: the processes that are killed, and the
test that counts what is left.
"""

from __future__ import annotations

import os
import time
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from tallybook import Meter

__all__ = ["STREAM_EVENTS", "Report", "Shape", "record", "returned", "shape_of"]

STREAM_EVENTS = 1_000_000
"""Numbers that belong to one thread of one process; a process has ten times as many."""

_TENANTS = ("acme", "globex", "zürich", None)
_DIMENSIONS = ("http.requests", "tokens.output", "storage.bytes")
_ROUTES = tuple(f"/v1/items/{n}" for n in range(40))
_BULKY = {f"detail-{n}": "x" * 250 for n in range(30)}
_LINE_BYTES = 16


class Shape(NamedTuple):
    """An event without its value and time."""

    dimension: str
    tenant: str | None
    tags: dict[str, str]
    key: str | None


def shape_of(n: int) -> Shape:
    """Everything but the value of event *n*. Events 20 to 59 of a thousand fill a small spool."""
    tags = {} if n % 5 == 0 else {"route": _ROUTES[n % 40], "region": "eu"}
    if 20 <= n % 1000 < 60:
        tags = _BULKY
    key = f"order-{n}" if n % 13 == 0 else None
    return Shape(_DIMENSIONS[n % 3], _TENANTS[n % 4], tags, key)


def record(meter: Meter, n: int) -> None:
    """Record event *n*: mostly the common way, and every other way now and then."""
    dimension, tenant, tags, key = shape_of(n)
    if n % 13 == 0:
        meter.record(dimension, n, tenant=tenant, tags=tags, key=key)
    elif n % 17 == 0:
        meter.record(dimension, Decimal(n), tenant=tenant, tags=tags)
    elif n % 19 == 0:
        meter.record(dimension, n, tenant=tenant, tags=tags, time=time.time_ns() // 1000)
    elif n % 23 == 0:
        meter.bind(dimension, tenant=tenant, tags=tags).add(n)
    else:
        meter.record(dimension, n, tenant=tenant, tags=tags)


class Report:
    """
    Where a process says which calls have returned: a file that is only added to.

    A line is written by one system call, so a kill leaves it whole or not there, and it is
    written after the call returned, so what is there was promised.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, n: int) -> None:
        """The call that recorded *n* has returned, by now."""
        line = n.to_bytes(8, "little") + time.monotonic_ns().to_bytes(8, "little")
        os.write(self._fd, line)


def returned(path: Path) -> dict[int, int]:
    """The events whose calls have returned, with when, on the monotonic clock in nanoseconds."""
    data = path.read_bytes() if path.exists() else b""
    lines = (data[at : at + _LINE_BYTES] for at in range(0, len(data), _LINE_BYTES))
    return {
        int.from_bytes(line[:8], "little"): int.from_bytes(line[8:], "little") for line in lines
    }
