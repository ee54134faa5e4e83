"""
Query parameters, read strictly: none is unknown, none is repeated in vain, all is UTF-8.

A misspelt filter that is passed over would answer another question than the one that was
asked, and an invoice would be sent from the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from tallybook.errors import InvalidEvent
from tallybook_server.event_filter import INDEX_MAX, POSITION_MAX, Place
from tallybook_server.limits import PAGE_ROWS, PAGE_ROWS_MAX, QUERY_STRING_BYTES_MAX
from tallybook_server.problems import Problem, nearest
from tallybook_server.rfc3339 import read_rfc3339

__all__ = ["Parameters", "invalid", "one_of", "read_moment"]

_Word = TypeVar("_Word", bound=str)
_NUMBER_MAX: Final = 2**31 - 1
_PLACES: Final = ("after", "upto", "Last-Event-ID")
"""What has a cursor; every other number is one."""


def invalid(name: str, detail: str) -> Problem:
    """The problem ``parameter-invalid``, naming the parameter."""
    return Problem("parameter-invalid", detail, more={"parameter": name})


def one_of(name: str, value: str, words: Sequence[_Word]) -> _Word:
    """The one of *words* that *value* is, or the problem ``parameter-invalid``."""
    for word in words:
        if value == word:
            return word
    raise invalid(
        name,
        f"{name} is {value[:60]!r}; expected one of {', '.join(words)}.{nearest(value, words)}",
    )


def read_moment(name: str, text: str) -> int:
    """The RFC 3339 time *text* in microseconds since 1970 UTC, or ``parameter-invalid``."""
    try:
        return read_rfc3339(text)
    except InvalidEvent as error:
        raise invalid(name, f"{name}: {error}") from None


class Parameters:
    """
    The parameters of one question.

    Args:
        query: What stands behind the question mark.
        known: The parameters that exist.
        prefixes: What the names of others begin with: ``"tag."``.

    Raises:
        Problem: ``parameter-unknown``, or ``parameter-invalid`` for what cannot be read.
    """

    def __init__(
        self, query: bytes, known: Collection[str], *, prefixes: Sequence[str] = ()
    ) -> None:
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
            if name not in known and not name.startswith(tuple(prefixes)):
                raise Problem(
                    "parameter-unknown",
                    f"there is no parameter {name[:60]!r}.{_hint(name, known, prefixes)}",
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

    def flag(self, name: str) -> bool | None:
        """``true`` or ``false``, None if it is absent."""
        value = self.one(name)
        return None if value is None else one_of(name, value, ("true", "false")) == "true"

    def number(self, name: str) -> int | None:
        """A whole number from 0 on, None if it is absent."""
        value = self.one(name)
        return None if value is None else self._number(name, value, _NUMBER_MAX)

    def behind(self, prefix: str) -> dict[str, list[str]]:
        """By the rest of each name that begins with *prefix*: every value, in order."""
        found: dict[str, list[str]] = {}
        for name, value in self._pairs:
            if name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), []).append(value)
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
            is_place = name in _PLACES
            shape = "a cursor, or a position's number," if is_place else "a whole number"
            raise invalid(name, f"{name} has {text[:40]!r}; expected {shape} of at most {most}")
        return int(text)


def _hint(name: str, known: Collection[str], prefixes: Sequence[str]) -> str:
    """What *name* may have been meant to be, or what there is."""
    begin, dot, key = name[:60].rpartition(".")
    near = nearest(name, [f"{prefix}{key}" for prefix in prefixes] if dot and begin else known)
    names = [*sorted(known), *(f"{prefix}<key>" for prefix in prefixes)]
    return near or f" There are: {', '.join(names)}."
