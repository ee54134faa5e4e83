"""
Segments are plain Parquet: polars, which shares no code with us, reads the same usage in them.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import polars
import pytest

from tallybook_server.compaction import Policy
from tallybook_server.ledger import UsageQuery
from tests.ingest_server.ledger.conftest import START, TWO, Desk, block, event

MONTH = 31 * 86_400_000_000


@pytest.fixture(params=["sealed", "compacted"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    """A closed ledger without a tail: events of three months, of every shape."""
    desk = Desk(tmp_path / "book", compaction=Policy(fan_in=2, rows_min=1))
    for first in (1, 101):
        for at in range(30):
            tags = {"route": f"/{at % 3}", 'we"ird': "it's"} if at % 4 else {}
            desk.send(
                block(
                    first + 2 * at,
                    event("0.25", tenant=f"t{at % 3}", tags=tags, time=START - at % 3 * MONTH - 1),
                    event(at, tenant="zürich" if at % 2 else None, dimension="bytes"),
                )
            )
        desk.send(block(first, event(10**30 + first, key=f"k{first}"), producer=TWO))
        desk.seal()
    if request.param == "compacted":
        assert desk.compact() == 1
    return desk


def read(desk: Desk) -> polars.DataFrame:
    """All segments as one frame, by the names of their columns."""
    files = sorted((desk.directory / "segments").iterdir())
    return polars.concat([polars.read_parquet(path) for path in files], how="diagonal")


def amount(value: int | None, scale: int, wide: str | None) -> Fraction:
    """What docs/reference/formats.md says of the three columns of a value."""
    return Fraction(int(wide) if value is None and wide is not None else value or 0, 10**scale)


def test_another_reader_sums_up_the_same(desk: Desk) -> None:
    """By tenant and dimension, exactly."""
    sums: dict[tuple[str, str | None], Fraction] = {}
    columns = ("dimension", "tenant", "value", "scale", "wide")
    for dimension, tenant, value, scale, wide in read(desk).select(columns).iter_rows():
        before = sums.get((dimension, tenant), Fraction(0))
        sums[dimension, tenant] = before + amount(value, scale, wide)
    ours = {
        (row.dimension, row.tenant): Fraction(row.value or "0")
        for dimension in ("api.calls", "bytes")
        for row in desk.ledger.aggregate(UsageQuery((dimension,), by_tenant=True)).rows
    }
    assert sums == ours
    desk.ledger.close()


def test_another_reader_sees_each_event_at_its_place(desk: Desk) -> None:
    """Entry, index, time, key and tags: as a scan of the ledger gives them."""
    columns = ("entry", "index", "time", "key", "tag:route", 'tag:we"ird')
    theirs = sorted(read(desk).select(columns).iter_rows())
    ours = [
        (
            *(row.position, row.index, row.event.time, row.event.key),
            *(row.event.tags.get("route"), row.event.tags.get('we"ird')),
        )
        for row in desk.ledger.scan(after=(0, -1), limit=1_000)
    ]
    assert theirs == ours
    desk.ledger.close()
