"""
The answer: figures put in order, filled up, cut to the best and to a page. Pure.

In this order: empty windows are filled, rows are put in order, the first ones of each window
and dimension are kept, and one page of them is handed out. Texts are ordered by their code
points; whatever made the figures, the same ones make the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from tallybook.event import format_value
from tallybook_server.figure import Figure, Figures, Group
from tallybook_server.plan import Pass
from tallybook_server.question import Aggregation, UsageQuery, UsageRow
from tallybook_server.tiling import Tiling

__all__ = ["Page", "fill", "page"]

# Of no events: a sum of nothing is 0, and there is no least of nothing.
_NOTHING: Final[frozenset[Aggregation]] = frozenset(("sum", "count", "unique", "time_weighted"))


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
    groups = sorted(figures, key=_place if query.by_tags else _place_without_tags)
    if query.order != "group":
        groups.sort(key=lambda group: _value_place(group, figures[group], query))
    if query.top is not None:
        groups = list(_first(groups, query.top))
    events = sum(figures[group].events for group in groups)
    behind = query.skip + query.limit
    rows = _rows(groups[query.skip : behind], figures, query.by_tags, tiling)
    return Page(rows, events, len(groups) > behind)


# Rows are many: what is done to each of them is spelled out, and costs 3 us.


def _place_without_tags(group: Group) -> tuple[object, ...]:
    """Window, dimension, tenant; no tenant comes before every one, and none is called ""."""
    return group[0], group[1], group[2] or ""


def _place(group: Group) -> tuple[object, ...]:
    """Likewise, and then by the tags; absent comes before every text."""
    window, dimension, tenant, tags = group
    return (window, dimension, tenant or "", [(text is not None, text) for text in tags])


def _value_place(group: Group, figure: Figure, query: UsageQuery) -> tuple[int, bool, int]:
    """Within its window by the value; what has none comes last in either direction."""
    rank = -figure.rank if query.order == "-value" else figure.rank
    return group[0], figure.mantissa is None, rank


def _first(groups: list[Group], top: int) -> Iterator[Group]:
    seen: Counter[tuple[int, str]] = Counter()
    for group in groups:
        seen[group[:2]] += 1
        if seen[group[:2]] <= top:
            yield group


def _rows(
    groups: list[Group], figures: Figures, keys: tuple[str, ...], tiling: Tiling
) -> list[UsageRow]:
    bounds = [tiling.bounds(number) for number in range(tiling.count)]
    rows: list[UsageRow] = []
    for group in groups:
        window, dimension, tenant, texts = group
        start, end = bounds[window]
        tags = {key: text for key, text in zip(keys, texts, strict=True) if text is not None}
        figure = figures[group]
        value = None if figure.mantissa is None else format_value(figure.mantissa, figure.scale)
        rows.append(
            UsageRow(start, end, dimension, tenant, tags, value, figure.events, figure.adjustments)
        )
    return rows
