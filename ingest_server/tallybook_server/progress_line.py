"""
How far a verification has come, on one line of a terminal.

It imports nothing of the server's: commands that need no server's libraries import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallybook.cli.output import Progress, plain
from tallybook.clock import Clock, SystemClock

if TYPE_CHECKING:
    from tallybook_server.verify import Progress as Verified

__all__ = ["ProgressLine"]

_SECONDS: Final = 0.25
"""Between two figures of one check: more cannot be read, and a terminal is slow."""


class ProgressLine:
    """Told by a verification; what is no terminal sees nothing of it."""

    def __init__(self, where: str, clock: Clock | None = None) -> None:
        """
        Args:
            where: What is verified.
            clock: Now.
        """
        self._where = where
        self._clock = clock or SystemClock()
        self._line = Progress()
        self._check = ""
        self._next = 0.0

    def __call__(self, progress: Verified) -> None:
        """Show *progress*, unless a figure of the same check was shown just now."""
        now = self._clock.monotonic()
        if progress.check == self._check and now < self._next:
            return
        # A new one is said at once, or it would look as if the one before took its time.
        self._check, self._next = progress.check, now + _SECONDS
        self.show(f"verifying {progress.check}{_figures(progress)}")

    def show(self, words: str) -> None:
        """Say *words* in place of what was there."""
        self._line.show(plain(f"{self._where}: {words}"))

    def end(self) -> None:
        """Take the line away."""
        self._line.end()


def _figures(progress: Verified) -> str:
    if not progress.total:
        return ""
    return f", {progress.done:,} of {progress.total:,} {progress.unit}"
