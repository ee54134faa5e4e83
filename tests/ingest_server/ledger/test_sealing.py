"""
Sealing: no query, crash or failure between any two of its stages loses or doubles an event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import duckdb
import pytest

from tallybook.testing import FakeClock, FakeIds
from tallybook_server import book
from tallybook_server import sealer as stages
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Delivery, UsageQuery
from tallybook_server.query import aggregate
from tallybook_server.sealer import SealVoid
from tallybook_server.segment import choose_columns
from tallybook_server.snapshot import Part
from tests.ingest_server.ledger.conftest import TWO, Desk, block, event


def fill(desk: Desk) -> None:
    """Events of every shape, and a rejected one."""
    desk.send(
        block(
            1,
            event(1, tags={"route": "/a", "Route": "other"}),
            event("0.25", tenant=None),
            event(10**30, key="k", given=True),
            event(1, tenant="x" * 256),
        )
    )
    desk.send(block(1, event(7, id="evt", tags={'we"ird': "it's"}), producer=TWO))


TOTAL = "1000000000000000000000000000008.25"


def test_seal_changes_no_answer(desk: Desk) -> None:
    """Every event is the same event before and after, at the same place."""
    fill(desk)
    before = desk.ledger.scan(after=(0, -1), limit=100)
    desk.seal()
    assert desk.ledger.scan(after=(0, -1), limit=100) == before
    assert desk.total() == TOTAL
    assert desk.findings() == []


def test_second_seal_covers_what_came_after_the_first(desk: Desk) -> None:
    """Segments follow each other without a gap, the seal's own entry included."""
    fill(desk)
    desk.seal()
    desk.send(block(10, event(1)))
    desk.seal()
    first, second = desk.ledger.snapshots.current.segments
    assert second.first == first.last + 1
    assert desk.findings() == []


def test_snapshot_from_before_a_seal_sees_the_same_after_it(desk: Desk) -> None:
    """A query that began earlier keeps its part of the tail until it is done."""
    fill(desk)
    query = UsageQuery(("api.calls",))
    tables, directory = desk.ledger.tables, desk.directory / "segments"
    with desk.ledger.snapshots.hold() as snapshot:
        before = aggregate(tables, directory, snapshot, query)
        desk.seal()
        desk.send(block(20, event(100)))
        assert aggregate(tables, directory, snapshot, query) == before


def test_snapshot_from_before_a_seal_can_be_loaded_after_it(desk: Desk) -> None:
    """The same when nobody had asked before, so that nothing was in DuckDB yet."""
    fill(desk)
    tables, directory = desk.ledger.tables, desk.directory / "segments"
    with desk.ledger.snapshots.hold() as snapshot:
        desk.send(block(20, event(100)))
        desk.seal()
        (row,) = aggregate(tables, directory, snapshot, UsageQuery(("api.calls",))).rows
        assert row.value == TOTAL


def test_seal_in_the_middle_of_a_query_changes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The query itself holds what it reads: the seal comes when it has loaded the tail."""
    fill(desk)
    load = desk.ledger.tables.load

    def sealed_meanwhile(parts: Sequence[Part]) -> None:
        load(parts)
        monkeypatch.undo()
        desk.seal()
        desk.send(block(20, event(100)))

    monkeypatch.setattr(desk.ledger.tables, "load", sealed_meanwhile)
    assert desk.total() == TOTAL


def test_tables_of_a_sealed_generation_go_with_its_last_holder(desk: Desk) -> None:
    """Memory does not grow with seals."""
    fill(desk)
    with desk.ledger.snapshots.hold():
        desk.seal()
        assert desk.ledger.tables.loaded == {1}
    assert desk.ledger.tables.loaded == set()


@pytest.mark.parametrize("stage", ["begin", "write", "install", "enter", "sweep"])
def test_crash_behind_each_stage_loses_and_doubles_nothing(desk: Desk, stage: str) -> None:
    """Killed after this stage: the next life has each event once, and can seal."""
    fill(desk)
    sealer = desk.ledger.sealer
    sealing = sealer.begin(force=True)
    assert sealing is not None
    if stage in ("write", "install", "enter", "sweep"):
        segment = sealer.write(sealing)
        if stage in ("install", "enter", "sweep"):
            sealer.install(sealing)
        if stage in ("enter", "sweep"):
            assert sealer.enter(segment)
        if stage == "sweep":
            assert sealer.sweep()

    after = desk.crash()

    assert after.total() == TOTAL
    assert after.findings() == []
    after.seal()
    assert after.total() == TOTAL
    assert after.findings() == []
    left = {path.name for path in (after.directory / "segments").iterdir()}
    assert left == {segment.name for segment in after.ledger.snapshots.current.segments}
    after.ledger.close()


def test_file_is_durable_and_has_its_name_before_the_manifest_names_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a whole seal: what is renamed is synced, what is entered can be found."""
    fill(desk)
    done: list[str] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done.append(what)
            return function(*arguments)

        return call

    enter = noted("manifest", desk.ledger.writer.enter_segment)
    monkeypatch.setattr(desk.ledger.writer, "enter_segment", enter)
    monkeypatch.setattr(stages, "sync_file", noted("sync file", book.sync_file))
    monkeypatch.setattr(stages, "sync_directory", noted("sync name", book.sync_directory))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    desk.seal()

    assert done == ["sync file", "rename", "sync name", "manifest"]


