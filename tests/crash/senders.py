"""Processes that record on Meters of their own and send to a server, as applications do."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tallybook.block import columns_bodies, read_header, read_payload
from tallybook.wire import read_request
from tests.crash.draining import Drainer
from tests.crash.events import STREAM_EVENTS, returned
from tests.crash.jobs import record_until_killed
from tests.crash.processes import Job, Zygote

__all__ = ["Senders"]

_SENDER_NUMBERS = 10 * STREAM_EVENTS


class Senders:
    """
    Some processes, each with one Meter, a queue and a range of numbers.

    Args:
        count: How many.
        url: Where they send.
        folder: Where their queues lie, and what returned is written down.
        pause_seconds: Between two events of one, on average.
    """

    def __init__(self, count: int, url: str, folder: Path, *, pause_seconds: float) -> None:
        self._count = count
        self._url = url
        self._folder = folder
        self._pause_seconds = pause_seconds
        self._jobs: list[Job] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for place in range(self._count):
                zygote = stack.enter_context(Zygote("tests.crash.jobs"))
                self._jobs.append(self._start(zygote, place))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self, zygote: Zygote, place: int) -> Job:
        return zygote.run(
            record_until_killed,
            directory=self._queue(place),
            endpoint=self._url,
            report=self._report,
            first=(place + 1) * _SENDER_NUMBERS,
            events=STREAM_EVENTS - 1,
            durability="process",
            queue_bytes_max=4 << 20,
            pause_seconds=self._pause_seconds,
            threads=1,
            fork_after=None,
        )

    def _queue(self, place: int) -> Path:
        return self._folder / f"queue-{place}"

    @property
    def _report(self) -> Path:
        return self._folder / "returned"

    def kill(self) -> None:
        """The end of recording."""
        for job in self._jobs:
            job.kill()
            assert job.wait() == -9

    def drain(self, url: str) -> None:
        """Send what is left."""
        with Drainer(url) as drainer:
            for place in range(self._count):
                drainer.drain(self._queue(place))

    @property
    def returned(self) -> dict[int, int]:
        """The events whose calls have returned, with when."""
        return returned(self._report)

    def acknowledged(self) -> set[int]:
        """Every event of a block that a queue has had an answer for, and still keeps."""
        return {
            body.mantissa
            for path in self._folder.glob("queue-*/*.kept")
            for block in read_request(path.read_bytes())[1]
            for body in columns_bodies(read_payload(block, read_header(block)))
        }
