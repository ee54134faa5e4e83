"""A backup: consistent, only of what is new, and never in the way of the one before it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tallybook.testing import FakeIds
from tallybook_server.backup import Backup
from tallybook_server.backup_directory import BackupDirectory
from tallybook_server.backup_manifest import BackupManifest, encode_manifest
from tallybook_server.journal import Journal
from tallybook_server.ledger import BackupRefused, LedgerDamaged, LedgerFull
from tallybook_server.restore import Restore, check_backup
from tallybook_server.turns import Turns
from tests.ingest_server.ledger.conftest import Desk, block, event


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the backup goes."""
    return tmp_path / "backup"


def fill(desk: Desk, first: int, *values: int) -> None:
    """A block of events of the one producer."""
    desk.send(
        block(first, *(event(value) for value in values)),
        announcement=desk.announce(highest=first + len(values) - 1),
    )


def manifest_of(target: Path) -> BackupManifest:
    return BackupDirectory(target).finished()


def restored(desk: Desk, target: Path, name: str = "restored") -> Desk:
    """The ledger that is made of the backup as it is."""
    book = target.with_name(name) / "book"
    Restore(target, book, clock=desk.clock, ids=desk.ids).make()
    return Desk(book, desk.clock, desk.ids)


# -- what it holds -------------------------------------------------------------------------


def test_a_backup_holds_what_is_sealed_and_what_is_not(desk: Desk, target: Path) -> None:
    """Restored, it answers as the ledger did at the position that it names, and verifies."""
    fill(desk, 1, 1, 2)
    desk.seal()
    fill(desk, 3, 4)
    position = desk.ledger.position()
    done = desk.ledger.backup(str(target))
    fill(desk, 4, 8)

    again = restored(desk, target)

    assert done.position == position
    assert (again.total(), again.findings(), desk.total()) == ("7", [], "15")
    again.ledger.close()


def test_a_backup_verifies_where_it_lies(desk: Desk, target: Path) -> None:
    """Without being restored: its files, and the ledger in them."""
    fill(desk, 1, 1, 2)
    desk.seal()
    fill(desk, 3, 4)
    desk.ledger.backup(str(target))

    assert list(check_backup(target)) == []


def test_only_what_is_new_is_copied(desk: Desk, target: Path) -> None:
    """A segment is copied once in its life; each backup copies the journal and the new ones."""
    fill(desk, 1, *range(500))
    desk.seal()
    first = desk.ledger.backup(str(target))
    sealed = {path: path.stat().st_ino for path in (target / "files").glob("*.parquet")}
    fill(desk, 501, 1)
    desk.seal()

    second = desk.ledger.backup(str(target))
    manifest = manifest_of(target)

    assert (first.copied_files, first.files) == (2, 2)
    assert (second.copied_files, second.files) == (2, 3)
    assert second.copied_bytes == manifest.journal.bytes + manifest.segments[1].bytes
    assert {path: path.stat().st_ino for path in sealed} == sealed


def test_no_file_of_the_backup_is_a_file_of_the_ledger(desk: Desk, target: Path) -> None:
    """Copied, not linked: what damages the one does not damage the other."""
    fill(desk, 1, 1)
    desk.seal()
    desk.ledger.backup(str(target))

    theirs = {path.stat().st_ino for path in desk.directory.rglob("*") if path.is_file()}
    ours = {path.stat().st_ino for path in target.rglob("*") if path.is_file()}

    assert not theirs & ours


