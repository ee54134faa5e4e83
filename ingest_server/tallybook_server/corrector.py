"""
Corrections and declarations, from the caller's side: asked for here, entered by the writer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import msgspec

from tallybook.errors import InvariantBroken
from tallybook_server.catalogue import Declaration, UnknownDimension
from tallybook_server.correction import Adjustment, Run, Void
from tallybook_server.event_filter import INDEX_MAX, EventFilter, Place
from tallybook_server.journal import Journal
from tallybook_server.ledger import Corrected, LedgerEvent, Position, TooManyRuns, VoidRequest
from tallybook_server.limits import SCAN_EVENTS, VOID_RUNS_MAX
from tallybook_server.registrar import Entered, adjust, declare, void, void_chosen
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.writer import Writer

__all__ = ["Corrector"]

A = TypeVar("A")
B = TypeVar("B")


class Scan(Protocol):
    """`Ledger.scan`."""

    def __call__(
        self, chosen: EventFilter, *, after: tuple[int, int], limit: int
    ) -> list[LedgerEvent]: ...


class Corrector:
    """Corrections and the catalogue of one ledger. For any number of threads."""

    def __init__(self, writer: Writer, tables: Tables, scan: Scan) -> None:
        self._writer = writer
        self._tables = tables
        self._scan = scan

    def correct(self, correction: Adjustment | VoidRequest) -> Future[Corrected]:
        """
        Store a correction, exactly once.

        Raises:
            UnknownDimension: There is nothing of the dimension that could be adjusted.
            TooManyRuns: What is chosen to be taken back lies in too many places.
            And from the future: as `Ledger.correct`.
        """
        if isinstance(correction, VoidRequest):
            if correction.events is not None:
                wanted = self._chosen(correction, correction.events)
                return self._enter(partial(void_chosen, wanted=wanted))
            return self._enter(partial(void, request=correction))
        known = {one.name for one in self.dimensions()}
        if correction.dimension not in known:
            raise UnknownDimension(correction.dimension, known)
        return self._enter(partial(adjust, adjustment=correction))

    def _chosen(self, request: VoidRequest, chosen: EventFilter) -> Void:
        """The void of every event that passes, up to the head of this moment."""
        head = self._writer.snapshots.current.position
        runs: list[Run] = []
        after = Place(0, INDEX_MAX)
        while page := self._scan(chosen, after=after, limit=SCAN_EVENTS):
            for one in page:
                if one.position <= head and not one.voided:
                    _add(runs, one.position, one.index)
            if len(runs) > VOID_RUNS_MAX:
                raise TooManyRuns(
                    f"what is chosen lies in more than {VOID_RUNS_MAX} places of the ledger; "
                    "choose less time, or a whole producer"
                )
            after = Place(page[-1].position, page[-1].index)
        return Void(request.id, request.reason, tuple(runs), selection=_selection(chosen))

    def _enter(self, decide: Callable[[Journal, Snapshot, int], Entered]) -> Future[Corrected]:
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
