"""
An `EventFilter` as SQL conditions. A value is a parameter, never a part of the text.

What is asked of dimension and tenant, of tags, of the event itself and of its identity is
kept apart, because the tail has these in different tables; a segment has them in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tallybook_server.event_filter import INDEX_MAX, EventFilter
from tallybook_server.segment import Segment
from tallybook_server.source import Values, passes

__all__ = ["can_hold", "of_event", "of_identity", "of_tags", "of_user", "range_of"]

CHOSEN: Final = "chosen_entries"
"""The relation with the entries that are looked at, where the journal has chosen some."""


def of_user(chosen: EventFilter, values: Values) -> list[str]:
    """What is asked of dimension and tenant."""
    return [
        *_one_of("dimension", chosen.dimensions, values),
        *_one_of("tenant", chosen.tenants, values),
    ]


def of_tags(chosen: EventFilter, tag: Callable[[str], str], values: Values) -> list[str]:
    """What is asked of the tags; *tag* writes the value of a key."""
    return [passes(tag(one.key), one, values) for one in chosen.tags]


def of_event(
    chosen: EventFilter, after: tuple[int, int], values: Values, *, entries: bool
) -> list[str]:
    """What is asked of place and time; *entries*: only those that the journal has chosen."""
    conditions = [_beyond(after, values, ">")]
    if chosen.upto is not None:
        conditions.append(_beyond(chosen.upto, values, "<", equal=True))
    if chosen.start is not None:
        conditions.append(f'e."time" >= {values(chosen.start)}')
    if chosen.end is not None:
        conditions.append(f'e."time" < {values(chosen.end)}')
    if entries:
        conditions.append(f"e.entry IN (SELECT entry FROM {CHOSEN})")
    return conditions


def of_identity(chosen: EventFilter, values: Values, *, keyed: bool) -> list[str]:
    """What is asked of key and id; *keyed*: that there is one."""
    conditions = ['("key" IS NOT NULL OR id IS NOT NULL)'] if keyed else []
    if chosen.key is not None:
        conditions.append(f'"key" = {values(chosen.key)}')
    if chosen.id is not None:
        conditions.append(f"id = {values(chosen.id)}")
    return conditions


def _beyond(place: tuple[int, int], values: Values, sign: str, *, equal: bool = False) -> str:
    entry, same, index = values(place[0]), values(place[0]), values(place[1])
    or_equal = "=" if equal else ""
    # The first half alone is what row groups and blocks of rows can be skipped by.
    return (
        f'(e.entry {sign}= {entry} AND (e.entry <> {same} OR e."index" {sign}{or_equal} {index}))'
    )


def _one_of(column: str, wanted: Sequence[str | None] | None, values: Values) -> list[str]:
    if wanted is None:
        return []
    texts = [text for text in wanted if text is not None]
    either = [f"{column} IN ({', '.join(map(values, texts))})"] if texts else []
    if None in wanted:
        either.append(f"{column} IS NULL")
    return [f"({' OR '.join(either)})"] if either else ["false"]


# -- what need not be read -----------------------------------------------------------------


def range_of(chosen: EventFilter, after: tuple[int, int], head: int) -> tuple[int, int]:
    """The first and the last entry that can hold what is asked for."""
    # A position alone is the place behind all events of its entry.
    first = after[0] if after[1] < INDEX_MAX else after[0] + 1
    return first, head if chosen.upto is None else min(head, chosen.upto.position)


def can_hold(segment: Segment, chosen: EventFilter, first: int, last: int) -> bool:
    """Whether *segment* can hold what is asked for, in the entries *first* to *last*."""
    if segment.time_min is None or segment.time_max is None:
        return False
    if segment.last < first or segment.first > last:
        return False
    if chosen.start is not None and segment.time_max < chosen.start:
        return False
    if chosen.end is not None and segment.time_min >= chosen.end:
        return False
    if chosen.dimensions is not None and not set(chosen.dimensions) & set(segment.dimensions):
        return False
    return all(
        one.key in segment.tags or one.key in segment.more
        for one in chosen.tags
        if one.test in ("in", "exists", "prefix")
    )
