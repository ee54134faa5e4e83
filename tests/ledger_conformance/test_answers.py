"""
Every answer equals the oracle's: whatever arrives in whatever order, is corrected, declared,
asked about, now or as of any earlier position, through seals, compactions and restarts.

One example is one world with several questions. Worlds share a ledger, since opening one
takes longer than playing a world; in it they are neighbours, and must not be seen by each
other. A world that fails is played once more on a ledger of its own: so what hypothesis makes
smaller depends on nothing that came before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.ledger_conformance.engines import ENGINES, Subject
from tests.ledger_conformance.play import Player
from tests.ledger_conformance.strategies import WORLDS
from tests.ledger_conformance.worlds import World

WORLDS_PER_LEDGER = 50


class Stage:
    """Ledgers to play on, one after the other."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._folder = tempfile.TemporaryDirectory()
        self._subjects = 0
        self._played = 0
        self._subject = self._begin()

    def play(self, world: World) -> None:
        """
        Play *world*, on the ledger of the worlds before it.

        Raises:
            AssertionError: An answer is wrong.
        """
        if self._played % WORLDS_PER_LEDGER == WORLDS_PER_LEDGER - 1:
            self._end()
            self._subject = self._begin()
        self._played += 1
        try:
            Player(self._subject, world, self._played).play()
        except Exception as error:
            self._play_alone(world)
            raise AssertionError("it fails, but not on a ledger of its own") from error

    def _play_alone(self, world: World) -> None:
        subject = self._begin()
        try:
            Player(subject, world, 0).play()
        finally:
            subject.dispose()

    def _begin(self) -> Subject:
        self._subjects += 1
        return ENGINES[self._engine](Path(self._folder.name) / str(self._subjects))

    def _end(self) -> None:
        try:
            assert list(self._subject.ledger.verify()) == []
        finally:
            self._subject.dispose()

    def close(self) -> None:
        """Leave nothing behind."""
        self._end()
        self._folder.cleanup()


@pytest.fixture(params=sorted(ENGINES))
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage for each engine."""
    stage = Stage(request.param)
    yield stage
    stage.close()


SETTINGS = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # The stage is meant to last.
    ],
)


@settings(SETTINGS, max_examples=1_000)
@given(world=WORLDS)
def test_every_answer_is_the_oracles(stage: Stage, world: World) -> None:
    """Now, as of any earlier time, and as it was remembered."""
    stage.play(world)


@pytest.mark.prove
@settings(SETTINGS, max_examples=100_000)
@given(world=WORLDS)
def test_every_answer_is_the_oracles_for_hours(stage: Stage, world: World) -> None:
    """The same, a hundred times as often."""
    stage.play(world)
