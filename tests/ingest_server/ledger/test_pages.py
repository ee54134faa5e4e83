"""
Pages: filters, order, the best few, empty windows, and one page after the other.
"""

from __future__ import annotations

from typing import Any

import pytest

from tallybook_server.catalogue import Declaration
from tallybook_server.ledger import TooManyRows
from tallybook_server.question import TagFilter, TagTest, UnanswerableQuestion, UsageQuery, UsageRow
from tests.ingest_server.ledger.conftest import START, Desk, block, event, fill

HOUR = 3_600_000_000
HOURS: dict[str, Any] = {"start": START - 3 * HOUR, "end": START, "window": "hour"}


def rows(desk: Desk, *dimensions: str, **query: Any) -> list[UsageRow]:
    return desk.ledger.aggregate(UsageQuery(dimensions or ("api.calls",), **query)).rows


@pytest.mark.parametrize(
    ("test", "values", "expected"),
    [
        ("in", ("eu-west", ""), "11"),
        ("not_in", ("eu-west", "", "it's"), "10100"),
        ("exists", (), "1111"),
        ("absent", (), "10000"),
        ("prefix", ("eu-",), "101"),
        ("prefix", ("eu-w", "it"), "1001"),
        ("prefix", ("%", "_"), "0"),
        ("prefix", ("",), "1111"),
    ],
)
def test_filters_test_one_tag(
    desk: Desk, where: str, test: TagTest, values: tuple[str, ...], expected: str
) -> None:
    """An event that lacks the tag is not in any list, and begins with nothing."""
    tags = [{"region": text} for text in ("eu-west", "", "eu-east", "it's")]
    events = [event(10**at, tags=one) for at, one in enumerate([*tags, {"other": "eu-west"}])]
    fill(desk, where, block(1, *events[:2]), block(3, *events[2:]))
    found = rows(desk, filters=(TagFilter("region", test, values),))
    assert [row.value for row in found] == ([expected] if expected != "0" else [])


def test_filters_are_all_passed(desk: Desk, where: str) -> None:
    """Two of one tag, and one of a tag that some segments have never seen."""
    fill(
        desk,
        where,
        block(1, event(1, tags={"a": "xy"}), event(10, tags={"a": "xz"})),
        block(3, event(100, tags={"a": "xz", "b": "1"}), event(1000, tags={"b": "1"})),
    )
    both = (TagFilter("a", "prefix", ("x",)), TagFilter("a", "not_in", ("xy",)))
    assert rows(desk, filters=both)[0].value == "110"
    assert rows(desk, filters=(*both, TagFilter("b", "absent")))[0].value == "10"


def test_several_tenants_and_dimensions(desk: Desk, where: str) -> None:
    """Every row names its dimension; nobody among the tenants is unattributed; none is no row."""
    names = ("api.calls", "tokens", "other")
    events = [
        event(10**at, dimension=name, tenant=tenant)
        for at, (name, tenant) in enumerate(
            (name, tenant) for name in names for tenant in ("a", None, "b")
        )
    ]
    fill(desk, where, block(1, *events[:4]), block(5, *events[4:]))
    found = rows(desk, "tokens", "api.calls", tenants=("b", None), by_tenant=True)
    assert [(row.dimension, row.tenant, row.value) for row in found] == [
        ("api.calls", None, "10"),
        ("api.calls", "b", "100"),
        ("tokens", None, "10000"),
        ("tokens", "b", "100000"),
    ]
    assert [row.value for row in rows(desk, "other", "tokens", tenants=("a",))] == [
        "1000000",
        "1000",
    ]
    assert rows(desk, "tokens", tenants=()) == []


def test_groups_are_in_the_order_of_code_points(desk: Desk, where: str) -> None:
    """Window, dimension, tenant, tags; absent first; no locale has a say."""
    tags: list[dict[str, str]] = [
        {},
        {"t": ""},
        {"t": "Z"},
        {"t": "a"},
        {"t": "é"},
        {"t": "\U0001f600"},
    ]
    events = [event(1, tenant="x", tags=one) for one in reversed(tags)]
    fill(desk, where, block(1, *events), block(9, event(1, tenant=None), event(1, tenant="X")))
    found = rows(desk, by_tenant=True, by_tags=("t",))
    assert [(row.tenant, row.tags) for row in found] == [
        (None, {}),
        ("X", {}),
        *(("x", one) for one in tags),
    ]


