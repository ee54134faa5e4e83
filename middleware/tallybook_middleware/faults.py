"""
What went wrong while a request was recorded: a line in the log, and never an exception.

At most one line a minute, because what is wrong with one request is wrong with thousands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from tallybook.limits import WARNING_SECONDS

__all__ = ["Faults"]

log = logging.getLogger("tallybook")


class Faults:
    """
    Tells the log about faults, rarely.

    Attributes:
        count: How many there were, told or not.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.count = 0
        self._monotonic = monotonic
        self._told_at: float | None = None

    def tell(self, what: str, error: Exception | None = None) -> None:
        """Log *what* happened, unless something was logged in the last minute."""
        self.count += 1
        with suppress(Exception):
            now = self._monotonic()
            if self._told_at is None or now - self._told_at >= WARNING_SECONDS:
                self._told_at = now
                log.warning(
                    "usage middleware: %s (%d faults so far)", what, self.count, exc_info=error
                )
