"""
The answer: figures put in order, filled up, cut to the best and to a page. Pure.

In this order: empty windows are filled, rows are put in order, the first ones of each window
and dimension are kept, and one page of them is handed out. Texts are ordered by their code
points; whatever made the figures, the same ones make the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple

from tallybook.event import format_value
from tallybook_server.figure import Figure, Figures, Group
from tallybook_server.plan import Pass
from tallybook_server.question import Aggregation, UsageQuery, UsageRow
from tallybook_server.tiling import Tiling

__all__ = ["Page", "fill", "page"]

# Of no events: a sum of nothing is 0, and there is no least of nothing.
_NOTHING: Final[frozenset[Aggregation]] = frozenset(("sum", "count", "unique", "time_weighted"))


_Found = tuple[Group, Figure]


class Page(NamedTuple):
    """
    The rows that are handed out.

    Attributes:
        rows: In the order asked for.
        events: How many events the rows of all pages rest on.
        more: Whether there are rows behind these.
    """

    rows: list[UsageRow]
    events: int
    more: bool


def fill(figures: Figures, query: UsageQuery, passes: list[Pass]) -> None:
    """
    Give each group that has rows a figure in every window, and each ungrouped dimension one.

    Raises:
        TooManyRows: More than `QUERY_GROUPS_MAX` groups.
    """
    grouped = query.by_tenant or query.by_tags
    of: dict[str, set[tuple[str | None, tuple[str | None, ...]]]] = {
        dimension: set() if grouped else {(None, ())} for dimension in query.dimensions
    }
    for _, dimension, tenant, tags in figures:
        of[dimension].add((tenant, tags))
    whole = sum(
        len(of[dimension]) * (one.behind - one.first)
        for one in passes
        for dimension in one.dimensions
    )
    figures.check_room(whole - len(figures))
    for one in passes:
        mantissa = 0 if one.how.aggregation in _NOTHING else None
        for dimension in one.dimensions:
            for tenant, tags in of[dimension]:
                for window in range(one.first, one.behind):
                    group = (window, dimension, tenant, tags)
                    if group not in figures:
                        figures[group] = Figure(mantissa)


def page(figures: Figures, query: UsageQuery, tiling: Tiling) -> Page:
    """The rows of *query*'s page."""
    try:
        found = sorted(figures.items(), key=itemgetter(0))
    except TypeError:  # None beside texts, which is rare; a key for each row is dear.
        found = sorted(figures.items(), key=lambda one: _place(one[0]))
    if query.order != "group":
        found.sort(key=lambda one: _value_place(one[0], one[1], query))
    if query.top is not None:
        found = list(_first(found, query.top))
    events = sum(figure.events for _, figure in found)
    behind = query.skip + query.limit
    rows = _rows(found[query.skip : behind], query.by_tags, tiling)
    return Page(rows, events, len(found) > behind)


def _place(group: Group) -> tuple[object, ...]:
    """As the group itself, where None comes before every text. No tenant is called ""."""
    window, dimension, tenant, tags = group
    return (window, dimension, tenant or "", [(text is not None, text) for text in tags])


def _value_place(group: Group, figure: Figure, query: UsageQuery) -> tuple[int, bool, int]:
    """Within its window by the value; what has none comes last in either direction."""
    rank = -figure.rank if query.order == "-value" else figure.rank
    return group[0], figure.mantissa is None, rank


def _first(found: list[_Found], top: int) -> Iterator[_Found]:
    seen: Counter[tuple[int, str]] = Counter()
    for one in found:
        place = one[0][:2]
        seen[place] += 1
        if seen[place] <= top:
            yield one


def _rows(found: list[_Found], keys: tuple[str, ...], tiling: Tiling) -> list[UsageRow]:
    bounds = [tiling.bounds(number) for number in range(tiling.count)]
    rows: list[UsageRow] = []
    # Rows are many: what is done to each of them is spelled out, and they are made without
    # NamedTuple's own constructor, a Python function that takes twice the time.
    new: Callable[[type[UsageRow], tuple[object, ...]], UsageRow]
    new = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    for (window, dimension, tenant, texts), figure in found:
        start, end = bounds[window]
        tags: dict[str, str] = {}
        if keys:
            tags = {key: text for key, text in zip(keys, texts, strict=True) if text is not None}
        value = None if figure.mantissa is None else format_value(figure.mantissa, figure.scale)
        row = (start, end, dimension, tenant, tags, value, figure.events, figure.adjustments)
        rows.append(new(UsageRow, row))
    return rows
