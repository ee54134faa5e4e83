"""
A backup of the book while it is written to: consistent, and only of what is new.

Each stage may be the last thing that happens before a crash, and the backup that was there
before stays whole until the end of the fourth:

1. *segments*: those that the backup lacks are copied; they never change. The bulk of it.
2. *journal*: copied in slices between the writer's groups; its end is the backup's position,
   and a snapshot of that moment is held.
3. *rest*, *check*: the few segments that were made meanwhile; then the journal's copy is read
   back and its chain computed anew.
4. *publish*: the manifest takes the place of the one before it.
5. *archive*: the ledger notes the position, and producers are told what they need not keep.
6. *tidy*: what the manifest does not name is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tallybook.block import read_header, read_payload
from tallybook.errors import BlockDamaged
from tallybook_server.backup_directory import BackupDirectory, copy_into
from tallybook_server.backup_manifest import BackupManifest, StoredFile, stored_name
from tallybook_server.book import Book
from tallybook_server.entry import CHAIN_START, link
from tallybook_server.journal import Head, Journal, open_read_only
from tallybook_server.ledger import BackedUp, BackupRefused, LedgerDamaged, Position
from tallybook_server.segment import Segment, file_digest
from tallybook_server.writer import Copied, Writer

__all__ = ["Backup"]

_JOURNAL = "journal.db"
_PAGE = 500


@dataclass(slots=True)
class _Counted:
    files: int = 0
    bytes: int = 0


class Backup:
    """
    The making of one backup.

    Args:
        book: What is backed up.
        writer: The owner of its journal.
        target: The backup's directory.

    Attributes:
        directory: Likewise.
    """

    def __init__(self, book: Book, writer: Writer, target: Path) -> None:
        self._book = book
        self._writer = writer
        self._copied = _Counted()
        self._before: BackupManifest | None = None
        self.directory = BackupDirectory(target)

    def make(self) -> BackedUp:
        """
        Make it, all stages.

        Raises:
            BackupRefused: The directory is not one for this ledger's backup.
            BackupDamaged: The manifest that is there cannot be read.
            LedgerDamaged: The ledger is not what it should be; run `tallybook verify`.
            LedgerBusy, LedgerFull: Try again.
            OSError, sqlite3.Error: Something cannot be read or written.
        """
        self.open()
        try:
            self.segments(self._writer.snapshots.current.segments)
            copied, journal = self.journal()
            with copied.hold:
                segments = self.rest(copied)
            manifest = self.check(copied, journal, segments)
            self.publish(manifest)
            self.archive(manifest)
            self.tidy(manifest)
        finally:
            self.directory.close()
        return BackedUp(
            target=str(self.directory.path),
            ledger=manifest.ledger,
            position=Position(manifest.incarnation, manifest.position),
            files=1 + len(manifest.segments),
            bytes=sum(one.bytes for one in (manifest.journal, *manifest.segments)),
            copied_files=self._copied.files,
            copied_bytes=self._copied.bytes,
        )

    # -- the stages ------------------------------------------------------------------------

    def open(self) -> None:
        """Take the directory, and see that what is in it is of this ledger's history."""
        target, book = self.directory.path.resolve(), self._book.directory.resolve()
        if target.is_relative_to(book) or book.is_relative_to(target):
            raise BackupRefused(
                f"{target} and the book {book} lie within each other; a backup needs a directory "
                "of its own, better on another disk"
            )
        self.directory.open()
        try:
            self._before = self.directory.manifest()
            if self._before is not None:
                self._check_history(self._before)
        except BaseException:
            self.directory.close()
            raise

    def _check_history(self, before: BackupManifest) -> None:
        if before.ledger != self._writer.ledger_id:
            raise BackupRefused(
                f"{self.directory.path} is the backup of the ledger {before.ledger}, this one is "
                f"{self._writer.ledger_id}; name another directory"
            )
        chain = self._writer.run(lambda journal: journal.chain_at(before.position)).result()
        if chain != before.chain:
            raise BackupRefused(
                f"{self.directory.path} is a backup at {before.where} of a history that this "
                "ledger does not have: it was restored from an earlier one, or set back. Nothing "
                "is overwritten; name another directory"
            )

    def segments(self, segments: tuple[Segment, ...]) -> None:
        """Copy the segments that are not there yet; one that is gone was replaced meanwhile."""
        for segment in segments:
            try:
                self._store(segment)
            except FileNotFoundError:
                if (self._book.segments / segment.name).exists():
                    raise  # It is the backup's directory that is gone.

    def _store(self, segment: Segment) -> StoredFile:
        digest = segment.sha256.hex()
        stored = StoredFile(
            name=segment.name,
            file=stored_name(segment.name, digest),
            sha256=digest,
            bytes=segment.bytes,
        )
        if self._is_stored(stored):
            return stored
        unfinished = self.directory.unfinished(segment.name)
        found, size = copy_into(self._book.segments / segment.name, unfinished)
        if (found, size) != (digest, segment.bytes):
            raise LedgerDamaged(
                f"segments/{segment.name} is not what was sealed: its SHA-256 or length has "
                "changed. The backup that was there before is kept; run tallybook verify"
            )
        self._count(size)
        return self.directory.add(segment.name, unfinished, digest, size)

    def _is_stored(self, stored: StoredFile) -> bool:
        # What the last backup names was checked then, and has been durable since. Any other
        # file was left by one that was cut short, and may hold anything: it is read.
        if self._before is not None and stored in self._before.segments:
            return self.directory.has(stored)
        return self.directory.holds(stored)

    def _count(self, size: int) -> None:
        self._copied.files += 1
        self._copied.bytes += size

    def journal(self) -> tuple[Copied, StoredFile]:
        """Copy the journal, and hold the snapshot that it is of."""
        unfinished = self.directory.unfinished(_JOURNAL)
        copied = self._writer.copy(unfinished).result()
        try:
            unfinished.chmod(0o600)
            digest, size = file_digest(unfinished)
            self._count(size)
            return copied, self.directory.add(_JOURNAL, unfinished, digest.hex(), size)
        except BaseException:
            copied.hold.close()
            raise

    def rest(self, copied: Copied) -> list[StoredFile]:
        """Copy the segments that the journal's copy names and the backup still lacks."""
        return [self._store(segment) for segment in copied.snapshot.segments]

    def check(
        self, copied: Copied, journal: StoredFile, segments: list[StoredFile]
    ) -> BackupManifest:
        """Read the journal's copy back, and say what the backup holds."""
        _check(self.directory.files / journal.file, copied)
        return BackupManifest(
            version=1,
            ledger=self._writer.ledger_id,
            incarnation=copied.lineage.current.incarnation,
            branch=copied.lineage.current.name,
            position=copied.head.position,
            chain=copied.head.chain.hex(),
            made_at=self._writer.now(),
            journal=journal,
            segments=segments,
        )

    def publish(self, manifest: BackupManifest) -> None:
        """From here on this is the backup."""
        self.directory.publish(manifest)

    def archive(self, manifest: BackupManifest) -> None:
        """Let producers know what they need not keep any more."""
        self._writer.note_archived(manifest.position).result()

    def tidy(self, manifest: BackupManifest) -> None:
        """Remove what only the backup before this one needed."""
        self.directory.tidy(manifest)


