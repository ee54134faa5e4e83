"""The journal, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from tallybook_server.journal import Journal
from tallybook_server.ledger import LedgerDamaged

__all__ = ["BEFORE_ALL", "PAGE", "Read", "pages"]

PAGE: Final = 500
"""Rows that are read at one time: a millisecond or two, for which ingest waits."""

BEFORE_ALL: Final = -(1 << 63)
"""In front of every number that SQLite can hold: a damaged row may have any."""

Read = Callable[[Callable[[Journal], Any]], Any]
"""Calls a function with the journal, where the journal may be used."""

Row = TypeVar("Row")
Key = TypeVar("Key", int, tuple[int, int], tuple[bytes, int], tuple[str, str, str])


def pages(
    read: Read,
    fetch: Callable[[Journal, Key, int], list[Row]],
    key_of: Callable[[Row], Key],
    first: Key,
) -> Iterator[tuple[list[Row], int]]:
    """
    Every page of a table, each with the ledger's head at its moment.

    Args:
        read: Asks the journal.
        fetch: Reads at most so many rows behind a key, in the order of keys.
        key_of: A row's key.
        first: In front of every key.

    Raises:
        LedgerDamaged: The rows are not in order; to follow them might never end.
    """
    after = first
    while True:
        rows, head = read(_page(fetch, after))
        if not rows:
            return
        last = key_of(rows[-1])
        if not after < last:
            raise LedgerDamaged(f"rows are not in their order: {last!r} comes behind {after!r}")
        yield rows, head
        after = last


def _page(
    fetch: Callable[[Journal, Key, int], list[Row]], after: Key
) -> Callable[[Journal], tuple[list[Row], int]]:
    def page(journal: Journal) -> tuple[list[Row], int]:
        return fetch(journal, after, PAGE), journal.head.position

    return page
