"""
Compaction: no query, crash or failure between any two of its stages loses or doubles an event.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallybook.errors import InvariantBroken
from tallybook.event import Event
from tallybook_server import book, compactor
from tallybook_server.compaction import Policy, month_of
from tallybook_server.compactor import Compacting
from tallybook_server.ledger import LedgerEvent, LedgerFull, UsageQuery
from tallybook_server.limits import COMPACTION_RETRY_SECONDS
from tallybook_server.merge import Merge
from tallybook_server.query import aggregate
from tallybook_server.segment import Segment, merged_name
from tallybook_server.tables import open_database
from tallybook_server.verify import verify_directory
from tests.ingest_server.ledger.conftest import START, TWO, Desk, block, event

DAY = 86_400_000_000
MONTHS = (START - 40 * DAY, START - 10 * DAY, START - DAY)  # November, December, December.
TOTAL = "2000000000000000000000000000022.75"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A ledger that merges any two segments, and thinks one row enough for a month."""
    desk = Desk(tmp_path / "book", compaction=Policy(fan_in=2, rows_min=1))
    yield desk
    desk.ledger.close()


def fill(desk: Desk) -> None:
    """Two segments with events of every shape in two months, a rejected one, and a tail."""
    for at, first in enumerate((1, 11)):
        desk.send(
            block(
                first,
                event(1, tags={"route": "/a", "Route": "other"}, time=MONTHS[at]),
                event("0.25", tenant=None, time=MONTHS[2 - at]),
                event(10**30, key=f"k{at}", given=True, time=MONTHS[0]),
                event(1, tenant="x" * 256),
            )
        )
        desk.send(block(first, event(7, id=f"e{at}", tags={'we"ird': "it's"}), producer=TWO))
        desk.seal()
    desk.send(block(30, event("6.25", time=MONTHS[0])))


def scanned(desk: Desk) -> list[LedgerEvent]:
    return desk.ledger.scan(after=(0, -1), limit=10_000)


def files(desk: Desk) -> set[str]:
    return {path.name for path in (desk.directory / "segments").iterdir()}


def named(desk: Desk) -> set[str]:
    return {segment.name for segment in desk.ledger.snapshots.current.segments}


def begun(desk: Desk) -> Compacting:
    compacting = desk.ledger.compactor.begin()
    assert compacting is not None
    return compacting


# -- what it makes -------------------------------------------------------------------------


def test_compaction_changes_no_answer(desk: Desk) -> None:
    """Every event is the same event before and after, at the same place."""
    fill(desk)
    before = scanned(desk)
    assert desk.compact() == 1
    assert scanned(desk) == before
    assert desk.total() == TOTAL
    assert desk.findings() == []


def test_each_row_is_put_to_its_month(desk: Desk) -> None:
    """One segment a month, both covering what the inputs covered; and nothing else is there."""
    fill(desk)
    inputs = desk.ledger.snapshots.current.segments
    desk.compact()
    november, december = desk.ledger.snapshots.current.segments
    assert (november.month, december.month) == (month_of(MONTHS[0]), month_of(MONTHS[1]))
    assert (november.rows, december.rows) == (3, 5)
    for one in (november, december):
        assert (one.first, one.last, one.level) == (inputs[0].first, inputs[1].last, 1)
        assert one.time_min is not None
        assert one.time_max is not None
        assert month_of(one.time_min) == month_of(one.time_max) == one.month
    assert files(desk) == {november.name, december.name}


def test_month_is_that_of_utc_to_the_microsecond(desk: Desk) -> None:
    """The last moment of a year and the first of the next, also before 1970."""
    for at, edge in enumerate((START, -31_536_000_000_000)):
        desk.send(block(1 + 2 * at, event(1, time=edge - 1), event(1, time=edge)))
        desk.seal()
    desk.compact()
    months = [one.month for one in desk.ledger.snapshots.current.segments]
    assert sorted(months, key=lambda month: month or 0) == [
        *(1968 * 12 + 11, 1969 * 12),
        *(2025 * 12 + 11, 2026 * 12),
    ]


