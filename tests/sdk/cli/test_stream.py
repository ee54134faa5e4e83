"""Server-sent events as the command reads them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.cli.stream import Message, read_messages

STREAM = (
    "id: 1\n\n: a comment\nid:2.0\ndata: one\n\ndata: two\ndata:  lines\r\n\r\n"
    "event: x\nretry: 5\nid: 3\ndata: ü\u2028\x85\n\ndata: cut off"
).encode()
MESSAGES = [
    Message("1", None),
    Message("2.0", "one"),
    Message("2.0", "two\n lines"),
    Message("3", "ü\u2028\x85"),
]


def test_blocks_are_messages() -> None:
    """Ids stay until the next one, data is joined, and what is not complete is dropped."""
    assert list(read_messages([STREAM])) == MESSAGES


@given(st.lists(st.integers(1, len(STREAM)), max_size=12))
def test_chunks_may_end_anywhere(cuts: list[int]) -> None:
    """In the middle of a line, of its end, or of a character."""
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[begin:end] for begin, end in pairwise(edges)]
    assert list(read_messages(chunks)) == MESSAGES


@pytest.mark.parametrize("data", [b"", b"id: 1", b"data: x\n"])
def test_without_an_empty_line_there_is_no_message(data: bytes) -> None:
    """Half of an event is none: it comes again, whole."""
    assert list(read_messages([data])) == []
