"""
Clients that ask, in a process of their own: dashboards and invoice runs of a working day.

Each asks over a connection of its own and, when it has the answer, waits a moment before it
asks again. Of ten questions seven are about one day of one tenant, two about the days of a
month of one tenant, and one about a month of all tenants: the slowest of the three is what a
99th percentile shows.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Sequence
from math import ceil
from typing import Final, NamedTuple
from urllib.parse import urlencode

from tests.bench.data import DIMENSIONS, TENANTS

__all__ = ["Asked", "Asking", "ask", "percentile"]

PAUSE_SECONDS: Final = 0.05
_MONTHS: Final = ("2026-01", "2026-02", "2026-03")


class Asking(NamedTuple):
    """
    What to ask.

    Attributes:
        port: Where.
        seconds: For how long.
        clients: How many ask at the same time.
        seed: Of the questions.
    """

    port: int
    seconds: float
    clients: int
    seed: int


class Asked(NamedTuple):
    """
    What was answered.

    Attributes:
        seconds: How long each answer took, sorted.
        rows: How many rows all answers had.
    """

    seconds: list[float]
    rows: int


def ask(asking: Asking) -> Asked:
    """Ask until the time is over."""
    done: list[Asked] = []
    threads = [
        threading.Thread(target=lambda at=at: done.append(_client(asking, at)))
        for at in range(asking.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) != asking.clients:
        raise RuntimeError("a client failed")
    return Asked(
        sorted(seconds for one in done for seconds in one.seconds), sum(one.rows for one in done)
    )


def percentile(seconds: Sequence[float], percent: float) -> float:
    """Of sorted *seconds*, the smallest that *percent* of them do not exceed."""
    return seconds[max(ceil(len(seconds) * percent / 100) - 1, 0)]


def _client(asking: Asking, number: int) -> Asked:
    chance = random.Random(asking.seed * 100 + number)
    connection = http.client.HTTPConnection("127.0.0.1", asking.port, timeout=60)
    until = time.perf_counter() + asking.seconds
    seconds: list[float] = []
    rows = 0
    while time.perf_counter() < until:
        path = _question(chance)
        begun = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        seconds.append(time.perf_counter() - begun)
        if response.status != 200:
            raise RuntimeError(f"{path}: HTTP {response.status}: {body[:500]!r}")
        rows += len(json.loads(body)["data"])
        time.sleep(PAUSE_SECONDS)
    connection.close()
    return Asked(seconds, rows)


def _question(chance: random.Random) -> str:
    month = chance.choice(_MONTHS)
    asked = {
        "dimension": chance.choice(DIMENSIONS),
        "from": f"{month}-01T00:00:00Z",
        "to": f"{month}-28T00:00:00Z",
        "aggregation": "sum",
    }
    kind = chance.randrange(10)
    if kind == 0:
        asked["group_by"] = "tenant"
    else:
        # A tenant is asked about as often as it is large: the first ones most.
        asked["tenant"] = TENANTS[int(len(TENANTS) ** chance.random()) - 1]
        if kind <= 2:
            asked["window"] = "day"
        else:
            day = chance.randrange(1, 28)
            asked["from"] = f"{month}-{day:02}T00:00:00Z"
            asked["to"] = f"{month}-{day + 1:02}T00:00:00Z"
    return f"/v1/usage?{urlencode(asked)}"
