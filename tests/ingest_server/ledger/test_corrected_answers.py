"""
Corrected answers: what was taken back was never there, and what was added belongs to the sum.
"""

from __future__ import annotations

from typing import Any

import pytest

from tallybook_server.catalogue import Declaration
from tallybook_server.correction import Adjustment
from tallybook_server.ledger import EventId, Position, VoidRequest
from tallybook_server.question import TagFilter, UsageQuery, UsageRow
from tests.ingest_server.ledger.conftest import ONE, START, Desk, block, event, fill

HOUR = 3_600_000_000


def void(desk: Desk, *sequences: int) -> None:
    """Take events of the first producer back."""
    for sequence in sequences:
        request = VoidRequest(f"v{sequence}", "a bug", event=EventId(ONE.hex(), sequence))
        desk.ledger.correct(request).result(timeout=0)


def adjust(desk: Desk, value: tuple[int, int], **fields: Any) -> None:
    """Add to the sum of ``api.calls``."""
    made: dict[str, Any] = {"tenant": "acme", "time": START - 1, "tags": {}}
    made.update(fields)
    name = f"a{desk.ledger.position()}"
    one = Adjustment(name, "api.calls", value, reason="as agreed", **made)
    desk.ledger.correct(one).result(timeout=0)


def rows(desk: Desk, **query: Any) -> list[UsageRow]:
    return desk.ledger.aggregate(UsageQuery(("api.calls",), **query)).rows


@pytest.mark.parametrize(
    ("aggregation", "before", "after"),
    [
        ("sum", str(10**30 + 13), "7"),
        ("count", "6", "3"),
        ("min", "0", "1"),
        ("max", str(10**30), "3"),
        ("avg", "166666666666666666666666666668.833333333333333333", "2.333333333333333333"),
        ("unique", "5", "2"),
        ("percentile", "3", "3"),
        ("last", "6", "3"),
    ],
)
def test_what_was_taken_back_is_in_no_aggregation(
    desk: Desk, where: str, aggregation: Any, before: str, after: str
) -> None:
    """The greatest, the least and the last of six events are voided."""
    declared: Any = aggregation if aggregation == "last" else "sum"
    desk.ledger.declare(Declaration("api.calls", aggregation=declared)).result(timeout=0)
    values = [1, 10**30, 3, 0, 3, 6]
    events = [event(value, time=START - 100 + at) for at, value in enumerate(values)]
    fill(desk, where, block(1, *events[:3]), block(4, *events[3:]))
    asked: dict[str, Any] = {"aggregation": aggregation, "percentile": "60"}
    assert rows(desk, **asked)[0].value == before
    void(desk, 2, 4, 6)
    (row,) = rows(desk, **asked)
    assert (row.value, row.events) == (after, 3)


def test_a_voided_level_was_never_reported(desk: Desk, where: str) -> None:
    """The one before it goes on to hold."""
    desk.ledger.declare(Declaration("api.calls", aggregation="time_weighted")).result(timeout=0)
    levels = [event(2, time=START - 4 * HOUR), event(9, time=START - 3 * HOUR)]
    fill(desk, where, block(1, *levels), block(3, event(1, time=START - HOUR)))
    query = {"start": START - 2 * HOUR, "end": START}
    assert rows(desk, **query)[0].value == "10"
    void(desk, 2)
    assert rows(desk, **query)[0].value == "3"


def test_what_is_all_taken_back_has_no_row(desk: Desk, where: str) -> None:
    """As if it had never been recorded; a void of the void brings it back."""
    fill(desk, where, block(1, event(5)), block(2, event(6)))
    void(desk, 1, 2)
    assert rows(desk) == []
    position = desk.ledger.position()
    desk.ledger.correct(VoidRequest("restore", "was right", corrects=position)).result(timeout=0)
    assert rows(desk)[0].value == "6"


def test_an_adjustment_belongs_to_the_sum_and_is_counted_apart(desk: Desk, where: str) -> None:
    """Signed, of any scale; nothing but the sum has it."""
    fill(desk, where, block(1, event(5)), block(2, event("2.5")))
    adjust(desk, (-105, 2))
    adjust(desk, (10**37, 0))
    (row,) = rows(desk)
    assert (row.value, row.events, row.adjustments) == (f"{10**37 + 6}.45", 2, 2)
    (row,) = rows(desk, aggregation="avg")
    assert (row.value, row.events, row.adjustments) == ("3.75", 2, 0)


def test_an_adjustment_obeys_what_an_event_obeys(desk: Desk) -> None:
    """Its tenant, its time, its tags; and it makes a group of its own."""
    desk.send(block(1, event(1, time=START - HOUR, tags={"plan": "pro"})))
    adjust(desk, (-2, 0), time=START - 2 * HOUR, tags={"plan": "free"})
    adjust(desk, (40, 0), tenant=None, time=START - HOUR)
    adjust(desk, (800, 0), time=START, tags={"plan": "free"})

    def short(**query: Any) -> list[tuple[str | None, str | None, str | None, int]]:
        return [
            (row.tenant, row.tags.get("plan"), row.value, row.adjustments)
            for row in rows(desk, **query)
        ]

    assert short() == [(None, None, "839", 3)]
    assert short(by_tenant=True, by_tags=("plan",)) == [
        (None, None, "40", 1),
        ("acme", "free", "798", 2),
        ("acme", "pro", "1", 0),
    ]
    hours = {"start": START - 2 * HOUR, "end": START, "window": "hour"}
    assert short(**hours) == [(None, None, "-2", 1), (None, None, "41", 1)]
    assert short(tenants=(None,)) == [(None, None, "40", 1)]
    assert short(tenants=("acme",), end=START) == [(None, None, "-1", 1)]
    for test, values, expected in (
        ("in", ("free", "x"), "798"),
        ("not_in", ("free",), "41"),
        ("exists", (), "799"),
        ("absent", (), "40"),
        ("prefix", ("q", "p", "f"), "799"),
    ):
        one: Any = TagFilter("plan", test, values)  # type: ignore[arg-type]
        assert [value for _, _, value, _ in short(filters=(one,))] == [expected], test


def test_an_explanation_names_what_was_read(desk: Desk) -> None:
    """Segments read and passed over, rows, and what corrections did."""
    desk.send(block(1, event(1), event(2), event(3, dimension="tokens")))
    desk.seal()
    desk.send(block(4, event(4, time=START - 9 * HOUR), event(5, time=START - 9 * HOUR)))
    desk.seal()
    desk.send(block(6, event(6), event(7, tenant="b")))
    void(desk, 2, 3, 6)
    adjust(desk, (1, 0))
    query = UsageQuery(("api.calls",), tenants=("acme",), start=START - HOUR, explain=True)
    usage = desk.ledger.aggregate(query)
    assert usage.rows[0].value == "2"
    explanation = usage.explanation
    assert explanation is not None
    first = desk.ledger.snapshots.current.segments[0]
    assert explanation.segments == (first.name,)
    assert (explanation.segments_skipped, explanation.segment_rows) == (1, 3)
    assert (explanation.tail_rows, explanation.voided, explanation.adjustments) == (2, 2, 1)
    assert desk.ledger.aggregate(UsageQuery(("api.calls",))).explanation is None
    earlier = UsageQuery(("api.calls",), as_of=Position(1, 2), explain=True)
    explanation = desk.ledger.aggregate(earlier).explanation
    assert explanation is not None
    assert (explanation.segments, explanation.segments_skipped) == ((first.name,), 1)
    assert (explanation.tail_rows, explanation.voided, explanation.adjustments) == (0, 0, 0)
