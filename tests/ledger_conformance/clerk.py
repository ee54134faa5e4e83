"""
What the examples do to a ledger: deliver, correct, declare, ask.
"""

from __future__ import annotations

from typing import Any

from tallybook.event import Event
from tallybook.wire import Announcement, Receipt
from tallybook_server.catalogue import Declaration
from tallybook_server.correction import Adjustment
from tallybook_server.ledger import (
    Acknowledgement,
    Corrected,
    Delivery,
    EventId,
    Ledger,
    OfferedEvent,
    RejectedEvent,
    Usage,
    UsageQuery,
    UsageRow,
    VoidRequest,
)
from tests.ledger_conformance.deliveries import NOON, ONE
from tests.ledger_conformance.engines import Subject

TIMEOUT_SECONDS = 30


class Clerk:
    """
    Somebody at the desk of a ledger.

    Attributes:
        subject: The ledger under test.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @property
    def ledger(self) -> Ledger:
        return self.subject.ledger

    @property
    def now(self) -> int:
        """Microseconds since 1970 UTC, by the ledger's clock."""
        return self.subject.clock.time_ns() // 1000

    # -- in ----------------------------------------------------------------------------------

    def send(self, *blocks: bytes, announcement: Announcement | None = None) -> list[Receipt]:
        """Deliver blocks, and return their receipts."""
        return self.deliver(Delivery(announcement=announcement, blocks=blocks)).receipts

    def offer(self, *events: Event | RejectedEvent, source: str | None = "shop") -> Acknowledgement:
        """Deliver JSON events."""
        offered = [
            one if isinstance(one, RejectedEvent) else OfferedEvent(one, source) for one in events
        ]
        return self.deliver(Delivery(events=offered))

    def deliver(self, delivery: Delivery) -> Acknowledgement:
        return self.ledger.append(delivery).result(TIMEOUT_SECONDS)

    def correct(self, correction: Adjustment | VoidRequest) -> Corrected:
        return self.ledger.correct(correction).result(TIMEOUT_SECONDS)

    def adjust(
        self, id: str, mantissa: int, *, time: int = NOON, dimension: str = "api.calls"
    ) -> Corrected:
        """Adjust what acme used, in whole units."""
        return self.correct(Adjustment(id, dimension, (mantissa, 0), "acme", time, {}, "as agreed"))

    def void(self, id: str, sequence: int, *, producer: bytes = ONE) -> Corrected:
        """Take back one event."""
        event = EventId(producer.hex(), sequence)
        return self.correct(VoidRequest(id, "a mistake", event=event))

    def undo(self, id: str, corrected: Corrected) -> Corrected:
        """Take back an adjustment or a void."""
        return self.correct(VoidRequest(id, "was right", corrects=corrected.position))

    def declare(self, name: str, **of: Any) -> Declaration:
        return self.ledger.declare(Declaration(name, **of)).result(TIMEOUT_SECONDS)

    # -- out ---------------------------------------------------------------------------------

    def ask(self, *dimensions: str, **query: Any) -> Usage:
        """An answer, about ``api.calls`` unless told otherwise."""
        return self.ledger.aggregate(UsageQuery(dimensions or ("api.calls",), **query))

    def rows(self, *dimensions: str, **query: Any) -> list[UsageRow]:
        return self.ask(*dimensions, **query).rows

    def total(self, dimension: str = "api.calls", **query: Any) -> str | None:
        """The value of the one row that there is; None where there is no row."""
        rows = self.rows(dimension, **query)
        return rows[0].value if rows else None

    # -- life --------------------------------------------------------------------------------

    def pass_through(self, life: str) -> None:
        """``nothing``, ``maintain``, ``reopen``, ``restore``, or several of them."""
        for step in life.split():
            if step == "maintain":
                self.subject.maintain()
            elif step == "reopen":
                self.subject.reopen()
            elif step == "restore":
                self._restore()

    def _restore(self) -> None:
        """Go on with a ledger that is made of a backup of this one."""
        self.subject.back_up()
        left, self.subject = self.subject, self.subject.restore()
        left.dispose()


LIVES = ("nothing", "maintain", "maintain reopen", "maintain restore")
"""What may happen to a ledger between two questions."""
