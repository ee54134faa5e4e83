"""
What is in memory only: the events of level ``buffered``, for up to 20 ms, and at the other
levels what a signal handler recorded in the middle of a change of spool.

An event leaves the memory for the spool exactly once, whatever ends the move in its middle.
A KeyboardInterrupt comes between two lines, never inside one call of a built-in. So the two
moves that matter are one such call each: taking events off, and storing while noting how
many are stored.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice, repeat
from typing import Final

from tallybook.frame import encode_frame
from tallybook.producer import Producer
from tallybook.queue import Reentered

__all__ = ["Buffer"]

_BATCH_EVENTS: Final = 1_000
"""Stored in one call, which keeps the interpreter's lock for about 0.3 ms."""


class Buffer:
    """
    Events in memory, as bodies of frames.

    Attributes:
        waiting: Append to it, from anywhere.
    """

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self._draining = threading.RLock()
        self._drainer = 0
        # Bodies that were taken off, and an entry for each of them that is stored.
        self._batch: tuple[list[bytes], list[int]] = ([], [])

    def __len__(self) -> int:
        bodies, stored = self._batch
        return len(self.waiting) + len(bodies) - len(stored)

    def drain(self, producer: Producer) -> int:
        """
        Store what waits; what comes meanwhile waits for the next time.

        Returns:
            How many events were stored.

        Raises:
            QueueFull, OSError, ProducerClosed: As `Producer.store`; what is not stored waits on.
            Reentered: This thread is in the middle of this.
        """
        with self._draining:
            if self._drainer:
                raise Reentered("in the middle of emptying the buffer")
            self._drainer = threading.get_ident()
            try:
                return self._drain(producer)
            finally:
                self._drainer = 0

    @property
    def entered(self) -> bool:
        """Whether the calling thread is in the middle of `drain`."""
        return self._drainer == threading.get_ident()

    def _drain(self, producer: Producer) -> int:
        left = before = len(self)
        while left > 0:
            if not len(self._batch[0]) > len(self._batch[1]):
                self._batch = ([], [])
                take = min(len(self.waiting), _BATCH_EVENTS)
                self._batch[0].extend(islice(iter(self.waiting.popleft, None), take))
            left -= len(self._batch[0]) - len(self._batch[1])
            self._store(producer)
        return before

    def _store(self, producer: Producer) -> None:
        bodies, stored = self._batch
        while len(stored) < len(bodies):
            write, seed = producer.slot
            frames = [encode_frame(body, seed) for body in bodies[len(stored) :]]
            before = len(stored)
            try:
                stored.extend(map(write, frames))  # type: ignore[arg-type]
            except ValueError:
                producer.rotate(frames[len(stored) - before])

    def discard(self) -> int:
        """Forget what waits, since there is no room for it; how many events."""
        with self._draining:
            bodies, stored = self._batch
            count = len(bodies) - len(stored)
            stored.extend(repeat(0, count))
            while self.waiting:
                self.waiting.popleft()
                count += 1
        return count
