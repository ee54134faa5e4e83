"""
The writer: the one thread that owns the journal.

It takes what has come meanwhile as one group, decides and stores it in one transaction,
publishes the whole group to the hot tail by one swap, and only then answers. A reader
that wants SQL hands in a function, which runs between two groups.

A commit that reports failure may still be durable: after an error of fsync, SQLite shows
the transaction as gone, and after the next start it is there. So the journal is closed
and opened again, what is there is looked up, and the group is stored once more: what is
already there is found under its own name and answered as a duplicate.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Final, NamedTuple, TypeVar

from tallybook.block import REISSUED, read_columns, read_header
from tallybook.clock import Clock, Ids
from tallybook.errors import InvariantBroken
from tallybook.wire import Exceptions, Receipt
from tallybook_server.branching import (
    LOST_RECEIPT,
    begin_branch,
    is_of_another_branch,
    is_set_back,
    read_lineage,
)
from tallybook_server.change import changes_of
from tallybook_server.entry import EntryDamaged, Kind, VerdictRun
from tallybook_server.intake import Intake, OfferedBlock, untaken
from tallybook_server.journal import Head, Journal
from tallybook_server.judge import Judge, Judged, SealedEvents, exceptions_of
from tallybook_server.ledger import (
    Acknowledgement,
    LedgerBusy,
    LedgerDamaged,
    LedgerFull,
    Position,
)
from tallybook_server.limits import (
    BLOCKS_PER_COMMIT_MAX,
    BUSY_RETRY_SECONDS,
    BYTES_PER_COMMIT_MAX,
)
from tallybook_server.lineage import Lineage
from tallybook_server.producers import APPLICATION, DERIVED, DOOR, Receivings
from tallybook_server.registrar import Entered
from tallybook_server.segment import Segment
from tallybook_server.snapshot import Part, Snapshot, Snapshots
from tallybook_server.tail import UNCOUNTED, Generation, Known, Numbering, Stored, halve
from tallybook_server.turns import Turns

__all__ = ["Copied", "Writer", "read_snapshot"]

T = TypeVar("T")

_REBUILD_BLOCKS: Final = 256
_ARCHIVED: Final = "archived"


class Copied(NamedTuple):
    """
    A copy of the journal that was made.

    Attributes:
        head: What it ends with.
        lineage: The branches up to there.
        snapshot: The state that it has, held.
        hold: Closed by the caller when it needs the snapshot's files no more.
    """

    head: Head
    lineage: Lineage
    snapshot: Snapshot
    hold: ExitStack


@dataclass(slots=True)
class _Delivery:
    intake: Intake
    future: Future[Acknowledgement]


@dataclass(slots=True)
class _Call:
    function: Callable[[], None]


class Writer:
    """
    Owns the journal and the growing end of the tail.

    `append` and `run` may be called by any thread. With ``threads=False`` there is no
    thread: both do their work at once, and everything is one caller's.

    Attributes:
        lineage: The ledger's branches.
        archived: Everything up to this entry is in a backup; 0 without one.
    """

    lineage: Lineage
    archived: int

    def __init__(
        self,
        open_journal: Callable[[], Journal],
        *,
        clock: Clock,
        ids: Ids,
        retire: Callable[[Generation], None],
        sealed_events: SealedEvents,
        threads: bool,
    ) -> None:
        """
        Open the journal, begin the ledger if it is new, and build the tail.

        Args:
            open_journal: Opens it; again after a failure.
            clock: Now.
            ids: For the ledger's id.
            retire: Told about generations that no snapshot needs any more.
            sealed_events: Reads events back from segments.
            threads: Whether to start a thread.

        Raises:
            LedgerDamaged: The journal does not hold together.
            sqlite3.Error: The journal cannot be opened.
        """
        self._open_journal = open_journal
        self._clock = clock
        self._ids = ids
        self._sealed_events = sealed_events
        self._generations = 0
        self._journal = open_journal()
        try:
            if not self._journal.head.position:
                self._begin_ledger(ids)
            self.ledger_id = self._read_genesis()
            self._head = self._journal.head
            self.snapshots = Snapshots(self._built(), retire)
        except BaseException:
            self._journal.close()
            raise
        self._doubtful = False
        self._copying = False
        self._inbox: deque[_Delivery | _Call] = deque()
        self._arrived = Condition()
        self._waiting_events = 0
        self._waiting_bytes = 0
        self._closing = False
        self._thread: Thread | None = None
        if threads:
            self._thread = Thread(target=self._live, name="tallybook-writer", daemon=True)
            self._thread.start()

    def _begin_ledger(self, ids: Ids) -> None:
        self._journal.begin()
        detail = [ids.producer().hex(), 1]
        self._journal.add_entry("genesis", detail, recorded_at=self.now())
        self._journal.commit()

    def _read_genesis(self) -> str:
        entry = self._journal.entry(1)
        if entry.kind != "genesis":
            raise LedgerDamaged(f"entry 1 is a {entry.kind}; expected the genesis")
        ledger_id: str = entry.detail[0]
        return ledger_id

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        return self._clock.time_ns() // 1000

    # -- for any thread --------------------------------------------------------------------

    @property
    def incarnation(self) -> int:
        """Of the current branch."""
        return self.lineage.current.incarnation

    @property
    def waiting(self) -> tuple[int, int]:
        """Events and bytes that wait for the next commit."""
        return self._waiting_events, self._waiting_bytes

    @property
    def known_series(self) -> Known:
        """The halves of series that were checked already."""
        growing = self.snapshots.current.growing
        return Known(growing.users, growing.tagsets)

    def append(self, intake: Intake) -> Future[Acknowledgement]:
        """Store a delivery with the next group."""
        future = _promise(Future[Acknowledgement]())
        self._put(_Delivery(intake, future), intake.weight, intake.bytes)
        return future

    def run(self, function: Callable[[Journal], T]) -> Future[T]:
        """Call *function* with the journal between two groups; it must not be kept."""
        future = _promise(Future[T]())

        def call() -> None:
            try:
                self._settle()
                future.set_result(function(self._journal))
            except BaseException as error:
                future.set_exception(error)

        self._put(_Call(call), 0, 0)
        return future

    def _put(self, item: _Delivery | _Call, events: int, size: int) -> None:
        with self._arrived:
            if self._closing:
                raise LedgerBusy("the ledger is closing", 1.0)
            self._inbox.append(item)
            self._waiting_events += events
            self._waiting_bytes += size
            self._arrived.notify()
        if self._thread is None:
            while self.step():
                pass

    def close(self) -> None:
        """Finish what has come, and let go of the journal. Idempotent."""
        with self._arrived:
            already, self._closing = self._closing, True
            self._arrived.notify()
        if already:
            return
        if self._thread is not None:
            self._thread.join()
        while self.step():
            pass
        self._journal.close()

    # -- the thread ------------------------------------------------------------------------

    def _live(self) -> None:
        while True:
            with self._arrived:
                while not self._inbox and not self._closing:
                    self._arrived.wait()
                if not self._inbox:
                    return
            self.step()

    def step(self) -> bool:
        """Do the next thing: one call, or one group. False if there was none."""
        work = self._take()
        if isinstance(work, _Call):
            work.function()
        elif work:
            self._answer(work)
        return bool(work)

    def _take(self) -> _Call | list[_Delivery]:
        group: list[_Delivery] = []
        blocks = size = 0
        with self._arrived:
            while self._inbox:
                first = self._inbox[0]
                if isinstance(first, _Call):
                    if not group:
                        self._inbox.popleft()
                        return first
                    break
                blocks += len(first.intake.blocks)
                size += first.intake.bytes
                if group and (blocks > BLOCKS_PER_COMMIT_MAX or size > BYTES_PER_COMMIT_MAX):
                    break
                self._inbox.popleft()
                self._waiting_events -= first.intake.weight
                self._waiting_bytes -= first.intake.bytes
                group.append(first)
        return group

    def _answer(self, group: list[_Delivery]) -> None:
        try:
            answers = self._store([delivery.intake for delivery in group])
        except Exception as error:
            if len(group) == 1 or isinstance(error, LedgerFull):
                for delivery in group:
                    delivery.future.set_exception(error)
                return
            # One delivery that cannot be stored must not fail the others.
            for delivery in group:
                self._answer([delivery])
            return
        for delivery, answer in zip(group, answers, strict=True):
            delivery.future.set_result(answer)

    # -- a group ---------------------------------------------------------------------------

    def _store(self, intakes: Sequence[Intake]) -> list[Acknowledgement]:
        failure: sqlite3.Error | None = None
        for _ in range(2):
            try:
                self._settle()
                answers, stored = self._transact(intakes)
            except sqlite3.IntegrityError:
                raise  # Our fault, and no disk's: the group is rolled back.
            except sqlite3.Error as error:
                failure = error
                self._doubtful = True
                continue
            self._publish(stored)
            return answers
        raise LedgerFull(f"the journal cannot be written: {failure}") from failure

    def _settle(self) -> None:
        """After a failed commit: open the journal again, and see what is there."""
        if not self._doubtful:
            return
        if self._copying:
            # The file cannot be closed under the copy, which gives up when it has its turn.
            raise LedgerFull("the journal has to be opened again; a backup is giving way to that")
        try:
            self._journal.close()
        except sqlite3.Error:
            pass  # What matters is what can be read afterwards.
        self._journal = self._open_journal()
        if self._journal.head != self._head:
            self._head = self._journal.head
            self.snapshots.swap(self._built())
        self._doubtful = False

    def _transact(self, intakes: Sequence[Intake]) -> tuple[list[Acknowledgement], list[Stored]]:
        journal = self._journal
        judge = Judge(journal, self._sealed_events)
        receivings = Receivings()
        now = self.now()
        lineage = self.lineage
        drafts: list[_Draft] = []
        journal.begin()
        try:
            for intake in intakes:
                said = intake.announcement
                if said is not None and is_set_back(journal, lineage, said):
                    lineage = self._branched(lineage)
                drafts.append(_decide(journal, judge, receivings, intake, lineage))
            receivings.write(journal, now)
            journal.commit()
        except BaseException:
            self._undo()
            raise
        self.lineage = lineage
        stored = [block for draft in drafts for block in draft.stored]
        return [self._acknowledged(draft) for draft in drafts], stored

    def _branched(self, lineage: Lineage) -> Lineage:
        """The journal was set back behind our back: what was lost of this branch, nobody knows."""
        name, agreed = self._ids.producer().hex(), lineage.current.begins
        return begin_branch(self._journal, lineage, name, agreed=agreed, now=self.now())

    def _acknowledged(self, draft: _Draft) -> Acknowledgement:
        branches = self.lineage
        return Acknowledgement(
            ledger=self.ledger_id,
            position=Position(self.incarnation, self._journal.head.position),
            archived=self.archived,
            receipts=draft.receipts,
            verdicts=draft.verdicts,
            position_of=draft.position_of,
            branch=branches.current.name if len(branches.branches) > 1 else None,
            holds=branches.earlier(),
        )

    def _undo(self) -> None:
        try:
            self._journal.rollback()
        except sqlite3.Error:
            self._doubtful = True

    def _publish(self, stored: Sequence[Stored]) -> None:
        self._head = self._journal.head
        snapshot = self.snapshots.current
        generation = snapshot.growing
        try:
            generation.fill(stored, self._head.recorded_at)
        except BaseException:
            # Durable but not in the tail: as after a failed commit, build it anew.
            self._head = Head(-1, b"", 0)
            self._doubtful = True
            self._settle()
            return
        part = Part(generation, len(generation.chunks))
        tail = (*snapshot.tail[:-1], part)
        self.snapshots.swap(replace(snapshot, position=self._head.position, tail=tail))

    # -- the tail --------------------------------------------------------------------------

    def _generation(self, first: int) -> Generation:
        self._generations += 1
        return Generation(self._generations, first)

    def _built(self) -> Snapshot:
        self._generations += 1
        self.lineage = read_lineage(self._journal)
        self.archived = self._journal.noted(_ARCHIVED)
        return read_snapshot(self._journal, number=self._generations)

    # -- changes ---------------------------------------------------------------------------

    def change(self, decide: Callable[[Journal, Snapshot, int], Entered]) -> Future[Entered]:
        """
        Enter what *decide* says about the journal, in one transaction.

        The future is done when it is on disk and every query that begins afterwards heeds it.

        Args:
            decide: Given the journal, inside the transaction, the snapshot and the time.

        Raises (from the future):
            LedgerFull: The journal refused.
            And what *decide* raises, or refuses with; then only what it noted is stored.
        """
        return self.run(lambda _: self._change(decide))

    def note(self, function: Callable[[Journal], T]) -> Future[T]:
        """
        Call *function* with the journal in a transaction of its own, which adds no entry.

        Raises (from the future):
            LedgerFull: The journal refused; it may be noted all the same.
        """
        return self.run(lambda journal: self._noted(journal, function))

    def _noted(self, journal: Journal, function: Callable[[Journal], T]) -> T:
        try:
            journal.begin()
            result = function(journal)
            journal.commit()
        except sqlite3.Error as error:
            self._undo()
            self._doubtful = True
            raise LedgerFull(f"the journal cannot be written: {error}") from error
        except BaseException:
            self._undo()
            raise
        return result

    def _change(self, decide: Callable[[Journal, Snapshot, int], Entered]) -> Entered:
        failure: sqlite3.Error | None = None
        for _ in range(2):
            try:
                self._settle()
                entered = self._enter(decide)
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                # It may be durable all the same: the second time it is found under its id.
                failure, self._doubtful = error, True
                continue
            if entered.refusal is not None:
                raise entered.refusal
            return entered
        raise LedgerFull(f"the journal cannot be written: {failure}") from failure

    def _enter(self, decide: Callable[[Journal, Snapshot, int], Entered]) -> Entered:
        snapshot = self.snapshots.current
        self._journal.begin()
        try:
            entered = decide(self._journal, snapshot, self.now())
            self._journal.commit()
        except BaseException:
            self._undo()
            raise
        self._head = self._journal.head
        after = replace(snapshot, position=self._head.position)
        if not entered.repeated and entered.refusal is None:
            after = after.with_change(entered.change)
        self.snapshots.swap(after)
        return entered

    # -- backup ----------------------------------------------------------------------------

    def copy(self, target: Path) -> Future[Copied]:
        """
        Copy the journal into a new file, while the writer goes on in between.

        Raises (from the future):
            LedgerBusy: Another copy is under way, or the ledger is closing.
            LedgerFull: A commit failed meanwhile; the copy can be tried again.
            sqlite3.Error: The copy cannot be written.
        """
        return self.run(lambda journal: self._copy(journal, target))

    def _copy(self, journal: Journal, target: Path) -> Copied:
        if self._copying:
            raise LedgerBusy("another backup copies the journal", BUSY_RETRY_SECONDS)
        turns = Turns(self._do_what_waits)
        held: list[Copied] = []

        def between(whole: bool) -> None:
            if whole:
                held.append(self._held(journal))
                return
            turns.next()
            if self._doubtful:
                raise LedgerFull("a commit failed while the journal was copied; try again")
            if self._closing:
                raise LedgerBusy("the ledger is closing", BUSY_RETRY_SECONDS)

        self._copying = True
        try:
            journal.copy(target, between)
        except BaseException:
            for copied in held:
                copied.hold.close()
            raise
        finally:
            self._copying = False
        return held[0]

    def _do_what_waits(self) -> None:
        for _ in range(len(self._inbox)):
            if not self.step():
                return

    def _held(self, journal: Journal) -> Copied:
        hold = ExitStack()
        snapshot = hold.enter_context(self.snapshots.hold())
        return Copied(journal.head, self.lineage, snapshot, hold)

    def note_archived(self, position: int) -> Future[None]:
        """Note that everything up to *position* is in a backup; producers are told from now on."""

        def archive(journal: Journal) -> None:
            journal.put_note(_ARCHIVED, max(position, self.archived))

        def note(journal: Journal) -> None:
            self._noted(journal, archive)
            self.archived = max(position, self.archived)

        return self.run(note)

    # -- sealing: called through `run`, on the writer's thread ------------------------------

    def freeze(self) -> None:
        """Let the last generation grow no more, and begin a new one."""
        snapshot = self.snapshots.current
        fresh = self._generation(self._head.position + 1)
        tail = (*snapshot.tail, Part(fresh, 0))
        self.snapshots.swap(replace(snapshot, tail=tail))

    def enter_segment(self, segment: Segment) -> bool:
        """
        Put a finished segment in the place of the generation that it was made of.

        Returns:
            False if the tail was built anew meanwhile and has no such generation; then
            the segment's file belongs to nobody.

        Raises:
            LedgerFull: The journal refused.
        """
        self._settle()
        snapshot = self.snapshots.current
        if snapshot.frozen is None or (segment.first, segment.last) != (
            snapshot.frozen.generation.first,
            snapshot.growing.first - 1,
        ):
            return False
        if not self._change_manifest("seal", _named(segment), (), (segment,)):
            return self._knows(segment)
        after = replace(
            snapshot,
            position=self._head.position,
            segments=(*snapshot.segments, segment),
            tail=snapshot.tail[1:],
        )
        self.snapshots.swap(after)
        return True

    def enter_compaction(self, inputs: Sequence[Segment], outputs: Sequence[Segment]) -> bool:
        """
        Put the *outputs* of a compaction in the place of its *inputs*.

        No answer changes: each row of the inputs is in one of the outputs.

        Returns:
            False if the segments that there are do not have all of the inputs; then the
            outputs' files belong to nobody.

        Raises:
            LedgerFull: The journal refused.
        """
        self._settle()
        snapshot = self.snapshots.current
        gone = {one.name for one in inputs}
        staying = [one for one in snapshot.segments if one.name not in gone]
        if len(staying) + len(gone) != len(snapshot.segments):
            return False
        detail = [[_named(one) for one in inputs], [_named(one) for one in outputs]]
        if not self._change_manifest("compaction", detail, inputs, outputs):
            return self._knows(outputs[0])
        segments = sorted((*staying, *outputs), key=lambda one: (one.first, one.last, one.name))
        self.snapshots.swap(
            replace(snapshot, position=self._head.position, segments=tuple(segments))
        )
        return True

    def _change_manifest(
        self, kind: Kind, detail: list[Any], inputs: Sequence[Segment], outputs: Sequence[Segment]
    ) -> bool:
        """
        One transaction: an entry, and the manifest as it says.

        Returns:
            False if the commit reported failure and the journal was opened again: what it
            has now is what the current snapshot has.

        Raises:
            LedgerFull: Nobody knows whether it is durable; the files stay until somebody does.
        """
        journal = self._journal
        try:
            journal.begin()
            journal.add_entry(kind, detail, recorded_at=self.now())
            for segment in inputs:
                journal.remove_segment(segment)
            for segment in outputs:
                journal.add_segment(segment)
            journal.commit()
        except sqlite3.Error as error:
            self._undo()
            self._doubtful = True
            try:
                self._settle()
            except sqlite3.Error:
                raise LedgerFull(f"the journal cannot be written: {error}") from error
            return False
        except BaseException:
            self._undo()
            raise
        self._head = journal.head
        return True

    def _knows(self, segment: Segment) -> bool:
        return segment in self.snapshots.current.segments

    def sweep(self, limit: int) -> int:
        """Remove the bytes of at most *limit* sealed blocks; how many there were."""
        self._settle()
        sealed = self.snapshots.current.sealed_upto
        if not sealed:
            return 0
        return self._noted(self._journal, lambda journal: journal.drop_blocks(sealed, limit))


def _promise(future: Future[T]) -> Future[T]:
    """
    A future that cannot be cancelled any more.

    A caller that goes away, such as a request whose connection is gone, cancels what it
    waits for. What it has brought is stored all the same, and a cancelled future that is
    given its result raises, here in the middle of the writer.
    """
    future.set_running_or_notify_cancel()
    return future


def _named(segment: Segment) -> list[Any]:
    """What an entry says of a segment."""
    return [segment.name, segment.sha256, segment.rows, segment.first, segment.last]


def read_snapshot(journal: Journal, *, number: int) -> Snapshot:
    """The journal as it is: its segments, and a tail made of its blocks and their verdicts."""
    segments = tuple(journal.segments())
    sealed = journal.sealed_upto()
    generation = Generation(number, sealed + 1)
    group: list[Stored] = []
    begun_at = 0
    for position, data in journal.blocks_after(sealed):
        entry = journal.entry(position)
        begun_at = begun_at or entry.recorded_at
        group.append(_restored(position, data, entry.verdicts))
        if len(group) == _REBUILD_BLOCKS:
            generation.fill(group, begun_at)
            group = []
    generation.fill(group, begun_at)
    part = Part(generation, len(generation.chunks))
    try:
        changes = changes_of([journal.entry(position) for position, _, _ in journal.changes()])
    except EntryDamaged as error:
        raise LedgerDamaged(f"a correction or declaration cannot be read: {error}") from None
    return Snapshot(journal.head.position, segments, (part,), *changes)


def _restored(position: int, data: bytes, runs: Sequence[VerdictRun]) -> Stored:
    """A stored block as it was judged; nothing is judged again."""
    columns, (times, _) = read_columns(data, read_header(data))
    counted = bytearray(b"\1" * len(times))
    for run in runs:
        if run.verdict in UNCOUNTED:
            counted[run.first : run.last + 1] = bytes(run.last + 1 - run.first)
    used = {of for of, counts in zip(columns.of, counted, strict=True) if counts}
    unfit = frozenset(range(len(columns.series))) - used
    halves = halve(columns.series)
    users, tagsets = Numbering(halves.users), Numbering(halves.tagsets)
    return Stored(position, columns, users, tagsets, times, runs, unfit)


# -- one delivery --------------------------------------------------------------------------


@dataclass(slots=True)
class _Draft:
    """What became of a delivery, if the commit succeeds."""

    receipts: list[Receipt]
    stored: list[Stored]
    verdicts: list[Exceptions | None]
    position_of: list[int]


def _decide(
    journal: Journal, judge: Judge, receivings: Receivings, intake: Intake, lineage: Lineage
) -> _Draft:
    draft = _Draft([], [], [None] * intake.events, [0] * intake.events)
    announcement, now = intake.announcement, intake.received_at
    ahead = 0 if announcement is None else max(0, announcement.sent_at - now)
    elsewhere = announcement is not None and is_of_another_branch(lineage, announcement)
    if intake.rejections:
        _reject(judge, intake, draft)
    for at, block in enumerate(intake.blocks):
        if isinstance(block, Receipt):
            draft.receipts.append(block)
            continue
        if elsewhere and block.header.flags & REISSUED:
            # The block that it was made of may be lost here, come again and meet no conflict:
            # its producer finds that out first, or the events would count under both names.
            draft.receipts.append(untaken(block.header, "damaged", LOST_RECEIPT))
            continue
        judged = judge.store(block, now=now, clock_ahead=ahead)
        if judged.stored is not None:
            draft.stored.append(judged.stored)
        if intake.events:
            _place(draft, judged, intake.places[at])
        else:
            draft.receipts.append(judged.receipt)
        _receive(receivings, block, judged, intake)
    if announcement is not None:
        receivings.announce(announcement, now)
    return draft


def _reject(judge: Judge, intake: Intake, draft: _Draft) -> None:
    places = judge.reject(intake.rejections, now=intake.received_at)
    for rejection in intake.rejections:
        index = rejection.index
        reason = rejection.event.reason
        draft.verdicts[index] = Exceptions(index, index, "rejected", reason, 0)
        draft.position_of[index] = places[index]


def _place(draft: _Draft, judged: Judged, places: Sequence[int]) -> None:
    """Turn a block's verdicts into those of the JSON events that it was made of."""
    position = judged.receipt.position
    if position is None:
        raise InvariantBroken("a block of JSON events was neither stored nor held")
    for place in places:
        draft.position_of[place] = position
    for run in exceptions_of(0, judged.runs):
        for index in range(run.first, run.last + 1):
            place = places[index]
            draft.verdicts[place] = Exceptions(place, place, run.verdict, run.reason, run.reference)
            if run.verdict == "duplicate":
                draft.position_of[place] = run.reference
            elif index in judged.known:
                draft.position_of[place] = judged.known[index]


def _receive(receivings: Receivings, block: OfferedBlock, judged: Judged, intake: Intake) -> None:
    header = block.header
    kind = APPLICATION
    if block.door:
        kind = DOOR
    elif header.flags & REISSUED:
        kind = DERIVED
        if intake.announcement is not None:
            receivings.descend(header.producer, intake.announcement.producer)
    receivings.receive(
        header.producer, kind, block.columns.source, fresh=judged.fresh, last=header.last
    )
