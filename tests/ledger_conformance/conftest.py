"""
Every test of this folder is run against every engine, and leaves a ledger that verifies.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger_conformance.clerk import LIVES, Clerk
from tests.ledger_conformance.engines import ENGINES


@pytest.fixture(params=sorted(ENGINES))
def clerk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Clerk]:
    """A new, empty ledger with somebody at its desk."""
    clerk = Clerk(ENGINES[request.param](tmp_path / "book"))
    try:
        yield clerk
        assert list(clerk.ledger.verify()) == []
    finally:
        clerk.subject.dispose()


@pytest.fixture(params=LIVES)
def life(request: pytest.FixtureRequest) -> str:
    """What happens to the ledger before it is asked."""
    return str(request.param)