def _check(path: Path, copied: Copied) -> None:
    """The journal's copy, read back: SQLite's own check, the chain, the blocks' digests."""
    journal = Journal(path, open_read_only)
    try:
        problems = journal.integrity()
        if problems:
            raise LedgerDamaged(f"the journal's copy does not hold together: {problems[0]}")
        if set(journal.segments()) != set(copied.snapshot.segments):
            raise LedgerDamaged("the journal's copy names other segments than the ledger")
        head = _compute_head(journal)
    finally:
        journal.close()
    if head[:2] != copied.head[:2]:
        raise LedgerDamaged(
            f"the journal's copy ends at entry {head.position}, expected {copied.head.position}, "
            "or its chain does not hold; run tallybook verify"
        )


def _compute_head(journal: Journal) -> Head:
    head = Head(0, CHAIN_START, 0)
    while page := journal.entry_page(head.position, _PAGE):
        for position, entry, _, _ in page:
            head = Head(position, link(head.chain, entry), 0)
            block = journal.block(position)
            if block is not None:
                _check_block(block, position)
    return head


def _check_block(block: bytes, position: int) -> None:
    try:
        read_payload(block, read_header(block))
    except BlockDamaged as error:
        raise LedgerDamaged(
            f"the block of entry {position} is damaged: {error}; the backup that was there before "
            "is kept, run tallybook verify"
        ) from None
