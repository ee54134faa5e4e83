"""
Searching raw events: what passes a filter, page by page, without reading what cannot hold it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallybook.event import Event
from tallybook_server import candidates
from tallybook_server.correction import Corrections, Run, Void
from tallybook_server.event_filter import INDEX_MAX, EventFilter, Place
from tallybook_server.ledger import LedgerEvent
from tallybook_server.question import TagFilter
from tallybook_server.rows import CountedEvent, Selection, row_at, select, stretches
from tallybook_server.segment import Segment, identifier, quoted
from tests.ingest_server.ledger.conftest import ONE, START, TWO, Desk, block, event

HOUR = 3_600_000_000
FIRST = (0, -1)

# A mix of everything that can be asked for. Sequences 1 to 8 of one producer, and 1 to 4 of
# another one, which names no application.
SHOP = [
    event(1, tags={"route": "/v1/a", "k": ""}, time=START),
    event(2, tenant=None, tags={"route": "/v1/b"}, time=START + 1, key="k1"),
    event(3, tenant="globex", tags={"Route": "/v1/a"}, time=START + 2, id="i1"),
    event(4, dimension="bytes", tenant="globex", time=START + 3, key="k1"),
    event(5, dimension="bytes", tags={"route": "/v2"}, time=START + HOUR),
    event(10**30, tags={"route": "/v1/a", "k": "v"}, time=START - HOUR, key="k2", id="i2"),
    event(7, tenant="Acme", time=START),
    event(8, tags={"route": "%"}, time=START),
]
OTHER = [event(11), event(12, tenant=None), event(13, dimension="bytes"), event(14, tags={"k": ""})]


@pytest.fixture(params=["tail", "sealed", "both"])
def stock(request: pytest.FixtureRequest, desk: Desk) -> Desk:
    """The mix, sealed into two segments, or only half of it, or not at all."""
    if request.param == "both":
        desk.send(block(1, *SHOP[:4]))
        desk.seal()
        desk.send(block(5, *SHOP[4:]), block(1, *OTHER, producer=TWO, source=None))
        return desk
    desk.send(block(1, *SHOP[:4]), block(5, *SHOP[4:]))
    if request.param == "sealed":
        desk.seal()
    desk.send(block(1, *OTHER, producer=TWO, source=None))
    if request.param == "sealed":
        desk.seal()
    return desk


def values(desk: Desk, chosen: EventFilter, limit: int = 100) -> list[int]:
    """The mantissas of what passes, in the ledger's order."""
    return [one.event.value[0] for one in desk.ledger.scan(chosen, after=FIRST, limit=limit)]


TAGS: dict[str, tuple[TagFilter, list[int]]] = {
    "in": (TagFilter("route", "in", ("/v1/a", "/v2")), [1, 5, 10**30]),
    "in, empty text": (TagFilter("k", "in", ("",)), [1, 14]),
    "in, another case": (TagFilter("Route", "in", ("/v1/a",)), [3]),
    "not in": (TagFilter("route", "not_in", ("/v1/a", "%")), [2, 3, 4, 5, 7, 11, 12, 13, 14]),
    "exists": (TagFilter("k", "exists"), [1, 10**30, 14]),
    "absent": (TagFilter("route", "absent"), [3, 4, 7, 11, 12, 13, 14]),
    "prefix": (TagFilter("route", "prefix", ("/v1/",)), [1, 2, 10**30]),
    "several prefixes": (TagFilter("route", "prefix", ("/v2", "%")), [5, 8]),
    "prefix that is a pattern elsewhere": (TagFilter("route", "prefix", ("%",)), [8]),
    "a tag that nothing has": (TagFilter("nothing", "exists"), []),
}


@pytest.mark.parametrize("name", TAGS)
def test_tag_filters(stock: Desk, name: str) -> None:
    """Each test of a tag, and what passes it."""
    one, passed = TAGS[name]
    assert values(stock, EventFilter(tags=(one,))) == passed


