"""
``GET /v1/events`` and ``GET /v1/events/{id}``: raw events, a page or one of them.

A page holds accepted events in the ledger's order, which never changes: a page that was
read once is the same for ever, but for the word that an event has been voided since. One
event is shown with everything that is known of it, whether it counts or not.
"""

from __future__ import annotations

import base64
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from tallybook.event import Event, format_time, format_value
from tallybook_server.correction import Void
from tallybook_server.event_filter import EventId, Place, read_event_name
from tallybook_server.event_query import FILTERS, read_filter
from tallybook_server.ledger import FoundEvent, FoundVerdict, Ledger, LedgerEvent, Position
from tallybook_server.parameters import Parameters
from tallybook_server.problems import PROBLEMS, Problem, slug_of
from tallybook_server.readable import readable
from tallybook_server.tag_filters import PREFIXES

__all__ = [
    "EventAnswer",
    "EventsAnswer",
    "ListedEvent",
    "answer_event",
    "answer_events",
    "listed",
    "name_invalid",
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class ListedEvent(_Model):
    """
    An accepted event and its place; times are RFC 3339, the value is exact decimal text.

    Attributes:
        position: The entry that holds it.
        index: Its place there.
        cursor: What to pass as ``after`` for what follows.
        producer: With `sequence`, its name for ever: ``<producer>-<sequence>``.
        sequence: Its place in its producer's life.
        recorded_at: By the server's clock.
        source: The application, or null.
        dimension: What was used.
        tenant: Who used it; null is unattributed.
        value: How much.
        time: When.
        tags: As recorded.
        key: The caller's idempotency key, or null.
        id: The id that the event brought, or null.
        voided: It was taken back, and counts no more.
    """

    position: str
    index: int
    cursor: str
    producer: str
    sequence: int
    recorded_at: str
    source: str | None
    dimension: str
    tenant: str | None
    value: str
    time: str
    tags: dict[str, str]
    key: str | None
    id: str | None
    voided: bool


class EventsAnswer(_Model):
    """A page of events; `next` is what to pass as ``after``, null on the last page."""

    data: list[ListedEvent]
    next: str | None


class EventContent(_Model):
    """What an event says."""

    dimension: str
    tenant: str | None
    value: str
    time: str
    tags: dict[str, str]
    key: str | None
    id: str | None


class EventVoid(_Model):
    """The void that takes an event back."""

    id: str
    reason: str
    position: str
    recorded_at: str


class EventProof(_Model):
    """
    The link of the ledger's chain that holds the verdict on an event.

    ``SHA-256(head_before || entry)`` is ``head``. The entry names the block's SHA-256.

    Attributes:
        entry: The entry's bytes in base64.
        head_before: The chain's head in front of it, in hex.
        head: The head behind it, in hex.
    """

    entry: str
    head_before: str
    head: str


class EventAnswer(_Model):
    """
    One event, with everything that the ledger knows of it.

    Attributes:
        position: The entry that holds it.
        index: Its place there.
        cursor: Both, as a list's ``after`` and this address take it.
        producer: 32 hex digits; null of JSON that never became an event.
        sequence: Its place in its producer's life; null likewise.
        recorded_at: By the server's clock.
        source: The application, or null.
        verdict: ``counted``; ``flagged``: counted, with a note; ``duplicate``, ``conflict``,
            ``rejected``: not counted.
        reason: A stable word; null if it simply counts.
        detail: What is wrong, in words, or null.
        type: The address of the problem's page, with ``conflict`` and ``rejected``.
        held_at: With ``duplicate`` and ``conflict``: the position that holds the identity.
        clock_ahead_microseconds: With reason ``clock``: what was taken off its time.
        event: What it says, if it is counted or flagged.
        data: What was kept of it, with ``conflict`` and ``rejected``: text, or base64.
        encoding: Which of the two.
        segment: The sealed segment that holds it; null: not sealed yet, or not counted.
        void: What takes it back, or null: nothing.
        others: The cursors of other deliveries of the same producer and sequence.
        proof: Its entry's link of the chain.
    """

    position: str
    index: int
    cursor: str
    producer: str | None
    sequence: int | None
    recorded_at: str
    source: str | None
    verdict: FoundVerdict
    reason: str | None
    detail: str | None
    type: str | None
    held_at: str | None
    clock_ahead_microseconds: int | None
    event: EventContent | None
    data: str | None
    encoding: Literal["utf-8", "base64"] | None
    segment: str | None
    void: EventVoid | None
    others: list[str]
    proof: EventProof


_PAGE: Final = ("after", "upto", "limit", *FILTERS)


def answer_events(ledger: Ledger, query_string: bytes) -> bytes:
    """The JSON of a page of events. Blocks; raises Problem for a wrong parameter."""
    parameters = Parameters(query_string, _PAGE, prefixes=PREFIXES)
    after, limit = parameters.page()
    chosen = read_filter(parameters, upto=parameters.place("upto"))
    incarnation = ledger.position().incarnation
    rows = [listed(row, incarnation) for row in ledger.scan(chosen, after=after, limit=limit)]
    following = rows[-1].cursor if len(rows) == limit else None
    return EventsAnswer(data=rows, next=following).model_dump_json().encode()


def listed(row: LedgerEvent, incarnation: int) -> ListedEvent:
    """An event as lists and streams show it."""
    return ListedEvent(
        position=str(Position(incarnation, row.position)),
        index=row.index,
        cursor=str(Place(row.position, row.index)),
        producer=row.producer,
        sequence=row.sequence,
        recorded_at=format_time(row.recorded_at),
        source=row.source,
        voided=row.voided,
        **_content(row.event).model_dump(),
    )


def _content(event: Event) -> EventContent:
    return EventContent(
        dimension=event.dimension,
        tenant=event.tenant,
        value=format_value(*event.value),
        time=format_time(event.time),
        tags=event.tags,
        key=event.key,
        id=event.id,
    )


# -- one event -----------------------------------------------------------------------------


def answer_event(ledger: Ledger, name: str, query_string: bytes) -> bytes:
    """
    The JSON of one event. Blocks.

    Raises:
        Problem: ``event-name-invalid``: *name* cannot be one. ``event-unknown``: there is no
            such event.
    """
    Parameters(query_string, ())
    wanted = read_event_name(name)
    if wanted is None:
        raise name_invalid(name)
    found = ledger.find(wanted)
    if found is None:
        raise Problem("event-unknown", _unknown(wanted, ledger.position()))
    return _answer(found, ledger.position().incarnation).model_dump_json().encode()


def name_invalid(name: str) -> Problem:
    """The problem with a name that no event can have."""
    return Problem(
        "event-name-invalid",
        f"the event is called {name[:80]!r}; expected <producer>-<sequence>, 32 hex digits "
        "and a number, or a cursor, <position>.<index>",
    )


def _unknown(wanted: EventId | Place, head: Position) -> str:
    if isinstance(wanted, EventId):
        return (
            f"the ledger holds no sequence {wanted.sequence} of producer {wanted.producer} up to "
            f"its head, {head}"
        )
    if wanted.position > head.n:
        return f"there is no entry {wanted.position}; the ledger's head is {head}"
    return f"entry {wanted.position} has no event at index {wanted.at}"


def _answer(found: FoundEvent, incarnation: int) -> EventAnswer:
    data, encoding = (None, None) if found.data is None else readable(found.data)
    refused = found.verdict in ("conflict", "rejected")
    held_elsewhere = found.verdict in ("duplicate", "conflict") and found.reference
    return EventAnswer(
        position=str(Position(incarnation, found.position)),
        index=found.index,
        cursor=str(Place(found.position, found.index)),
        producer=found.producer,
        sequence=found.sequence,
        recorded_at=format_time(found.recorded_at),
        source=found.source,
        verdict=found.verdict,
        reason=found.reason or None,
        detail=found.detail or None,
        type=PROBLEMS[slug_of(found.verdict, found.reason)].path if refused else None,
        held_at=str(Position(incarnation, found.reference)) if held_elsewhere else None,
        clock_ahead_microseconds=found.reference if found.reason == "clock" else None,
        event=None if found.event is None else _content(found.event),
        data=data,
        encoding=encoding,
        segment=found.segment,
        void=None if found.void is None else _void(found.void, incarnation),
        others=[str(place) for place in found.others],
        proof=EventProof(
            entry=base64.b64encode(found.entry).decode(),
            head_before=found.chain_before.hex(),
            head=found.chain.hex(),
        ),
    )


def _void(void: Void, incarnation: int) -> EventVoid:
    return EventVoid(
        id=void.id,
        reason=void.reason,
        position=str(Position(incarnation, void.position)),
        recorded_at=format_time(void.recorded_at),
    )
