"""
What the operator of the host application should see: one warning a minute of each kind, never
a flood, on the logger ``tallybook``.
"""

from __future__ import annotations

from typing import Final

from tallybook.clock import Clock
from tallybook.limits import WARNING_SECONDS

__all__ = ["Warner", "warn"]

_NEVER: Final = float("-inf")


def warn(words: str) -> None:
    """Log a warning, however many there were."""
    # Imported when needed: it is a seventh of what the import of this package takes.
    import logging

    logging.getLogger("tallybook").warning("%s", words)


class Warner:
    """Logs a warning, unless one of the same kind was logged within the last minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._warned_at: dict[str, float] = {}

    def __call__(self, kind: str, words: str) -> None:
        now = self._clock.monotonic()
        if now - self._warned_at.get(kind, _NEVER) >= WARNING_SECONDS:
            self._warned_at[kind] = now
            warn(words)
