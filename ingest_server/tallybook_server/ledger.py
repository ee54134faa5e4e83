"""
What a ledger is, whoever keeps it: append, aggregate, scan, verify, position.

The embedded engine (`tallybook_server.embedded`) is the first implementation. The next
will be a cluster, so nothing of files, SQL or threads shows here, and sealing is the
engine's own affair. The rules are in docs/explanation/counting-once.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from msgspec import UNSET

from tallybook.errors import TallybookError
from tallybook.event import Event
from tallybook.wire import Announcement, Answer, Exceptions, Receipt
from tallybook_server.catalogue import Catalogue, Declaration
from tallybook_server.correction import Adjustment, Void
from tallybook_server.event_filter import EVERY_EVENT, EventFilter, EventId, Place
from tallybook_server.proof import Checkpoint, EventProof
from tallybook_server.question import Position, Usage, UsageQuery, UsageRow

__all__ = [
    "EVERY_EVENT",
    "Acknowledgement",
    "AlreadyVoided",
    "BackedUp",
    "BackupRefused",
    "Corrected",
    "CorrectionConflict",
    "Delivery",
    "EventFilter",
    "EventId",
    "Finding",
    "FoundEvent",
    "FoundVerdict",
    "Ledger",
    "LedgerBusy",
    "LedgerDamaged",
    "LedgerEvent",
    "LedgerFull",
    "LedgerLocked",
    "NothingToVoid",
    "OfferedEvent",
    "Place",
    "Position",
    "PositionUnknown",
    "ProducerReport",
    "RejectedEvent",
    "Rejection",
    "Scan",
    "TooManyRows",
    "TooManyRuns",
    "UnfitCorrection",
    "Usage",
    "UsageQuery",
    "UsageRow",
    "VoidRequest",
]

FoundVerdict = Literal["counted", "flagged", "duplicate", "conflict", "rejected"]


class LedgerFull(TallybookError):
    """
    The disk refused the write; nothing is known to be stored.

    A write that failed may still be on disk. Sending the same again is right: what is
    there is found, and answered as a duplicate.
    """


class LedgerLocked(TallybookError):
    """Another server holds this book. One book has one server."""


class LedgerDamaged(TallybookError):
    """A file of the book is not what it should be; nothing was changed."""


class LedgerBusy(TallybookError):
    """
    The ledger takes nothing just now; nothing was stored.

    Attributes:
        retry_after_seconds: When to come back.
    """

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BackupRefused(TallybookError):
    """A place that is not one for this backup or restore; nothing was changed."""


class CorrectionConflict(TallybookError):
    """
    Another correction has this id; nothing was stored.

    Attributes:
        position: The entry of that one.
    """

    def __init__(self, correction_id: str, position: int) -> None:
        super().__init__(
            f"the id {correction_id!r} is that of another correction, entry {position}; an id "
            "means one correction for ever: give this one an id of its own"
        )
        self.position = position


class NothingToVoid(TallybookError):
    """What is to be taken back is not in the ledger, or does not count; kept as a rejection."""


class AlreadyVoided(TallybookError):
    """What is to be taken back was taken back before; nothing was stored."""


class TooManyRuns(TallybookError):
    """A choice of events that lie in too many places to be taken back by one entry."""


class UnfitCorrection(TallybookError):
    """A correction that can have no effect: an adjustment of what is no sum. Nothing was stored."""


# -- in ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OfferedEvent:
    """
    An event that came as JSON and is within its bounds.

    Attributes:
        event: The event; its `id` or its `key` is its identity.
        source: The application that it is from, or None.
    """

    event: Event
    source: str | None


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """
    An event that came as JSON and is not acceptable.

    Attributes:
        data: Its bytes, as they came.
        reason: A stable word: the field at fault.
        detail: What is wrong and what to do, in words.
    """

    data: bytes
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    What one request brings: blocks of a producer, or JSON events, never both.

    Attributes:
        announcement: What the producer says of itself, with blocks.
        blocks: The blocks' bytes, digests not yet checked.
        events: JSON events, in the order of the request; a rejected one keeps its place.
    """

    announcement: Announcement | None = None
    blocks: Sequence[bytes | memoryview] = ()
    events: Sequence[OfferedEvent | RejectedEvent] = ()


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """
    What became of a delivery, once it is on disk.

    Attributes:
        ledger: The ledger's id, in hex.
        position: The ledger's head behind the delivery.
        archived: The position up to which a backup holds everything, 0 without one.
        receipts: One per block, in order.
        verdicts: One per JSON event, in order: its run, with first == last == its index in
            the request; None where it was accepted.
        position_of: Per JSON event: the position of the entry that holds it.
        branch: The ledger's current branch; None: it was never restored.
        holds: Of each branch before it, the last position for which its receipts hold.
    """

    ledger: str
    position: Position
    archived: int
    receipts: list[Receipt] = field(default_factory=list[Receipt])
    verdicts: list[Exceptions | None] = field(default_factory=list[Exceptions | None])
    position_of: list[int] = field(default_factory=list[int])
    branch: str | None = None
    holds: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def answer(self) -> Answer:
        """What a producer is told."""
        return Answer(
            ledger=self.ledger,
            incarnation=self.position.incarnation,
            position=self.position.n,
            archived=self.archived,
            receipts=self.receipts,
            branch=UNSET if self.branch is None else self.branch,
            holds=self.holds or UNSET,
        )


