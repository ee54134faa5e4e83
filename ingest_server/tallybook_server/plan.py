"""
The plan of an answer: which dimensions are computed how, in which windows. Pure.

Every window is computed by the rule that its dimension has where the window begins. What
is computed alike, in the same windows, is one *pass* over the events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tallybook_server.catalogue import (
    OVERRIDES,
    Catalogue,
    Declaration,
    RuleChanges,
    UnfitAggregation,
)
from tallybook_server.question import (
    Aggregation,
    AppliedRule,
    UnanswerableQuestion,
    UsageQuery,
    read_percentile,
)
from tallybook_server.tiling import Tiling

__all__ = ["How", "Pass", "Plan", "plan"]


class How(NamedTuple):
    """
    How rows are computed.

    Attributes:
        aggregation: What is applied.
        unique_of: With ``unique``: the tag; None: the value.
        percentile: With ``percentile``: which, in decimal text.
        unit: Of what: two units in one sum are a change of the rule.
    """

    aggregation: Aggregation
    unique_of: str | None = None
    percentile: str | None = None
    unit: str = ""

    def __str__(self) -> str:
        text: str = self.aggregation
        if self.aggregation == "unique":
            text += f" of {self.unique_of or 'the value'}"
        if self.aggregation == "percentile":
            text += f" {self.percentile}"
        return f"{text} in {self.unit}" if self.unit else text


class Pass(NamedTuple):
    """
    What is computed at once.

    Attributes:
        how: By which rule; its unit is left out, as it changes no figure.
        dimensions: Of which dimensions.
        first: In which windows: from this number on.
        behind: The number behind the last one.
    """

    how: How
    dimensions: tuple[str, ...]
    first: int
    behind: int


class Plan(NamedTuple):
    """
    How a question is answered.

    Attributes:
        passes: Each window of each dimension is in exactly one of them.
        rules: The same, told per dimension.
    """

    passes: list[Pass]
    rules: list[AppliedRule]


def plan(query: UsageQuery, tiling: Tiling, catalogue: Catalogue, position: int) -> Plan:
    """
    How *query* is answered, by the *catalogue* as it was at *position*.

    Raises:
        UnfitAggregation: What is asked for says nothing about a dimension.
        RuleChanges: A rule changes within a window.
        UnanswerableQuestion: A percentile without a p, or a level without an end.
    """
    together: defaultdict[tuple[How, int, int], list[str]] = defaultdict(list)
    rules: list[AppliedRule] = []
    for dimension in query.dimensions:
        for start, how, first, behind in _stretches(query, tiling, catalogue, position, dimension):
            _check_answerable(query, dimension, how)
            rules.append(
                AppliedRule(
                    dimension, how.unit, how.aggregation, how.unique_of, how.percentile, start
                )
            )
            if behind > first:
                together[how._replace(unit=""), first, behind].append(dimension)
    passes = [
        Pass(how, tuple(dimensions), first, behind)
        for (how, first, behind), dimensions in together.items()
    ]
    return Plan(passes, rules)


def _stretches(
    query: UsageQuery, tiling: Tiling, catalogue: Catalogue, position: int, dimension: str
) -> Iterator[tuple[int | None, How, int, int]]:
    """From when on, how, first window and window behind the last, per change of the rule."""
    rules = _in_force(catalogue.rules(dimension, position), tiling)
    first, start, how = 0, None, _how(query, rules[0])
    for rule in rules[1:]:
        then = _how(query, rule)
        if rule.start is None or not _differ(query, how, then):
            continue
        begins = tiling.beginning(rule.start)
        if begins is None:
            raise RuleChanges(dimension, rule.start, str(how), str(then))
        yield start, how, first, begins
        first, start, how = begins, rule.start, then
    yield start, how, first, tiling.count


def _differ(query: UsageQuery, how: How, then: How) -> bool:
    # Who names an aggregation has said what to do with the numbers, whatever they count.
    return how != (then if query.aggregation is None else then._replace(unit=how.unit))


def _in_force(rules: Sequence[Declaration], tiling: Tiling) -> list[Declaration]:
    """The rules that hold somewhere in the time asked about, the first from its beginning."""
    found: list[Declaration] = []
    for rule in rules:
        if rule.start is None or (tiling.start is not None and rule.start <= tiling.start):
            found = [rule]
        elif tiling.end is None or rule.start < tiling.end:
            found.append(rule)
    return found


def _how(query: UsageQuery, rule: Declaration) -> How:
    """What *query* makes of *rule*."""
    asked = query.aggregation
    if asked is not None and asked not in OVERRIDES[rule.aggregation]:
        fit = ", ".join(OVERRIDES[rule.aggregation])
        raise UnfitAggregation(
            f"{rule.name!r} is declared as {rule.aggregation}, of which {asked} says nothing; "
            f"expected one of {fit}",
            rule.name,
            rule.aggregation,
            asked,
        )
    aggregation = asked or rule.aggregation
    # Who names `unique` and no tag means the value, whatever is declared.
    declared = rule.unique_of if asked is None else None
    return How(
        aggregation,
        query.unique_of or declared if aggregation == "unique" else None,
        query.percentile or rule.percentile if aggregation == "percentile" else None,
        rule.unit,
    )


def _check_answerable(query: UsageQuery, dimension: str, how: How) -> None:
    if how.aggregation == "percentile":
        if how.percentile is None:
            raise UnanswerableQuestion(
                "percentile",
                f"a percentile of {dimension!r} needs to know which; expected a number above 0 "
                'and at most 100, such as "99.9"',
            )
        read_percentile(how.percentile)
    if how.aggregation == "time_weighted" and query.end is None:
        raise UnanswerableQuestion(
            "end",
            f"{dimension!r} is weighted by time: its last level holds until the end; expected "
            "an end",
        )
