"""
The engines that the suite is run against, each behind the same few verbs.

A new engine is one class with the verbs of `Subject` and one line in `ENGINES`. Nothing else
in this folder knows what a ledger is made of.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from tallybook.testing import FakeClock, FakeIds
from tallybook_server.compaction import Policy
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Ledger

BEGUN_NS: Final = 1_893_456_000_000_000_000
"""When each ledger begins: in 2030, later than every event that the suite delivers."""


class Subject(Protocol):
    """
    A ledger under test.

    Attributes:
        clock: What the ledger takes the time from.
    """

    clock: FakeClock

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is now; another one after `reopen`."""
        ...

    def maintain(self) -> None:
        """Let the engine do now whatever it would do for itself some time: seal, compact."""
        ...

    def reopen(self) -> None:
        """Close the ledger and open it again, as a new process does."""
        ...

    def dispose(self) -> None:
        """Close it, and leave nothing behind."""
        ...


# Two segments are enough to be merged, and one row of a month to be a segment.
_EAGER: Final = Policy(fan_in=2, rows_min=1)
_MERGED_EVERY: Final = 6


class Embedded:
    """The embedded engine. Nothing happens on its own: what it does is the same every time."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock(BEGUN_NS)
        self._ids = FakeIds()
        self._directory = directory
        self._maintained = 0
        self._ledger = self._open()

    def _open(self) -> EmbeddedLedger:
        return EmbeddedLedger(
            self._directory, clock=self.clock, ids=self._ids, threads=False, compaction=_EAGER
        )

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def maintain(self) -> None:
        self._ledger.sealer.step(force=True)
        self._maintained += 1
        # A merge opens a database of its own: each time, it would be two thirds of the suite.
        while self._maintained % _MERGED_EVERY == 0 and self._ledger.compactor.step():
            pass

    def reopen(self) -> None:
        self._ledger.close()
        self._ledger = self._open()

    def dispose(self) -> None:
        self._ledger.close()
        shutil.rmtree(self._directory)


ENGINES: Final[Mapping[str, Callable[[Path], Subject]]] = {"embedded": Embedded}
"""Each opens a new ledger in a directory that does not exist yet."""
