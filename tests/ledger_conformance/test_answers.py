"""
Every answer equals the oracle's: whatever arrives in whatever order, is corrected, declared,
asked about, now or as of any earlier position, through seals, compactions and restarts, and
in a ledger that was restored from a backup.

One example is one world with several questions. `nox` plays the same number of worlds each
time, other ones each time; `nox -s prove` plays many more, in shards. A shard is known by its
seed, which plays the same worlds anywhere: ``WORLDS_SEED=17 nox -s prove -- -k shard0``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.ledger_conformance.engines import ENGINES
from tests.ledger_conformance.stage import Stage
from tests.ledger_conformance.strategies import WORLDS
from tests.ledger_conformance.worlds import World

WORLDS_IN_TEST = 2_000
SHARDS, WORLDS_PER_SHARD = 200, 500
FIRST_SEED = int(os.environ.get("WORLDS_SEED", "0"))
"""Of the first shard; the others have the seeds behind it."""

HAPPENS = {"sealed": 10, "merged": 50, "reopened": 200, "backed up": 400, "restored": 400}
"""
Of so many worlds it happens in one at least; in fact, five times as often. A merge, a restart
or a restore takes as long as a whole world, so it is in few of them.
"""


@pytest.fixture(params=sorted(ENGINES))
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage for each engine."""
    stage = Stage(request.param)
    yield stage
    stage.close()


SETTINGS = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # The stage is meant to last.
    ],
)


def check_variety(stage: Stage) -> None:
    """Fail unless everything that may happen to a ledger has happened often enough."""
    happened = stage.happened
    print(", ".join(f"{happened[name]} {name}" for name in ("worlds", *HAPPENS)))
    for name, worlds in HAPPENS.items():
        assert happened[name] >= happened["worlds"] // worlds, f"{name}: {happened}"


def test_every_answer_is_the_oracles(stage: Stage) -> None:
    """Now, as of any earlier time, and as it was remembered."""

    @settings(SETTINGS, max_examples=WORLDS_IN_TEST)
    @given(world=WORLDS)
    def play(world: World) -> None:
        stage.play(world)

    play()
    check_variety(stage)


@pytest.mark.prove
@pytest.mark.parametrize("shard", range(SHARDS), ids=lambda shard: f"shard{shard}")
def test_every_answer_is_the_oracles_in_many_worlds(stage: Stage, shard: int) -> None:
    """The same, fifty times as often, by a seed that finds a failing world again."""
    number = FIRST_SEED + shard

    @seed(number)
    @settings(SETTINGS, max_examples=WORLDS_PER_SHARD, database=None)
    @given(world=WORLDS)
    def play(world: World) -> None:
        stage.play(world)

    try:
        play()
    except BaseException as error:
        error.add_note(f"seed {number}: WORLDS_SEED={number} nox -s prove -- -k shard0")
        raise
    check_variety(stage)