@dataclass(frozen=True, slots=True)
class VoidRequest:
    """
    What is to be taken back: exactly one of an event, a correction and a choice of events.

    Attributes:
        id: The caller's; the same one again is the same void.
        reason: Why, in words.
        event: One event.
        corrects: The position of an adjustment, or of a void whose events shall count again;
            as it was told, with its incarnation.
        events: Every event that passes, up to the ledger's head of this moment, and was not
            taken back before.
    """

    id: str
    reason: str
    event: EventId | None = None
    corrects: Position | None = None
    events: EventFilter | None = None


@dataclass(frozen=True, slots=True)
class Corrected:
    """
    A correction that is on disk.

    Attributes:
        position: The entry that says so.
        correction: What it says.
        repeated: It was there before, under the same id.
    """

    position: Position
    correction: Adjustment | Void
    repeated: bool


# -- out -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProducerReport:
    """
    A producer as the ledger knows it.

    Attributes:
        producer: 32 hex digits.
        source: The application's name, or None.
        state: ``open``, ``closed``, ``silent`` (no word for a named limit) or ``written_off``.
        recorded: Events that it announced as recorded.
        received: Its sequences that the ledger holds.
        highest: The highest sequence that it announced.
        dropped: Events that it announced as dropped.
        missing: Sequences up to `highest` that the ledger lacks.
        gaps: The first missing ranges, (first, last), at most 100.
        through: By the server's clock, in microseconds: everything that it recorded before is
            in the ledger; None while anything announced is missing.
        first_seen: Microseconds since 1970 UTC, by the server's clock.
        last_seen: Likewise.
        reissue_of: Hex; the producer whose conflicting events come again under this one.
    """

    producer: str
    source: str | None
    state: Literal["open", "closed", "silent", "written_off"]
    recorded: int
    received: int
    highest: int
    dropped: int
    missing: int
    gaps: list[tuple[int, int]]
    through: int | None
    first_seen: int
    last_seen: int
    reissue_of: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """
    An event and its place.

    Attributes:
        position: The entry that holds it.
        index: Its place in the entry, from 0.
        producer: 32 hex digits.
        sequence: Its place in its producer's life.
        recorded_at: Microseconds since 1970 UTC, by the server's clock.
        source: The application's name, or None.
        event: The event.
        voided: It was taken back, and counts no more.
    """

    position: int
    index: int
    producer: str
    sequence: int
    recorded_at: int
    source: str | None
    event: Event
    voided: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """
    An event that was not counted, kept with its bytes.

    Attributes:
        position: The entry that recorded it.
        index: Its place in the entry.
        verdict: ``rejected``, replayable; or ``conflict``, kept as evidence.
        reason: A stable word.
        detail: What is wrong, in words.
        data: The event: as it came, or as JSON when it came in a block.
        recorded_at: Microseconds since 1970 UTC, by the server's clock.
    """

    position: int
    index: int
    verdict: Literal["rejected", "conflict"]
    reason: str
    detail: str
    data: bytes
    recorded_at: int


