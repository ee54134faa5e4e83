"""
As of: an answer that was given is given again, whatever came, was sealed or corrected since.
"""

from __future__ import annotations

from typing import Any

import pytest

from tallybook_server.catalogue import Declaration, UnknownDimension
from tallybook_server.correction import Adjustment
from tallybook_server.ledger import EventId, Position, PositionUnknown, VoidRequest
from tallybook_server.question import UnanswerableQuestion, Usage, UsageQuery
from tests.ingest_server.ledger.conftest import ONE, START, Desk, block, event

DAY = 86_400_000_000


def ask(desk: Desk, **query: Any) -> Usage:
    return desk.ledger.aggregate(UsageQuery(("api.calls",), by_tenant=True, **query))


def same(desk: Desk, given: Usage) -> bool:
    """Whether the answer at its position still has the same rows, by the same rules."""
    now = ask(desk, as_of=given.position)
    return (now.rows, now.rules, now.events, now.position) == (
        given.rows,
        given.rules,
        given.events,
        given.position,
    )


def test_an_earlier_answer_is_given_again(desk: Desk) -> None:
    """Through later events, a void, an adjustment, a declaration, and two seals."""
    desk.send(block(1, event(1), event(10**30, tenant="b"), event(4)))
    given = [ask(desk)]
    desk.send(block(4, event(100), event(1000, tenant="c")))
    given.append(ask(desk))
    desk.seal()
    desk.ledger.correct(VoidRequest("v", "bug", event=EventId(ONE.hex(), 1))).result(timeout=0)
    given.append(ask(desk))
    credit = Adjustment("a", "api.calls", (-5, 1), "acme", START, {}, "outage")
    desk.ledger.correct(credit).result(timeout=0)
    given.append(ask(desk))
    desk.ledger.declare(Declaration("api.calls", aggregation="max")).result(timeout=0)
    given.append(ask(desk))
    desk.send(block(6, event(5000), event(7, tenant="d")))
    given.append(ask(desk))
    desk.seal()

    values = [[row.value for row in usage.rows] for usage in given]
    assert values == [
        ["5", str(10**30)],
        ["105", str(10**30), "1000"],
        ["104", str(10**30), "1000"],
        ["103.5", str(10**30), "1000"],
        ["100", str(10**30), "1000"],
        ["5000", str(10**30), "1000", "7"],
    ]
    assert all(same(desk, usage) for usage in given)
    desk.reopen()
    assert all(same(desk, usage) for usage in given)


def test_a_position_within_a_segment_cuts_it(desk: Desk) -> None:
    """One segment over three entries: asked as of the second, it gives the first two."""
    for at in range(3):
        desk.send(block(at + 1, event(10**at)))
    desk.seal()
    assert [[row.value for row in ask(desk, as_of=Position(1, n)).rows] for n in (2, 3, 4, 5)] == [
        ["1"],
        ["11"],
        ["111"],
        ["111"],
    ]


def test_a_position_at_which_a_segment_begins_has_its_first_event(desk: Desk) -> None:
    """What came in while the segment before it was sealed begins the next one."""
    desk.send(block(1, event(1)))
    sealing = desk.ledger.sealer.begin(force=True)
    assert sealing is not None
    desk.send(block(2, event(10)))
    given = ask(desk)
    segment = desk.ledger.sealer.write(sealing)
    desk.ledger.sealer.install(sealing)
    assert desk.ledger.sealer.enter(segment)
    assert same(desk, given)
    desk.seal()
    assert [one.first for one in desk.ledger.snapshots.current.segments][1] == given.position.n
    assert same(desk, given)


def test_a_time_of_recording_is_the_last_entry_by_then(desk: Desk) -> None:
    """Of several entries at one time, all; the answer names the position."""
    desk.send(block(1, event(1)))
    desk.send(block(2, event(10)))
    first = desk.now
    desk.clock.advance(60)
    desk.send(block(3, event(100)))
    for time, n, value in ((first, 3, "11"), (first + 59_999_999, 3, "11"), (desk.now, 4, "111")):
        usage = ask(desk, as_of_time=time)
        assert (usage.position, usage.rows[0].value) == (Position(1, n), value)
    with pytest.raises(UnknownDimension):
        ask(desk, as_of_time=first - 1)
    with pytest.raises(UnanswerableQuestion, match="expected one of them"):
        ask(desk, as_of_time=first, as_of=Position(1, 2))


def test_a_dimension_is_unknown_before_its_first_event(desk: Desk, where: str) -> None:
    """As it was then, also when its first event lies in a segment with later ones."""
    desk.send(block(1, event(1, dimension="tokens")))
    desk.send(block(2, event(2)))
    if where != "tail":
        desk.seal()
    with pytest.raises(UnknownDimension):
        ask(desk, as_of=Position(1, 2))
    assert ask(desk, as_of=Position(1, 3)).rows[0].value == "2"


@pytest.mark.parametrize("position", [Position(1, 3), Position(2, 1), Position(1, -1)])
def test_a_position_that_was_never_reached_is_an_error(desk: Desk, position: Position) -> None:
    """Beyond the head, or of a life that has not begun."""
    desk.send(block(1, event(1)))
    with pytest.raises(PositionUnknown, match=r"the ledger's head is 1\.2") as error:
        ask(desk, as_of=position)
    assert (error.value.asked, error.value.head) == (position, Position(1, 2))