def test_what_is_committed_while_the_journal_is_copied_is_whole_in_the_copy(
    desk: Desk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups and a seal between two slices: the copy's end is one moment, and it verifies."""
    for first in range(1, 200, 2):
        fill(desk, first, 1, 1)
    turns = 0

    def busy(self: Turns) -> None:
        nonlocal turns
        turns += 1
        fill(desk, 199 + 2 * turns, 1, 1)
        if turns == 2:
            desk.seal()

    monkeypatch.setattr(Turns, "next", busy)
    monkeypatch.setattr("tallybook_server.journal.COPY_PAGES", 4)
    done = desk.ledger.backup(str(target))
    again = restored(desk, target)

    assert turns > 3
    assert done.position.n == desk.ledger.position().n
    assert (again.total(), again.findings()) == (desk.total(), [])
    assert list(check_backup(target)) == []
    again.ledger.close()


def test_a_seal_after_the_copy_of_the_segments_is_in_the_backup(desk: Desk, target: Path) -> None:
    """The bulk is copied first; what was sealed meanwhile is copied behind the journal."""
    fill(desk, 1, 1)
    desk.seal()
    backup = backup_of(desk, target)
    backup.open()
    backup.segments(desk.ledger.snapshots.current.segments)
    fill(desk, 2, 2)
    desk.seal()
    finish(backup)

    assert len(manifest_of(target).segments) == 2
    assert list(check_backup(target)) == []


def test_a_segment_that_was_replaced_before_it_could_be_copied_is_passed_over(
    desk: Desk, target: Path
) -> None:
    """The bulk is copied without a hold; the journal's copy says which are needed."""
    fill(desk, 1, 1)
    desk.seal()
    backup = backup_of(desk, target)
    backup.open()
    (segment,) = desk.ledger.snapshots.current.segments
    backup.segments((segment._replace(name="0000000000000008-0000000000000009.parquet"), segment))
    finish(backup)

    assert [stored.name for stored in manifest_of(target).segments] == [segment.name]


def backup_of(desk: Desk, target: Path) -> Backup:
    return Backup(desk.ledger._book, desk.ledger.writer, target)


def finish(backup: Backup) -> None:
    """The stages from the journal on."""
    copied, journal = backup.journal()
    with copied.hold:
        segments = backup.rest(copied)
    manifest = backup.check(copied, journal, segments)
    backup.publish(manifest)
    backup.archive(manifest)
    backup.tidy(manifest)
    backup.directory.close()


# -- turns ---------------------------------------------------------------------------------


def test_the_copy_works_for_a_slice_and_then_the_others_have_their_turn() -> None:
    """Not after every piece, and not never."""
    now = [0.0]
    asked: list[float] = []
    turns = Turns(lambda: asked.append(now[0]), lambda: now[0])
    for _ in range(10):
        now[0] += 0.002
        turns.next()

    assert [round(one, 3) for one in asked] == [0.006, 0.012, 0.018]


def test_a_busy_ledger_does_not_starve_the_copy() -> None:
    """Where the others take long, the slice is a share of that."""
    now = [0.0]
    asked: list[float] = []

    def others() -> None:
        asked.append(now[0])
        now[0] += 1.0

    turns = Turns(others, lambda: now[0])
    for _ in range(500):
        now[0] += 0.001
        turns.next()

    # 5 ms, and from then on a fifth of a second for each second.
    assert len(asked) == 3


def test_a_commit_that_fails_meanwhile_ends_the_copy_and_loses_nothing(
    desk: Desk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal must be opened again, and cannot be under the copy; the next one succeeds."""
    for first in range(1, 100):
        fill(desk, first, 1)
    failed: list[str] = []

    def fails(self: Turns) -> None:
        desk.faults.commits = 1
        desk.faults.durable = True
        try:
            fill(desk, 100, 1)
        except LedgerFull as error:
            failed.append(str(error))

    with monkeypatch.context() as patch:
        patch.setattr(Turns, "next", fails)
        patch.setattr("tallybook_server.journal.COPY_PAGES", 4)
        with pytest.raises(LedgerFull, match="try again"):
            desk.ledger.backup(str(target))
    fill(desk, 100, 1)
    desk.ledger.backup(str(target))

    assert len(failed) == 1
    assert (desk.total(), desk.findings(), list(check_backup(target))) == ("100", [], [])


# -- crashes -------------------------------------------------------------------------------

Stage = Callable[[Backup], None]
STAGES = ("segments", "journal", "rest", "check", "publish", "archive", "tidy")


@pytest.mark.parametrize("last", STAGES)
def test_a_crash_behind_any_stage_leaves_a_whole_backup(
    last: str, desk: Desk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one before *publish*, the new one from then on; the next backup tidies up."""
    fill(desk, 1, 1)
    desk.seal()
    desk.ledger.backup(str(target))
    fill(desk, 2, 2)
    desk.seal()
    stage = getattr(Backup, last)

    def crashes(self: Backup, *arguments: object) -> object:
        stage(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Backup, last, crashes)
        desk.ledger.backup(str(target))
    published = STAGES.index(last) >= STAGES.index("publish")

    assert list(check_backup(target)) == []
    left = restored(desk, target)
    assert left.total() == ("3" if published else "1")
    left.ledger.close()
    desk.ledger.backup(str(target))
    assert list(check_backup(target)) == []
    manifest = manifest_of(target)
    assert {path.name for path in (target / "files").iterdir()} == {
        stored.file for stored in (manifest.journal, *manifest.segments)
    }


def test_a_backup_that_was_never_finished_says_so(desk: Desk, target: Path) -> None:
    """No manifest, no backup."""
    backup = backup_of(desk, target)
    backup.open()
    backup.journal()
    backup.directory.close()

    with pytest.raises(Exception, match="holds no finished backup: it has no manifest"):
        list(check_backup(target))


def test_half_a_file_of_a_backup_that_was_cut_short_is_not_taken_for_whole(
    desk: Desk, target: Path
) -> None:
    """A file that no manifest names is read before it is used."""
    fill(desk, 1, 1)
    desk.seal()
    backup = backup_of(desk, target)
    backup.open()
    backup.segments(desk.ledger.snapshots.current.segments)
    backup.directory.close()
    (stored,) = (target / "files").glob("*.parquet")
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)

    desk.ledger.backup(str(target))

    assert list(check_backup(target)) == []


def test_a_full_disk_leaves_the_backup_that_was_there(
    desk: Desk, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever cannot be written, the old backup is whole and the ledger goes on."""
    fill(desk, 1, 1)
    desk.ledger.backup(str(target))
    fill(desk, 2, 2)

    def full(self: Journal, path: Path, between: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr(Journal, "copy", full)
        desk.ledger.backup(str(target))

    assert list(check_backup(target)) == []
    assert manifest_of(target).position < desk.ledger.position().n
    fill(desk, 3, 3)
    assert desk.total() == "6"


# -- where it goes -------------------------------------------------------------------------


def test_a_directory_with_other_things_is_refused_and_left_alone(desk: Desk, target: Path) -> None:
    """Neither beside its files nor in its folder is anything of others touched."""
    for name in ("photo.jpg", "files/photo.jpg"):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with pytest.raises(BackupRefused, match=f"something else than a backup: {name}"):
            desk.ledger.backup(str(target))
        assert path.exists()
        path.unlink()
    assert desk.ledger.backup(str(target)).files == 1


def test_the_books_own_directory_is_refused(desk: Desk) -> None:
    """Within it, and around it."""
    for directory in (desk.directory, desk.directory / "segments", desk.directory.parent):
        with pytest.raises(BackupRefused, match="within each other"):
            desk.ledger.backup(str(directory))
    assert desk.findings() == []


def test_another_ledgers_backup_is_never_written_over(
    desk: Desk, target: Path, tmp_path: Path
) -> None:
    """The ids tell them apart."""
    ids = FakeIds()
    ids.producer()
    other = Desk(tmp_path / "other", ids=ids)
    other.ledger.backup(str(target))
    other.ledger.close()

    with pytest.raises(BackupRefused, match="is the backup of the ledger"):
        desk.ledger.backup(str(target))


def test_a_backup_of_a_history_that_was_lost_is_never_written_over(
    desk: Desk, target: Path
) -> None:
    """It may be the only thing that has it."""
    early = target.with_name("early")
    fill(desk, 1, 1)
    desk.ledger.backup(str(early))
    fill(desk, 2, 2)
    desk.ledger.backup(str(target))
    again = restored(desk, early)
    fill(again, 2, 9)
    fill(again, 3, 9)

    with pytest.raises(BackupRefused, match="of a history that this ledger does not have"):
        again.ledger.backup(str(target))
    assert again.ledger.backup(str(early)).position == again.ledger.position()
    again.ledger.close()


def test_a_restored_ledger_goes_on_with_the_backup_that_it_is_of(desk: Desk, target: Path) -> None:
    """A segment of the lost branch with the same name does not pass for its own."""
    fill(desk, 1, 1)
    desk.ledger.backup(str(target))
    again = restored(desk, target)
    fill(desk, 2, 2)
    desk.seal()
    (lost,) = desk.ledger.snapshots.current.segments
    fill(again, 2, 9)
    again.seal()
    again.ledger.backup(str(target))

    assert list(check_backup(target)) == []
    twice = restored(desk, target, "twice")
    assert (twice.total(), twice.ledger.position().incarnation) == ("10", 3)
    assert lost.first == 1
    for one in (again, twice):
        one.ledger.close()


def test_two_backups_into_one_directory_do_not_meet(desk: Desk, target: Path) -> None:
    """The second says so, and the first goes on."""
    backup = backup_of(desk, target)
    backup.open()
    with pytest.raises(BackupRefused, match="in use"):
        desk.ledger.backup(str(target))
    finish(backup)

    assert list(check_backup(target)) == []


def test_a_damaged_segment_is_not_backed_up_over_a_whole_one(desk: Desk, target: Path) -> None:
    """The error names it; the backup that was there still has it whole."""
    fill(desk, 1, 1)
    desk.ledger.backup(str(target))
    desk.seal()
    (path,) = (desk.directory / "segments").iterdir()
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)

    with pytest.raises(LedgerDamaged, match=f"segments/{path.name} is not what was sealed"):
        desk.ledger.backup(str(target))
    assert list(check_backup(target)) == []


# -- what is archived ----------------------------------------------------------------------


def test_producers_are_told_what_is_archived(desk: Desk, target: Path) -> None:
    """0 before the first backup, its position afterwards, also in the next life."""
    fill(desk, 1, 1)
    before = desk.ledger.writer.archived
    done = desk.ledger.backup(str(target))
    fill(desk, 2, 2)
    desk.reopen()

    assert (before, desk.ledger.writer.archived) == (0, done.position.n)
    assert done.position.n < desk.ledger.position().n


def test_a_backup_changes_no_answer_and_is_no_entry(desk: Desk, target: Path) -> None:
    """What it notes has no position."""
    fill(desk, 1, 1)
    before = desk.ledger.position()
    desk.ledger.backup(str(target))

    assert (desk.ledger.position(), desk.findings()) == (before, [])


# -- damage --------------------------------------------------------------------------------


def test_any_flipped_byte_of_a_backup_is_found_and_its_file_named(desk: Desk, target: Path) -> None:
    """A byte here and there in each file, the manifest among them; and no ledger is made."""
    fill(desk, 1, 1)
    desk.seal()
    desk.ledger.backup(str(target))
    for path in sorted(path for path in target.rglob("*") if path.stat().st_size):
        if not path.is_file():
            continue
        whole = path.read_bytes()
        for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            named = path.name if path.parent.name == "files" else "manifest"
            with pytest.raises(Exception, match=named):
                restored(desk, target)
            assert not (target.with_name("restored") / "book").exists()
        path.write_bytes(whole)
    assert list(check_backup(target)) == []


def test_a_missing_file_of_a_backup_is_named(desk: Desk, target: Path) -> None:
    """By verify and by restore."""
    fill(desk, 1, 1)
    desk.seal()
    desk.ledger.backup(str(target))
    (path,) = (target / "files").glob("*.parquet")
    path.unlink()

    assert f"files/{path.name}" in [finding.where for finding in check_backup(target)]
    with pytest.raises(Exception, match=f"files/{path.name} is missing"):
        restored(desk, target)


def test_a_manifest_of_another_moment_is_found(desk: Desk, target: Path) -> None:
    """Whole by its own digest, but not of the journal beside it."""
    fill(desk, 1, 1)
    desk.ledger.backup(str(target))
    manifest = manifest_of(target)
    other = msgspec.structs.replace(manifest, position=manifest.position - 1)
    (target / "manifest.json").write_bytes(encode_manifest(other))

    assert [finding.where for finding in check_backup(target)] == ["manifest.json"]
    with pytest.raises(Exception, match="the manifest is of the ledger"):
        restored(desk, target)


def test_a_backup_is_for_its_owner_only(desk: Desk, target: Path) -> None:
    """Nobody else may read what tenants use."""
    fill(desk, 1, 1)
    desk.seal()
    desk.ledger.backup(str(target))

    modes = {path: os.stat(path).st_mode & 0o077 for path in (target, *target.rglob("*"))}
    assert set(modes.values()) == {0}
