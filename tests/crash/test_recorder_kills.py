"""A recording process is killed at random moments, again and again, on one directory."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from tallybook.limits import BUFFER_DELAY_SECONDS
from tests.conftest import ServerProcess
from tests.crash.counting import compare, finish, held_events
from tests.crash.draining import Drainer
from tests.crash.events import STREAM_EVENTS, returned
from tests.crash.jobs import record_until_killed
from tests.crash.processes import Zygote

PROCESS_NUMBERS = 10 * STREAM_EVENTS
DRAIN_KILLS = 25
PROMISED_NS = round(BUFFER_DELAY_SECONDS * 1e9)
MARGIN_NS = 230_000_000


class Victims:
    """One process after the other on one directory, each killed at a random moment."""

    def __init__(
        self, zygote: Zygote, server: ServerProcess, folder: Path, chance: random.Random
    ) -> None:
        self._zygote = zygote
        self._server = server
        self._directory = folder / "queue"
        self._report = folder / "returned"
        self._chance = chance
        self._processes = 0
        self.queue_bytes_max: int | None = None
        self.kills = 0
        self.killed_at: dict[int, int] = {}

    def kill_one(self, durability: str) -> None:
        """Start the next process, which adopts what the last one left, and kill it."""
        chance = self._chance
        self._processes += 1
        job = self._zygote.run(
            record_until_killed,
            directory=self._directory,
            endpoint=self._server.url,
            report=self._report,
            first=self._processes * PROCESS_NUMBERS,
            events=chance.choice([1, 5, 50, 500, 5000]),
            durability=durability,
            queue_bytes_max=self.queue_bytes_max or chance.choice([1, 1, 2, 4]) << 20,
            pause_seconds=chance.choice([0.0, 0.0, 1e-5, 1e-4, 1e-3]),
            threads=chance.choice([1, 1, 2, 3]),
            fork_after=chance.choice([None, None, None, 0, 3, 100]),
        )
        moment = chance.choice(["ready", "ready", "ready", "closing", "at once"])
        # From microseconds to tens of milliseconds, and now and then long enough to send.
        delay_seconds = 10 ** chance.uniform(-5.0, -1.3 if chance.random() < 0.9 else -0.2)
        # A long run does not come to its end; then it is killed where it is.
        impatience = threading.Timer(0.5, job.kill)
        impatience.start()
        if moment == "at once" or job.hear(moment) is not None:
            time.sleep(delay_seconds)
        impatience.cancel()
        job.kill(alone=chance.random() < 0.3)
        if job.code is None and chance.random() < 0.5:
            time.sleep(delay_seconds)
        job.kill()
        code = job.wait()
        assert code in (0, -9)
        self.kills += code == -9
        if job.killed_at is not None:
            self.killed_at[self._processes] = job.killed_at

    def run(self, kills: int, durability: str) -> dict[int, int]:
        """That many kills, everything drained; what returned, and when."""
        while self.kills < kills:
            self.kill_one(durability)
            if self.kills % DRAIN_KILLS == 0:
                self._drain()
        self._drain()
        return returned(self._report)

    def _drain(self) -> None:
        if self._directory.exists():
            with Drainer(self._server.url) as drainer:
                drainer.drain(self._directory)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(40, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.crash)],
)
def test_a_recorder_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    kills: int, zygote: Zygote, server: ServerProcess, tmp_path: Path, chance: random.Random
) -> None:
    """
    What `record` returned from is counted exactly once, whenever its process is killed.

    A call that the kill hit has counted or has not, never twice.
    """
    victims = Victims(zygote, server, tmp_path, chance)
    done = victims.run(kills, "process")
    outcome = compare(done, server, kills=victims.kills)
    finish("recorder, level process", server, outcome)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(20, marks=pytest.mark.crash), pytest.param(300, marks=pytest.mark.crash)],
)
def test_at_level_buffered_a_kill_costs_the_last_moments_and_doubles_nothing(
    kills: int, zygote: Zygote, server: ServerProcess, tmp_path: Path, chance: random.Random
) -> None:
    """
    What returned 20 ms before the kill, and the margin below, is counted exactly once.

    The margin is for a busy machine: the thread that empties the buffer has to get its turn.
    """
    victims = Victims(zygote, server, tmp_path, chance)
    # Room for all: with on_full="block", events wait in memory while a queue is full.
    victims.queue_bytes_max = 64 << 20
    done = victims.run(kills, "buffered")
    killed_at = {
        n: victims.killed_at.get(n // PROCESS_NUMBERS, moment) for n, moment in done.items()
    }
    promised = {n for n, moment in done.items() if killed_at[n] - moment > PROMISED_NS + MARGIN_NS}
    outcome = compare(promised, server, kills=victims.kills, begun=done)
    missing = done.keys() - held_events(server.data)[0].keys()
    oldest = max(((killed_at[n] - done[n]) / 1e6 for n in missing), default=0.0)
    print(f"{len(done)} returned at all, {len(missing)} not counted, at most {oldest:.0f} ms old")
    finish("recorder, level buffered", server, outcome)