def test_the_best_of_each_window_and_dimension(desk: Desk, where: str) -> None:
    """By the exact value: 38 digits differ in the last one; equals stay in the groups' order."""
    big = 10**37
    table: list[tuple[int, str, tuple[int | str, ...]]] = [
        (1, "api.calls", (big, big + 1, 5, big)),
        (2, "api.calls", ("0.9", 1, "0.90", 0)),
        (1, "tokens", (1, 2, 3, 4)),
    ]
    events = [
        event(value, tenant=tenant, time=START - hours * HOUR, dimension=dimension)
        for hours, dimension, values in table
        for tenant, value in zip("abcd", values, strict=True)
    ]
    fill(desk, where, block(1, *events[:5]), block(6, *events[5:]))

    def best(order: str) -> list[tuple[int, str, str | None]]:
        asked: Any = {"order": order, "top": 2, "by_tenant": True} | HOURS
        found = rows(desk, "api.calls", "tokens", **asked)
        return [((START - (row.start or 0)) // HOUR, row.dimension, row.tenant) for row in found]

    assert best("-value") == [
        (2, "api.calls", "b"),
        (2, "api.calls", "a"),
        (1, "api.calls", "b"),
        (1, "api.calls", "a"),
        (1, "tokens", "d"),
        (1, "tokens", "c"),
    ]
    assert best("value")[:3] == [(2, "api.calls", "d"), (2, "api.calls", "a"), (1, "tokens", "a")]
    assert best("group")[:2] == [(2, "api.calls", "a"), (2, "api.calls", "b")]


def test_empty_windows_are_filled(desk: Desk, where: str) -> None:
    """A sum of nothing is 0, and there is no least of nothing, which comes last in any order."""
    desk.ledger.declare(Declaration("least", aggregation="min")).result(timeout=0)
    first = [event(1, time=START - 3 * HOUR), event(2, dimension="least", time=START - 2 * HOUR)]
    fill(desk, where, block(1, *first), block(3, event(4, tenant="b", time=START - HOUR)))

    def filled(*dimensions: str, **query: Any) -> list[tuple[str, str | None, str | None]]:
        found = rows(desk, *dimensions, fill=True, **(HOURS | query))
        return [(row.dimension, row.tenant, row.value) for row in found]

    assert filled("api.calls", "least") == [
        ("api.calls", None, "1"),
        ("least", None, None),
        ("api.calls", None, "0"),
        ("least", None, "2"),
        ("api.calls", None, "4"),
        ("least", None, None),
    ]
    assert filled("api.calls", by_tenant=True) == [
        ("api.calls", "acme", "1"),
        ("api.calls", "b", "0"),
        ("api.calls", "acme", "0"),
        ("api.calls", "b", "0"),
        ("api.calls", "acme", "0"),
        ("api.calls", "b", "4"),
    ]
    falling = filled("api.calls", "least", order="-value")
    assert [value for _, _, value in falling] == ["1", None, "2", "0", "4", None]
    rising = filled("api.calls", "least", order="value")
    assert [value for _, _, value in rising] == ["1", None, "0", "2", "4", None]
    assert filled("least", tenants=("nobody",)) == [("least", None, None)] * 3
    assert filled("least", tenants=("nobody",), by_tenant=True) == []
    assert filled("least", tenants=("nobody",), aggregation="unique") == [("least", None, "0")] * 3


def test_too_many_filled_windows_are_an_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups times windows."""
    desk.send(block(1, event(1, time=START - 1), event(1, time=START - 1, tenant="b")))
    monkeypatch.setattr("tallybook_server.figure.QUERY_GROUPS_MAX", 6)
    assert len(rows(desk, by_tenant=True, fill=True, **HOURS)) == 6
    monkeypatch.setattr("tallybook_server.figure.QUERY_GROUPS_MAX", 5)
    with pytest.raises(TooManyRows):
        rows(desk, by_tenant=True, fill=True, **HOURS)


def test_pages_follow_each_other(desk: Desk, where: str) -> None:
    """As of one position they make the whole, while events arrive; each knows of all events."""
    fill(desk, where, *(block(at, event(at, tenant=f"t{at}")) for at in range(1, 8)))
    whole = desk.ledger.aggregate(UsageQuery(("api.calls",), by_tenant=True))
    paged: list[UsageRow] = []
    more = True
    while more:
        desk.send(block(100 + len(paged), event(1, tenant=f"late{len(paged)}")))
        page = desk.ledger.aggregate(
            UsageQuery(
                ("api.calls",), by_tenant=True, as_of=whole.position, skip=len(paged), limit=3
            )
        )
        paged += page.rows
        more = page.more
        assert page.events == whole.events == 7
    assert (paged, whole.more) == (whole.rows, False)


def test_windows_that_cannot_be_are_an_error(desk: Desk) -> None:
    """Without a start or an end, or of months that begin on no day; it names the field."""
    desk.send(block(1, event(1)))
    for field, query in (("start", {"end": START}), ("end", {"start": START})):
        with pytest.raises(UnanswerableQuestion, match="need a start and an end") as error:
            rows(desk, window="day", **query)
        assert error.value.field == field
    for window, day in (("month", 32), ("week", 2)):
        with pytest.raises(UnanswerableQuestion, match="on day") as error:
            rows(desk, **(HOURS | {"window": window, "month_day": day}))
        assert error.value.field == "month_day"
