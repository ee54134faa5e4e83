"""
The hot tail by itself: whatever a block was looked up in, its rows say whose they are.
"""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from tallybook.block import read_columns, read_header
from tallybook_server.entry import Verdict, VerdictRun
from tallybook_server.tail import Generation, Known, Stored, halve
from tests.ingest_server.ledger.conftest import block, event

Events = list[tuple[str, str]]
"""Tenant and tag of each event of a block."""


def looked_up(events: Events, known: Known, runs: list[VerdictRun]) -> Stored:
    """A block of *events*, as the intake hands it on."""
    data = block(1, *(event(1, tenant=tenant, tags={"k": tag}) for tenant, tag in events))
    columns, times = read_columns(data, read_header(data))
    halves = halve(columns.series)
    users, tagsets = known.users.look_up(halves.users), known.tagsets.look_up(halves.tagsets)
    return Stored(1, columns, users, tagsets, times.each, runs)


def said(generation: Generation) -> list[tuple[bytes, bytes]]:
    """User and tagset of every row, through the numbers as DuckDB gets them."""
    chunks = [chunk for chunk in generation.chunks if chunk is not None]
    users = list(chain.from_iterable(chunk.fresh_users for chunk in chunks))
    tagsets = list(chain.from_iterable(chunk.fresh_tagsets for chunk in chunks))
    return [
        (users[user], tagsets[tagset])
        for chunk in chunks
        for user, tagset in zip(chunk.users, chunk.tagsets, strict=True)
    ]


def meant(events: Events) -> list[tuple[bytes, bytes]]:
    """The halves that *events* are made of."""
    return [
        (b"\xa9api.calls\xa1" + tenant.encode(), b"\x81\xa1k\xa1" + tag.encode())
        for tenant, tag in events
    ]


BLOCKS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz")), min_size=1),
        st.sampled_from(["counted", "first not", "none"]),
        st.booleans(),  # Whether it is published at once.
        st.booleans(),  # Whether a seal begins behind it.
    ),
    max_size=8,
)


@given(BLOCKS)
def test_row_is_of_its_own_user_and_tagset(blocks: list[tuple[Events, str, bool, bool]]) -> None:
    """However late a block is published after it was looked up, and whatever is not counted."""
    generation = Generation(1, 1)
    expected: list[tuple[bytes, bytes]] = []
    waiting: list[Stored] = []
    for events, counted, at_once, seal in blocks:
        last = {"counted": -1, "first not": 0, "none": len(events) - 1}[counted]
        runs = [VerdictRun(0, last, Verdict.CONFLICT, "sequence", 1)] if last >= 0 else []
        known = Known(generation.users, generation.tagsets)
        waiting.append(looked_up(events, known, runs))
        expected += meant(events[last + 1 :])
        if at_once:
            generation.fill(waiting, 0)
            waiting = []
        if seal:
            rows = said(generation)
            assert rows == expected[: len(rows)]
            del expected[: len(rows)]
            generation = Generation(generation.number + 1, 1)
    generation.fill(waiting, 0)
    assert said(generation) == expected


def test_block_that_counts_nothing_makes_nothing_known() -> None:
    """Its halves would have numbers, and no chunk would ever say whose they are."""
    generation = Generation(1, 1)
    known = Known(generation.users, generation.tagsets)
    runs = [VerdictRun(0, 0, Verdict.DUPLICATE, "sequence", 1)]
    generation.fill([looked_up([("a", "x")], known, runs)], 0)
    assert not generation.chunks
    assert not generation.users
    assert not generation.tagsets
