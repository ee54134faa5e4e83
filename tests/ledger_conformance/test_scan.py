"""
Reading events back: in the ledger's order, which never changes, each with its place.
"""

from __future__ import annotations

import pytest

from tallybook_server.event_filter import EventFilter, Place
from tallybook_server.ledger import EventId, LedgerEvent
from tests.ledger_conformance.clerk import Clerk
from tests.ledger_conformance.deliveries import NOON, ONE, TWO, block, event

EVENTS = [
    event("12.5", tags={"a": "1", "é": "ü", "it's": ""}, key="k"),
    event(10**37, tenant=None, id="i", time=-1),
    event(0, dimension="other", time=NOON + 1),
    event("0.000000001", tags={"a": "2"}),
]


@pytest.fixture
def filled(clerk: Clerk, life: str) -> Clerk:
    """Three blocks of two producers, one event not counted, through any life."""
    clerk.send(block(7, EVENTS[:2]), block(1, [EVENTS[2]], producer=TWO))
    clerk.send(block(3, [event(1, tenant="x" * 256), EVENTS[3]], producer=TWO))
    clerk.pass_through(life)
    return clerk


def pages(clerk: Clerk, limit: int) -> list[LedgerEvent]:
    """Everything, page by page."""
    found: list[LedgerEvent] = []
    after = (0, -1)
    while page := clerk.ledger.scan(after=after, limit=limit):
        assert len(page) <= limit
        found += page
        after = (page[-1].position, page[-1].index)
    return found


def test_events_come_back_as_they_were_sent(filled: Clerk) -> None:
    """Every field, and the place in the producer's life."""
    found = filled.ledger.scan(after=(0, -1), limit=10)
    assert [one.event for one in found] == EVENTS
    assert [(one.producer, one.sequence, one.index) for one in found] == [
        (ONE.hex(), 7, 0),
        (ONE.hex(), 8, 1),
        (TWO.hex(), 1, 0),
        (TWO.hex(), 4, 1),
    ]
    assert {one.source for one in found} == {"shop"}
    assert {one.recorded_at for one in found} == {filled.now}


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_pages_have_every_event_once(filled: Clerk, limit: int) -> None:
    """Whatever the page, also where it ends within an entry."""
    assert pages(filled, limit) == filled.ledger.scan(after=(0, -1), limit=10)


def test_what_arrives_later_comes_behind(filled: Clerk) -> None:
    """However old it is: a cursor that was handed out stays right."""
    before = pages(filled, 10)
    filled.send(block(1, [event(1, time=0)]))
    behind = filled.ledger.scan(after=(before[-1].position, before[-1].index), limit=10)
    assert [one.event.time for one in behind] == [0]


def test_a_search_finds_what_passes_all_of_it(filled: Clerk) -> None:
    """Dimension and tenant, in the ledger's order."""
    chosen = EventFilter(dimensions=("api.calls",), tenants=("acme",))
    found = filled.ledger.scan(chosen, after=(0, -1), limit=10)
    assert [one.event for one in found] == [EVENTS[0], EVENTS[3]]


def test_voided_event_stays_and_says_so(filled: Clerk) -> None:
    """The order is the same; only what counts has changed."""
    before = pages(filled, 10)
    filled.void("v", 8)
    found = pages(filled, 10)
    assert [one.event for one in found] == [one.event for one in before]
    assert [one.voided for one in found] == [False, True, False, False]


def test_event_is_found_by_its_identity_and_by_its_place(filled: Clerk) -> None:
    """Both name the same."""
    (_, second, *_) = pages(filled, 10)
    by_identity = filled.ledger.find(EventId(ONE.hex(), 8))
    by_place = filled.ledger.find(Place(second.position, second.index))
    assert by_identity == by_place
    assert by_identity is not None
    assert (by_identity.event, by_identity.verdict) == (EVENTS[1], "counted")


def test_rejected_event_is_found_by_its_identity(filled: Clerk) -> None:
    """It is there, and says why it does not count."""
    found = filled.ledger.find(EventId(TWO.hex(), 3))
    assert found is not None
    assert (found.verdict, found.reason) == ("rejected", "tenant")


def test_what_never_came_is_not_found(filled: Clerk) -> None:
    """Neither an event nor a place."""
    assert filled.ledger.find(EventId(ONE.hex(), 9)) is None
    assert filled.ledger.find(Place(filled.ledger.position().n + 1, 0)) is None


def test_rejections_come_in_pages(filled: Clerk) -> None:
    """In the ledger's order, each once."""
    filled.send(block(9, [event(1, tenant="x" * 256), event(1, tags={"k" * 65: ""})]))
    whole = filled.ledger.rejections(after=(0, -1), limit=10)
    assert [one.reason for one in whole] == ["tenant", "tenant", "tags"]
    after = (0, -1)
    for one in whole:
        assert filled.ledger.rejections(after=after, limit=1) == [one]
        after = (one.position, one.index)
    assert filled.ledger.rejections(after=after, limit=1) == []