@dataclass(frozen=True, slots=True)
class FoundEvent:
    """
    One event with everything that the ledger knows of it.

    Attributes:
        position: The entry that holds it.
        index: Its place in the entry, from 0.
        producer: 32 hex digits; None of JSON that never became an event.
        sequence: Its place in its producer's life; None likewise.
        recorded_at: Microseconds since 1970 UTC, by the server's clock.
        source: The application's name, or None.
        verdict: ``counted``; ``flagged``: counted, with a note; ``duplicate``: another place
            holds the same event; ``conflict``: another event holds its identity; ``rejected``.
        reason: A stable word, "" if it simply counts.
        reference: With ``duplicate`` and ``conflict``: the entry that holds the identity. With
            ``clock``: the microseconds that were taken off its time. Else 0.
        detail: What is wrong, in words; "" where there is nothing to say.
        event: The event, if it is counted or flagged.
        data: The bytes that were kept of a conflict or a rejection; else None.
        segment: The name of the sealed segment that holds it; None: it is not sealed yet, or
            not counted.
        void: The void that takes it back, if there is one.
        others: Where else a delivery named the same producer and sequence.
        entry: The bytes of the entry that decided on it.
        chain_before: The chain's head in front of that entry.
        chain: The head behind it: SHA-256 over `chain_before` and `entry`.
    """

    position: int
    index: int
    producer: str | None
    sequence: int | None
    recorded_at: int
    source: str | None
    verdict: FoundVerdict
    reason: str
    reference: int
    detail: str
    event: Event | None
    data: bytes | None
    segment: str | None
    void: Void | None
    others: tuple[Place, ...]
    entry: bytes
    chain_before: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class BackedUp:
    """
    A backup that is finished.

    Attributes:
        target: Where it is.
        ledger: Whose.
        position: What it holds: every entry up to this one.
        files: Files that belong to it.
        bytes: Their length.
        copied_files: Files that were copied now; the others were there from before.
        copied_bytes: Their length.
    """

    target: str
    ledger: str
    position: Position
    files: int
    bytes: int
    copied_files: int
    copied_bytes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Something that `verify` found wrong.

    Attributes:
        what: A stable word: ``chain``, ``segment``, ``block``, ``sequence``, ``sum`` ...
        where: The entry, file or producer.
        detail: What was expected and what is there.
    """

    what: str
    where: str
    detail: str


class Scan(Protocol):
    """`Ledger.scan`, for what needs nothing else of a ledger."""

    def __call__(
        self, chosen: EventFilter = EVERY_EVENT, *, after: tuple[int, int], limit: int
    ) -> list[LedgerEvent]: ...


class Ledger(Protocol):
    """An append-only usage journal that answers questions."""

    @property
    def id(self) -> str:
        """32 hex digits, made with the ledger."""
        ...

    def append(self, delivery: Delivery) -> Future[Acknowledgement]:
        """
        Store a delivery, each event exactly once.

        The future is done when every new event is on disk and every query that begins
        afterwards sees it.

        Raises (from the future):
            LedgerBusy: Come back later; nothing was stored.
            LedgerFull: The disk refused; nothing was stored.
        """
        ...

    def correct(self, correction: Adjustment | VoidRequest) -> Future[Corrected]:
        """
        Store a correction, exactly once; every later answer heeds it.

        Raises (from the future):
            CorrectionConflict, NothingToVoid, AlreadyVoided, UnfitCorrection: See there.
            UnknownDimension: Of an adjustment.
            LedgerBusy, LedgerFull: As `append`.
        """
        ...

    def corrections(self, *, after: int, limit: int) -> list[Corrected]:
        """The corrections behind a position, in the ledger's order."""
        ...

    def declare(self, declaration: Declaration) -> Future[Declaration]:
        """
        Say what a dimension is; the same again is no second entry.

        Raises (from the future):
            LedgerBusy, LedgerFull: As `append`.
        """
        ...

    def dimensions(self) -> list[Declaration]:
        """
        What holds for each dimension now, by name.

        One that was recorded but never declared is a sum, at position 0.
        """
        ...

    def catalogue(self) -> Catalogue:
        """Every declaration."""
        ...

    def aggregate(self, query: UsageQuery) -> Usage:
        """
        The answer at one position.

        Raises:
            UnknownDimension: One of the dimensions was never recorded nor declared.
            UnfitAggregation: The aggregation says nothing about one of them.
            RuleChanges: A declaration changes within what would be one row.
            UnanswerableQuestion: The query lacks what it needs, or contradicts itself.
            PositionUnknown: The ledger has no such position.
            TooManyRows: More windows or groups than can be answered at once.
            ZoneInfoNotFoundError: No such time zone.
        """
        ...

    def scan(
        self, chosen: EventFilter = EVERY_EVENT, *, after: tuple[int, int], limit: int
    ) -> list[LedgerEvent]:
        """
        Accepted events behind (position, index), in the ledger's order.

        One that was voided later is among them, and says so: the order never changes.
        """
        ...

    def find(self, name: EventId | Place) -> FoundEvent | None:
        """The event of this name, counted or not, with its place; None: there is none."""
        ...

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        """
        Have *heard* called each time that queries may see more than before.

        It is called on a thread of the ledger, between two commits: it must return at once
        and raise nothing.

        Returns:
            What ends it.
        """
        ...

    def rejections(self, *, after: tuple[int, int], limit: int) -> list[Rejection]:
        """What was not counted and why, in the ledger's order."""
        ...

    def producers(self) -> list[ProducerReport]:
        """Every producer, the last seen first."""
        ...

    def checkpoint(self) -> Checkpoint:
        """
        A statement about the whole ledger as it is, to be given away.

        Raises:
            LedgerFull: The disk refused; nothing was stated.
        """
        ...

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint that was made, in the ledger's order."""
        ...

    def prove(self, name: EventId | Place, position: Position | None = None) -> EventProof:
        """
        The way from an event to the checkpoint at *position*; None: the newest.

        Raises:
            CheckpointUnknown: There is none.
            Unproven: The event does not count, or came behind the checkpoint.
        """
        ...

    def verify(self) -> Iterator[Finding]:
        """Everything that is wrong with the ledger; nothing, if all is well."""
        ...

    def backup(self, target: str) -> BackedUp:
        """
        Make a backup, or bring one up to date, while everything goes on.

        Args:
            target: A place as the engine understands it: for the embedded one, a directory.

        Raises:
            BackupRefused: The place is not one for this ledger's backup.
            LedgerDamaged: The ledger, or the backup that is there, is not what it should be.
            LedgerBusy, LedgerFull, OSError: It could not be made; the one before it is whole.
        """
        ...

    def position(self) -> Position:
        """The head: the last entry that queries see."""
        ...

    def close(self) -> None:
        """Finish what is begun and let go of the files. Idempotent."""
        ...


class TooManyRows(TallybookError):
    """
    An answer would have more windows or groups than are computed at once.

    What is merely more than ``UsageQuery.limit`` is no error: `Usage.more` says so.
    """


class PositionUnknown(TallybookError):
    """
    The ledger has no such position: it is beyond the head, or was lost in a restore.

    Attributes:
        asked: The position.
        head: The last one that there is.
    """

    def __init__(self, asked: Position, head: Position) -> None:
        super().__init__(
            f"there is no position {asked}, the ledger's head is {head}; expected that one or an "
            "earlier one, such as an answer names"
        )
        self.asked = asked
        self.head = head
