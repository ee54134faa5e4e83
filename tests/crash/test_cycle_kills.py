"""A process is killed at every step of one event's way from `record` to the answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ServerProcess
from tests.crash.counting import compare, finish
from tests.crash.draining import Drainer
from tests.crash.events import STREAM_EVENTS, returned
from tests.crash.jobs import one_adoption, one_cycle, record_and_die, record_by_places
from tests.crash.processes import Job, Zygote
from tests.crash.tracing import Doom, Point, Strace

short_or_whole = pytest.mark.parametrize(
    "stride",
    [pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.crash)],
)


class Runs:
    """The same thing over and over, each time in a directory of its own."""

    def __init__(self, zygote: Zygote, server: ServerProcess, folder: Path) -> None:
        self._zygote = zygote
        self._server = server
        self._folder = folder
        self._report = folder / "returned"
        self._runs = 0

    @property
    def returned(self) -> dict[int, int]:
        """What returned, in all runs."""
        return returned(self._report)

    def next_directory(self) -> tuple[Path, int]:
        """A directory, and the number before the first one that is for it."""
        self._runs += 1
        return self._folder / f"queue-{self._runs}", self._runs * STREAM_EVENTS

    def start(self, job: Callable[..., None], directory: Path, **arguments: object) -> Job:
        """Start a job on a directory."""
        if job is not one_adoption:
            arguments["report"] = self._report
        return self._zygote.run(job, directory=directory, endpoint=self._server.url, **arguments)

    def trace(self, job: Job, point: Point | None) -> list[Point]:
        """Let a job run to its end, or be killed at *point*: without one, all that it has."""
        job.hear("ready")
        traced = Doom(job.pid, point) if point else Strace(job.pid, self._folder / "calls")
        with traced:
            job.begin()
            assert job.wait() in (0, -9)
        return traced.points() if isinstance(traced, Strace) else []

    def drain(self, directory: Path) -> None:
        """Drain what is left in a directory; then no file is left but what is meant to stay."""
        if directory.exists():
            with Drainer(self._server.url) as drainer:
                drainer.drain(directory)
            left = {path.suffix for path in directory.iterdir()}
            assert left <= {"", ".kept", ".status-new"}, left

    def finish(self, name: str, kills: int, points: int) -> None:
        """Count."""
        assert kills > points * 0.9
        outcome = compare(self.returned, self._server, kills=kills)
        finish(f"{name}, {points} points", self._server, outcome)


@pytest.fixture
def runs(zygote: Zygote, server: ServerProcess, tmp_path: Path) -> Runs:
    return Runs(zygote, server, tmp_path)


@short_or_whole
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_an_events_way_loses_and_doubles_nothing(
    stride: int, runs: Runs
) -> None:
    """
    Record, pack, commit, send, acknowledge, close: killed before any call on a file or socket.

    Whoever comes next drains what is left, leaves no file behind, and the event has counted
    once; or not, where `record` had not returned.
    """

    def cycle(point: Point | None) -> tuple[Job, list[Point]]:
        directory, first = runs.next_directory()
        job = runs.start(one_cycle, directory, n=first + 1)
        points = runs.trace(job, point)
        runs.drain(directory)
        return job, points

    _, points = cycle(None)
    chosen = points[::stride]
    kills = sum(cycle(point)[0].code == -9 for point in chosen)
    runs.finish("cycle by system call", kills, len(chosen))


@short_or_whole
@pytest.mark.usefixtures("ptrace")
def test_a_kill_at_any_system_call_of_an_adoption_loses_and_doubles_nothing(
    stride: int, runs: Runs
) -> None:
    """Whoever drains a dead producer may die at any call as well; the next one goes on."""

    def adoption(point: Point | None) -> tuple[Job, list[Point]]:
        directory, first = runs.next_directory()
        assert runs.start(record_and_die, directory, first=first, events=70).wait() == -9
        job = runs.start(one_adoption, directory)
        points = runs.trace(job, point)
        runs.drain(directory)
        return job, points

    _, points = adoption(None)
    chosen = points[::stride]
    kills = sum(adoption(point)[0].code == -9 for point in chosen)
    runs.finish("adoption by system call", kills, len(chosen))


@pytest.mark.parametrize(
    ("opcodes", "stride"),
    [
        pytest.param(False, 7, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.crash),
        pytest.param(True, 1, marks=pytest.mark.crash),
    ],
)
def test_a_kill_between_any_two_lines_of_record_loses_and_doubles_nothing(
    opcodes: bool, stride: int, runs: Runs
) -> None:
    """
    A store into mapped memory is no system call: so killed at each place of the code as well.

    The first call, which opens everything, every way to record, and the change of spools;
    by line, and by operation of the interpreter.
    """

    def recording(stop_at: int) -> tuple[Job, int]:
        directory, first = runs.next_directory()
        job = runs.start(record_by_places, directory, first=first, stop_at=stop_at, opcodes=opcodes)
        places = job.hear("places")
        assert job.wait() in (0, -9)
        runs.drain(directory)
        return job, int(places or 0)

    _, places = recording(0)
    chosen = range(1, places + 1, stride)
    kills = sum(recording(place)[0].code == -9 for place in chosen)
    runs.finish("record by operation" if opcodes else "record by line", kills, len(chosen))
