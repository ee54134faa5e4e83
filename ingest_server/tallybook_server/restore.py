"""
A restore: a backup becomes a ledger again, which knows that it was restored.

Each stage may be the last thing that happens before a crash. The book is made under another
name beside the place that it is for, and gets its name when it is whole; what a crash has
left is removed by the next restore, and no server starts beside it:

1. *copy*: every file, its digest computed on the way and compared with the manifest.
2. *branch*: the chained entry that begins the next incarnation, under a random name.
3. *install*: everything is synced, and the directory renamed.

The backup is only read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tallybook.clock import Clock, Ids
from tallybook_server.backup_directory import BackupDirectory, copy_into
from tallybook_server.backup_manifest import BackupDamaged, BackupManifest, StoredFile
from tallybook_server.book import restoring_path, sync_directory, sync_file
from tallybook_server.branching import begin_branch, read_lineage
from tallybook_server.journal import Journal, open_read_only
from tallybook_server.ledger import BackupRefused, Finding, Position
from tallybook_server.segment import file_digest
from tallybook_server.verify import Report, silent, verify_directory

__all__ = ["Restore", "Restored", "check_backup"]


@dataclass(frozen=True, slots=True)
class Restored:
    """
    A ledger that was made of a backup.

    Attributes:
        ledger: Its id.
        backup: What the backup holds.
        position: Its head: the entry that begins the branch.
        branch: The branch's name.
    """

    ledger: str
    backup: Position
    position: Position
    branch: str


class Restore:
    """
    One restore.

    Args:
        source: The backup's directory.
        book: Where the book shall be: not there, or an empty directory.
        clock: Now.
        ids: For the branch's name.
    """

    def __init__(self, source: Path, book: Path, *, clock: Clock, ids: Ids) -> None:
        self._backup = BackupDirectory(source)
        self._book = book
        self._made = restoring_path(book)
        self._clock = clock
        self._ids = ids

    def make(self) -> Restored:
        """
        Make the ledger, all stages.

        Raises:
            BackupDamaged: A file of the backup is missing or has changed. Nothing was made.
            BackupRefused: The book's place is not empty, or the backup is being written.
            OSError, sqlite3.Error: Something cannot be read or written.
        """
        self._check_place()
        self._backup.open_to_read()
        try:
            manifest = self._backup.finished()
            try:
                self.copy(manifest)
                restored = self.branch(manifest)
                self.install()
            except BaseException:
                shutil.rmtree(self._made, ignore_errors=True)
                raise
        finally:
            self._backup.close()
        return restored

    def _check_place(self) -> None:
        if self._book.exists() and (not self._book.is_dir() or any(self._book.iterdir())):
            raise BackupRefused(
                f"{self._book} is not empty; a ledger is restored into a directory of its own, and "
                "never over another"
            )

    # -- the stages ------------------------------------------------------------------------

    def copy(self, manifest: BackupManifest) -> None:
        """Copy every file of the backup, and see that each is what it was."""
        if self._made.exists():
            shutil.rmtree(self._made)
        (self._made / "segments").mkdir(parents=True)
        self._copy(manifest.journal, self._made / "journal.db")
        for segment in manifest.segments:
            self._copy(segment, self._made / "segments" / segment.name)

    def _copy(self, stored: StoredFile, target: Path) -> None:
        try:
            found = copy_into(self._backup.files / stored.file, target)
        except FileNotFoundError:
            raise BackupDamaged(f"files/{stored.file} is missing from the backup") from None
        target.chmod(0o644)
        if found != (stored.sha256, stored.bytes):
            raise BackupDamaged(_changed(stored))

    def branch(self, manifest: BackupManifest) -> Restored:
        """Begin the next incarnation."""
        (self._made / "lock").touch()
        journal = Journal(self._made / "journal.db")
        try:
            _check_head(journal, manifest)
            lineage = read_lineage(journal)
            name, now = self._ids.producer().hex(), self._clock.time_ns() // 1000
            journal.begin()
            lineage = begin_branch(journal, lineage, name, agreed=manifest.position, now=now)
            journal.commit()
            head = Position(lineage.current.incarnation, journal.head.position)
        finally:
            journal.close()
        return Restored(
            ledger=manifest.ledger,
            backup=Position(manifest.incarnation, manifest.position),
            position=head,
            branch=name,
        )

    def install(self) -> None:
        """Make everything durable, and give the book its name."""
        for path in self._made.rglob("*"):
            sync_directory(path) if path.is_dir() else sync_file(path)
        sync_directory(self._made)
        if self._book.exists():
            self._book.rmdir()
        self._made.rename(self._book)
        for directory in list(self._book.parents)[:3]:
            sync_directory(directory)


def check_backup(source: Path, *, report: Report = silent) -> Iterator[Finding]:
    """
    Everything that is wrong with a backup; nothing of it is changed.

    The same as `verify` finds out about a ledger, and that the manifest says what is there.

    Args:
        source: Of the backup.
        report: Told how far the verification of its ledger has come.

    Raises:
        BackupDamaged: There is no finished backup, or its manifest has changed.
        BackupRefused: It is being written.
    """
    backup = BackupDirectory(source)
    backup.open_to_read()
    try:
        manifest = backup.finished()
        yield from _check_files(backup, manifest)
        with TemporaryDirectory() as aside:
            # A book's directory in which every name leads to the file of the backup.
            book = Path(aside) / "book"
            (book / "segments").mkdir(parents=True)
            (book / "lock").touch()
            (book / "journal.db").symlink_to((backup.files / manifest.journal.file).resolve())
            for stored in manifest.segments:
                file = (backup.files / stored.file).resolve()
                (book / "segments" / stored.name).symlink_to(file)
            if (book / "journal.db").exists():
                yield from verify_directory(book, files=backup.files.resolve(), report=report)
                yield from _check_journal(book / "journal.db", manifest)
    finally:
        backup.close()


def _check_files(backup: BackupDirectory, manifest: BackupManifest) -> Iterator[Finding]:
    for stored in (manifest.journal, *manifest.segments):
        where = f"files/{stored.file}"
        try:
            digest, size = file_digest(backup.files / stored.file)
        except FileNotFoundError:
            yield Finding("backup", where, "is missing")
            continue
        if (digest.hex(), size) != (stored.sha256, stored.bytes):
            yield Finding("backup", where, _changed(stored))


def _check_journal(path: Path, manifest: BackupManifest) -> Iterator[Finding]:
    journal = Journal(path, open_read_only)
    try:
        _check_head(journal, manifest)
    except BackupDamaged as error:
        yield Finding("backup", "manifest.json", str(error))
    finally:
        journal.close()


def _check_head(journal: Journal, manifest: BackupManifest) -> None:
    """The manifest's words about the journal, against the journal."""
    head, genesis = journal.head, journal.entry(1)
    said = (manifest.position, manifest.chain, manifest.ledger)
    if said != (head.position, head.chain.hex(), genesis.detail[0]):
        raise BackupDamaged(
            f"the manifest is of the ledger {manifest.ledger} at entry {manifest.position}; the "
            f"journal beside it is of {genesis.detail[0]} at {head.position}, or has another chain"
        )
    named = {(stored.name, stored.sha256, stored.bytes) for stored in manifest.segments}
    if named != {(one.name, one.sha256.hex(), one.bytes) for one in journal.segments()}:
        raise BackupDamaged("the manifest names other segments than the journal beside it")


def _changed(stored: StoredFile) -> str:
    return (
        f"files/{stored.file} has changed: it is not the {stored.bytes} bytes with the SHA-256 "
        f"{stored.sha256} that were backed up"
    )
