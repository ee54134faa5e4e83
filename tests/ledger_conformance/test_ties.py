"""
Ties: of events at the same microsecond, which one holds. Chance makes them too seldom.

The one that is later in the ledger: the later entry, and within an entry the later event. The
value has no say in it, and neither has the moment at which the events were sealed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import pytest

from tallybook_server.question import Aggregation
from tests.ledger_conformance.clerk import Clerk
from tests.ledger_conformance.deliveries import HOUR, NOON, TWO, block, event


class Asked(NamedTuple):
    """What holds at noon, as one number: the value, or the level over one hour from a time on."""

    aggregation: Aggregation
    start: int


ASKED: Final = {
    "last": Asked("last", NOON),
    "a level": Asked("time_weighted", NOON),
    "a level from before the start": Asked("time_weighted", NOON + HOUR),
}


@pytest.fixture(params=ASKED)
def asked(request: pytest.FixtureRequest, clerk: Clerk) -> Asked:
    """Whatever depends on the order of events, and a dimension that is declared as that."""
    found = ASKED[request.param]
    clerk.declare("api.calls", aggregation=found.aggregation)
    return found


def held(clerk: Clerk, asked: Asked) -> str | None:
    """The one number."""
    return clerk.total(start=asked.start, end=asked.start + HOUR)


@pytest.mark.parametrize("values", [(9, 3), (3, 9), ("2.50", 3), (3, "0.000000001")])
def test_of_one_entry_the_later_event_holds(
    clerk: Clerk, life: str, asked: Asked, values: tuple[int | str, int | str]
) -> None:
    """Whichever value is greater, and whichever has the greater mantissa."""
    clerk.send(block(1, [event(values[0]), event(values[1])]))
    clerk.pass_through(life)
    assert held(clerk, asked) == str(values[1])


@pytest.mark.parametrize("value", [2, 7])
def test_of_several_entries_the_later_one_holds(
    clerk: Clerk, life: str, asked: Asked, value: int
) -> None:
    """Although the event of the earlier entry has the later place in it."""
    clerk.send(block(1, [event(1, time=NOON - 1), event(1, time=NOON - 1), event(5)]))
    clerk.pass_through(life)
    clerk.send(block(1, [event(value)], producer=TWO))
    clerk.pass_through(life)
    assert held(clerk, asked) == str(value)


def test_voided_event_leaves_the_one_before_it(clerk: Clerk, life: str, asked: Asked) -> None:
    """Of the same microsecond, too."""
    clerk.send(block(1, [event(4), event(6), event(5)]))
    clerk.pass_through(life)
    clerk.void("v", 3)
    assert held(clerk, asked) == "6"


def test_of_many_equal_times_each_keeps_its_latest_event(clerk: Clerk, life: str) -> None:
    """A sort that takes equal times in any order would mix them up."""
    clerk.declare("api.calls", aggregation="time_weighted")
    # Each time comes five times in an entry and in five entries, and the times come in no order.
    events = [event(1 + at, time=NOON + at * 7_919 % 200 * HOUR) for at in range(5_000)]
    for first in range(0, len(events), 1_000):
        clerk.send(block(1 + first, events[first : first + 1_000]))
    clerk.pass_through(life)
    latest = {one.time: one.value[0] for one in events}
    assert clerk.total(end=NOON + 200 * HOUR) == str(sum(latest.values()))
    behind = NOON + 2_000 * HOUR
    assert clerk.total(start=behind, end=behind + HOUR) == str(latest[NOON + 199 * HOUR])
