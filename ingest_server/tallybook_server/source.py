"""
The source: the SQL that reads what was selected, as one table of events.

Its columns are dimension, tenant, "time", scale, "value", entry, "index", and what else is
asked for. One that its reader does not name costs nothing: DuckDB does not read it.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import duckdb

from tallybook_server.arrow import numbers, rows
from tallybook_server.question import TagFilter
from tallybook_server.segment import Segment, quoted, tag_value
from tallybook_server.selection import Needs, Selection, Unsealed

__all__ = ["Number", "Source", "Values", "files", "passes"]

Number = Literal["none", "narrow", "wide", "any"]
"""
Which values are read, as mantissas.

``none``: none, "value" is not there. ``narrow``: those of 63 bits; in place of the others is
0 or NULL. ``wide``: the others, as HUGEINT; only their events are read. ``any``: all, as
HUGEINT wherever there may be a wide one.
"""

_Tag = Callable[[str], str]  # Says how the value of a tag key is written in SQL.


class Values:
    """The values of an SQL text: it holds their numbers, never themselves."""

    def __init__(self) -> None:
        self.list: list[Any] = []

    def __call__(self, value: object) -> str:
        """*value* as a parameter in SQL. DuckDB refuses one that the SQL does not use."""
        self.list.append(value)
        return f"${len(self.list)}"


def files(directory: Path, segments: Sequence[Segment]) -> str:
    """The SQL that reads *segments*, by column name."""
    # Names are the engine's own, digits and a dash; the directory is the operator's.
    names = ", ".join(quoted(str(directory / segment.name)) for segment in segments)
    return f"read_parquet([{names}], union_by_name = true)"


class Source(NamedTuple):
    """
    What is read of the events.

    Attributes:
        selection: From where.
        directory: Of the segments.
        tags: The values of these, as ``g0``, ``g1`` ...
        number: Which values.
        series: Whether there is ``series``: all tags as one text, the same for equal tags.
        voided: Read only events that were taken back, instead of only the others.
    """

    selection: Selection
    directory: Path
    tags: tuple[str, ...] = ()
    number: Number = "none"
    series: bool = False
    voided: bool = False

    def register(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Hand *cursor* what the SQL refers to, beside tables and files."""
        voided = self.selection.voided
        if voided:
            names = ("entry", "first", "last")
            columns = {
                name: numbers(array("q", [run[at] for run in voided]))
                for at, name in enumerate(names)
            }
            cursor.register("voids", rows(columns))

    def sql(self, values: Values) -> str | None:
        """The SELECTs, with their parameters in *values*; None: there is nothing to be read."""
        return " UNION ALL ".join((*self._sealed(values), *self._unsealed(values))) or None

    def _sealed(self, values: Values) -> Iterator[str]:
        """One SELECT per group of segments that one SELECT can read."""
        alike: defaultdict[tuple[object, ...], list[Segment]] = defaultdict(list)
        needs: dict[tuple[object, ...], Needs] = {}
        for segment, needed in self.selection.sealed:
            if self._reads(needed, wides=segment.wides > 0):
                kind = (needed, *self._shape(segment))
                alike[kind].append(segment)
                needs[kind] = needed
        for kind, segments in alike.items():
            yield self._of_segments(segments, needs[kind], values)

    def _shape(self, segment: Segment) -> tuple[object, ...]:
        """What of *segment* shows in its SELECT."""
        keys = (*self.tags, *(one.key for one in self.selection.scope.filters))
        return (
            *(tag_value(key, segment, str) for key in keys),
            self.number == "any" and segment.wides > 0,
            (segment.tags, segment.more) if self.series else None,
        )

    def _of_segments(self, segments: list[Segment], needs: Needs, values: Values) -> str:
        one = segments[0]

        def tag(key: str) -> str:
            return tag_value(key, one, values)

        columns = f"{self._number('e.wide', wides=one.wides > 0)}{self._groups(tag)}"
        if self.series:
            columns += f", {_series_of_columns(one, values)} AS series"
        conditions = [*self._of_user(needs, values), *self._of_tags(tag, values)]
        conditions += self._of_event(needs, values)
        if self.number == "wide":
            conditions.append("e.wide IS NOT NULL")
        return (
            f'SELECT e.dimension, e.tenant, e."time", e.scale, e.entry, e."index"{columns} '
            f"FROM {files(self.directory, segments)} AS e {self._join_voids(needs)}"
            f"WHERE {_all(conditions)}"
        )

    def _unsealed(self, values: Values) -> Iterator[str]:
        """One SELECT per generation."""
        for part in self.selection.unsealed:
            if self._reads(part.needs, wides=part.wides):
                yield self._of_generation(part, values)

    def _reads(self, needs: Needs, *, wides: bool) -> bool:
        """Whether a part can have any of the events that are wanted."""
        return (needs.voids or not self.voided) and (wides or self.number != "wide")

    def _of_generation(self, part: Unsealed, values: Values) -> str:
        number, _, needs = part
        table = f"wides_{number}" if self.number == "wide" else f"events_{number}"
        wide, join = "e.wide", ""
        if self.number == "any" and part.wides:
            wide = "w.wide"
            join = f'LEFT JOIN wides_{number} AS w ON w.entry = e.entry AND w."index" = e."index" '
        columns = self._number(wide, wides=part.wides)
        columns += "".join(f", t.g{at}" for at in range(len(self.tags)))
        columns += ", t.series" if self.series else ""
        # Users and tagsets are few; what is asked of them is asked once of each.
        users = (
            f"(SELECT number, dimension, tenant FROM users_{number} AS e "
            f"WHERE {_all(self._of_user(needs, values))})"
        )
        return (
            f'SELECT u.dimension, u.tenant, e."time", e.scale, e.entry, e."index"{columns} '
            f"FROM {table} AS e JOIN {users} AS u ON u.number = e.of_user "
            f"{self._join_tagsets(number, values)}{join}{self._join_voids(needs)}"
            f"WHERE {_all(self._of_event(needs, values))}"
        )

    def _join_tagsets(self, number: int, values: Values) -> str:
        """The join that brings and chooses the tags, if any are asked for."""

        def tag(key: str) -> str:
            return f"tags[{values(key)}]"

        if not (self.tags or self.selection.scope.filters or self.series):
            return ""
        series = f", {_SERIES_OF_MAP.format('tags')} AS series" if self.series else ""
        return (
            f"JOIN (SELECT number{self._groups(tag)}{series} FROM tagsets_{number} "
            f"WHERE {_all(self._of_tags(tag, values))}) AS t ON t.number = e.of_tagset "
        )

    def _join_voids(self, needs: Needs) -> str:
        if not needs.voids:
            return ""
        return (
            f"{'SEMI' if self.voided else 'ANTI'} JOIN voids ON voids.entry = e.entry "
            'AND e."index" >= voids.first AND e."index" <= voids.last '
        )

    # -- columns and conditions ------------------------------------------------------------

    def _number(self, wide: str, *, wides: bool) -> str:
        if self.number == "none":
            return ""
        if self.number == "wide":
            return f', {wide}::HUGEINT AS "value"'
        if self.number == "any" and wides:
            # Where a value is wide, the other column has 0 in the tail and NULL in a segment.
            return f', coalesce({wide}::HUGEINT, e."value") AS "value"'
        return ', e."value"'

    def _groups(self, tag: _Tag) -> str:
        return "".join(f", {tag(key)} AS g{at}" for at, key in enumerate(self.tags))

    def _of_user(self, needs: Needs, values: Values) -> list[str]:
        scope = self.selection.scope
        conditions: list[str] = []
        if needs.dimension:
            conditions.append(f"e.dimension IN ({', '.join(map(values, scope.dimensions))})")
        if scope.tenants is not None:
            named = [values(tenant) for tenant in scope.tenants if tenant is not None]
            tests = [f"e.tenant IN ({', '.join(named)})"] if named else []
            tests += ["e.tenant IS NULL"] if None in scope.tenants else []
            conditions.append(_any(tests))
        return conditions

    def _of_tags(self, tag: _Tag, values: Values) -> list[str]:
        return [passes(tag(one.key), one, values) for one in self.selection.scope.filters]

    def _of_event(self, needs: Needs, values: Values) -> list[str]:
        scope = self.selection.scope
        conditions: list[str] = []
        if needs.start and scope.start is not None:
            conditions.append(f'e."time" >= {values(scope.start)}')
        if needs.end and scope.end is not None:
            conditions.append(f'e."time" < {values(scope.end)}')
        if needs.entry:
            conditions.append(f"e.entry <= {values(scope.position)}")
        return conditions


