"""
The embedded engine: a ledger in one directory, inside the server's process.

Append: the caller's thread checks and decodes (`intake`), the writer decides and commits
(`writer`, `judge`, `journal`) and publishes to the hot tail (`tail`). Ask: a snapshot of
segments and tail (`snapshot`), through DuckDB (`tables`, `query`, `rows`). Beside both,
the sealer turns old parts of the tail into segments (`sealer`, `segment`), and the
compactor puts these to their months (`compaction`, `compactor`, `merge`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Lock, Thread
from typing import TypeVar

from tallybook.clock import Clock, Ids, SystemClock, SystemIds
from tallybook.event import Event
from tallybook_server.as_of import check_position, position_at
from tallybook_server.backup import Backup
from tallybook_server.backup_manifest import BackupDamaged
from tallybook_server.book import Book
from tallybook_server.catalogue import Catalogue, Declaration
from tallybook_server.compaction import Policy
from tallybook_server.compactor import Compactor
from tallybook_server.correction import Adjustment
from tallybook_server.corrector import Corrector
from tallybook_server.entry import Verdict
from tallybook_server.found import find
from tallybook_server.intake import Intake, take_block, take_events
from tallybook_server.journal import Connect, Journal, open_connection
from tallybook_server.ledger import (
    EVERY_EVENT,
    Acknowledgement,
    BackedUp,
    Corrected,
    Delivery,
    EventFilter,
    EventId,
    Finding,
    FoundEvent,
    LedgerBusy,
    LedgerDamaged,
    LedgerEvent,
    Place,
    Position,
    ProducerReport,
    Rejection,
    Usage,
    UsageQuery,
    VoidRequest,
)
from tallybook_server.limits import (
    BUSY_RETRY_SECONDS,
    COMPACTION_RETRY_SECONDS,
    SEAL_AGE_SECONDS,
    SEAL_BYTES,
    SEAL_CHECK_SECONDS,
    SEAL_EVENTS,
    SILENT_SECONDS,
    TAIL_BYTES_MAX,
    TAIL_EVENTS_MAX,
)
from tallybook_server.producers import completeness, reports
from tallybook_server.proof import Checkpoint, EventProof, Unproven
from tallybook_server.prover import Prover
from tallybook_server.query import aggregate
from tallybook_server.question import UnanswerableQuestion
from tallybook_server.rows import sealed_events
from tallybook_server.sealer import Sealer, SealThresholds
from tallybook_server.search import search
from tallybook_server.segment import read_name
from tallybook_server.tables import Tables
from tallybook_server.verify import verify_book
from tallybook_server.window import tzdata_version
from tallybook_server.writer import Writer

__all__ = ["EmbeddedLedger"]

T = TypeVar("T")

_log = logging.getLogger("tallybook.ledger")


class EmbeddedLedger:
    """
    A `Ledger` in a directory of its own. One process at a time.

    Attributes:
        writer: The journal's owner; a test steps it.
        sealer: Makes segments; a test steps it.
        compactor: Merges segments; a test steps it.
        snapshots: What queries see.
        tables: DuckDB, with the part of the tail that was asked for.
        prover: Makes checkpoints and proofs.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock | None = None,
        ids: Ids | None = None,
        threads: bool = True,
        connect: Connect = open_connection,
        seal_events: int = SEAL_EVENTS,
        seal_bytes: int = SEAL_BYTES,
        seal_age_seconds: float = SEAL_AGE_SECONDS,
        tail_events_max: int = TAIL_EVENTS_MAX,
        tail_bytes_max: int = TAIL_BYTES_MAX,
        silent_seconds: int = SILENT_SECONDS,
        compaction: Policy | None = None,
    ) -> None:
        """
        Open the book in *directory*, or begin one.

        Args:
            directory: ``DATA/books/default``; created if it is not there.
            clock: Now.
            ids: For the ledger's id, and that of the producer of JSON events.
            threads: False: nothing happens on its own; appends, seals and compactions run in
                the caller.
            connect: Opens the journal's file.
            seal_events: A seal is due at this many unsealed events.
            seal_bytes: Or at this much memory.
            seal_age_seconds: Or when the oldest of them is this old.
            tail_events_max: Unsealed events beyond which nothing is taken.
            tail_bytes_max: Likewise, in memory.
            silent_seconds: A producer that has said nothing for this long is silent.
            compaction: When segments are merged; None: as `limits` says.

        Raises:
            LedgerLocked: Another server has the book.
            LedgerDamaged: The journal is not what it should be.
        """
        self._clock = clock or SystemClock()
        ids = ids or SystemIds()
        self._book = Book(Path(directory))
        self._book.open()
        try:
            self._book.remove_unfinished()
            self.tables = Tables(self._book.segments, self._book.spill)
            self.writer = Writer(
                lambda: Journal(self._book.journal, connect),
                clock=self._clock,
                ids=ids,
                retire=self.tables.drop,
                sealed_events=self._sealed_events,
                threads=threads,
            )
        except BaseException:
            self._book.close()
            raise
        self.snapshots = self.writer.snapshots
        self._remove_orphans()
        thresholds = SealThresholds(seal_events, seal_bytes, seal_age_seconds)
        self.sealer = Sealer(self.writer, self.tables, self._book.segments, thresholds)
        self._corrector = Corrector(self.writer, self.tables, self._book.segments, self.scan)
        self.prover = Prover(self.writer, self.scan, ids)
        self.compactor = Compactor(
            self.writer, self._book.segments, self._book.spill, compaction or Policy()
        )
        self._compact_after = self._clock.monotonic()
        self._tail_events_max = tail_events_max
        self._tail_bytes_max = tail_bytes_max
        self._silent_seconds = silent_seconds
        self._door = ids.producer()
        self._door_next = 1
        self._door_lock = Lock()
        self._backing_up = Lock()
        self._due = Flag()
        self._closing = False
        self._sealing: Thread | None = None
        if threads:
            self._sealing = Thread(target=self._seal, name="tallybook-sealer", daemon=True)
            self._sealing.start()

    @property
    def id(self) -> str:
        """32 hex digits, made with the ledger."""
        return self.writer.ledger_id

    @property
    def directory(self) -> Path:
        """Where the book lies."""
        return self._book.directory

    def position(self) -> Position:
        """The head: the last entry that queries see."""
        return Position(self.writer.incarnation, self.snapshots.current.position)

    # -- in --------------------------------------------------------------------------------

    def append(self, delivery: Delivery) -> Future[Acknowledgement]:
        """
        Store a delivery, each event exactly once. See `Ledger.append`.

        Blocks are decoded and validated here, on the caller's thread.

        Raises (from the future):
            LedgerBusy: The tail is full; nothing was stored.
            LedgerFull: The disk refused.
            BlockDamaged: A block without so much as a header; nothing was stored.
        """
        try:
            self._check_room()
            return self.writer.append(self._take(delivery))
        except Exception as error:
            refused: Future[Acknowledgement] = Future()
            refused.set_exception(error)
            return refused
        finally:
            if self.sealer.is_due():
                self._due.set()

    def _check_room(self) -> None:
        tail = self.snapshots.current.tail
        events, size = self.writer.waiting
        events += sum(part.generation.events for part in tail)
        size += sum(part.generation.bytes for part in tail)
        if events >= self._tail_events_max or size >= self._tail_bytes_max:
            self._due.set()
            raise LedgerBusy(
                f"{events} events ({size} bytes) wait to be sealed; at most "
                f"{self._tail_events_max} ({self._tail_bytes_max} bytes) may",
                BUSY_RETRY_SECONDS,
            )

    def _take(self, delivery: Delivery) -> Intake:
        now = self.writer.now()
        if delivery.events:
            return take_events(delivery, now, self._place_at_door)
        known = self.writer.known_series
        blocks = [take_block(data, known) for data in delivery.blocks]
        return Intake(delivery.announcement, now, blocks)

    def _place_at_door(self, count: int) -> tuple[bytes, int]:
        with self._door_lock:
            first = self._door_next
            self._door_next += count
        return self._door, first

    # -- corrections and declarations --------------------------------------------------------

    def correct(self, correction: Adjustment | VoidRequest) -> Future[Corrected]:
        """Store a correction, exactly once. See `Ledger.correct`."""
        try:
            return self._corrector.correct(correction)
        except Exception as error:
            refused: Future[Corrected] = Future()
            refused.set_exception(error)
            return refused

    def corrections(self, *, after: int, limit: int) -> list[Corrected]:
        """The corrections behind a position, in the ledger's order."""
        return self._corrector.corrections(after=after, limit=limit)

    def declare(self, declaration: Declaration) -> Future[Declaration]:
        """Say what a dimension is; the same again is no second entry. See `Ledger.declare`."""
        return self._corrector.declare(declaration)

    def dimensions(self) -> list[Declaration]:
        """What holds for each dimension now, by name. See `Ledger.dimensions`."""
        return self._corrector.dimensions()

    def catalogue(self) -> Catalogue:
        """Every declaration."""
        return self.snapshots.current.catalogue

    # -- out -------------------------------------------------------------------------------

    def aggregate(self, query: UsageQuery) -> Usage:
        """
        The answer at one position. See `Ledger.aggregate`.

        What is known to be missing is what is known now, also as of an earlier position:
        producers' announcements are no entries.
        """
        begun = self._clock.monotonic()
        # First what is known to be complete, then the events: so an answer never claims
        # to be complete through what came after it.
        now = self.writer.now()
        known = self.writer.run(lambda journal: completeness(journal, now, self._silent_seconds))
        completed = known.result()
        if query.as_of_time is not None:
            query = self._as_of_time(query, query.as_of_time)
        with self.snapshots.hold() as snapshot:
            head = Position(self.writer.incarnation, snapshot.position)
            if query.as_of is not None:
                check_position(query.as_of, head, self.writer.lineage)
            answer = aggregate(self.tables, self._book.segments, snapshot, query)
        explanation = answer.explanation
        if explanation is not None:
            explanation = replace(explanation, seconds=self._clock.monotonic() - begun)
        return Usage(
            rows=answer.rows,
            position=query.as_of or head,
            complete=completed.complete,
            through=completed.through,
            producers=completed.counts,
            tzdata=tzdata_version(),
            rules=answer.rules,
            events=answer.events,
            more=answer.more,
            explanation=explanation,
        )

    def _as_of_time(self, query: UsageQuery, time: int) -> UsageQuery:
        if query.as_of is not None:
            raise UnanswerableQuestion(
                "as_of_time", f"as_of is {query.as_of} and as_of_time {time}; expected one of them"
            )
        # The snapshot that is taken afterwards has this entry, whatever comes in between.
        n = self.writer.run(lambda journal: position_at(journal, time)).result()
        return replace(query, as_of=Position(self.writer.incarnation, n), as_of_time=None)

    def scan(
        self, chosen: EventFilter = EVERY_EVENT, *, after: tuple[int, int], limit: int
    ) -> list[LedgerEvent]:
        """Accepted events behind (position, index), in the ledger's order. See `Ledger.scan`."""
        with self.snapshots.hold() as snapshot:
            return search(
                self.tables,
                self._book.segments,
                snapshot,
                self._read,
                chosen,
                after=after,
                limit=limit,
            )

    def find(self, name: EventId | Place) -> FoundEvent | None:
        """The event of this name, counted or not, with its place; None: there is none."""
        with self.snapshots.hold() as snapshot:
            return find(self.tables, self._book.segments, snapshot, self._read, name)

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        """Have *heard* called each time that queries may see more. See `Ledger.listen`."""
        return self.snapshots.listen(heard)

    def rejections(self, *, after: tuple[int, int], limit: int) -> list[Rejection]:
        """What was not counted and why, in the ledger's order."""
        verdicts = (int(Verdict.REJECTED), int(Verdict.CONFLICT))

        def read(journal: Journal) -> list[Rejection]:
            return [
                Rejection(
                    position=row.position,
                    index=row.place,
                    verdict="conflict" if row.verdict == Verdict.CONFLICT else "rejected",
                    reason=row.reason,
                    detail=row.detail,
                    data=row.data,
                    recorded_at=journal.entry(row.position).recorded_at,
                )
                for row in journal.rejections(verdicts, after, limit)
            ]

        return self.writer.run(read).result()

    def producers(self) -> list[ProducerReport]:
        """Every producer, the last seen first."""
        now = self.writer.now()
        return self.writer.run(lambda journal: reports(journal, now, self._silent_seconds)).result()

    def checkpoint(self) -> Checkpoint:
        """A statement about the whole ledger as it is. See `Ledger.checkpoint`."""
        return self.prover.checkpoint()

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint that was made, in the ledger's order."""
        return self.prover.checkpoints()

    def prove(self, name: EventId | Place, position: Position | None = None) -> EventProof:
        """The way from an event to a checkpoint's root. See `Ledger.prove`."""
        found = self.find(name)
        if found is None or found.producer is None or found.sequence is None:
            raise Unproven(f"there is no event {name}")
        return self.prover.prove(EventId(found.producer, found.sequence), found.position, position)

    def verify(self) -> Iterator[Finding]:
        """Everything that is wrong with the ledger; nothing, if all is well."""
        with self.snapshots.hold() as snapshot:
            yield from verify_book(self._book, self.tables, snapshot, self._read)

    def _read(self, function: Callable[[Journal], T]) -> T:
        return self.writer.run(function).result()

    def _sealed_events(self, entry: int, indices: Sequence[int]) -> Mapping[int, Event]:
        with self.snapshots.hold() as snapshot:
            return sealed_events(self.tables, self._book.segments, snapshot, entry, indices)

    # -- backup ----------------------------------------------------------------------------

    def backup(self, target: str) -> BackedUp:
        """Make a backup in the directory *target*, one at a time. See `Ledger.backup`."""
        with self._backing_up:
            try:
                return Backup(self._book, self.writer, Path(target)).make()
            except BackupDamaged as error:
                raise LedgerDamaged(str(error)) from None
            except sqlite3.Error as error:
                raise OSError(f"the journal's copy cannot be written: {error}") from error

    # -- life ------------------------------------------------------------------------------

    def _remove_orphans(self) -> None:
        """Remove files of seals and compactions that a crash kept from being finished."""
        snapshot = self.snapshots.current
        sealed = snapshot.sealed_upto
        known = {segment.name for segment in snapshot.segments}
        there = {path.name for path in self._book.segments.iterdir()}
        for name in there - known:
            named = read_name(name)
            if named is None:
                continue
            # Only what the journal still has as blocks, or what segments have that are all
            # there. A file from beyond the head is not ours to remove: the journal may have
            # been restored from an older backup, and this may be the only copy.
            unsealed = sealed < named.first and named.last <= snapshot.position
            merged = named.last <= sealed and named.begun <= snapshot.position and known <= there
            if unsealed or merged:
                (self._book.segments / name).unlink()

    def _seal(self) -> None:
        while not self._closing:
            self._due.wait(SEAL_CHECK_SECONDS)
            self._due.clear()
            self._look_after_tail()
            self._look_after_segments()

    def _look_after_tail(self) -> None:
        try:
            while not self._closing and self.sealer.step():
                pass
            # A seal needs the rows in DuckDB anyway; there early, no query waits for them.
            with self.snapshots.hold() as snapshot:
                self.tables.load(snapshot.tail)
        except Exception:
            # Events stay in the tail, and the next step tries again; if this goes on,
            # the tail fills and ingest says so.
            _log.exception("a seal failed and will be tried again")

    def _look_after_segments(self) -> None:
        if self._clock.monotonic() < self._compact_after:
            return
        try:
            while not self._closing and self.compactor.step(self._pause):
                self._look_after_tail()
        except _Closing:
            pass  # The next life begins it again.
        except Exception:
            # The segments stay as they were, and answers are right, if slower.
            self._compact_after = self._clock.monotonic() + COMPACTION_RETRY_SECONDS
            _log.exception("a compaction failed and will be tried again")

    def _pause(self) -> None:
        """In the middle of a compaction: what is more urgent."""
        if self._closing:
            raise _Closing
        self._look_after_tail()

    def close(self) -> None:
        """Finish what is begun and let go of the files. Idempotent."""
        self._closing = True
        self._due.set()
        if self._sealing is not None:
            self._sealing.join()
        self.compactor.close()
        self.writer.close()
        self.tables.close()
        self._book.close()


class _Closing(Exception):
    """The ledger is being closed, and a compaction ends in its middle."""
