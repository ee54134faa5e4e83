"""
Names in a line of text: a list of them, or one with its value. Pure.

A tag's key may hold any printable character, those that separate it from others included.
There a backslash says that the next character belongs to the name.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["split_names", "split_pair"]

_LIST_TOKEN: Final = re.compile(r"\\[\\,]|.", re.DOTALL)
_PAIR: Final = re.compile(r"((?:\\[\\=]|[^\\=]|\\(?![\\=]))+)=(.*)", re.DOTALL)
_PAIR_ESCAPE: Final = re.compile(r"\\([\\=])")


def split_names(text: str) -> list[str]:
    """
    *text*, cut at its commas.

    ``\\,`` is a comma within a name, ``\\\\`` a backslash; any other backslash is itself.
    """
    names, name = list[str](), ""
    for token in _LIST_TOKEN.findall(text):
        if token == ",":
            names.append(name)
            name = ""
        else:
            name += token[-1]
    return [*names, name]


def split_pair(text: str) -> tuple[str, str] | None:
    """
    *text*, cut at its first equals sign; None if there is none, or nothing in front of it.

    ``\\=`` is an equals sign within the name, ``\\\\`` a backslash; any other backslash is
    itself, and so is everything behind the cut.
    """
    match = _PAIR.fullmatch(text)
    return None if match is None else (_PAIR_ESCAPE.sub(r"\1", match[1]), match[2])
