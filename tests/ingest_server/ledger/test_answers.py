"""
Answers: exact, sliced by anything, the same from the tail and from segments.
"""

from __future__ import annotations

import pytest

from tallybook.block import Columns, encode_block
from tallybook.frame import encode_series
from tallybook_server.ledger import LedgerEvent, TooManyRows, UsageQuery, UsageRow
from tallybook_server.question import TagFilter
from tests.ingest_server.ledger.conftest import START, TWO, Desk, block, event, fill

HOUR = 3_600_000_000
DAY = 24 * HOUR


def rows(desk: Desk, **query: object) -> list[UsageRow]:
    """The rows of a query for ``api.calls``."""
    return desk.ledger.aggregate(UsageQuery(("api.calls",), **query)).rows  # type: ignore[arg-type]


def test_sum_is_exact_over_scales_and_beyond_64_bits(desk: Desk, where: str) -> None:
    """0.1 three times and 38 digits: no float comes near."""
    fill(
        desk,
        where,
        block(1, event("0.1"), event("0.1"), event(10**37)),
        block(4, event("0.1"), event("0.000000001"), event(2**63 - 1), event(2**63)),
    )
    assert desk.total() == "10000000000000000018446744073709551615.300000001"
    assert rows(desk)[0].events == 7


def test_no_events_are_no_rows(desk: Desk, where: str) -> None:
    """A dimension that is known, and nobody used it then: an answer, with a position."""
    fill(desk, where, block(1, event(1), event(2)))
    usage = desk.ledger.aggregate(UsageQuery(("api.calls",), start=START))
    assert (usage.rows, usage.events, usage.more) == ([], 0, False)
    assert rows(desk, start=START, aggregation="count") == []
    assert str(usage.position) == str(desk.ledger.position())


def test_tenants_come_in_order_unattributed_first(desk: Desk, where: str) -> None:
    """None is a row of its own, and the first one."""
    fill(
        desk,
        where,
        block(1, event(1, tenant="b"), event(2, tenant=None), event(3, tenant="a")),
        block(4, event(4, tenant="b")),
    )
    found = [(row.tenant, row.value, row.events) for row in rows(desk, by_tenant=True)]
    assert found == [(None, "2", 1), ("a", "3", 1), ("b", "5", 2)]
    assert rows(desk, tenants=("b",))[0].value == "5"
    assert rows(desk, tenants=(None,))[0].value == "2"


@pytest.mark.parametrize("key", ["route", 'we"ird', "it's", "naïve.ключ", "a b", "tag:x", "Route"])
def test_tag_keys_of_any_kind_can_be_sliced_by(desk: Desk, where: str, key: str) -> None:
    """An absent tag is a row of its own, without the key; two keys that differ in case differ."""
    values = ["x'; DROP TABLE events_1; --", 'quo"te', "", "ü"]
    fill(
        desk,
        where,
        block(1, *(event(1, tags={key: value, "route ": "z"}) for value in values), event(5)),
        block(20, event(2, tags={key.swapcase(): "other case", key: "ü"})),
    )
    found = {row.tags.get(key): row.value for row in rows(desk, by_tags=(key,))}
    assert found == {None: "5", values[0]: "1", values[1]: "1", "": "1", "ü": "3"}
    assert rows(desk, filters=(TagFilter(key, "in", (values[0],)),))[0].value == "1"
    assert rows(desk, filters=(TagFilter(key, "in", ("nothing",)),)) == []
    assert rows(desk, filters=(TagFilter(key, "in", ("ü",)),), by_tags=("route ",))[0].tags == {}


def test_tag_beyond_the_columns_of_a_segment_can_be_sliced_by(desk: Desk) -> None:
    """More than 200 keys in a segment: the rest is in the map, and answers all the same."""
    events = [
        event(1, tags={f"key{at:03d}": "a" for at in range(start, start + 30)})
        for start in range(0, 240, 30)
    ]
    desk.send(block(1, *events))
    before = desk.ledger.scan(after=(0, -1), limit=10)
    desk.seal()
    (segment,) = desk.ledger.snapshots.current.segments
    assert (len(segment.tags), len(segment.more)) == (200, 40)
    for key in (segment.tags[0], segment.more[0]):
        assert [row.value for row in rows(desk, by_tags=(key,))] == ["7", "1"]
        assert rows(desk, filters=(TagFilter(key, "in", ("a",)),))[0].value == "1"
    assert desk.ledger.scan(after=(0, -1), limit=10) == before


def test_time_is_half_open(desk: Desk, where: str) -> None:
    """The start counts and the end does not."""
    times = [START - 1, START, START + 9, START + 10]
    fill(desk, where, block(1, *(event(10**at, time=time) for at, time in enumerate(times))))
    assert desk.total(start=START, end=START + 10) == "110"
    assert desk.total(start=START + 10) == "1000"
    assert desk.total(end=START) == "1"
    assert rows(desk, start=START, end=START) == []


def test_windows_follow_the_clock_on_the_wall(desk: Desk, where: str) -> None:
    """The three days around the change of the clock in Berlin; an empty day has no row."""
    start = 1_774_652_400_000_000  # 2026-03-28T00:00 in Berlin
    times = [start, start + DAY - 1, start + DAY, start + DAY + 23 * HOUR]
    fill(
        desk,
        where,
        block(1, *(event(10**at, time=time) for at, time in enumerate(times[:2]))),
        block(3, *(event(10 ** (at + 2), time=time) for at, time in enumerate(times[2:]))),
    )
    found = rows(desk, start=start, end=start + 5 * DAY, window="day", time_zone="Europe/Berlin")
    assert [(row.start, row.end, row.value) for row in found] == [
        (start, start + DAY, "11"),
        (start + DAY, start + DAY + 23 * HOUR, "100"),
        (start + DAY + 23 * HOUR, start + 2 * DAY + 23 * HOUR, "1000"),
    ]