def test_months_with_few_rows_wait_together(desk: Desk, tmp_path: Path) -> None:
    """They are in one segment without a month until a later compaction has enough of them."""
    other = Desk(tmp_path / "few", compaction=Policy(fan_in=2, rows_min=3))
    for first in (1, 11, 21, 31):
        other.send(block(first, *(event(1, time=MONTHS[0]) for _ in range(5))))
        other.send(block(first, event(1, time=START - 80 * DAY), producer=TWO))
        other.seal()
        other.compact()
    months = {one.month: one.rows for one in other.ledger.snapshots.current.segments}
    assert months == {month_of(MONTHS[0]): 20, month_of(START - 80 * DAY): 4}
    assert other.total() == "24"
    assert other.findings() == []
    other.ledger.close()


def test_months_beyond_the_limit_share_a_segment(tmp_path: Path) -> None:
    """Made-up times make no thousand files; the largest months come first."""
    desk = Desk(tmp_path / "far", compaction=Policy(fan_in=2, rows_min=1, months_max=2))
    for first in (1, 101):
        events = [event(1, time=START - 40 * DAY * at) for at in range(6)]
        desk.send(block(first, *events, *(event(1, time=START - 80 * DAY) for _ in range(3))))
        desk.seal()
    desk.compact()
    rows = {one.month: one.rows for one in desk.ledger.snapshots.current.segments}
    assert rows == {month_of(START - 80 * DAY): 8, month_of(START - 200 * DAY): 2, None: 8}
    assert desk.total() == "18"
    assert desk.findings() == []
    desk.ledger.close()


def test_segments_without_an_event_are_merged_too(desk: Desk) -> None:
    """Every event of them was rejected; somebody has to cover their entries all the same."""
    for first in (1, 11):
        desk.send(block(first, event(1, tenant="x" * 256)))
        desk.seal()
    last = desk.ledger.snapshots.current.sealed_upto
    assert desk.compact() == 1
    (segment,) = desk.ledger.snapshots.current.segments
    assert (segment.rows, segment.first, segment.last) == (0, 1, last)
    desk.reopen()
    assert desk.findings() == []


def test_tag_keys_that_are_columns_here_and_in_the_map_there_meet(desk: Desk) -> None:
    """``Route`` has the column in one input and ``route`` in the other; values stay apart."""
    many = [event(1, tags={"Route": "A"}), event(1, tags={"Route": "B", "route": "a"})]
    few = [event(1, tags={"route": "b"}), event(1, tags={"route": "c", "Route": "C"})]
    desk.send(block(1, *many, event(1, tags={"Route": "D"})))
    desk.seal()
    desk.send(block(11, *few, event(1)))
    desk.seal()
    before = scanned(desk)
    desk.compact()
    (segment,) = desk.ledger.snapshots.current.segments
    assert (segment.tags, segment.more) == (("Route",), ("route",))
    assert scanned(desk) == before
    rows = desk.ledger.aggregate(UsageQuery(("api.calls",), by_tags=("route",))).rows
    assert [(row.tags.get("route"), row.value) for row in rows] == [
        (None, "3"),
        ("a", "1"),
        ("b", "1"),
        ("c", "1"),
    ]


