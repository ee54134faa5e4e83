"""
The stage: ledgers to play worlds on, one after the other.

Worlds share a ledger, since opening one takes longer than playing a world; in it they are
neighbours, and must not be seen by each other. A world that fails is played once more on a
ledger of its own: so what hypothesis makes smaller depends on nothing that came before.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from tests.ledger_conformance.engines import ENGINES, Subject
from tests.ledger_conformance.play import Player
from tests.ledger_conformance.worlds import World

WORLDS_PER_LEDGER: Final = 50
IN_MEMORY: Final = Path("/dev/shm")
"""A world syncs many small files, and what that is for is shown by the crash tests."""


class Stage:
    """
    Ledgers to play on.

    Attributes:
        happened: What was done to all of them, by name; and how many ``worlds`` were played.
    """

    def __init__(self, engine: str) -> None:
        self.happened = Counter[str]()
        self._engine = engine
        memory = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(dir=memory)
        self._subjects = 0
        self._subject = self._begin()

    def play(self, world: World) -> None:
        """
        Play *world*, on the ledger of the worlds before it.

        Raises:
            AssertionError: An answer is wrong.
        """
        if self.happened["worlds"] % WORLDS_PER_LEDGER == WORLDS_PER_LEDGER - 1:
            self._end()
            self._subject = self._begin()
        self.happened["worlds"] += 1
        player = Player(self._subject, world, self.happened["worlds"])
        try:
            player.play()
        except Exception as error:
            self._play_alone(world)
            raise AssertionError("it fails, but not on a ledger of its own") from error
        finally:
            self._subject = player.subject

    def _play_alone(self, world: World) -> None:
        player = Player(self._begin(), world, 0)
        try:
            player.play()
        finally:
            player.subject.dispose()

    def _begin(self) -> Subject:
        self._subjects += 1
        return ENGINES[self._engine](Path(self._folder.name) / str(self._subjects))

    def _end(self) -> None:
        self.happened += self._subject.happened
        try:
            assert list(self._subject.ledger.verify()) == []
        finally:
            self._subject.dispose()

    def close(self) -> None:
        """
        Leave nothing behind.

        Raises:
            AssertionError: The last ledger does not verify.
        """
        try:
            self._end()
        finally:
            self._folder.cleanup()