def passes(text: str, one: TagFilter, values: Values) -> str:
    """The SQL for whether the tag's value *text* passes a filter."""
    match one.test:
        case "exists":
            return f"{text} IS NOT NULL"
        case "absent":
            return f"{text} IS NULL"
        case "prefix":
            return _any([f"starts_with({text}, {values(prefix)})" for prefix in one.values])
        case "in":
            return f"{text} IN ({', '.join(map(values, one.values))})"
        case "not_in":
            return f"({text} IS NULL OR {text} NOT IN ({', '.join(map(values, one.values))}))"


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions) or "true"


def _any(conditions: Sequence[str]) -> str:
    return f"({' OR '.join(conditions)})" if conditions else "false"


# -- series --------------------------------------------------------------------------------

# Neither a key nor a value has control characters, so two of these keep them apart. Sorted
# by key, the same tags make the same text wherever they lie.
_SERIES_OF_MAP: Final = (
    "array_to_string(list_sort(list_transform(map_entries({}), "
    "lambda one: one.key || chr(1) || one.value)), chr(2))"
)


def _series_of_columns(segment: Segment, values: Values) -> str:
    """The SQL for all tags of a row of *segment* as one text."""
    tags = [
        f"{values(key)} || chr(1) || {tag_value(key, segment, values)}"
        for key in sorted(segment.tags)
    ]
    if not segment.more:
        return f"concat_ws(chr(2), {', '.join(tags)})" if tags else "''"
    more = "map_entries(coalesce(e.more_tags, MAP {}))"
    # A list of nothing but NULL makes no text at all, where an empty one makes an empty text.
    return (
        f"coalesce(array_to_string(list_sort(list_concat([{', '.join(tags)}]::VARCHAR[], "
        f"list_transform({more}, lambda one: one.key || chr(1) || one.value))), chr(2)), '')"
    )
