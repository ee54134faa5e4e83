"""
The registrar: it enters corrections and declarations, in the journal's open transaction.

Each comes with an id of the caller's, and the same id again is the same correction: what a
repetition finds is what it is answered with. What is taken back is named by places in the
ledger from here on, and those never change, whatever is sealed or compacted later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

import msgspec

from tallybook.errors import TallybookError
from tallybook_server.catalogue import Declaration
from tallybook_server.change import Change, change_of, detail_of, digest_of
from tallybook_server.correction import Adjustment, Run, Void
from tallybook_server.entry import Verdict
from tallybook_server.journal import Journal, RejectionRow
from tallybook_server.judge import rejected_digest
from tallybook_server.ledger import (
    AlreadyVoided,
    CorrectionConflict,
    EventId,
    NothingToVoid,
    UnfitCorrection,
    VoidRequest,
)
from tallybook_server.snapshot import Snapshot
from tallybook_server.tail import UNCOUNTED

__all__ = ["Entered", "adjust", "declare", "void_chosen", "void_correction", "void_event"]

_REASON: Final = "void"


@dataclass(frozen=True, slots=True)
class Entered:
    """
    What became of a change.

    Attributes:
        change: As it is in the ledger.
        repeated: It was there before.
        refusal: Why it is not there, to be raised once what was noted of it is durable.
    """

    change: Change
    repeated: bool = False
    refusal: TallybookError | None = None


# -- declarations --------------------------------------------------------------------------


def declare(journal: Journal, snapshot: Snapshot, now: int, *, declaration: Declaration) -> Entered:
    """Enter a declaration, unless it says what the newest one says."""
    history = snapshot.catalogue.history(declaration.name)
    if history and replace(declaration, position=history[-1].position) == history[-1]:
        return Entered(history[-1], repeated=True)
    kind, detail = detail_of(declaration)
    head = journal.add_entry(kind, detail, recorded_at=now)
    journal.add_change(head.position, None, digest_of(declaration))
    return Entered(replace(declaration, position=head.position))


# -- corrections ---------------------------------------------------------------------------


def adjust(journal: Journal, snapshot: Snapshot, now: int, *, adjustment: Adjustment) -> Entered:
    """
    Enter an adjustment.

    Raises:
        CorrectionConflict: Its id means another correction.
        UnfitCorrection: Its dimension is no sum at its time.
    """
    held = _held(journal, adjustment)
    if held is not None:
        return held
    rule = snapshot.catalogue.rule(adjustment.dimension, adjustment.time)
    if rule.aggregation != "sum":
        raise UnfitCorrection(
            f"{adjustment.dimension} is declared as {rule.aggregation} at that time; only a sum "
            "can be adjusted: void the events that are wrong and record the right ones"
        )
    return _enter(journal, adjustment, now)


def void_event(
    journal: Journal, snapshot: Snapshot, now: int, *, request: VoidRequest, event: EventId
) -> Entered:
    """
    Enter a void of one event.

    Raises:
        CorrectionConflict: Its id means another correction.
        AlreadyVoided: What it takes back is not in force any more.
    """
    run = _place(journal, event)
    wanted = Void(request.id, request.reason, () if run is None else (run,))
    held = _held(journal, wanted)
    if held is not None:
        return held
    if run is None:
        words = f"there is no event {event} that counts; look for it in GET /v1/events"
        return _refuse(journal, wanted, str(event), words, now)
    if snapshot.corrections.at(snapshot.position).takes_back(run.entry, run.first):
        raise AlreadyVoided(f"event {event} was taken back before")
    return _enter(journal, wanted, now)


def void_chosen(journal: Journal, snapshot: Snapshot, now: int, *, wanted: Void) -> Entered:
    """
    Enter a void of events that a filter has chosen.

    Raises:
        CorrectionConflict: Its id means another correction.
    """
    held = _held(journal, wanted)
    if held is not None:
        return held
    if not wanted.runs:
        words = "the filter chooses no event that counts and was not taken back before"
        return _refuse(journal, wanted, wanted.selection, words, now)
    return _enter(journal, wanted, now)


def void_correction(
    journal: Journal, snapshot: Snapshot, now: int, *, request: VoidRequest, corrects: int
) -> Entered:
    """
    Enter a void of the correction at entry *corrects*.

    Raises:
        CorrectionConflict: Its id means another correction.
        AlreadyVoided: What it takes back is not in force any more.
    """
    wanted = Void(request.id, request.reason, corrects=corrects)
    held = _held(journal, wanted)
    if held is not None:
        return held
    if corrects not in {one.position for one in snapshot.corrections.all()}:
        words = (
            f"entry {corrects} is no correction; expected the position of an adjustment or a "
            "void, from GET /v1/adjustments"
        )
        return _refuse(journal, wanted, str(corrects), words, now)
    if corrects not in snapshot.corrections.at(journal.head.position).positions:
        raise AlreadyVoided(f"the correction at entry {corrects} was taken back before")
    return _enter(journal, wanted, now)


def _enter(journal: Journal, correction: Adjustment | Void, now: int) -> Entered:
    kind, detail = detail_of(correction)
    head = journal.add_entry(kind, detail, recorded_at=now)
    journal.add_change(head.position, correction.id, digest_of(correction))
    entered = replace(correction, position=head.position, recorded_at=head.recorded_at)
    return Entered(entered)


def _held(journal: Journal, correction: Adjustment | Void) -> Entered | None:
    """What the correction's id means already, if it means the same."""
    known = journal.change(correction.id)
    if known is None:
        return None
    position, digest = known
    if digest != digest_of(correction):
        raise CorrectionConflict(correction.id, position)
    return Entered(change_of(journal.entry(position)), repeated=True)


def _refuse(journal: Journal, wanted: Void, what: str, words: str, now: int) -> Entered:
    """Keep a void that cannot be entered as a rejection, once."""
    data = msgspec.json.encode({"id": wanted.id, "void": what, "reason": wanted.reason})
    digest = sha256(_REASON.encode() + b"\0" + data).digest()
    if journal.rejection_of(digest, int(Verdict.REJECTED)) is None:
        detail = [1, rejected_digest([data])]
        head = journal.add_entry("rejection", detail, recorded_at=now)
        journal.add_rejections(
            [RejectionRow.of(head.position, 0, int(Verdict.REJECTED), _REASON, words, data, digest)]
        )
    return Entered(wanted, refusal=NothingToVoid(words))


# -- places --------------------------------------------------------------------------------


def _place(journal: Journal, event: EventId) -> Run | None:
    """Where the event is, or None: it is not there, or does not count."""
    for held in journal.held(bytes.fromhex(event.producer), event.sequence, event.sequence):
        entry = journal.entry(held.position)
        index = event.sequence - entry.detail[1]
        verdict = entry.verdict_at(index)
        if verdict is None or verdict.verdict not in UNCOUNTED:
            return Run(held.position, index, index)
    return None
