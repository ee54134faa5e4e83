"""
Corrections and declarations, from the caller's side: asked for here, entered by the writer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from tallybook.errors import InvariantBroken
from tallybook_server.catalogue import Declaration
from tallybook_server.correction import Adjustment, Run, Void
from tallybook_server.event_filter import INDEX_MAX, EventFilter, Place
from tallybook_server.journal import Journal
from tallybook_server.known import check_known
from tallybook_server.ledger import (
    Corrected,
    Position,
    PositionUnknown,
    Scan,
    TooManyRuns,
    VoidRequest,
)
from tallybook_server.limits import SCAN_EVENTS, VOID_RUNS_MAX
from tallybook_server.registrar import (
    Entered,
    adjust,
    declare,
    void_chosen,
    void_correction,
    void_event,
)
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.writer import Writer

__all__ = ["Corrector"]

A = TypeVar("A")
B = TypeVar("B")
Decide = Callable[[Journal, Snapshot, int], Entered]
"""Of the journal in its open transaction, the snapshot and the time: what to enter."""


class Corrector:
    """Corrections and the catalogue of one ledger. For any number of threads."""

    def __init__(self, writer: Writer, tables: Tables, segments: Path, scan: Scan) -> None:
        """
        Args:
            writer: The journal's owner.
            tables: Where the tail is or will be loaded.
            segments: Their directory.
            scan: The ledger's events.
        """
        self._writer = writer
        self._tables = tables
        self._segments = segments
        self._scan = scan

    def correct(self, correction: Adjustment | VoidRequest) -> Future[Corrected]:
        """
        Store a correction, exactly once.

        Raises:
            UnknownDimension: There is nothing of the dimension that could be adjusted.
            TooManyRuns: What is chosen to be taken back lies in too many places.
            PositionUnknown: The correction to be taken back was lost in a restore.
            And from the future: as `Ledger.correct`.
        """
        if isinstance(correction, VoidRequest):
            return self._enter(self._void(correction))
        names = (correction.dimension,)
        with self._writer.snapshots.hold() as snapshot:
            self._tables.load(snapshot.tail)
            check_known(self._tables, self._segments, snapshot, snapshot.position, names)
        return self._enter(partial(adjust, adjustment=correction))

    def _void(self, request: VoidRequest) -> Decide:
        if request.event is not None:
            return partial(void_event, request=request, event=request.event)
        if request.corrects is not None:
            self._check_held(request.corrects)
            return partial(void_correction, request=request, corrects=request.corrects.n)
        if request.events is not None:
            return partial(void_chosen, wanted=self._chosen(request, request.events))
        raise InvariantBroken(f"the void {request.id!r} names nothing to take back")

    def _check_held(self, position: Position) -> None:
        # The number alone would be another correction, once a restore has begun a branch.
        if not self._writer.lineage.holds(position):
            head = self._writer.snapshots.current.position
            raise PositionUnknown(position, Position(self._writer.incarnation, head))

    def _chosen(self, request: VoidRequest, chosen: EventFilter) -> Void:
        """The void of every event that passes, up to the head of this moment."""
        head = self._writer.snapshots.current.position
        runs: list[Run] = []
        after = Place(0, INDEX_MAX)
        # Without an end, it would run after whatever arrives meanwhile.
        bounded = replace(chosen, upto=Place(head, INDEX_MAX))
        while page := self._scan(bounded, after=after, limit=SCAN_EVENTS):
            for one in page:
                if not one.voided:
                    _add(runs, one.position, one.index)
            if len(runs) > VOID_RUNS_MAX:
                raise TooManyRuns(
                    f"what is chosen lies in more than {VOID_RUNS_MAX} places of the ledger; "
                    "choose less time, or a whole producer"
                )
            after = Place(page[-1].position, page[-1].index)
        return Void(request.id, request.reason, tuple(runs), selection=_selection(chosen))

    def _enter(self, decide: Decide) -> Future[Corrected]:
        return _then(self._writer.change(decide), self._corrected)

    def _corrected(self, entered: Entered) -> Corrected:
        change = entered.change
        if isinstance(change, Declaration):
            raise InvariantBroken("a correction was entered as a declaration")
        position = Position(self._writer.incarnation, change.position)
        return Corrected(position, change, entered.repeated)

    def corrections(self, *, after: int, limit: int) -> list[Corrected]:
        """The corrections behind a position, in the ledger's order."""
        corrections = self._writer.snapshots.current.corrections.all()
        behind = (Entered(one) for one in corrections if one.position > after)
        return [self._corrected(one) for one in islice(behind, limit)]

    def declare(self, declaration: Declaration) -> Future[Declaration]:
        """Say what a dimension is; the same again is no second entry."""
        entered = self._writer.change(partial(declare, declaration=declaration))
        return _then(entered, _declared)

    def dimensions(self) -> list[Declaration]:
        """What holds for each dimension now, by name."""
        with self._writer.snapshots.hold() as snapshot:
            names = self._tables.dimensions(snapshot)
        return [snapshot.catalogue.rule(name, None) for name in sorted(names)]


def _add(runs: list[Run], entry: int, place: int) -> None:
    if runs and runs[-1].entry == entry and runs[-1].last == place - 1:
        runs[-1] = runs[-1]._replace(last=place)
    else:
        runs.append(Run(entry, place, place))


def _selection(chosen: EventFilter) -> str:
    """What was asked for, as JSON: the same for the same filter."""
    said = {name: value for name, value in asdict(chosen).items() if value not in (None, ())}
    return msgspec.json.encode(said, order="sorted").decode()


def _declared(entered: Entered) -> Declaration:
    if not isinstance(entered.change, Declaration):
        raise InvariantBroken("a declaration was entered as a correction")
    return entered.change


def _then(future: Future[A], function: Callable[[A], B]) -> Future[B]:
    """What *function* makes of the result, once it is there."""
    after: Future[B] = Future()
    after.set_running_or_notify_cancel()

    def tell(done: Future[A]) -> None:
        try:
            after.set_result(function(done.result()))
        except BaseException as error:
            after.set_exception(error)

    future.add_done_callback(tell)
    return after
