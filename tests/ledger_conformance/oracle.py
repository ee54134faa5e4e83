"""
The answer to any question, in the plainest way there is: lists, loops and fractions.

This is what a ledger's answers are compared with, so it has to be believed by reading it. It
shares nothing with the engine but the values that go in and out. It is slow, and knows only
the words of `tallybook_server.question`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from tallybook.errors import TallybookError
from tallybook.event import Event
from tallybook_server.catalogue import (
    OVERRIDES,
    Declaration,
    RuleChanges,
    UnfitAggregation,
    UnknownDimension,
)
from tallybook_server.correction import Adjustment
from tallybook_server.event_filter import EventFilter
from tallybook_server.question import (
    AppliedRule,
    TagFilter,
    UnanswerableQuestion,
    UsageQuery,
    UsageRow,
)
from tests.ledger_conformance.arithmetic import OF_EVENTS, by_series, held, quantity
from tests.ledger_conformance.facts import Counted, Facts, adjustments, standing
from tests.ledger_conformance.wall_clock import edges

FOREVER = 10**20  # Later than any time there is, in microseconds; its opposite is earlier.
DECIMALS = 18
"""Of what is divided. A value has 9, so that what is not divided is never rounded."""


@dataclass(frozen=True)
class Answer:
    """What a ledger has to say: see `Usage`."""

    rows: list[UsageRow]
    rules: list[AppliedRule]
    events: int
    more: bool


class Stretch(NamedTuple):
    """A time in which one rule holds, in microseconds since 1970; half-open."""

    start: int
    end: int
    rule: Declaration


def answer(facts: Facts, query: UsageQuery) -> Answer:
    """
    What a ledger that was told *facts*, and nothing else, has to say to what can be answered.

    What came after `as_of` has been cut off by the caller: see `Facts.at`.
    """
    rows: list[UsageRow] = []
    rules: list[AppliedRule] = []
    for dimension in query.dimensions:
        rules += applied(facts, query, dimension)
        rows += rows_of(facts, query, dimension)
    rows = in_order(rows, query)
    page = rows[query.skip : query.skip + query.limit]
    return Answer(
        rows=page,
        rules=rules,
        events=sum(row.events for row in rows),
        more=len(rows) > query.skip + query.limit,
    )


def refusals(facts: Facts, query: UsageQuery) -> set[type[TallybookError]]:
    """Why there is no answer; each of them is right to be told. None: there is one."""
    found: set[type[TallybookError]] = set()
    start, end = bounds(query)
    beginnings = {begin for begin, _ in cut(query)}
    for dimension in query.dimensions:
        if not facts.knows(dimension):
            found.add(UnknownDimension)
        moments = [start, *changes(facts, dimension, start, end)]
        if query.aggregation is not None and any(
            query.aggregation not in OVERRIDES[facts.rule(dimension, moment).aggregation]
            for moment in moments
        ):
            found.add(UnfitAggregation)
        rules = stretches(facts, query, dimension)
        if not {rule.start for rule in rules[1:]} <= beginnings - {-FOREVER}:
            found.add(RuleChanges)
        for _, _, rule in rules:
            if rule.aggregation == "percentile" and rule.percentile is None:
                found.add(UnanswerableQuestion)
            if rule.aggregation == "time_weighted" and query.end is None:
                found.add(UnanswerableQuestion)
    return found


# -- rules -----------------------------------------------------------------------------------


def rule_at(facts: Facts, query: UsageQuery, dimension: str, time: int) -> Declaration:
    """How usage of that time is computed: as asked for, or else as declared."""
    rule = facts.rule(dimension, time)
    # Who names `unique` and no tag means the value, whatever is declared.
    declared = rule.unique_of if query.aggregation is None else None
    return replace(
        rule,
        aggregation=query.aggregation or rule.aggregation,
        unique_of=query.unique_of or declared,
        percentile=query.percentile or rule.percentile,
    )


def changes(facts: Facts, dimension: str, start: int, end: int) -> list[int]:
    """When declarations begin to hold within (start, end)."""
    starts = {one.start for one in facts.declarations if one.name == dimension}
    return sorted(one for one in starts if one is not None and start < one < end)


def stretches(facts: Facts, query: UsageQuery, dimension: str) -> list[Stretch]:
    """The time that is asked about, cut where another rule begins to hold."""
    start, end = bounds(query)
    cuts = changes(facts, dimension, start, end)
    found: list[Stretch] = []
    for begin, until in zip([start, *cuts], [*cuts, end], strict=True):
        rule = rule_at(facts, query, dimension, begin)
        if found and says(found[-1].rule, query) == says(rule, query):
            found[-1] = found[-1]._replace(end=until)
        else:
            found.append(Stretch(begin, until, rule))
    return found


def says(rule: Declaration, query: UsageQuery) -> tuple[str | None, ...]:
    """
    What is the same in all that may be one row.

    Two units are never added up, unless by somebody who names the aggregation.
    """
    return (
        rule.unit if query.aggregation is None else None,
        rule.aggregation,
        rule.unique_of if rule.aggregation == "unique" else None,
        rule.percentile if rule.aggregation == "percentile" else None,
    )


def applied(facts: Facts, query: UsageQuery, dimension: str) -> list[AppliedRule]:
    """What `Usage.rules` says of a dimension."""
    found = stretches(facts, query, dimension)
    return [
        AppliedRule(
            dimension=dimension,
            unit=rule.unit,
            aggregation=rule.aggregation,
            unique_of=rule.unique_of if rule.aggregation == "unique" else None,
            percentile=rule.percentile if rule.aggregation == "percentile" else None,
            start=start if at else None,
        )
        for at, (start, _, rule) in enumerate(found)
    ]


def bounds(query: UsageQuery) -> tuple[int, int]:
    """The time that is asked about, from before everything to after it where it is open."""
    start = -FOREVER if query.start is None else query.start
    return start, FOREVER if query.end is None else query.end


# -- rows ------------------------------------------------------------------------------------


def rows_of(facts: Facts, query: UsageQuery, dimension: str) -> list[UsageRow]:
    """Every row of one dimension, in no order."""
    events = [one for one in standing(facts) if passes(one.event, dimension, query)]
    signed = [one for one in adjustments(facts) if passes(one, dimension, query)]
    groups = {group_of(one.event, query) for one in events}
    groups |= {group_of(one, query) for one in signed}
    rows: list[UsageRow] = []
    for group in groups:
        mine = [one for one in events if group_of(one.event, query) == group]
        theirs = [one for one in signed if group_of(one, query) == group]
        cells = [
            row_of(mine, theirs, window, group, query)
            for window in windows(facts, query, dimension)
        ]
        found = [row for row, known in cells if known]
        rows += [row for row, _ in cells] if filled(query) and found else found
    if filled(query) and not rows and not query.by_tenant and not query.by_tags:
        nobody: Group = (None, ())
        for window in windows(facts, query, dimension):
            rows.append(row_of([], [], window, nobody, query)[0])
    return rows


def filled(query: UsageQuery) -> bool:
    """Whether windows in which nothing is have rows, too."""
    return query.fill and query.window != "none"


def cut(query: UsageQuery) -> tuple[tuple[int, int], ...]:
    """The windows of the query; none, if no time is asked about."""
    start, end = bounds(query)
    return () if start >= end else edges(start, end, query.window, query.month_day, query.time_zone)


def windows(facts: Facts, query: UsageQuery, dimension: str) -> list[Stretch]:
    """The windows of the query, each with the rule with which it begins."""
    rules = stretches(facts, query, dimension)
    return [
        Stretch(start, end, next(one.rule for one in reversed(rules) if one.start <= start))
        for start, end in cut(query)
    ]


def row_of(
    events: Sequence[Counted],
    signed: Sequence[Adjustment],
    window: Stretch,
    group: Group,
    query: UsageQuery,
) -> tuple[UsageRow, bool]:
    """
    One row, and whether there is anything to say in it.

    Args:
        events: Of the row's dimension and group, at all times.
        signed: Likewise.
        window: Of the row.
        group: Of the row.
        query: The question.
    """
    start, end, rule = window
    inside = [one for one in events if start <= one.event.time < end]
    adjusting: list[Adjustment] = []
    if rule.aggregation == "sum":
        adjusting = [one for one in signed if start <= one.time < end]
        values = [one.event.value for one in inside] + [one.value for one in adjusting]
        value: Fraction | None = sum(map(quantity, values), Fraction())
        known = bool(inside or adjusting)
    elif rule.aggregation == "time_weighted":
        value = sum((held(one, start, end) for one in by_series(events)), Fraction())
        known = any(one.event.time < end for one in events)
    else:
        value = OF_EVENTS[rule.aggregation](inside, rule)
        known = bool(inside)
    tenant, texts = group
    row = UsageRow(
        start=None if start == -FOREVER else start,
        end=None if end == FOREVER else end,
        dimension=rule.name,
        tenant=tenant,
        tags={
            key: text for key, text in zip(query.by_tags, texts, strict=True) if text is not None
        },
        value=None if value is None else decimal_text(value),
        events=len(inside),
        adjustments=len(adjusting),
    )
    return row, known


def passes(one: Event | Adjustment, dimension: str, query: UsageQuery) -> bool:
    """Whether the query is about it, whenever it was."""
    if one.dimension != dimension:
        return False
    if query.tenants is not None and one.tenant not in query.tenants:
        return False
    return all(passes_filter(one.tags, test) for test in query.filters)


def is_chosen(one: Event, chosen: EventFilter) -> bool:
    """Whether a filter for single events chooses it, by what worlds choose by."""
    return (
        (chosen.dimensions is None or one.dimension in chosen.dimensions)
        and (chosen.tenants is None or one.tenant in chosen.tenants)
        and all(passes_filter(one.tags, test) for test in chosen.tags)
        and (chosen.start is None or chosen.start <= one.time)
        and (chosen.end is None or one.time < chosen.end)
    )


def passes_filter(tags: dict[str, str], test: TagFilter) -> bool:
    """Whether an event with these tags passes one filter."""
    text = tags.get(test.key)
    if test.test == "exists":
        return text is not None
    if test.test == "absent":
        return text is None
    if test.test == "in":
        return text in test.values
    if test.test == "not_in":
        return text not in test.values
    return text is not None and any(text.startswith(value) for value in test.values)


Group = tuple[str | None, tuple[str | None, ...]]
"""A tenant and the values of the tags that rows are split by; None where there is none."""


def group_of(one: Event | Adjustment, query: UsageQuery) -> Group:
    """The row that it belongs to, apart from its window and dimension."""
    tenant = one.tenant if query.by_tenant else None
    return tenant, tuple(one.tags.get(key) for key in query.by_tags)


def decimal_text(number: Fraction) -> str:
    """*number* with at most `DECIMALS`, rounded half to even, without zeros at the end."""
    scaled = round(number * 10**DECIMALS)  # Of a fraction: the nearest integer, half to even.
    whole, rest = divmod(abs(scaled), 10**DECIMALS)
    decimals = str(rest).rjust(DECIMALS, "0").rstrip("0")
    return ("-" if scaled < 0 else "") + str(whole) + (f".{decimals}" if decimals else "")


# -- order -----------------------------------------------------------------------------------


def in_order(rows: list[UsageRow], query: UsageQuery) -> list[UsageRow]:
    """The rows in the order asked for, and only the top ones."""
    rows = sorted(rows, key=lambda row: place(row, query))
    if query.order != "group":
        rows.sort(key=lambda row: rank(row, query))  # Rows of one value stay as they are.
    if query.top is None:
        return rows
    taken: dict[tuple[int, str], int] = {}
    top: list[UsageRow] = []
    for row in rows:
        of = (place(row, query)[0], row.dimension)
        taken[of] = taken.get(of, 0) + 1
        if taken[of] <= query.top:
            top.append(row)
    return top


def rank(row: UsageRow, query: UsageQuery) -> tuple[int, bool, Fraction]:
    """Where a row stands by its value; without one, behind the others of its window."""
    value = Fraction(row.value or 0)
    signed = -value if query.order == "-value" else value
    return place(row, query)[0], row.value is None, signed


def place(row: UsageRow, query: UsageQuery) -> tuple[int, str, tuple[tuple[bool, str], ...]]:
    """Where a row stands: by window, dimension, tenant, tags; None before every text."""
    start = -FOREVER if row.start is None else row.start
    texts = (row.tenant, *(row.tags.get(key) for key in query.by_tags))
    return start, row.dimension, tuple((text is not None, text or "") for text in texts)
