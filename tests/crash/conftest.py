"""What the crash tests share: chance that can be repeated, and zygotes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.crash.processes import Zygote
from tests.crash.tracing import refusal

# Read here, since a fixture for all tests removes every TALLYBOOK_* of whoever runs them.
_SEED = os.environ.get("TALLYBOOK_CRASH_SEED")


@pytest.fixture
def chance() -> random.Random:
    """Chance that TALLYBOOK_CRASH_SEED repeats; how, is printed. Kills still race."""
    seed = int(_SEED) if _SEED else random.SystemRandom().getrandbits(32)
    print(f"TALLYBOOK_CRASH_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    """Something to fork recording processes of."""
    with Zygote("tests.crash.jobs") as process:
        yield process


@pytest.fixture
def server_zygote() -> Iterator[Zygote]:
    """Something to fork servers of, and processes that open a ledger without one."""
    with Zygote("tests.crash.serving") as process:
        yield process


@pytest.fixture(scope="session")
def ptrace() -> None:
    """Skip the test, and say why, where processes cannot be traced."""
    reason = refusal()
    if reason is not None:
        pytest.skip(reason)
