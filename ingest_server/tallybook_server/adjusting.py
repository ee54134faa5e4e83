"""
Adjusting: the signed quantities that belong to sums, beside the events. Pure.

An adjustment obeys what an event obeys: dimension, tenants, time, windows, filters and
groups. It is no event, so it is counted apart, and nothing but a sum has any.
"""

from __future__ import annotations

from collections.abc import Iterable

from tallybook.limits import VALUE_DECIMALS_MAX
from tallybook_server.correction import Adjustment
from tallybook_server.figure import Figures, billionths
from tallybook_server.question import TagFilter
from tallybook_server.selection import Scope
from tallybook_server.tiling import Tiling

__all__ = ["adjust"]


def adjust(
    figures: Figures,
    adjustments: Iterable[Adjustment],
    scope: Scope,
    tiling: Tiling,
    *,
    by_tenant: bool,
    by_tags: tuple[str, ...],
) -> int:
    """
    Add the *adjustments* that *scope* covers to the sums of their groups.

    Args:
        figures: Of sums; a group that has no events gets one.
        adjustments: Those in force.
        scope: What is asked about.
        tiling: The windows.
        by_tenant: As the figures are grouped.
        by_tags: Likewise.

    Returns:
        How many applied.

    Raises:
        TooManyRows: More than `QUERY_GROUPS_MAX` groups.
    """
    applied = 0
    for one in adjustments:
        window = tiling.at(one.time)
        if window is None or not _covers(scope, one):
            continue
        tenant = one.tenant if by_tenant else None
        group = (window, one.dimension, tenant, tuple(map(one.tags.get, by_tags)))
        figure = figures.of(group, VALUE_DECIMALS_MAX)
        figure.mantissa = (figure.mantissa or 0) + billionths(*one.value)
        figure.adjustments += 1
        applied += 1
    return applied


def _covers(scope: Scope, one: Adjustment) -> bool:
    return (
        one.dimension in scope.dimensions
        and (scope.tenants is None or one.tenant in scope.tenants)
        and all(_passes(one.tags.get(test.key), test) for test in scope.filters)
    )


def _passes(text: str | None, test: TagFilter) -> bool:
    match test.test:
        case "exists":
            return text is not None
        case "absent":
            return text is None
        case "prefix":
            return text is not None and text.startswith(test.values)
        case "in":
            return text in test.values
        case "not_in":
            return text not in test.values
