"""
A reading: one SELECT over the events of a pass, grouped as the question asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb

from tallybook.limits import VALUE_DECIMALS_MAX
from tallybook_server.figure import Group
from tallybook_server.limits import QUERY_GROUPS_MAX
from tallybook_server.selection import Selection
from tallybook_server.slots import Windows
from tallybook_server.source import Number, Source, Values
from tallybook_server.tiling import Tiling

__all__ = ["Reading"]

_ROWS_AT_ONCE: Final = 10_000
_SCALES: Final = VALUE_DECIMALS_MAX + 1


class Reading(NamedTuple):
    """
    The events of a pass, and how they are grouped.

    Attributes:
        cursor: For this reading alone.
        directory: Of the segments.
        selection: Where the events are.
        tiling: The windows of the pass.
        by_tenant: One group per tenant.
        by_tags: One group per combination of these tags' values.
        history: Where the events before the tiling are, for who needs them.
    """

    cursor: duckdb.DuckDBPyConnection
    directory: Path
    selection: Selection
    tiling: Tiling
    by_tenant: bool
    by_tags: tuple[str, ...]
    history: Selection | None = None

    @property
    def names(self) -> str:
        """The columns of a group."""
        return ", ".join(("w", "d", "t", *(f"g{at}" for at in range(len(self.by_tags)))))

    def events(
        self,
        values: Values,
        *,
        number: Number = "none",
        extra: tuple[str, ...] = (),
        series: bool = False,
        selection: Selection | None = None,
    ) -> str | None:
        """
        The SQL of the events, as `Source` reads them; None: there is nothing to be read.

        Args:
            values: Gets the parameters.
            number: Which values.
            extra: Tags beside those that are grouped by; their columns come behind.
            series: Whether the series is wanted.
            selection: Where the events are, if not within the tiling.
        """
        tags = (*self.by_tags, *extra)
        where = selection or self.selection
        source = Source(where, self.directory, tags, number=number, series=series)
        source.register(self.cursor)
        return source.sql(values)

    def grouped(
        self, columns: str, events: str | None, values: Values, *, time: str = '"time"'
    ) -> str | None:
        """
        The SQL of *columns* per group; None: there is nothing to be read.

        Args:
            columns: In SQL, over the columns of *events*; what is no aggregate splits groups.
            events: What `events` made, or None.
            values: Gets the parameters.
            time: The column that says in which window a row is.
        """
        if events is None:
            return None
        windows = Windows(self.tiling)
        windows.register(self.cursor)
        window, join = windows.join(f"event.{time}", values)
        dimensions = self.selection.scope.dimensions
        dimension = f"{values(dimensions[0])}::VARCHAR" if len(dimensions) == 1 else "dimension"
        tenant = "tenant" if self.by_tenant else "NULL::VARCHAR"
        tags = "".join(f", g{at}" for at in range(len(self.by_tags)))
        return (
            f"SELECT {window} AS w, {dimension} AS d, {tenant} AS t{tags}, {columns} "
            f"FROM ({events}) AS event {join} GROUP BY ALL "
            "HAVING count(*) > 0"  # Where nothing splits it, no events would be a group, too.
        )

    def rows(self, sql: str | None, values: Values) -> Iterator[tuple[Group, tuple[Any, ...]]]:
        """Per row of *sql*, its group and its further columns."""
        if sql is None:
            return
        # A group has at most a row per scale and sign. The guard keeps what nobody could be
        # answered from becoming rows of Python.
        most = QUERY_GROUPS_MAX * _SCALES * 2
        self.cursor.execute(f"{sql} LIMIT {most}", values.list)
        behind = 3 + len(self.by_tags)
        while found := self.cursor.fetchmany(_ROWS_AT_ONCE):
            for row in found:
                yield (row[0], row[1], row[2], row[3:behind]), row[behind:]

    def ask(
        self, columns: str, *, number: Number = "none"
    ) -> Iterator[tuple[Group, tuple[Any, ...]]]:
        """Per group of events, *columns*."""
        values = Values()
        events = self.events(values, number=number)
        return self.rows(self.grouped(columns, events, values), values)
