"""
A world is played: each step to the ledger and to the list of facts, each answer compared.

From the ledger the facts take only what nobody else can know: the position that it gives to
what it is told. All that counts, stands and is answered they work out themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from msgspec import structs

from tallybook.errors import TallybookError
from tallybook.event import Event
from tallybook_server.catalogue import UnknownDimension
from tallybook_server.correction import Adjustment, Run, Void
from tallybook_server.ledger import (
    AlreadyVoided,
    Delivery,
    EventId,
    NothingToVoid,
    OfferedEvent,
    UnfitCorrection,
    VoidRequest,
)
from tallybook_server.question import Position, Usage, UsageQuery
from tests.ledger_conformance.arrivals import Arrivals
from tests.ledger_conformance.comparing import REFUSALS, compare, said
from tests.ledger_conformance.deliveries import block
from tests.ledger_conformance.engines import Subject
from tests.ledger_conformance.facts import Counted, Facts, standing
from tests.ledger_conformance.oracle import is_chosen
from tests.ledger_conformance.worlds import (
    Adjust,
    Ask,
    BackUp,
    Blocks,
    Declare,
    Json,
    Life,
    Maintain,
    Reopen,
    Restore,
    Slice,
    Step,
    TakeBack,
    TakeBackAll,
    Told,
    Undo,
    World,
)

TIMEOUT_SECONDS = 30


class Mark(NamedTuple):
    """A moment in the life of a world: where the ledger then was, and its clock."""

    position: Position
    time: int


class Kept(NamedTuple):
    """What a backup keeps: what had been told, and what had arrived."""

    position: Position
    facts: Facts
    arrivals: Arrivals


@dataclass(frozen=True)
class Asked:
    """
    A question, as it was put, and what came back: an answer, or why there is none.

    Attributes:
        happened: How much had happened when it was asked.
        query: With the position that the answer holds for, or its time.
        position: What the answer holds for.
        found: The answer.
    """

    happened: int
    query: UsageQuery
    position: Position
    found: Usage | type[TallybookError]


class Player:
    """
    Plays one world on a ledger, which may hold other worlds.

    Each world has dimensions, producers and a source of its own, told apart by `number`, so
    that many share a ledger: opening one takes longer than playing a world.

    Attributes:
        subject: The ledger; another one once the world goes on with a restored one.
    """

    def __init__(self, subject: Subject, world: World, number: int) -> None:
        self.subject = subject
        self._world = world
        self._name = f"w{number}"
        # Far from the ids that the ledger gives itself.
        self._producers = [(1 << 127 | 2 * number + of).to_bytes(16) for of in (0, 1)]
        self._arrivals = Arrivals()
        self._identities: dict[tuple[int, int], EventId] = {}
        # By its place in the ledger, a correction's position: with the incarnation of then.
        self._corrected: dict[int, Position] = {}
        self._facts = Facts()
        self._marks: list[Mark] = [self._mark()]
        self._asked: list[Asked] = []
        self._backup: Kept | None = None
        self._ids = 0
        self._happened = 0

    def play(self) -> None:
        """
        Every step, and then every question once more: the answer is what it was.

        Raises:
            AssertionError: An answer is wrong.
        """
        for step in self._world.steps:
            self._take(step)
        self._ask_all_again()

    # -- steps -------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        if isinstance(step, Ask):
            self._ask(step)
            return
        self._happened += 1
        if isinstance(step, Told):
            self.subject.clock.advance(1)
            self._tell(step)
            self._marks.append(self._mark())
        else:
            self._live(step)

    def _tell(self, step: Told) -> None:
        if isinstance(step, Blocks):
            self._blocks(step)
        elif isinstance(step, Json):
            self._json(step)
        elif isinstance(step, Adjust):
            self._adjust(step)
        elif isinstance(step, TakeBack):
            self._take_back(step)
        elif isinstance(step, TakeBackAll):
            self._take_back_all(step)
        elif isinstance(step, Undo):
            self._undo(step)
        else:
            self._declare(step)

    def _live(self, step: Life) -> None:
        if isinstance(step, Maintain):
            self.subject.maintain()
        elif isinstance(step, Reopen):
            self.subject.reopen()
        elif isinstance(step, BackUp):
            self._back_up()
        else:
            self._restore(step)

    def _mark(self) -> Mark:
        return Mark(self.subject.ledger.position(), self.subject.clock.time_ns() // 1000)

    # -- events ------------------------------------------------------------------------------

    def _blocks(self, step: Blocks) -> None:
        blocks = [self._cut(piece) for piece in step.slices]
        data = [
            block(first, events, producer=producer, source=self._name)
            for producer, first, events in blocks
        ]
        done = self.subject.ledger.append(Delivery(blocks=data)).result(TIMEOUT_SECONDS)
        for (producer, first, events), receipt in zip(blocks, done.receipts, strict=True):
            assert receipt.position is not None
            counted = self._arrivals.block(producer, first, self._name, events, receipt.position)
            for one in counted:
                identity = EventId(producer.hex(), first + one.place)
                self._identities[one.entry, one.place] = identity
        self._count()

    def _cut(self, piece: Slice) -> tuple[bytes, int, list[Event]]:
        """Producer, first sequence and events of a block."""
        lives = self._world.lives
        number = piece.life % len(lives)
        life = lives[number]
        first = piece.first % len(life)
        events = [self._mine(one) for one in life[first : first + piece.count]]
        return self._producers[number % 2], first + 1, events

    def _json(self, step: Json) -> None:
        events = [self._mine(one) for one in step.events]
        offered = [OfferedEvent(one, self._name) for one in events]
        done = self.subject.ledger.append(Delivery(events=offered)).result(TIMEOUT_SECONDS)
        for index, event in enumerate(events):
            self._arrivals.event(event, self._name, done.position_of[index], index)
        self._count()

    def _mine(self, event: Event) -> Event:
        return structs.replace(event, dimension=self._dimension(event.dimension))

    def _dimension(self, name: str) -> str:
        return f"{self._name}.{name}"

    def _count(self) -> None:
        self._facts = replace(self._facts, events=tuple(self._arrivals.counted))

    # -- corrections and declarations --------------------------------------------------------

    def _adjust(self, step: Adjust) -> None:
        like = self._mine(step.like)
        adjustment = Adjustment(
            id=self._new_id(),
            dimension=like.dimension,
            value=step.value,
            tenant=like.tenant,
            time=like.time,
            tags=like.tags,
            reason="as drawn",
        )
        self._correct(adjustment, adjustment)

    def _take_back(self, step: TakeBack) -> None:
        for place in step.places:
            if not self._facts.events:
                return
            one = self._facts.events[place % len(self._facts.events)]
            void = Void(self._new_id(), "as drawn", (Run(one.entry, one.place, one.place),))
            self._correct(VoidRequest(void.id, void.reason, event=self._identity(one)), void)

    def _take_back_all(self, step: TakeBackAll) -> None:
        names = step.chosen.dimensions or ()
        chosen = replace(step.chosen, dimensions=tuple(map(self._dimension, names)))
        runs = tuple(
            Run(one.entry, one.place, one.place)
            for one in standing(self._facts)
            if is_chosen(one.event, chosen)
        )
        void = Void(self._new_id(), "as drawn", runs)
        self._correct(VoidRequest(void.id, void.reason, events=chosen), void)

    def _undo(self, step: Undo) -> None:
        if self._facts.corrections:
            known = self._facts.corrections
            corrects = self._corrected[known[-1 - step.back % len(known)].position]
            void = Void(self._new_id(), "as drawn", corrects=corrects.n)
            self._correct(VoidRequest(void.id, void.reason, corrects=corrects), void)

    def _correct(self, request: Adjustment | VoidRequest, meant: Adjustment | Void) -> None:
        expected = self._facts.refusal(meant)
        done, refused = None, None
        try:
            done = self.subject.ledger.correct(request).result(TIMEOUT_SECONDS)
        except (AlreadyVoided, NothingToVoid, UnfitCorrection, UnknownDimension) as error:
            refused = type(error)
        assert refused is expected, f"{meant} was met by {refused}; expected {expected}"
        if done is None:
            return
        self._corrected[done.position.n] = done.position
        meant = replace(meant, position=done.position.n)
        self._facts = replace(self._facts, corrections=(*self._facts.corrections, meant))

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self._name}-{self._ids}"

    def _identity(self, one: Counted) -> EventId:
        place = one.entry, one.place
        if place not in self._identities:
            # Of a JSON event only the ledger knows the identity.
            (found,) = self.subject.ledger.scan(after=(one.entry, one.place - 1), limit=1)
            assert (found.position, found.index, found.event) == one
            self._identities[place] = EventId(found.producer, found.sequence)
        return self._identities[place]

    def _declare(self, step: Declare) -> None:
        wanted = replace(step.declaration, name=self._dimension(step.declaration.name))
        done = self.subject.ledger.declare(wanted).result(TIMEOUT_SECONDS)
        assert replace(done, position=0) == wanted
        if done not in self._facts.declarations:
            self._facts = replace(self._facts, declarations=(*self._facts.declarations, done))

    # -- backups -----------------------------------------------------------------------------

    def _back_up(self) -> Kept:
        self.subject.back_up()
        position = self.subject.ledger.position()
        self._backup = Kept(position, self._facts, self._arrivals.copy())
        return self._backup

    def _restore(self, step: Restore) -> None:
        """Ask the restored ledger what it can know, and go on with one of the two."""
        kept = self._backup or self._back_up()
        self.subject.clock.advance(1)
        asked, self._asked = self._asked, self._asked_by(kept.position)
        there, restored = self.subject, self.subject.restore()
        try:
            self.subject = restored
            self._ask_all_again()
        finally:
            self.subject, left = (restored, there) if step.goes_on else (there, restored)
            left.dispose()
        if step.goes_on:
            self._forget_all_behind(kept)
        else:
            self._asked = asked

    def _forget_all_behind(self, kept: Kept) -> None:
        n = kept.position.n
        self._facts, self._arrivals = kept.facts, kept.arrivals.copy()
        self._identities = {at: one for at, one in self._identities.items() if at[0] <= n}
        self._marks = [one for one in self._marks if one.position.n <= n] + [self._mark()]

    def _asked_by(self, position: Position) -> list[Asked]:
        return [one for one in self._asked if one.position.n <= position.n]

    # -- questions ---------------------------------------------------------------------------

    def _ask(self, step: Ask) -> None:
        dimensions = tuple(map(self._dimension, step.query.dimensions))
        query = replace(step.query, dimensions=dimensions)
        position = self.subject.ledger.position()
        if step.back is not None:
            # Never before its beginning: then there is nothing of it to be asked about.
            mark = self._marks[-1 - step.back % (len(self._marks) - 1)]
            position = mark.position
            query = replace(
                query,
                as_of=None if step.by_time else mark.position,
                as_of_time=mark.time if step.by_time else None,
            )
        found = self._found(query)
        compare(self._facts.at(position.n), query, found)
        # What was asked about now is asked about then from here on.
        if query.as_of_time is None:
            query = replace(query, as_of=position)
        self._asked.append(Asked(self._happened, query, position, found))

    def _found(self, query: UsageQuery) -> Usage | type[TallybookError]:
        try:
            return self.subject.ledger.aggregate(query)
        except REFUSALS as error:
            return type(error)

    def _ask_all_again(self) -> None:
        for asked in self._asked:
            # Where nothing has happened since, it would be the same work only.
            if asked.happened < self._happened:
                self._ask_again(asked)

    def _ask_again(self, asked: Asked) -> None:
        found = self._found(asked.query)
        if isinstance(found, Usage) and isinstance(asked.found, Usage):
            assert said(found) == said(asked.found), f"another answer to {asked.query}"
        else:
            assert found == asked.found, f"another answer to {asked.query}"
