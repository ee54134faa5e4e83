"""The server is killed again and again under load, behind a bad network, while it seals."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.counting import compare, finish, held_events
from tests.crash.processes import Zygote
from tests.crash.proxy import BadNetwork
from tests.crash.senders import Senders
from tests.crash.serving import ForkedServer


@pytest.fixture
def server(server_zygote: Zygote, tmp_path: Path) -> Iterator[ForkedServer]:
    """A server that seals every few hundred events, and compacts every two segments."""
    process = ForkedServer(server_zygote, tmp_path / "data", seal_events=200, seal_age_seconds=0.1)
    process.start()
    yield process
    process.kill()


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
    with (
        BadNetwork(server.port, chance) as network,
        Senders(2, network.url, tmp_path, pause_seconds=0.001) as senders,
    ):
        for _ in range(kills):
            # From the first requests after the start to some seals later.
            time.sleep(10 ** chance.uniform(-1.7, 0.3))
            server.kill()
            server.start()
        senders.kill()
        senders.drain(network.url)
    acknowledged = senders.acknowledged()
    segments = len(list(server.data.glob("books/default/segments/*.parquet")))
    outcome = compare(senders.returned, server, kills=kills)
    # The oldest acknowledged blocks are not kept, where they would not leave room for new ones.
    lost = acknowledged - held_events(server.data)[0].keys()
    print(f"{len(acknowledged)} known as acknowledged, lost {len(lost)}, {segments} segments")
    print(f"on the way: {dict(network.faults)}")
    finish("server under load", server, outcome)
    assert not lost
    assert acknowledged
    assert segments
