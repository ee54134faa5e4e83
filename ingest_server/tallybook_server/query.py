"""
Questions to a snapshot: from a `UsageQuery` to rows, exactly.

What is asked is planned (`plan`: which dimensions are computed how, in which windows), and
each pass of the plan selects what it has to read (`selection`), reads it grouped (`source`,
`slots`, `reading`), computes a figure per group (`aggregates`, `levels`), and adds the
adjustments (`adjusting`). The figures of all passes are put in order as one (`answer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tallybook.errors import TallybookError
from tallybook_server.adjusting import adjust
from tallybook_server.aggregates import compute
from tallybook_server.answer import fill, page
from tallybook_server.explaining import explain
from tallybook_server.figure import Figures
from tallybook_server.known import check_recorded, undeclared
from tallybook_server.plan import Pass, plan
from tallybook_server.question import AppliedRule, Explanation, UsageQuery, UsageRow
from tallybook_server.reading import Reading
from tallybook_server.selection import Scope, Selection, select
from tallybook_server.snapshot import Snapshot
from tallybook_server.tables import Tables
from tallybook_server.tiling import Tiling, tile

__all__ = ["Answer", "aggregate"]


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What the events and corrections of a snapshot say.

    Attributes:
        rows: One page, in the order asked for.
        rules: How each dimension was computed.
        events: How many events the rows of all pages rest on.
        more: Whether there are rows behind these.
        explanation: If asked for; its seconds are the caller's to fill in.
    """

    rows: list[UsageRow]
    rules: list[AppliedRule]
    events: int
    more: bool
    explanation: Explanation | None


def aggregate(tables: Tables, directory: Path, snapshot: Snapshot, query: UsageQuery) -> Answer:
    """
    What answers *query*, as of ``query.as_of`` or else of *snapshot*.

    Args:
        tables: Where the tail is or will be loaded.
        directory: Of the segments.
        snapshot: Held by the caller, not earlier than ``query.as_of``.
        query: The question; its ``as_of_time`` has been made a position already.

    Raises:
        UnknownDimension: One of the dimensions was never recorded nor declared.
        UnfitAggregation: The aggregation says nothing about one of them.
        RuleChanges: A declaration changes within what would be one row.
        UnanswerableQuestion: The query lacks what it needs.
        TooManyRows: More windows than `WINDOWS_MAX` or groups than `QUERY_GROUPS_MAX`.
        ZoneInfoNotFoundError: No such time zone.
    """
    tables.load(snapshot.tail)
    position = snapshot.position if query.as_of is None else query.as_of.n
    tiling = tile(query)
    doubtful = undeclared(snapshot, position, query.dimensions)
    try:
        passes, rules = plan(query, tiling, snapshot.catalogue, position)
    except TallybookError:
        # Of a dimension that is not there, nothing else is to be said.
        check_recorded(tables, directory, snapshot, position, doubtful)
        raise
    engine = _Engine(tables, directory, snapshot, query, position)
    figures = Figures()
    for one in passes:
        found = engine.compute(one, tiling.part(one.first, one.behind))
        figures.check_room(len(found))
        figures.update(found)
    if doubtful:
        found_of = {dimension for _, dimension, _, _ in figures}
        missing = (name for name in doubtful if name not in found_of)
        check_recorded(tables, directory, snapshot, position, missing)
    if query.fill and query.window != "none":
        fill(figures, query, passes)
    rows, events, more = page(figures, query, tiling)
    return Answer(rows, rules, events, more, engine.explanation() if query.explain else None)


class _Engine:
    """Computes the passes of one question, and remembers what they read."""

    def __init__(
        self,
        tables: Tables,
        directory: Path,
        snapshot: Snapshot,
        query: UsageQuery,
        position: int,
    ) -> None:
        self._tables = tables
        self._directory = directory
        self._snapshot = snapshot
        self._query = query
        self._position = position
        self._selections: list[Selection] = []
        self._adjustments = 0

    def compute(self, one: Pass, tiling: Tiling) -> Figures:
        """The figures of one pass, over the windows of *tiling*."""
        query = self._query
        scope = Scope(
            one.dimensions, query.tenants, query.filters, tiling.start, tiling.end, self._position
        )
        selection, history = self._select(scope), None
        if one.how.aggregation == "time_weighted" and tiling.start is not None:
            # A level is what was reported last, however long ago.
            history = self._select(scope._replace(start=None, end=tiling.start))
        with self._tables.cursor() as cursor:
            reading = Reading(
                cursor, self._directory, selection, tiling, query.by_tenant, query.by_tags, history
            )
            figures = compute(reading, one.how)
        if one.how.aggregation == "sum":
            adjustments = self._snapshot.corrections.at(self._position).adjustments
            self._adjustments += adjust(
                figures,
                adjustments,
                scope,
                tiling,
                by_tenant=query.by_tenant,
                by_tags=query.by_tags,
            )
        if not one.first:
            return figures
        return Figures(((group[0] + one.first, *group[1:]), figures[group]) for group in figures)

    def _select(self, scope: Scope) -> Selection:
        selection = select(self._snapshot, scope, self._tables.has_wides)
        self._selections.append(selection)
        return selection

    def explanation(self) -> Explanation:
        """What was read so far."""
        return explain(
            self._tables,
            self._directory,
            self._snapshot.segments,
            self._selections,
            self._adjustments,
        )
