"""
Which entries can hold the events of a search, as far as the journal knows it.

Of producer and source, an event's row says nothing: its entry does. Keys and ids are rows
of the journal, too, and there one is found by a look into an index, where the segments
would have to be read from end to end.

The journal is asked in steps, because ingest waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from tallybook_server.entry import read_entry
from tallybook_server.event_filter import EventFilter
from tallybook_server.journal import Journal
from tallybook_server.limits import SEARCH_ENTRIES, SEARCH_ENTRIES_AT_ONCE, SEARCH_SCOPES

__all__ = ["candidates", "needs_journal"]

Read = Callable[[Callable[[Journal], Any]], Any]
"""Calls a function with the journal, where the journal may be used."""


def needs_journal(chosen: EventFilter) -> bool:
    """Whether the journal has to be asked for entries."""
    return any(
        wanted is not None for wanted in (chosen.producer, chosen.sources, chosen.key, chosen.id)
    )


def candidates(
    read: Read, chosen: EventFilter, ranges: Iterable[tuple[int, int]]
) -> Iterator[list[int]]:
    """
    The entries that can hold what is asked for; rising, some at a time.

    Args:
        read: Asks the journal.
        chosen: What is asked for; `needs_journal` is true of it.
        ranges: The first and the last entries to look at, rising, not overlapping.
    """
    known = _known(read, chosen)
    for first, last in ranges:
        if known is None:
            yield from _walk(read, chosen, first, last)
        else:
            yield _fit(read, chosen, [one for one in known if first <= one <= last])


def _known(read: Read, chosen: EventFilter) -> list[int] | None:
    """All that an index names, rising; None: there are too many, or no index knows them."""
    if chosen.id is not None:
        return _claimed(read, chosen.id, by_id=True)
    if chosen.key is not None:
        return _claimed(read, chosen.key, by_id=False)
    if chosen.producer is None:
        return None
    producer = bytes.fromhex(chosen.producer)
    found: list[int] = read(lambda journal: journal.blocks_of(producer, SEARCH_ENTRIES + 1))
    # A producer with many blocks has some within a few steps, wherever one looks.
    return sorted(found) if len(found) <= SEARCH_ENTRIES else None


def _claimed(read: Read, key: str, *, by_id: bool) -> list[int]:
    """The entries with an event that has taken this key or id, in whatever source."""
    found: set[int] = set()
    begin = ("", "")  # In front of all: nobody takes a key without a source.
    while True:
        scopes: list[tuple[str, str]] = read(partial(_scopes, begin=begin))
        if not scopes:
            return sorted(found)
        fit = [(source, scope) for source, scope in scopes if (scope == "") is by_id]
        found.update(read(partial(_positions, scopes=fit, key=key)))
        begin = scopes[-1]


def _scopes(journal: Journal, begin: tuple[str, str]) -> list[tuple[str, str]]:
    return journal.scopes_after(*begin, SEARCH_SCOPES)


def _positions(journal: Journal, scopes: Iterable[tuple[str, str]], key: str) -> list[int]:
    taken = (journal.identity(source, scope, key) for source, scope in scopes)
    return [identity.position for identity in taken if identity is not None]


def _fit(read: Read, chosen: EventFilter, positions: list[int]) -> list[int]:
    """Those of *positions* whose entries are from the right producer and source."""
    if chosen.producer is None and chosen.sources is None:
        return positions
    fit: list[int] = []
    for at in range(0, len(positions), SEARCH_ENTRIES):
        some = positions[at : at + SEARCH_ENTRIES]
        fit += read(partial(_fitting_of, chosen=chosen, positions=some))
    return fit


def _fitting_of(journal: Journal, chosen: EventFilter, positions: list[int]) -> list[int]:
    return [one for one in positions if _fits(chosen, journal.entry(one).detail)]


def _walk(read: Read, chosen: EventFilter, first: int, last: int) -> Iterator[list[int]]:
    found: list[int] = []
    position = first - 1
    while position < last:
        step = min(SEARCH_ENTRIES, last - position)
        found += read(partial(_fitting, chosen=chosen, after=position, limit=step))
        position += step
        if len(found) > SEARCH_ENTRIES_AT_ONCE:
            yield found
            found = []
    yield found


def _fitting(journal: Journal, chosen: EventFilter, after: int, limit: int) -> list[int]:
    producer = None if chosen.producer is None else bytes.fromhex(chosen.producer)
    return [
        position
        for position, data, _, (its_producer, _, _) in journal.entry_page(after, limit)
        if its_producer is not None
        and producer in (None, its_producer)
        and (chosen.sources is None or _fits(chosen, read_entry(data).detail))
    ]


def _fits(chosen: EventFilter, detail: list[Any]) -> bool:
    """Whether a block's entry with this *detail* is from the right producer and source."""
    return (chosen.producer is None or chosen.producer == detail[0].hex()) and (
        chosen.sources is None or detail[4] in chosen.sources
    )