@pytest.mark.parametrize("run_bytes", [1, 400, 1_000_000])
def test_file_is_in_order_however_it_was_cut(desk: Desk, tmp_path: Path, run_bytes: int) -> None:
    """By tenant, the absent one last, then dimension, time and place; also across runs."""
    for first in (1, 101):
        for at in range(40):
            tenant = f"t{at * 7 % 5}" if at % 6 else None
            one = event(at, tenant=tenant, time=START - at * 37 % 11 * DAY // 3)
            two = event(at, tenant=tenant, dimension="b", time=START - at * DAY // 4)
            desk.send(block(first + 2 * at, one, two))
        desk.seal()
    inputs = desk.ledger.snapshots.current.segments
    directory = desk.directory / "segments"
    database = open_database(tmp_path, tmp_path, memory_bytes=1 << 28, threads=1)
    merge = Merge(database, directory, inputs, lambda: None, run_bytes=run_bytes)
    extents = merge.survey()
    (piece,) = desk.ledger.compactor._pieces({month: extents[month] for month in list(extents)[:1]})
    segment = merge.write(piece, tmp_path / "out", name="out", level=1)
    database.close()
    columns = 'tenant, dimension, "time", entry, "index"'
    with duckdb.connect() as other:
        rows = other.execute(f"SELECT {columns} FROM read_parquet('{tmp_path}/out')").fetchall()
        ordered = other.execute(
            f"SELECT {columns} FROM read_parquet('{tmp_path}/out') ORDER BY {columns}"
        ).fetchall()
    assert rows == ordered
    assert len(rows) == segment.rows


# -- what goes on meanwhile ----------------------------------------------------------------


def test_snapshot_from_before_a_compaction_sees_the_same_after_it(desk: Desk) -> None:
    """A query that began earlier keeps its files until it is done; then they go."""
    fill(desk)
    query = UsageQuery(("api.calls",))
    tables, directory = desk.ledger.tables, desk.directory / "segments"
    with desk.ledger.snapshots.hold() as snapshot:
        before = aggregate(tables, directory, snapshot, query)
        desk.compact()
        assert named(desk) < files(desk)
        assert aggregate(tables, directory, snapshot, query) == before
        assert desk.findings() == []
    assert not desk.ledger.compactor.step()
    assert files(desk) == named(desk)


def test_ingest_and_seals_during_a_compaction_are_kept(desk: Desk) -> None:
    """What comes between its first stage and its last is neither merged nor lost."""
    fill(desk)
    compacting = begun(desk)
    desk.send(block(50, event(1000)))
    outputs = desk.ledger.compactor.write(compacting)
    desk.seal()
    desk.ledger.compactor.install(outputs)
    desk.send(block(60, event(1000)))
    assert desk.ledger.compactor.enter(compacting, outputs)
    assert len(desk.ledger.snapshots.current.segments) == 3
    assert desk.total() == "2000000000000000000000000002022.75"
    assert desk.findings() == []


def test_pause_comes_before_each_run_and_what_it_raises_ends_the_work(desk: Desk) -> None:
    """So that seals come first, and closing does not wait; nothing is left behind."""
    fill(desk)
    before = files(desk)
    calls = count()

    class Enough(Exception):
        pass

    def pause() -> None:
        if next(calls):
            raise Enough

    with pytest.raises(Enough):
        desk.ledger.compactor.step(pause)
    assert files(desk) == before
    assert desk.compact() == 1
    assert desk.findings() == []


def test_compaction_during_a_verification_is_no_finding(desk: Desk) -> None:
    """Its files belong to somebody soon; and those that it replaces, until the end of it."""
    fill(desk)

    def meanwhile() -> None:
        desk.seal()
        desk.compact()
        desk.send(block(70, event(1)))
        desk.seal()
        compacting = begun(desk)
        desk.ledger.compactor.install(desk.ledger.compactor.write(compacting))

    assert desk.findings_while(meanwhile) == []


# -- crashes and failures ------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["begin", "write", "install", "enter", "sweep"])
def test_crash_behind_each_stage_loses_and_doubles_nothing(desk: Desk, stage: str) -> None:
    """Killed after this stage: the next life has each event once, and can compact."""
    fill(desk)
    compacting = begun(desk)
    if stage != "begin":
        outputs = desk.ledger.compactor.write(compacting)
        if stage in ("install", "enter", "sweep"):
            desk.ledger.compactor.install(outputs)
        if stage in ("enter", "sweep"):
            assert desk.ledger.compactor.enter(compacting, outputs)
        if stage == "sweep":
            desk.ledger.compactor.sweep()

    copy = desk.directory.with_name("closed")
    shutil.copytree(desk.directory, copy)
    assert list(verify_directory(copy)) == []  # The start removes what is left, and says nothing.
    after = desk.crash()

    assert files(after) == named(after)
    assert after.total() == TOTAL
    assert after.findings() == []
    assert after.compact() == (0 if stage in ("enter", "sweep") else 1)
    assert after.total() == TOTAL
    assert after.findings() == []
    assert files(after) == named(after)
    after.ledger.close()


def test_files_are_durable_and_have_their_names_before_the_manifest_names_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a whole compaction; the inputs go last."""
    fill(desk)
    done: list[str] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            done.append(what)
            return function(*arguments, **named)

        return call

    writer = desk.ledger.writer
    monkeypatch.setattr(writer, "enter_compaction", noted("manifest", writer.enter_compaction))
    monkeypatch.setattr(compactor, "sync_file", noted("sync file", book.sync_file))
    monkeypatch.setattr(compactor, "sync_directory", noted("sync names", book.sync_directory))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    monkeypatch.setattr(Path, "unlink", noted("unlink", Path.unlink))
    desk.compact()

    both = ["sync file", "sync file", "rename", "rename", "sync names", "manifest"]
    assert [what for what in done if what != "unlink"] == both
    assert done[-3:] == ["manifest", "unlink", "unlink"]


@pytest.mark.parametrize("durable", [False, True])
def test_failed_commit_of_a_compaction_loses_and_doubles_nothing(desk: Desk, durable: bool) -> None:
    """The journal refuses the entry, or only says so: each event is in one place."""
    fill(desk)
    desk.faults.commits, desk.faults.durable = 1, durable
    assert desk.ledger.compactor.step() is durable
    assert desk.total() == TOTAL
    assert desk.findings() == []
    assert files(desk) == named(desk)
    assert desk.compact() == (0 if durable else 1)
    assert desk.total() == TOTAL
    assert desk.findings() == []


@pytest.mark.parametrize("durable", [False, True])
def test_files_stay_until_somebody_knows_whether_the_commit_is_durable(
    desk: Desk, durable: bool
) -> None:
    """The journal cannot even be opened again: inputs and outputs are both kept until it can."""
    fill(desk)
    before = files(desk)
    desk.faults.commits, desk.faults.durable, desk.faults.opens = 1, durable, 1
    with pytest.raises(LedgerFull):
        desk.ledger.compactor.step()
    assert before < files(desk)
    assert desk.compact() == (0 if durable else 1)
    assert files(desk) == named(desk)
    assert desk.total() == TOTAL
    assert desk.findings() == []


def test_compaction_of_segments_that_are_not_there_is_void(desk: Desk) -> None:
    """It was entered already, by a commit that had reported failure."""
    fill(desk)
    compacting = begun(desk)
    outputs = desk.ledger.compactor.write(compacting)
    desk.ledger.compactor.install(outputs)
    assert desk.ledger.compactor.enter(compacting, outputs)
    assert not desk.ledger.compactor.enter(compacting, outputs)
    assert desk.total() == TOTAL
    assert desk.findings() == []


def test_full_disk_in_a_compaction_leaves_everything_as_it_was(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and nothing half written stays in the way."""
    fill(desk)
    before = files(desk)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compactor, "sync_file", full)
    with pytest.raises(OSError, match="No space"):
        desk.ledger.compactor.step()
    assert files(desk) == before
    monkeypatch.undo()
    assert desk.compact() == 1
    assert desk.findings() == []


@pytest.mark.parametrize(
    "lie",
    [
        'SELECT * REPLACE ("value" + 1 AS "value") FROM',
        'SELECT * REPLACE ("index" + 1 AS "index") FROM',
        "SELECT * REPLACE ('b' AS tenant) FROM",
        'SELECT * REPLACE ("time" + 1 AS "time") FROM',
        "SELECT * REPLACE ('x' AS \"tag:Route\") FROM",
        "SELECT DISTINCT ON (tenant) * FROM",
    ],
)
def test_output_that_is_not_what_the_inputs_are_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """One value, place, tenant, time or tag other, or one row less: nothing is entered."""
    fill(desk)
    before = files(desk)
    sorted_ = Merge._sorted

    def lying(self: Merge, cursor: Any, rows: str, runs: Any) -> Any:
        return sorted_(self, cursor, f"{lie} ({rows})", runs)

    monkeypatch.setattr(Merge, "_sorted", lying)
    with pytest.raises(InvariantBroken, match="thrown away"):
        desk.ledger.compactor.step()
    assert files(desk) == before
    assert desk.total() == TOTAL


def test_input_with_other_rows_than_the_manifest_says_is_not_merged(desk: Desk) -> None:
    """A damaged file must not become the truth."""
    fill(desk)
    one, other = desk.ledger.snapshots.current.segments
    directory = desk.directory / "segments"
    with duckdb.connect() as forger:
        forger.execute(
            f"COPY (SELECT * FROM '{directory / other.name}' LIMIT 1) TO '{directory / one.name}' "
            "(FORMAT parquet)"
        )
    with pytest.raises(InvariantBroken, match="the manifest says"):
        desk.ledger.compactor.step()
    assert files(desk) == {one.name, other.name}


def test_compaction_that_failed_is_logged_and_tried_again_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at once, again and again: what is in its way seldom goes within seconds."""
    fill(desk)
    with monkeypatch.context() as patched:
        patched.setattr(compactor, "sync_directory", _fail)
        desk.ledger._look_after_segments()
    assert "a compaction failed and will be tried again" in caplog.text
    desk.ledger._look_after_segments()
    assert len(desk.ledger.snapshots.current.segments) == 2
    desk.clock.advance(COMPACTION_RETRY_SECONDS)
    desk.ledger._look_after_segments()
    assert {one.level for one in desk.ledger.snapshots.current.segments} == {1}
    assert desk.findings() == []


def _fail(path: Path) -> None:
    raise OSError(5, "Input/output error")


def test_memory_for_merging_is_there_only_while_there_is_something_to_merge(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One DuckDB for a chain of merges: it goes when they end, and when one fails."""
    fill(desk)
    with monkeypatch.context() as patched:
        patched.setattr(compactor, "sync_directory", _fail)
        with pytest.raises(OSError, match="Input/output"):
            desk.ledger.compactor.step()
    assert desk.ledger.compactor._database is None
    assert desk.ledger.compactor.step()
    first = desk.ledger.compactor._database
    desk.seal()
    assert desk.ledger.compactor._opened() is first
    desk.compact()
    assert desk.ledger.compactor._database is None


def test_closing_ends_a_compaction_in_its_middle(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is stopped does not finish it first; the next life does."""
    fill(desk)
    before = files(desk)
    step = desk.ledger.compactor.step

    def closed_meanwhile(pause: Callable[[], None]) -> bool:
        desk.ledger.close()
        return step(pause)

    monkeypatch.setattr(desk.ledger.compactor, "step", closed_meanwhile)
    desk.ledger._look_after_segments()
    assert files(desk) == before
    desk.reopen()
    assert desk.compact() == 1


def test_seal_that_is_due_does_not_wait_for_a_compaction(desk: Desk) -> None:
    """It is made between two runs, and is entered before what was begun earlier."""
    fill(desk)
    desk.clock.advance(86_400)
    desk.ledger._look_after_segments()
    head = desk.ledger.position().n
    journal = desk.ledger.writer.run(
        lambda journal: [journal.entry(at).kind for at in (head - 1, head)]
    )
    assert journal.result(timeout=0) == ["seal", "compaction"]


# -- what a crash leaves -------------------------------------------------------------------


def test_file_of_a_compaction_is_kept_where_segments_are_missing(desk: Desk) -> None:
    """The journal is an older backup: what was merged later may be the only copy."""
    fill(desk)
    desk.ledger.close()
    old = desk.directory.with_name("old")
    shutil.copytree(desk.directory, old)
    desk.reopen()
    desk.compact()
    outputs = files(desk)
    shutil.rmtree(old / "segments")
    shutil.copytree(desk.directory / "segments", old / "segments")
    restored = Desk(old, compaction=desk.compaction)
    assert files(restored) == outputs
    assert any("cannot be read" in finding for finding in restored.findings())
    restored.ledger.close()


def test_file_that_no_compaction_has_begun_is_found(desk: Desk) -> None:
    """A name like that of a segment is not enough to be passed over."""
    fill(desk)
    desk.compact()
    desk.ledger.close()
    stray = desk.directory / "segments" / merged_name(1, 3, 2, None)
    stray.write_bytes(b"x")
    assert [finding.what for finding in verify_directory(desk.directory)] == ["file"]
    desk.reopen()


def test_start_reads_no_segment(desk: Desk) -> None:
    """So it takes seconds whatever the size: the manifest alone says what there is."""
    fill(desk)
    desk.compact()
    desk.ledger.close()
    for path in (desk.directory / "segments").iterdir():
        path.write_bytes(b"")
    desk.reopen()
    assert len(desk.ledger.snapshots.current.segments) == 2


# -- verify --------------------------------------------------------------------------------


def test_compaction_that_made_fewer_rows_is_found(desk: Desk) -> None:
    """Also when somebody has made manifest and entry agree with each other."""
    fill(desk)
    compacting = begun(desk)
    outputs = desk.ledger.compactor.write(compacting)
    desk.ledger.compactor.install(outputs)
    desk.ledger.compactor.enter(compacting, outputs[:1])
    found = desk.findings()
    assert any("made 3 rows of 8" in finding for finding in found)
    assert any("are nowhere" in finding for finding in found)


def test_event_in_two_segments_in_the_place_of_another_is_found(desk: Desk) -> None:
    """The numbers per entry are right, and so are the digests: the places are not."""
    fill(desk)
    compacting = begun(desk)
    november, december = desk.ledger.compactor.write(compacting)
    path = desk.directory / "segments" / f"writing-{november.name}"
    _forge(path, 'SELECT * REPLACE (CASE "index" WHEN 2 THEN 1 ELSE "index" END AS "index") FROM')
    november = _renamed(path, november)
    desk.ledger.compactor.install([november, december])
    desk.ledger.compactor.enter(compacting, [november, december])
    assert any("an event twice" in finding for finding in desk.findings())


def _forge(path: Path, select: str) -> None:
    forged = path.with_name("forged")
    with duckdb.connect() as other:
        other.execute(f"COPY ({select} '{path}') TO '{forged}' (FORMAT parquet)")
    forged.rename(path)


def _renamed(path: Path, segment: Segment) -> Segment:
    from tallybook_server.segment import file_digest

    sha256, size = file_digest(path)
    return segment._replace(sha256=sha256, bytes=size)


# -- any history ---------------------------------------------------------------------------

YEARS = 3 * 365 * DAY
EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from(["1", "0.25", "123456789012345678901234567890", "7.000000001"]),
        tenant=st.sampled_from(["acme", "zürich", None, "it's"]),
        time=st.integers(START - YEARS, START),
        tags=st.sampled_from([{}, {"a": "1"}, {"A": "2", "a": "3"}, {"b": "", "c": "x"}]),
    ),
    min_size=1,
    max_size=12,
)
STEPS = st.lists(
    st.one_of(EVENTS, st.sampled_from(["seal", "seal", "compact", "reopen"])), max_size=14
)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS, fan_in=st.integers(2, 3), rows_min=st.integers(1, 4))
def test_any_history_of_seals_and_compactions_changes_nothing(
    tmp_path: Path, steps: list[list[Event] | str], fan_in: int, rows_min: int
) -> None:
    """Events of three years, in any order: the same scan, page by page, and verify is clean."""
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    policy = Policy(fan_in=fan_in, rows_min=rows_min, rows_max=24, months_max=3)
    desk = Desk(tmp_path / "any", compaction=policy)
    sequence = count(1)
    expected: list[tuple[Any, ...]] = []
    for step in [*steps, "seal", "compact"]:
        if isinstance(step, list):
            firsts = [next(sequence) for _ in step]
            (receipt,) = desk.send(block(firsts[0], *step))
            expected += [(receipt.position, at, one) for at, one in enumerate(step)]
        elif step == "seal":
            desk.seal()
        elif step == "compact":
            desk.compact()
        else:
            desk.reopen()
        assert [(row.position, row.index, row.event) for row in scanned(desk)] == expected
    assert _paged(desk, 3) == scanned(desk)
    assert desk.findings() == []
    assert files(desk) == named(desk)
    desk.ledger.close()


def _paged(desk: Desk, limit: int) -> list[LedgerEvent]:
    rows: list[LedgerEvent] = []
    after = (0, -1)
    while page := desk.ledger.scan(after=after, limit=limit):
        rows += page
        after = (page[-1].position, page[-1].index)
    return rows


def test_tags_whose_keys_differ_in_case_only_keep_their_values(
    tmp_path: Path,
) -> None:
    """
    One has its column in one segment, the other in another, and both are merged.

    The tags that there are were counted by the names of columns, which DuckDB compares
    without case: where one was absent from a month, the other counted as absent too, and
    its values were not written. The oracle of the conformance suite found it.
    """
    desk = Desk(tmp_path / "merged", compaction=Policy(fan_in=2, rows_min=1))
    expected: list[dict[str, str]] = []
    for at, (key, time) in enumerate([("Plan", MONTHS[0]), ("plan", MONTHS[1])]):
        one = event(at + 1, time=time, tags={key: f"v{at}"}, key=str(at))
        desk.send(block(at + 1, one))
        desk.seal()
        expected.append(one.tags)
    desk.compact()
    assert len(desk.ledger.snapshots.current.segments) == 2
    assert [row.event.tags for row in desk.ledger.scan(after=(0, -1), limit=9)] == expected
    assert desk.findings() == []
    desk.ledger.close()
