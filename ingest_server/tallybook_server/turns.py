"""
Turns: who works while the journal is copied, the copy or what waits for the journal.

Both need the one thread that owns it. The copy has a slice of some milliseconds, then what
waits has its turn. A slice is never less than a fixed share of what the others took, or a
journal that grows by more than a slice in every turn would never be copied to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from tallybook_server.limits import COPY_SHARE, COPY_SLICE_SECONDS

__all__ = ["Turns"]


class Turns:
    """
    The turns of one copy.

    Args:
        others: Do what waits.
        elapsed: Seconds, from any beginning.
    """

    def __init__(
        self, others: Callable[[], None], elapsed: Callable[[], float] = perf_counter
    ) -> None:
        self._others = others
        self._elapsed = elapsed
        self._slice_seconds = COPY_SLICE_SECONDS
        self._began = elapsed()

    def next(self) -> None:
        """Let the others have their turn, if the copy's slice is over."""
        now = self._elapsed()
        if now - self._began < self._slice_seconds:
            return
        self._others()
        self._began = self._elapsed()
        self._slice_seconds = max(COPY_SLICE_SECONDS, (self._began - now) / COPY_SHARE)
