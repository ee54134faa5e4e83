"""Whoever comes after the dead: adopts their queues and sends them, until nothing is left."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tallybook.adoption import Adopter
from tallybook.clock import SystemClock, SystemIds
from tallybook.directory import lock_names
from tallybook.flusher import Flusher
from tallybook.transport import HttpTransport

__all__ = ["Drainer", "HastyIds"]

_DRAIN_SECONDS = 120.0


class HastyIds(SystemIds):
    """The jitter of waiting, a hundredth of it: a test has no time for 30 s."""

    def fraction(self) -> float:
        return super().fraction() / 100


class Drainer:
    """
    Sends what dead producers left, as any living process does, until no file of theirs is left.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._clock = SystemClock()
        self._transport = HttpTransport(endpoint, None, 10.0)

    def drain(self, directory: Path) -> None:
        """Drain every queue of this directory; nobody may be recording there."""
        flusher = Flusher(self._transport, self._clock, HastyIds())
        adopter = Adopter(directory, self._endpoint, flusher, self._clock)
        deadline = self._clock.monotonic() + _DRAIN_SECONDS
        try:
            while lock_names(directory):
                assert self._clock.monotonic() < deadline, flusher.last_error
                if not adopter.orphans:
                    adopter.look()
                assert not adopter.held, adopter.held
                threading.Event().wait(flusher.wait_seconds())
                adopter.step()
        finally:
            adopter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transport.close()