FILTERS: dict[str, tuple[EventFilter, list[int]]] = {
    "a dimension": (EventFilter(dimensions=("bytes",)), [4, 5, 13]),
    "dimensions": (EventFilter(dimensions=("bytes", "nothing")), [4, 5, 13]),
    "no dimension": (EventFilter(dimensions=()), []),
    "a tenant": (EventFilter(tenants=("globex",)), [3, 4]),
    "unattributed": (EventFilter(tenants=(None,)), [2, 12]),
    "a tenant and unattributed": (EventFilter(tenants=("Acme", None)), [2, 7, 12]),
    "time, half-open": (EventFilter(start=START, end=START + 2), [1, 2, 7, 8]),
    "producer": (EventFilter(producer=TWO.hex()), [11, 12, 13, 14]),
    "a producer that is not there": (EventFilter(producer="ab" * 16), []),
    "source": (EventFilter(sources=("shop",)), [1, 2, 3, 4, 5, 10**30, 7, 8]),
    "without a source": (EventFilter(sources=(None,)), [11, 12, 13, 14]),
    "producer and source that do not meet": (
        EventFilter(producer=TWO.hex(), sources=("shop",)),
        [],
    ),
    "key, whatever the dimension": (EventFilter(key="k1"), [2, 4]),
    "key and dimension": (EventFilter(key="k1", dimensions=("bytes",)), [4]),
    "key and source": (EventFilter(key="k1", sources=("other", None)), []),
    "id": (EventFilter(id="i1"), [3]),
    "key and id": (EventFilter(key="k2", id="i2"), [10**30]),
    "key and id of two events": (EventFilter(key="k1", id="i2"), []),
    "an id that is a key": (EventFilter(id="k1"), []),
    "everything at once": (
        EventFilter(
            dimensions=("api.calls",),
            tenants=("acme",),
            tags=(TagFilter("route", "exists"), TagFilter("k", "in", ("v",))),
            start=START - HOUR,
            end=START,
            producer=ONE.hex(),
            sources=("shop",),
            key="k2",
            id="i2",
        ),
        [10**30],
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(stock: Desk, name: str) -> None:
    """Each thing that can be asked for, and what passes."""
    chosen, passed = FILTERS[name]
    assert values(stock, chosen) == passed


def test_last_place_is_among_what_is_found(stock: Desk) -> None:
    """A cursor ends the search behind its event, a position behind its entry."""
    whole = stock.ledger.scan(after=FIRST, limit=100)
    fifth = Place(whole[4].position, whole[4].index)
    assert stock.ledger.scan(EventFilter(upto=fifth), after=FIRST, limit=100) == whole[:5]
    entry = Place(whole[4].position, INDEX_MAX)
    assert stock.ledger.scan(EventFilter(upto=entry), after=FIRST, limit=100) == whole[:8]
    assert stock.ledger.scan(EventFilter(upto=fifth), after=fifth, limit=100) == []


@pytest.mark.parametrize("name", [*FILTERS, *TAGS])
def test_pages_are_the_whole_in_pieces(stock: Desk, name: str) -> None:
    """One event a page, each behind the cursor of the last."""
    chosen = FILTERS[name][0] if name in FILTERS else EventFilter(tags=(TAGS[name][0],))
    whole = stock.ledger.scan(chosen, after=FIRST, limit=100)
    assert list(paged(stock, chosen, limit=1)) == whole


def paged(desk: Desk, chosen: EventFilter, limit: int) -> Iterator[LedgerEvent]:
    """What passes, in pages of so many."""
    after = FIRST
    while page := desk.ledger.scan(chosen, after=after, limit=limit):
        yield from page
        after = (page[-1].position, page[-1].index)


@pytest.mark.parametrize("where", ["tail", "sealed"])
def test_uncounted_event_is_not_found(desk: Desk, where: str) -> None:
    """A conflict, a duplicate and a rejection share key, producer and source with the others."""
    desk.send(block(1, event(1, key="a"), event(2)))
    desk.send(block(1, event(1, key="a"), event(3), event(4, tenant="x" * 256), event(5)))
    desk.send(block(9, event(9, key="a"), event(1, key="a")))
    if where == "sealed":
        desk.seal()
    assert values(desk, EventFilter(producer=ONE.hex())) == [1, 2, 5]
    assert values(desk, EventFilter(sources=("shop",))) == [1, 2, 5]
    assert values(desk, EventFilter(key="a")) == [1]


def test_voided_event_is_found_and_says_so(stock: Desk) -> None:
    """The order of the ledger does not change, whatever is taken back."""
    whole = stock.ledger.scan(after=FIRST, limit=100)
    second, third = whole[1], whole[2]
    assert not any(one.voided for one in whole)
    runs = (Run(second.position, second.index, third.index),)
    snapshot = stock.ledger.snapshots.current
    void = Void("v", "a bug", runs, position=snapshot.position)
    stock.ledger.snapshots.swap(replace(snapshot, corrections=Corrections([void])))
    after = stock.ledger.scan(after=FIRST, limit=100)
    assert [one.event.value[0] for one in after if one.voided] == [2, 3]
    assert [replace(one, voided=False) for one in after] == whole


# -- what is not read ----------------------------------------------------------------------

UNREADABLE = [
    EventFilter(start=START + 2 * HOUR),
    EventFilter(end=START - 2 * HOUR),
    EventFilter(dimensions=("other",)),
    EventFilter(tags=(TagFilter("nowhere", "in", ("x",)),)),
    EventFilter(tags=(TagFilter("nowhere", "exists"),)),
    EventFilter(tags=(TagFilter("nowhere", "prefix", ("x",)),)),
    EventFilter(producer="ab" * 16),
    EventFilter(sources=("nobody",)),
    EventFilter(key="unknown"),
    EventFilter(id="unknown"),
]


@pytest.mark.parametrize("chosen", UNREADABLE)
def test_segment_that_cannot_hold_it_is_not_opened(desk: Desk, chosen: EventFilter) -> None:
    """The file is gone, and the answer is the right one."""
    desk.send(block(1, *SHOP))
    desk.seal()
    for path in (desk.directory / "segments").iterdir():
        path.unlink()
    assert values(desk, chosen) == []


def test_full_page_opens_no_further_segment(desk: Desk) -> None:
    """Nor does a page behind a cursor open what is in front of it."""
    for first in (1, 11, 21):
        desk.send(block(first, event(first), event(first + 1)))
        desk.seal()
    segments = desk.ledger.snapshots.current.segments
    (desk.directory / "segments" / segments[2].name).unlink()
    assert values(desk, EventFilter(), limit=4) == [1, 2, 11, 12]
    assert values(desk, EventFilter(upto=Place(segments[1].last, 99))) == [1, 2, 11, 12]
    (desk.directory / "segments" / segments[0].name).unlink()
    found = desk.ledger.scan(after=Place(segments[0].last, INDEX_MAX), limit=2)
    assert [one.event.value[0] for one in found] == [11, 12]


# -- segments that overlap -----------------------------------------------------------------


def split(desk: Desk, segment: Segment, *conditions: str) -> tuple[Segment, ...]:
    """The rows of a segment in several files, which cover the same entries."""
    directory = desk.directory / "segments"
    parts: list[Segment] = []
    with desk.ledger.tables.cursor() as cursor:
        for at, condition in enumerate(conditions):
            name = f"part-{at}.parquet"
            source, target = quoted(str(directory / segment.name)), quoted(str(directory / name))
            rows = f"FROM read_parquet({source}) WHERE {condition}"
            counts = ", ".join(f"count({identifier(f'tag:{key}')})" for key in segment.tags)
            count, least, most, *used = cursor.execute(
                f'SELECT count(*), min("time"), max("time"), {counts} {rows}'
            ).fetchall()[0]
            tags = tuple(key for key, n in zip(segment.tags, used, strict=True) if n)
            unused = [identifier(f"tag:{key}") for key in segment.tags if key not in tags]
            columns = f"* EXCLUDE ({', '.join(unused)})" if unused else "*"
            cursor.execute(f"COPY (SELECT {columns} {rows}) TO {target} (FORMAT parquet)")
            parts.append(
                segment._replace(name=name, rows=count, time_min=least, time_max=most, tags=tags)
            )
    return tuple(parts)


def test_segments_may_cover_the_same_entries(desk: Desk) -> None:
    """Each event is in one of them; pages are in order over all of them, and over the tail."""
    desk.send(block(1, *SHOP), block(1, *OTHER, producer=TWO))
    desk.seal()
    desk.send(block(20, event(20), event(21)))
    desk.seal()
    desk.send(block(30, event(30)))
    snapshot = desk.ledger.snapshots.current
    tables, directory = desk.ledger.tables, desk.directory / "segments"
    whole = select(tables, directory, snapshot, Selection(FIRST, 100))
    thirds = ('"index" % 3 = 0', '"index" % 3 = 2', '"index" % 3 = 1')
    parts = split(desk, snapshot.segments[0], *thirds)
    assert len({part.tags for part in parts}) > 1
    # As late events make it: one goes on in front of the others, and one behind them.
    wide = (parts[0]._replace(last=5), parts[1], parts[2]._replace(first=1))
    mixed = replace(snapshot, segments=(*wide, *snapshot.segments[1:]))
    assert len(stretches(mixed, EventFilter(), 1, 10)) > 1
    for limit in (1, 2, 5, 100):
        found: list[CountedEvent] = []
        after = FIRST
        while page := select(tables, directory, mixed, Selection(after, limit)):
            found += page
            after = found[-1][:2]
        assert found == whole
    for row in whole:
        there = row_at(tables, directory, mixed, Place(row.entry, row.place))
        assert there is not None
        assert there[0] == row


def test_segment_that_goes_on_is_read_as_far_as_its_neighbours(desk: Desk) -> None:
    """Alone in its first entries, it is not read into those that it shares with another one."""
    desk.send(block(1, *SHOP), block(1, *OTHER, producer=TWO))
    desk.seal()
    snapshot = desk.ledger.snapshots.current
    tables, directory = desk.ledger.tables, desk.directory / "segments"
    whole = select(tables, directory, snapshot, Selection(FIRST, 100))
    shared = 'entry = 3 AND "index" % 2 = 0'
    one, other = split(desk, snapshot.segments[0], f"NOT ({shared})", shared)
    mixed = replace(snapshot, segments=(one, other._replace(first=3)))
    for chosen in (EventFilter(), EventFilter(upto=Place(9, 0))):
        assert select(tables, directory, mixed, Selection(FIRST, 100, chosen)) == whole


def test_segment_without_a_place_on_the_page_is_read_for_places_only(desk: Desk) -> None:
    """The stretch's other segments are not read whole for what one of them has."""
    desk.send(block(1, *SHOP), block(1, *OTHER, producer=TWO))
    desk.seal()
    snapshot = desk.ledger.snapshots.current
    parts = split(desk, snapshot.segments[0], '"index" > 0', '"index" = 0')
    mixed = replace(snapshot, segments=parts)
    tables, directory = desk.ledger.tables, desk.directory / "segments"
    found = row_at(tables, directory, mixed, Place(2, 0))
    assert found is not None
    assert (found[0].event, found[1]) == (SHOP[0], parts[1].name)


# -- large ledgers -------------------------------------------------------------------------


def test_producer_with_many_blocks_is_found_by_walking(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit its blocks are looked for a few entries at a time, and all are found."""
    monkeypatch.setattr(candidates, "SEARCH_ENTRIES", 3)
    monkeypatch.setattr(candidates, "SEARCH_ENTRIES_AT_ONCE", 4)
    for at in range(10):
        desk.send(block(1 + at, event(at)), block(1 + at, event(100 + at), producer=TWO))
        if at == 6:
            desk.seal()
    assert values(desk, EventFilter(producer=ONE.hex())) == list(range(10))
    assert values(desk, EventFilter(producer=TWO.hex(), tenants=("acme",)), limit=3) == [
        100,
        101,
        102,
    ]
    chosen = EventFilter(sources=("shop",))
    assert len(list(paged(desk, chosen, limit=7))) == 20
    steps = list(candidates.candidates(desk.ledger._read, chosen, [(1, desk.ledger.position().n)]))
    assert len(steps) > 2
    assert max(map(len, steps)) <= 4 + 3


def test_key_is_found_among_many_sources(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sources and dimensions there are, and in however many turns they are read."""
    monkeypatch.setattr(candidates, "SEARCH_SCOPES", 2)
    for at in range(7):
        desk.send(
            block(1 + 2 * at, event(at, key="k", id=f"i{at}"), event(at, key="z"), source=f"s{at}")
        )
    assert values(desk, EventFilter(key="k")) == list(range(7))
    assert values(desk, EventFilter(id="i6")) == [6]


# -- against a filter in Python ------------------------------------------------------------

TEXTS = st.sampled_from(["", "a", "ab", "b"])
EVENTS = st.builds(
    event,
    st.integers(0, 9),
    dimension=st.sampled_from(["x", "y"]),
    tenant=st.sampled_from([None, "t", "u"]),
    time=st.integers(START, START + 5),
    tags=st.dictionaries(st.sampled_from(["k", "K", "z"]), TEXTS, max_size=2),
    key=st.sampled_from([None, None, "1", "2"]),
    id=st.sampled_from([None, None, "1"]),
)
LOADS = st.lists(
    st.tuples(
        st.sampled_from([ONE, TWO]),
        st.sampled_from(["shop", None]),
        st.lists(EVENTS, min_size=1, max_size=6),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
SETS = st.sets(TEXTS, min_size=1, max_size=2).map(lambda texts: tuple(sorted(texts)))
TAG_FILTERS = st.one_of(
    st.builds(
        TagFilter,
        st.sampled_from(["k", "K", "n"]),
        st.sampled_from(["in", "not_in", "prefix"]),
        SETS,
    ),
    st.builds(TagFilter, st.sampled_from(["k", "K", "n"]), st.sampled_from(["exists", "absent"])),
)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Mostly nothing, so that filters of many parts still let something pass."""
    return st.one_of(st.none(), st.none(), strategy)


WANTED = st.builds(
    EventFilter,
    dimensions=maybe(st.sampled_from([("x",), ("y", "x"), ("n",)])),
    tenants=maybe(st.sampled_from([("t",), (None,), (None, "u"), ("n",)])),
    tags=st.lists(TAG_FILTERS, max_size=2).map(tuple),
    start=maybe(st.integers(START, START + 6)),
    end=maybe(st.integers(START, START + 6)),
    producer=maybe(st.sampled_from([ONE.hex(), TWO.hex()])),
    sources=maybe(st.sampled_from([("shop",), (None,), ("n",)])),
    key=maybe(st.sampled_from(["1", "2"])),
    id=maybe(st.just("1")),
    upto=maybe(st.builds(Place, st.integers(1, 8), st.integers(0, 6))),
)


def passes(one: LedgerEvent, chosen: EventFilter) -> bool:
    """The filter, as one would say it in Python."""
    said = one.event
    return (
        (chosen.dimensions is None or said.dimension in chosen.dimensions)
        and (chosen.tenants is None or said.tenant in chosen.tenants)
        and all(passes_tag(said.tags.get(tag.key), tag) for tag in chosen.tags)
        and (chosen.start is None or said.time >= chosen.start)
        and (chosen.end is None or said.time < chosen.end)
        and (chosen.producer is None or one.producer == chosen.producer)
        and (chosen.sources is None or one.source in chosen.sources)
        and (chosen.key is None or said.key == chosen.key)
        and (chosen.id is None or said.id == chosen.id)
        and (chosen.upto is None or (one.position, one.index) <= chosen.upto)
    )


def passes_tag(text: str | None, tag: TagFilter) -> bool:
    """One test of one tag."""
    match tag.test:
        case "in":
            return text in tag.values
        case "not_in":
            return text not in tag.values
        case "exists":
            return text is not None
        case "absent":
            return text is None
        case "prefix":
            return text is not None and text.startswith(tag.values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOADS, st.lists(WANTED, min_size=1, max_size=8), st.integers(1, 4))
def test_search_is_a_filter_over_everything(
    loads: list[tuple[bytes, str | None, list[Event], bool]], wanted: list[EventFilter], limit: int
) -> None:
    """Whatever is asked, and wherever it lies: what Python finds among all, in that order."""
    with tempfile.TemporaryDirectory() as directory:
        desk = Desk(Path(directory) / "book")
        try:
            first = 1
            for producer, source, events, seal in loads:
                desk.send(block(first, *events, producer=producer, source=source))
                first += len(events)
                if seal:
                    desk.seal()
            whole = desk.ledger.scan(after=FIRST, limit=1000)
            for chosen in wanted:
                right = [one for one in whole if passes(one, chosen)]
                assert desk.ledger.scan(chosen, after=FIRST, limit=1000) == right
                assert list(paged(desk, chosen, limit)) == right
        finally:
            desk.ledger.close()
