"""Names in a line of text: every one can be written, and is read back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.names import split_names, split_pair

NAME = st.text(st.sampled_from("a,=\\b"), min_size=1)


@given(st.lists(NAME, min_size=1, max_size=4))
def test_every_list_of_names_can_be_written(names: list[str]) -> None:
    """With a backslash in front of a comma or a backslash."""
    escaped = [name.replace("\\", "\\\\").replace(",", "\\,") for name in names]
    assert split_names(",".join(escaped)) == names


@given(NAME, st.text(st.sampled_from("a,=\\b")))
def test_every_pair_can_be_written(name: str, value: str) -> None:
    """The value stands as it is."""
    escaped = name.replace("\\", "\\\\").replace("=", "\\=")
    assert split_pair(f"{escaped}={value}") == (name, value)


def test_a_backslash_before_another_character_is_itself() -> None:
    """Nobody has to know of it who does not need it."""
    assert split_names("a\\b,c\\") == ["a\\b", "c\\"]
    assert split_pair("a\\b=c\\=d") == ("a\\b", "c\\=d")


def test_an_empty_line_is_one_empty_name() -> None:
    """Whoever asked is told that a name is empty."""
    assert split_names("") == [""]
    assert split_names("a,") == ["a", ""]


@pytest.mark.parametrize("text", ["", "a", "=b", "a\\=b"])
def test_what_is_no_pair_is_none(text: str) -> None:
    """Without a name, or without a sign that separates."""
    assert split_pair(text) is None
