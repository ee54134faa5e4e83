"""
Server-sent events: what a server says on an answer that does not end.

A block of lines is a message; its id is what to come back with. A block without data moves
the id and says nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Message", "read_messages"]


class Message(NamedTuple):
    """
    One block of a stream.

    Attributes:
        id: The last id that was said, "" before the first.
        data: What is said, or None.
    """

    id: str
    data: str | None


def read_messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """
    The messages of a stream, as they become complete; what is behind the last one is dropped.

    Fields other than id and data mean nothing here. https://html.spec.whatwg.org, section 9.2.
    """
    last_id = ""
    data: list[str] = []
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            yield Message(last_id, "\n".join(data) if data else None)
            data = []
        elif name == "id":
            last_id = value
        elif name == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Not by `str.splitlines`: it also splits at characters that may stand in a text.
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
