"""
Query parameters, read strictly: none is unknown, none is repeated in vain, all is UTF-8.

A misspelt filter that is passed over would answer another question than the one that was
asked, and an invoice would be sent from the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl

from tallybook.errors import InvalidEvent
from tallybook_server.event_filter import INDEX_MAX, POSITION_MAX, Place
from tallybook_server.limits import PAGE_ROWS, PAGE_ROWS_MAX, QUERY_STRING_BYTES_MAX
from tallybook_server.problems import Problem, nearest
from tallybook_server.rfc3339 import read_rfc3339

__all__ = ["Parameters", "invalid"]

_Word = TypeVar("_Word", bound=str)


def invalid(name: str, detail: str) -> Problem:
    """The problem ``parameter-invalid``, naming the parameter."""
    return Problem("parameter-invalid", detail, more={"parameter": name})


class Parameters:
    """
    The parameters of one question.

    Args:
        query: What stands behind the question mark.
        known: The parameters that exist.
        prefix: What the names of others begin with: ``"tag."``.

    Raises:
        Problem: ``parameter-unknown``, or ``parameter-invalid`` for what cannot be read.
    """

    def __init__(self, query: bytes, known: Collection[str], *, prefix: str | None = None) -> None:
        if len(query) > QUERY_STRING_BYTES_MAX:
            raise Problem(
                "parameter-invalid",
                f"the query has {len(query)} bytes; expected at most {QUERY_STRING_BYTES_MAX}",
            )
        try:
            self._pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
        except UnicodeError:
            raise Problem("parameter-invalid", "the query is not UTF-8, percent-encoded") from None
        for name, _ in self._pairs:
            if name not in known and not (prefix is not None and name.startswith(prefix)):
                hint = nearest(name, known) or f" There are: {', '.join(sorted(known))}."
                raise Problem(
                    "parameter-unknown",
                    f"there is no parameter {name[:60]!r}.{hint}",
                    more={"parameter": name[:60]},
                )

    def all(self, name: str) -> list[str]:
        """Every value of *name*, in order."""
        return [value for found, value in self._pairs if found == name]

    def one(self, name: str) -> str | None:
        """The value of *name*, None if it is absent; twice is a problem."""
        values = self.all(name)
        if len(values) > 1:
            raise invalid(name, f"{name} is given {len(values)} times; expected once")
        return values[0] if values else None

    def required(self, name: str, example: str) -> str:
        """The value of *name*, or the problem ``parameter-missing``."""
        value = self.one(name)
        if value is None:
            raise Problem(
                "parameter-missing",
                f"{name} is missing; expected, for example, {name}={example}",
                more={"parameter": name},
            )
        return value

    def word(self, name: str, words: Sequence[_Word]) -> _Word:
        """One of *words*, the first if absent."""
        value = self.one(name)
        if value is None:
            return words[0]
        for word in words:
            if value == word:
                return word
        raise invalid(
            name,
            f"{name} is {value[:60]!r}; expected one of {', '.join(words)}.{nearest(value, words)}",
        )

    def moment(self, name: str) -> int | None:
        """An RFC 3339 time, in microseconds since 1970 UTC."""
        value = self.one(name)
        if value is None:
            return None
        try:
            return read_rfc3339(value)
        except InvalidEvent as error:
            raise invalid(name, f"{name}: {error}") from None

    def tagged(self, prefix: str) -> list[tuple[str, str]]:
        """The rest of each name that begins with *prefix*, and its value."""
        found = [(k.removeprefix(prefix), v) for k, v in self._pairs if k.startswith(prefix)]
        for name in {name for name, _ in found}:
            self.one(prefix + name)
        return found

    def page(self) -> tuple[Place, int]:
        """
        Where a list goes on, and how many rows are wanted, from ``after`` and ``limit``.

        ``after`` is the cursor of a row, or a position's number: all of later entries.
        """
        limit = self._number("limit", self.one("limit") or str(PAGE_ROWS), PAGE_ROWS_MAX)
        if limit == 0:
            raise invalid("limit", f"limit is 0; expected 1 to {PAGE_ROWS_MAX}")
        return self.place("after") or Place(0, INDEX_MAX), limit

    def place(self, name: str) -> Place | None:
        """
        A cursor, or a position's number, which is the place behind all that it holds.

        None if it is absent.
        """
        text = self.one(name)
        return None if text is None else self.read_place(name, text)

    def read_place(self, name: str, text: str) -> Place:
        """Likewise, from *text* that stands elsewhere, under a *name* for the problem."""
        n, dot, index = text.partition(".")
        position = self._number(name, n, POSITION_MAX)
        return Place(position, self._number(name, index, INDEX_MAX) if dot else INDEX_MAX)

    def _number(self, name: str, text: str, most: int) -> int:
        # Text is compared by length first: Python refuses to read integers of 5,000 digits.
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
            shape = "a whole number" if name == "limit" else "a cursor, or a position's number,"
            raise invalid(name, f"{name} has {text[:40]!r}; expected {shape} of at most {most}")
        return int(text)