def test_windows_with_odd_ends_are_cut(desk: Desk, where: str) -> None:
    """A start in the middle of an hour: the first and the last window are short."""
    fill(desk, where, block(1, *(event(1, time=START + at * HOUR // 2) for at in range(6))))
    found = rows(desk, start=START + 7, end=START + 2 * HOUR + 1, window="hour")
    assert [(row.start, row.end, row.value) for row in found] == [
        (START + 7, START + HOUR, "1"),
        (START + HOUR, START + 2 * HOUR, "2"),
        (START + 2 * HOUR, START + 2 * HOUR + 1, "1"),
    ]


def test_windows_of_uneven_offsets_are_exact(
    desk: Desk, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where slots would be too many, another join gives the same rows."""
    fill(desk, where, block(1, *(event(1, time=START + at * HOUR // 3) for at in range(100))))
    query = {
        "start": START + 7,
        "end": START + 2 * DAY,
        "window": "hour",
        "time_zone": "Asia/Tokyo",
    }
    before = rows(desk, **query)
    monkeypatch.setattr("tallybook_server.slots.WINDOW_SLOTS_MAX", 1)
    assert rows(desk, **query) == before
    assert sum(row.events for row in before) == 99


def test_windows_of_wide_values_are_exact(desk: Desk, where: str) -> None:
    """A value beyond 64 bits is in the window, tenant and slice that it belongs to."""
    big = 10**30
    fill(
        desk,
        where,
        block(1, event(big, time=START), event(big, time=START + HOUR, tags={"a": "b"})),
        block(3, event(1, time=START + HOUR, tags={"a": "b"}), event(f"{2**64}.5", time=START)),
    )
    found = rows(
        desk, start=START, end=START + 2 * HOUR, window="hour", by_tenant=True, by_tags=("a",)
    )
    assert [(row.value, row.tags) for row in found] == [
        (f"{big + 2**64}.5", {}),
        (str(big + 1), {"a": "b"}),
    ]


def test_count_counts_events(desk: Desk, where: str) -> None:
    """Whatever their values."""
    fill(desk, where, block(1, event("0.5"), event(0), event(10**30)), block(4, event(2)))
    (row,) = rows(desk, aggregation="count")
    assert (row.value, row.events) == ("4", 4)


def test_more_groups_than_the_limit_are_an_error(
    desk: Desk, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a cut: a sum over a cut answer would be wrong without a sign."""
    fill(desk, where, block(1, *(event("0.1", tenant=f"t{at}") for at in range(5))))
    monkeypatch.setattr("tallybook_server.figure.QUERY_GROUPS_MAX", 5)
    assert len(rows(desk, by_tenant=True)) == 5
    monkeypatch.setattr("tallybook_server.figure.QUERY_GROUPS_MAX", 4)
    with pytest.raises(TooManyRows, match="more than 4 groups"):
        rows(desk, by_tenant=True)


def test_too_many_windows_are_an_error(desk: Desk) -> None:
    """The hours of a century."""
    with pytest.raises(TooManyRows, match="windows"):
        rows(desk, start=0, end=START, window="hour")


def test_scan_pages_over_segments_and_tail(desk: Desk) -> None:
    """In the ledger's order, each event once, whatever the page."""
    desk.send(block(1, *(event(at) for at in range(5))))
    desk.seal()
    desk.send(block(1, *(event(at) for at in range(5)), producer=TWO), block(9, event(1)))
    whole = desk.ledger.scan(after=(0, -1), limit=100)
    assert [(one.producer[:2], one.sequence) for one in whole] == [
        *(("01", at) for at in range(1, 6)),
        *(("02", at) for at in range(1, 6)),
        ("01", 9),
    ]
    paged: list[LedgerEvent] = []
    after = (0, -1)
    while page := desk.ledger.scan(after=after, limit=3):
        paged += page
        after = (page[-1].position, page[-1].index)
    assert paged == whole


def test_scan_gives_back_what_was_sent(desk: Desk, where: str) -> None:
    """Every field, the source and the sequence included."""
    sent = [
        event("12.5", tags={"a": "1", "é": "ü"}, key="k", given=True),
        event(10**30, tenant=None, id="i"),
    ]
    fill(desk, where, block(7, *sent))
    found = desk.ledger.scan(after=(0, -1), limit=10)
    assert [one.event for one in found] == sent
    assert [(one.sequence, one.source, one.index) for one in found] == [
        (7, "shop", 0),
        (8, "shop", 1),
    ]


@pytest.mark.parametrize("wide", [str(2**64), "0007"])
def test_wide_mantissa_counts_in_place_of_the_other(desk: Desk, where: str, wide: str) -> None:
    """A strange block: a wide value with a mantissa beside it, or one that is not wide at all."""
    columns = Columns(
        version=1,
        source=None,
        series=[encode_series("api.calls", None, {})],
        of=[0, 0],
        times=[START, 0],
        mantissas=[5, 1],
        scales=[],
        wides=[(0, wide)],
        keys=[],
        ids=[],
        given=[],
    )
    data = encode_block(columns, producer=TWO, first=1)
    fill(desk, where, data, block(1, event(10, tenant=None)))
    assert desk.total() == str(int(wide) + 11)
    assert desk.findings() == []
