"""A restore: a ledger that knows what it was restored from, and what it has lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import UNSET, structs

from tallybook.testing import FakeClock
from tallybook.wire import Announcement, Receipt
from tallybook_server.correction import Adjustment
from tallybook_server.ledger import (
    Acknowledgement,
    BackupRefused,
    Delivery,
    LedgerDamaged,
    Position,
    PositionUnknown,
    UsageQuery,
    VoidRequest,
)
from tallybook_server.restore import Restore, check_backup
from tests.ingest_server.ledger.conftest import ONE, START, TWO, Desk, block, event, reissue


@pytest.fixture
def target(desk: Desk, tmp_path: Path) -> Path:
    """A backup of two blocks; a third is in the ledger since."""
    desk.send(block(1, event(1)), block(2, event(2)), announcement=desk.announce(highest=2))
    desk.ledger.backup(str(tmp_path / "backup"))
    desk.send(block(3, event(4)), announcement=desk.announce(highest=3))
    return tmp_path / "backup"


def restored(desk: Desk, target: Path, name: str = "restored") -> Desk:
    book = target.with_name(name) / "books" / "default"
    Restore(target, book, clock=desk.clock, ids=desk.ids).make()
    return Desk(book, desk.clock, desk.ids)


def said(
    desk: Desk, receipt: Receipt | None, branch: str, *, producer: bytes = ONE, highest: int = 3
) -> Announcement:
    """What a producer says whose last receipt was that."""
    return structs.replace(
        desk.announce(producer, highest=highest),
        receipt=None if receipt is None else (1, receipt.position or 0),
        branch=branch,
        chain=UNSET if receipt is None or receipt.chain is None else receipt.chain,
    )


def tell(desk: Desk, announcement: Announcement, *blocks: bytes) -> Acknowledgement:
    return desk.deliver(Delivery(announcement=announcement, blocks=blocks))


# -- incarnations --------------------------------------------------------------------------


def _tidies_nothing(*arguments: object, **options: object) -> None:
    """What a killed process does of its cleaning up."""


def test_a_restore_is_an_entry_that_begins_the_next_incarnation(desk: Desk, target: Path) -> None:
    """Behind the backup's position, in the chain; what came later is not there."""
    again = restored(desk, target)
    entry = again.ledger._read(lambda journal: journal.entry(4))

    assert again.ledger.position() == Position(2, 4)
    assert (entry.kind, entry.detail) == (
        "restore",
        [2, again.ledger.writer.lineage.current.name, 3],
    )
    assert (again.total(), again.findings(), again.ledger.id) == ("3", [], desk.ledger.id)
    again.ledger.close()


def test_two_restores_of_one_backup_are_two_branches(desk: Desk, target: Path) -> None:
    """The same incarnation and the same positions; the names tell them apart."""
    one, two = restored(desk, target, "one"), restored(desk, target, "two")

    assert one.ledger.position() == two.ledger.position()
    assert one.ledger.writer.lineage.current.name != two.ledger.writer.lineage.current.name
    for each in (one, two):
        each.ledger.close()


def test_a_restored_ledger_can_be_backed_up_and_restored_again(desk: Desk, target: Path) -> None:
    """Incarnations go on, and every branch is named to producers."""
    once = restored(desk, target, "once")
    once.send(block(3, event(8)), announcement=once.announce(highest=3))
    once.ledger.backup(str(target))
    twice = restored(once, target, "twice")
    done = tell(twice, twice.announce(highest=3))

    assert twice.ledger.position() == Position(3, 6)
    assert done.holds == [(desk.ledger.id, 3), (once.ledger.writer.lineage.current.name, 5)]
    assert (twice.total(), twice.findings()) == ("11", [])
    for each in (once, twice):
        each.ledger.close()


def test_positions_that_were_lost_are_unknown_and_those_that_are_held_are_not(
    desk: Desk, target: Path
) -> None:
    """As of: under the name of either incarnation, as long as it was the same history."""
    again = restored(desk, target)
    again.send(block(3, event(8)), announcement=again.announce(highest=3))

    def at(incarnation: int, n: int) -> str | None:
        asked = UsageQuery(("api.calls",), as_of=Position(incarnation, n))
        return again.ledger.aggregate(asked).rows[0].value

    assert [at(1, 2), at(1, 3), at(2, 3), at(2, 5)] == ["1", "3", "3", "11"]
    for lost in (Position(1, 4), Position(3, 1), Position(2, 6)):
        with pytest.raises(PositionUnknown):
            again.ledger.aggregate(UsageQuery(("api.calls",), as_of=lost))
    again.ledger.close()