@pytest.mark.parametrize("durable", [False, True])
def test_failed_commit_of_a_seal_loses_and_doubles_nothing(desk: Desk, durable: bool) -> None:
    """The journal refuses the seal, or only says so: each event is in one place."""
    fill(desk)
    desk.faults.commits, desk.faults.durable = 1, durable
    assert desk.ledger.sealer.step(force=True) is durable
    assert desk.total() == TOTAL
    assert desk.findings() == []
    desk.seal()
    assert desk.total() == TOTAL
    assert desk.findings() == []


def test_tail_rebuilt_during_a_seal_makes_the_seal_void(desk: Desk) -> None:
    """A commit fails while the file is written: the old file counts for nothing."""
    fill(desk)
    sealer = desk.ledger.sealer
    sealing = sealer.begin(force=True)
    assert sealing is not None
    segment = sealer.write(sealing)
    sealer.install(sealing)
    desk.faults.commits, desk.faults.durable = 1, True
    desk.send(block(20, event(1)))

    assert not sealer.enter(segment)

    assert list((desk.directory / "segments").iterdir()) == []
    assert desk.findings() == []
    desk.seal()
    assert desk.findings() == []


def test_ingest_during_a_seal_stays_in_the_tail(desk: Desk) -> None:
    """What arrives between the freeze and the entry is neither in the segment nor lost."""
    fill(desk)
    sealer = desk.ledger.sealer
    sealing = sealer.begin(force=True)
    assert sealing is not None
    desk.send(block(20, event(1000)))
    segment = sealer.write(sealing)
    sealer.install(sealing)
    assert sealer.enter(segment)
    assert segment.rows == 4
    assert desk.total() == "1000000000000000000000000001008.25"
    assert desk.findings() == []


def test_leftovers_of_a_crash_are_removed_at_start(desk: Desk) -> None:
    """A half-written file, and a finished one that no entry names."""
    fill(desk)
    desk.ledger.close()
    segments = desk.directory / "segments"
    (segments / "writing-0000000000000001-0000000000000002.parquet").write_bytes(b"half")
    (segments / "0000000000000001-0000000000000003.parquet").write_bytes(b"orphan")
    desk.reopen()
    assert list(segments.iterdir()) == []


def test_file_from_beyond_the_head_is_not_removed(desk: Desk) -> None:
    """The journal may be an older backup: what it does not know may be the only copy."""
    fill(desk)
    desk.ledger.close()
    path = desk.directory / "segments" / "0000000000000002-0000000000000999.parquet"
    path.write_bytes(b"kept")
    desk.reopen()
    assert path.exists()
    assert any("belongs to nobody" in finding for finding in desk.findings())


def test_seal_that_begins_during_a_verification_is_no_finding(desk: Desk) -> None:
    """Its file ends behind what the verification looks at, and belongs to somebody soon."""
    desk.send(block(1, event(1)))

    def meanwhile() -> None:
        desk.send(block(2, event(1)))
        sealing = desk.ledger.sealer.begin(force=True)
        assert sealing is not None
        desk.ledger.sealer.write(sealing)
        desk.ledger.sealer.install(sealing)

    assert desk.findings_while(meanwhile) == []


def test_bytes_of_sealed_blocks_leave_the_journal(desk: Desk) -> None:
    """The entries stay for ever; the blocks' bytes do not."""
    fill(desk)
    desk.seal()
    count = desk.ledger.writer.run(lambda journal: journal.count("blocks")).result(timeout=0)
    assert count == 0


def test_sweep_that_was_cut_short_is_finished_by_the_next(desk: Desk) -> None:
    """Killed between the seal and the sweep: the bytes leave with the next seal."""
    fill(desk)
    sealing = desk.ledger.sealer.begin(force=True)
    assert sealing is not None
    segment = desk.ledger.sealer.write(sealing)
    desk.ledger.sealer.install(sealing)
    desk.ledger.sealer.enter(segment)
    desk.reopen()
    assert desk.total() == TOTAL
    desk.send(block(20, event(1)))
    desk.seal()
    count = desk.ledger.writer.run(lambda journal: journal.count("blocks")).result(timeout=0)
    assert count == 0


def test_seal_is_due_by_age(desk: Desk) -> None:
    """A quiet ledger is sealed once a day, and not again without new events."""
    fill(desk)
    assert not desk.ledger.sealer.step()
    desk.clock.advance(86_400)
    assert desk.ledger.sealer.step()
    desk.clock.advance(86_400)
    assert not desk.ledger.sealer.step()


