"""The server is killed again and again under load, behind a bad network, while it seals."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tallybook.block import columns_bodies, read_header, read_payload
from tallybook.wire import read_request
from tests.crash.counting import compare, finish, held_events
from tests.crash.draining import Drainer
from tests.crash.events import STREAM_EVENTS, returned
from tests.crash.jobs import record_until_killed
from tests.crash.processes import Job, Zygote
from tests.crash.proxy import BadNetwork
from tests.crash.serving import ForkedServer

SENDERS = 2
SENDER_NUMBERS = 10 * STREAM_EVENTS


@pytest.fixture
def server(server_zygote: Zygote, tmp_path: Path) -> Iterator[ForkedServer]:
    """A server that seals every few hundred events, and compacts every two segments."""
    process = ForkedServer(server_zygote, tmp_path / "data", seal_events=200, seal_age_seconds=0.1)
    process.start()
    yield process
    process.kill()


class Senders:
    """Processes that record and send all the time, one directory and number range for each."""

    def __init__(self, zygotes: list[Zygote], url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._jobs = [self._start(zygote, place) for place, zygote in enumerate(zygotes)]

    def _start(self, zygote: Zygote, place: int) -> Job:
        return zygote.run(
            record_until_killed,
            directory=self._folder / f"queue-{place}",
            endpoint=self._url,
            report=self._folder / "returned",
            first=(place + 1) * SENDER_NUMBERS,
            events=STREAM_EVENTS - 1,
            durability="process",
            queue_bytes_max=4 << 20,
            pause_seconds=0.001,
            threads=1,
            fork_after=None,
        )

    def kill(self) -> None:
        """The end of recording."""
        for job in self._jobs:
            job.kill()
            assert job.wait() == -9

    def drain(self, url: str) -> None:
        """Send what is left."""
        with Drainer(url) as drainer:
            for place in range(len(self._jobs)):
                drainer.drain(self._folder / f"queue-{place}")

    def acknowledged(self) -> set[int]:
        """Every event of a block that a queue has had an answer for."""
        return {
            body.mantissa
            for path in self._folder.glob("queue-*/*.kept")
            for block in read_request(path.read_bytes())[1]
            for body in columns_bodies(read_payload(block, read_header(block)))
        }


@pytest.mark.parametrize(
    "kills",
    [pytest.param(8, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.crash)],
)
def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing(
    kills: int, server: ForkedServer, tmp_path: Path, chance: random.Random
) -> None:
    """
    What was recorded, and so what was acknowledged, is counted once; the chain verifies.

    Two senders, answers cut and swallowed on the way, a seal every few hundred events.
    """
    with ExitStack() as stack:
        zygotes = [stack.enter_context(Zygote("tests.crash.jobs")) for _ in range(SENDERS)]
        network = stack.enter_context(BadNetwork(server.port, chance))
        senders = Senders(zygotes, network.url, tmp_path)
        for _ in range(kills):
            # From the first requests after the start to some seals later.
            time.sleep(10 ** chance.uniform(-1.7, 0.3))
            server.kill()
            server.start()
        senders.kill()
        senders.drain(network.url)
    acknowledged = senders.acknowledged()
    segments = len(list(server.data.glob("books/default/segments/*.parquet")))
    outcome = compare(returned(tmp_path / "returned"), server, kills=kills)
    # The oldest acknowledged blocks are not kept, where they would not leave room for new ones.
    lost = acknowledged - held_events(server.data)[0].keys()
    print(f"{len(acknowledged)} known as acknowledged, lost {len(lost)}, {segments} segments")
    print(f"on the way: {dict(network.faults)}")
    finish("server under load", server, outcome)
    assert not lost
    assert acknowledged
    assert segments