def test_a_correction_of_a_lost_branch_is_not_mistaken_for_another_one(
    desk: Desk, target: Path
) -> None:
    """A position with its number may be held again, by what came after the restore."""
    again = restored(desk, target)
    credit = Adjustment("credit", "api.calls", (-1, 0), None, START, {}, "an outage")
    entered = again.ledger.correct(credit).result(timeout=0)

    assert entered.position == Position(2, 5)
    with pytest.raises(PositionUnknown, match=r"no position 1\.5"):
        void = VoidRequest("v", "of the old ledger's", corrects=Position(1, 5))
        again.ledger.correct(void).result(timeout=0)
    assert again.total() == "2"
    again.ledger.close()


# -- where it goes, and crashes ------------------------------------------------------------


def test_a_ledger_is_never_restored_over_another(desk: Desk, target: Path) -> None:
    """Nor over anything else."""
    with pytest.raises(BackupRefused, match="is not empty"):
        Restore(target, desk.directory, clock=desk.clock, ids=desk.ids).make()
    assert desk.total() == "7"


@pytest.mark.parametrize("last", ["copy", "branch", "install"])
def test_a_crash_behind_any_stage_leaves_no_ledger_or_a_whole_one(
    last: str, desk: Desk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is in nobody's way: the same command again makes the ledger."""
    stage = getattr(Restore, last)

    def crashes(self: Restore, *arguments: object) -> None:
        stage(self, *arguments)
        raise KeyboardInterrupt

    book = target.with_name("new") / "books" / "default"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Restore, last, crashes)
        patch.setattr("shutil.rmtree", _tidies_nothing)
        Restore(target, book, clock=desk.clock, ids=desk.ids).make()
    if last == "install":
        again = Desk(book, desk.clock, desk.ids)
    else:
        with pytest.raises(LedgerDamaged, match="a restore left that did not come to its end"):
            Desk(book, desk.clock, desk.ids)
        again = restored(desk, target, "new")

    assert (again.total(), again.findings()) == ("3", [])
    assert [path.name for path in book.parent.iterdir()] == ["default"]
    assert list(check_backup(target)) == []
    again.ledger.close()