def ask(sql: str) -> list[tuple[object, ...]]:
    """What another program's DuckDB answers."""
    with duckdb.connect() as other:
        return other.execute(sql).fetchall()


@pytest.fixture(params=["few", "many"])
def users_and_tagsets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a seal both ways: few are looked up in lists, many are joined."""
    monkeypatch.setattr(stages, "_FEW", 0 if request.param == "few" else 1_000)


@pytest.mark.usefixtures("users_and_tagsets")
def test_segment_holds_each_event_whole_and_in_order(desk: Desk) -> None:
    """By tenant, dimension and time, then by place; each with its own tenant and tags."""
    fill(desk)
    for at in range(20):
        tags = {"route": f"/{at % 3}"} if at % 4 else {}
        one = event(at, tenant=f"t{at % 5}" if at % 7 else None, tags=tags, time=at * 37 % 11)
        desk.send(block(10 + 2 * at, one, event(at, tenant=f"t{at % 2}", tags=tags, time=5)))
    before = desk.ledger.scan(after=(0, -1), limit=100)
    desk.seal()
    assert desk.ledger.scan(after=(0, -1), limit=100) == before
    assert desk.findings() == []
    path = str(next((desk.directory / "segments").iterdir()))
    columns = 'tenant, dimension, "time", entry, "index"'
    rows = ask(f"SELECT {columns} FROM read_parquet('{path}', file_row_number = true)")
    assert rows == ask(f"SELECT {columns} FROM read_parquet('{path}') ORDER BY {columns}")


@pytest.mark.usefixtures("users_and_tagsets")
def test_segment_is_plain_parquet(desk: Desk) -> None:
    """Another program reads it: the columns of docs/reference/formats.md, sorted."""
    fill(desk)
    desk.seal()
    path = str(next((desk.directory / "segments").iterdir()))
    described = ask(f"DESCRIBE SELECT * FROM read_parquet('{path}')")
    assert [(row[0], row[1]) for row in described] == [
        ("dimension", "VARCHAR"),
        ("tenant", "VARCHAR"),
        ("time", "BIGINT"),
        ("value", "BIGINT"),
        ("scale", "TINYINT"),
        ("wide", "VARCHAR"),
        ("entry", "BIGINT"),
        ("index", "INTEGER"),
        ("key", "VARCHAR"),
        ("id", "VARCHAR"),
        ("given", "BOOLEAN"),
        ("tag:Route", "VARCHAR"),
        ('tag:we"ird', "VARCHAR"),
        ("more_tags", "MAP(VARCHAR, VARCHAR)"),
    ]
    metadata = ask(f"SELECT key, value FROM parquet_kv_metadata('{path}')")
    assert (b"tallybook.segment", b"1") in metadata


def test_tag_keys_that_differ_in_case_share_no_column() -> None:
    """Parquet readers ignore case in a column's name, so one of two such keys is in the map."""
    assert choose_columns([("Route", 1), ("route", 5), ("a", 9)]) == (("a", "route"), ("Route",))


def test_tag_keys_beyond_the_limit_go_into_the_map() -> None:
    """The most used ones get the columns."""
    assert choose_columns([("a", 1), ("b", 2), ("c", 3)], 2) == (("b", "c"), ("a",))


def test_spill_is_emptied_at_start(desk: Desk, tmp_path: Path) -> None:
    """What a crashed query has left in the book is gone with the next start."""
    desk.ledger.close()
    (tmp_path / "book" / "spill" / "old").write_bytes(b"x")
    desk.reopen()
    assert list((tmp_path / "book" / "spill").iterdir()) == []


def test_seal_of_a_tail_that_was_built_anew_is_void(desk: Desk) -> None:
    """A commit fails between the freeze and the writing: there is nothing left to write."""
    fill(desk)
    sealing = desk.ledger.sealer.begin(force=True)
    assert sealing is not None
    desk.faults.commits, desk.faults.durable = 1, True
    desk.send(block(20, event(1)))
    with pytest.raises(SealVoid):
        desk.ledger.sealer.write(sealing)
    assert desk.ledger.tables.loaded == set()


def test_two_threads_do_not_seal_the_same(tmp_path: Path) -> None:
    """
    A seal that was asked for, beside the sealing thread that finds it begun.

    Both wrote the one file, and the second, which was too late, removed it: events of an
    entered segment were gone until a backup. Seen when a test asked a server for a seal.
    """
    ledger = EmbeddedLedger(tmp_path / "book", clock=FakeClock(), ids=FakeIds())
    for at in range(8):
        ledger.append(Delivery(blocks=[block(at + 1, event(1))])).result(timeout=20)
        start = Barrier(3)

        def seal(start: Barrier = start) -> None:
            start.wait()
            ledger.sealer.step(force=True)

        threads = [Thread(target=seal) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (row,) = ledger.aggregate(UsageQuery(("api.calls",))).rows
        assert row.events == at + 1
    assert list(ledger.verify()) == []
    ledger.close()
