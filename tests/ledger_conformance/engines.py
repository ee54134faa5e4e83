"""
The engines that the suite is run against, each behind the same few verbs.

A new engine is one class with the verbs of `Subject` and one line in `ENGINES`. Nothing else
in this folder knows what a ledger is made of.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Final, Protocol

from tallybook.testing import FakeClock, FakeIds
from tallybook_server.compaction import Policy
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Ledger
from tallybook_server.restore import Restore

BEGUN_NS: Final = 1_893_456_000_000_000_000
"""When each ledger begins: in 2030, later than every event that the suite delivers."""


class Subject(Protocol):
    """
    A ledger under test.

    Attributes:
        clock: What the ledger takes the time from.
        happened: What was done to it so far, and to those before it, by name: so that a run can
            say what it was made of.
    """

    clock: FakeClock
    happened: Counter[str]

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

    def back_up(self) -> None:
        """Back it up, over the backup before."""
        ...

    def restore(self) -> Subject:
        """A ledger made of the last backup, beside this one, as on another machine."""
        ...

    def dispose(self) -> None:
        """Close it, and leave nothing behind once none is left of those made of its backups."""
        ...


# Four segments are enough to be merged, and two rows of a month to be a segment; what is of
# more than two months waits together. So each kind of segment is there, and no merge is long.
_EAGER: Final = Policy(fan_in=4, rows_min=2, months_max=2)
_MERGED_EVERY: Final = 6


class Embedded:
    """The embedded engine. Nothing happens on its own: what it does is the same every time."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock(BEGUN_NS)
        self.happened = Counter[str]()
        self._ids = FakeIds()
        self._directory = directory
        directory.mkdir()
        self._book = directory / "book-1"
        self._ledger = self._open()

    def _open(self) -> EmbeddedLedger:
        return EmbeddedLedger(
            self._book, clock=self.clock, ids=self._ids, threads=False, compaction=_EAGER
        )

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def maintain(self) -> None:
        self.happened["maintained"] += 1
        self.happened["sealed"] += self._ledger.sealer.step(force=True)
        # A merge costs as much as all else in a world: each time, it would be most of the suite.
        while self.happened["maintained"] % _MERGED_EVERY == 0 and self._ledger.compactor.step():
            self.happened["merged"] += 1

    def reopen(self) -> None:
        self.happened["reopened"] += 1
        self._ledger.close()
        self._ledger = self._open()

    def back_up(self) -> None:
        self.happened["backed up"] += 1
        self._ledger.backup(str(self._directory / "backup"))

    def restore(self) -> Subject:
        self.happened["restored"] += 1
        other = copy(self)
        other._book = self._directory / f"book-{self.happened['restored'] + 1}"
        Restore(self._directory / "backup", other._book, clock=self.clock, ids=self._ids).make()
        other._ledger = other._open()
        return other

    def dispose(self) -> None:
        self._ledger.close()
        shutil.rmtree(self._book)
        if not list(self._directory.glob("book-*")):
            shutil.rmtree(self._directory)


ENGINES: Final[Mapping[str, Callable[[Path], Subject]]] = {"embedded": Embedded}
"""Each opens a new ledger in a directory that does not exist yet."""
