"""Cursors: every page is a part of one answer to one question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tallybook_server.problems import Problem
from tallybook_server.question import Position, UsageQuery
from tallybook_server.usage.pages import page_of

QUESTION = UsageQuery(("calls",), by_tenant=True, limit=10)
POSITION = Position(2, 42)


def cursor_behind(query: UsageQuery, rows: int = 10) -> str:
    """The cursor behind the first page of *query*."""
    return page_of(query, cursor=None, is_whole=False).next_cursor(POSITION, rows)


def refused(query: UsageQuery, cursor: str) -> str:
    """What is wrong with *cursor* for *query*."""
    with pytest.raises(Problem) as caught:
        page_of(query, cursor=cursor, is_whole=False)
    assert caught.value.kind.slug == "cursor-invalid"
    return caught.value.detail


def test_the_next_page_holds_for_the_position_of_the_first() -> None:
    """Events that arrive meanwhile change no page; the rows before are left out."""
    page = page_of(QUESTION, cursor=cursor_behind(QUESTION), is_whole=False)
    assert page.query == replace(QUESTION, as_of=POSITION, skip=10)


def test_rows_add_up_from_page_to_page() -> None:
    """The third page leaves out the rows of both before."""
    second = page_of(QUESTION, cursor=cursor_behind(QUESTION), is_whole=False)
    third = page_of(QUESTION, cursor=second.next_cursor(POSITION, 7), is_whole=False)
    assert third.query.skip == 17


def test_a_question_as_of_a_time_goes_on_at_its_position() -> None:
    """The first page found out which position that is."""
    query = replace(QUESTION, as_of_time=1_767_225_600_000_000)
    page = page_of(query, cursor=cursor_behind(query), is_whole=False)
    assert (page.query.as_of, page.query.as_of_time) == (POSITION, None)


def test_pages_may_differ_in_size_and_explanation() -> None:
    """Neither changes the rows."""
    other = replace(QUESTION, limit=3, explain=True)
    assert page_of(other, cursor=cursor_behind(QUESTION), is_whole=False).query.skip == 10


def test_a_page_is_never_the_whole_answer() -> None:
    """Whoever passes a cursor knows of pages, with or without a limit."""
    assert not page_of(QUESTION, cursor=cursor_behind(QUESTION), is_whole=True).is_whole


@pytest.mark.parametrize(
    "other",
    [
        replace(QUESTION, dimensions=("tokens",)),
        replace(QUESTION, by_tenant=False),
        replace(QUESTION, tenants=(None,)),
        replace(QUESTION, start=0),
        replace(QUESTION, order="value"),
        replace(QUESTION, as_of=POSITION),
    ],
)
def test_a_cursor_of_another_question_is_refused(other: UsageQuery) -> None:
    """Its rows would be skipped in an answer that has others."""
    assert "another question" in refused(other, cursor_behind(QUESTION))


def test_every_changed_character_is_found() -> None:
    """A cursor that was copied badly never leads to a wrong page."""
    cursor = cursor_behind(QUESTION)
    for at, character in enumerate(cursor):
        changed = cursor[:at] + ("A" if character != "A" else "B") + cursor[at + 1 :]
        assert "damaged" in refused(QUESTION, changed)


@pytest.mark.parametrize("cursor", ["", "abc", "ü", "A" * 44, "A" * 10_000, "!" * 44])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    """In one line, however long it is."""
    assert len(refused(QUESTION, cursor)) < 200


def test_a_cursor_needs_no_escaping_in_a_url() -> None:
    """It is passed on as it is."""
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in cursor_behind(QUESTION))