def test_a_restore_changes_nothing_of_the_backup(desk: Desk, target: Path) -> None:
    """Byte for byte; it may lie on a disk that cannot be written."""

    def state() -> dict[Path, tuple[bytes, int]]:
        files = [path for path in target.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    restored(desk, target).ledger.close()
    list(check_backup(target))

    assert state() == before


# -- what producers are told ---------------------------------------------------------------


def test_a_ledger_that_was_never_restored_says_nothing_of_branches(desk: Desk) -> None:
    """Its answers are what they always were."""
    answer = tell(desk, desk.announce(highest=0)).answer()

    assert (answer.branch, answer.holds) == (UNSET, UNSET)
    assert answer.branch_name == desk.ledger.id


def test_a_restored_ledger_tells_producers_up_to_where_it_has_what_they_sent(
    desk: Desk, target: Path
) -> None:
    """One that has a receipt from behind the backup knows which of its blocks are lacking."""
    again = restored(desk, target)
    answer = tell(again, again.announce(highest=3)).answer()

    assert answer.held_of(desk.ledger.id) == 3
    assert answer.held_of(answer.branch_name) is None
    assert answer.held_of("f" * 32) == 0
    again.ledger.close()


def test_what_a_restored_ledger_lacks_is_in_the_report_and_in_the_answer(
    desk: Desk, target: Path
) -> None:
    """Until it has come again, the ranges are named; from then on it is complete."""
    again = restored(desk, target)
    tell(again, again.announce(highest=3, closed=True))
    (report,) = again.ledger.producers()
    lacking = again.ledger.aggregate(UsageQuery(("api.calls",)))
    tell(again, again.announce(highest=3, closed=True), block(3, event(4)))
    whole = again.ledger.aggregate(UsageQuery(("api.calls",)))

    assert (report.missing, report.gaps, lacking.complete) == (1, [(3, 3)], False)
    assert (again.ledger.producers()[0].missing, whole.complete, again.total()) == (0, True, "7")
    again.ledger.close()


# -- a journal that was set back behind our back -------------------------------------------


def set_back(desk: Desk, *lost: bytes) -> tuple[Desk, list[Receipt]]:
    """A ledger whose directory was copied back to before *lost*, and its receipts for that."""
    before = desk.crash()
    receipts = desk.send(*lost, announcement=desk.announce(highest=9))
    return before, receipts


def test_a_receipt_beyond_the_head_begins_a_branch(desk: Desk) -> None:
    """The journal was set back, and nobody said so: the first producer that speaks does."""
    desk.send(block(1, event(1)))
    before, (receipt,) = set_back(desk, block(2, event(2)))
    done = tell(before, said(before, receipt, desk.ledger.id))

    assert before.ledger.position() == Position(2, 3)
    assert done.answer().held_of(desk.ledger.id) == 1
    assert before.findings() == []
    before.ledger.close()


def test_a_receipt_with_another_chain_begins_a_branch(desk: Desk) -> None:
    """The head has passed its position since, with other entries."""
    desk.send(block(1, event(1)))
    before, (receipt,) = set_back(desk, block(2, event(2)))
    before.send(block(1, event(8), producer=TWO), block(2, event(8), producer=TWO))
    tell(before, said(before, receipt, desk.ledger.id))

    assert before.ledger.position().incarnation == 2
    before.reopen()
    assert (before.ledger.position().incarnation, before.findings()) == (2, [])
    before.ledger.close()


def test_a_branch_begins_once_however_many_producers_have_lost_receipts(desk: Desk) -> None:
    """Theirs are of an earlier branch from then on."""
    before, receipts = set_back(desk, block(1, event(2)), block(1, event(2), producer=TWO))
    for producer, receipt in zip((ONE, TWO), receipts, strict=True):
        tell(before, said(before, receipt, desk.ledger.id, producer=producer))

    assert before.ledger.position() == Position(2, 2)
    before.ledger.close()


def test_a_receipt_of_this_history_begins_no_branch(desk: Desk) -> None:
    """Nor does an old one, or that of a producer that has none."""
    receipts = desk.send(block(1, event(1)), block(2, event(2)))
    for receipt in (*receipts, None):
        tell(desk, said(desk, receipt, desk.ledger.id))

    assert desk.ledger.position() == Position(1, 3)


def test_a_branch_whose_commit_failed_is_begun_again(desk: Desk) -> None:
    """Rolled back with its group, it is not remembered either; or it is found, and is one."""
    for durable in (False, True):
        before, (receipt,) = set_back(desk, block(1 + durable, event(2)))
        before.faults.commits, before.faults.durable = 1, durable
        tell(before, said(before, receipt, desk.ledger.id))

        assert (before.ledger.position().incarnation, before.findings()) == (2, [])
        assert len(before.ledger.writer.lineage.branches) == 2
        before.ledger.close()


# -- conflicts and restores ----------------------------------------------------------------


def test_reissued_events_with_a_lost_receipt_are_not_taken_yet(desk: Desk, tmp_path: Path) -> None:
    """The block that they are of may come again and meet no conflict: they would count twice."""
    desk.ledger.backup(str(tmp_path / "backup"))
    theirs, mine = block(1, event(1)), block(1, event(2))
    desk.send(theirs)
    (receipt,) = desk.send(mine)
    again = restored(desk, tmp_path / "backup")
    lost = said(again, receipt, desk.ledger.id)
    done = tell(again, lost, reissue(mine, event(2)))
    now = structs.replace(lost, branch=done.answer().branch_name, receipt=None, chain=UNSET)
    tell(again, now, mine)

    assert [receipt.status for receipt in done.receipts] == ["damaged"]
    assert "send it again" in (done.receipts[0].reason or "")
    assert again.total() == "2"
    again.ledger.close()


def test_reissued_events_of_a_producer_that_knows_are_taken(desk: Desk, target: Path) -> None:
    """Its block is held with the conflict; only what was made of it is lacking."""
    mine = block(1, event(8))
    again = restored(desk, target)
    announcement = said(again, None, again.ledger.writer.lineage.current.name)
    tell(again, announcement, mine, reissue(mine, event(8)))

    assert (again.total(), again.findings()) == ("11", [])
    again.ledger.close()


# -- files beyond the head -----------------------------------------------------------------


def test_verify_finds_a_branch_that_is_not_noted(desk: Desk, target: Path) -> None:
    """The list by which branches are found is compared with the chain."""
    again = restored(desk, target)
    again.ledger.writer.note(lambda journal: journal._db.execute("DELETE FROM restores")).result()

    assert again.findings() == ["branch: restores: not the entries that begin a branch are noted"]
    again.ledger.close()


def test_recording_time_does_not_fall_in_a_restore(tmp_path: Path) -> None:
    """The new machine's clock may be behind the old one's."""
    desk = Desk(tmp_path / "book", FakeClock())
    desk.clock.advance(86_400)
    desk.send(block(1, event(1)))
    desk.ledger.backup(str(tmp_path / "backup"))
    desk.ledger.close()
    book = tmp_path / "restored" / "books" / "default"
    Restore(tmp_path / "backup", book, clock=FakeClock(), ids=desk.ids).make()
    again = Desk(book, FakeClock(), desk.ids)

    assert again.findings() == []
    again.ledger.close()


def test_segments_of_a_restored_ledger_have_their_names_back(desk: Desk, tmp_path: Path) -> None:
    """In the backup they are named by content."""
    desk.send(block(1, event(1)))
    desk.seal()
    desk.ledger.backup(str(tmp_path / "backup"))
    again = restored(desk, tmp_path / "backup")

    assert {path.name for path in (again.directory / "segments").iterdir()} == {
        path.name for path in (desk.directory / "segments").iterdir()
    }
    again.ledger.close()
