"""
The questions of the query benchmark: as tallybook is asked, and in SQL.

An answer is a list of (group, value, events), where the group is what the rows are told
apart by and the value a whole number: thousandths of the unit, or a count. So the answers
of all engines can be compared, and have to be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

from tallybook_server.question import UsageQuery, UsageRow
from tests.bench.columns import BEGIN, DAY, DAYS
from tests.bench.data import DIMENSIONS, TENANTS

__all__ = [
    "INVOICE",
    "POINT",
    "QUESTIONS",
    "Dialect",
    "Line",
    "Question",
    "lines_of_rows",
    "lines_of_usage",
]


class Line(NamedTuple):
    """One row of an answer; the group is dimension, and then what was asked for."""

    group: tuple[str | int, ...]
    value: int
    events: int


@dataclass(frozen=True)
class Dialect:
    """
    What an engine writes differently.

    Attributes:
        quotient: The whole quotient of two expressions, with ``{}`` for each.
        tag: A tag's value, with ``{}`` for its key.
        distinct: How many different values an expression has in a group.
    """

    quotient: str = "({} / {})"
    tag: str = "{}"
    distinct: str = "count(distinct {})"


@dataclass(frozen=True)
class Question:
    """
    One question.

    Attributes:
        name: What it is called in the table.
        asked: As tallybook is asked.
        groups: In SQL: what the rows are told apart by, behind the dimension. ``day`` is the
            number of the day, ``tag:`` a tag.
        where: In SQL.
        value: In SQL; ``tag:`` is how many different values a tag has.
        behind: In SQL, what comes behind: an order and a limit. Then the order counts.
    """

    name: str
    asked: UsageQuery
    groups: tuple[str, ...]
    where: str
    value: str = "sum(value)"
    behind: str = ""

    def sql(self, dialect: Dialect) -> str:
        """The question in SQL."""
        value = self.value
        if value.startswith("tag:"):
            value = dialect.distinct.format(_expression(value, dialect))
        groups = ["dimension", *(_expression(group, dialect) for group in self.groups)]
        return (
            f"select {', '.join(groups)}, {value}, count(*) from events where {self.where} "
            f"group by {', '.join(map(str, range(1, len(groups) + 1)))} {self.behind}"
        )

    @property
    def ordered(self) -> bool:
        """Whether the rows have an order."""
        return bool(self.behind)


def _expression(group: str, dialect: Dialect) -> str:
    if group == "day":
        return dialect.quotient.format(f"(time - {BEGIN})", DAY)
    if group.startswith("tag:"):
        return dialect.tag.format(group.removeprefix("tag:"))
    return group


# -- the questions -------------------------------------------------------------------------

_MARCH: Final = (BEGIN + 59 * DAY, BEGIN + DAYS * DAY)
_BIG: Final = TENANTS[0]
_ONE: Final = DIMENSIONS[7]
_MIDDLE: Final = TENANTS[2]


def _within(start: int, end: int) -> str:
    return f"time >= {start} and time < {end}"


POINT: Final = Question(
    "one tenant, one dimension, one day",
    UsageQuery(
        (_ONE,),
        tenants=(_MIDDLE,),
        start=BEGIN + 45 * DAY,
        end=BEGIN + 46 * DAY,
        aggregation="sum",
    ),
    (),
    f"tenant = '{_MIDDLE}' and dimension = '{_ONE}' "
    f"and {_within(BEGIN + 45 * DAY, BEGIN + 46 * DAY)}",
)

# March, so that the hot tail is part of it.
INVOICE: Final = Question(
    "month's invoice, all tenants and dimensions",
    UsageQuery(DIMENSIONS, start=_MARCH[0], end=_MARCH[1], by_tenant=True, aggregation="sum"),
    ("tenant",),
    _within(*_MARCH),
)

QUESTIONS: Final = (
    INVOICE,
    Question(
        "all tenants x day, one dimension",
        UsageQuery(
            (_ONE,),
            start=BEGIN,
            end=BEGIN + DAYS * DAY,
            window="day",
            by_tenant=True,
            aggregation="sum",
        ),
        ("day", "tenant"),
        f"dimension = '{_ONE}'",
    ),
    Question(
        "big tenant x day, all dimensions",
        UsageQuery(
            DIMENSIONS,
            tenants=(_BIG,),
            start=BEGIN,
            end=BEGIN + DAYS * DAY,
            window="day",
            aggregation="sum",
        ),
        ("day",),
        f"tenant = '{_BIG}'",
    ),
    Question(
        "big tenant by tag",
        UsageQuery(DIMENSIONS, tenants=(_BIG,), by_tags=("route",), aggregation="sum"),
        ("tag:route",),
        f"tenant = '{_BIG}'",
    ),
    Question(
        "unique users of a month, by tenant",
        UsageQuery(
            (_ONE,),
            start=_MARCH[0],
            end=_MARCH[1],
            by_tenant=True,
            aggregation="unique",
            unique_of="user_id",
        ),
        ("tenant",),
        f"dimension = '{_ONE}' and {_within(*_MARCH)}",
        value="tag:user_id",
    ),
    Question(
        "top 10 tenants of a month",
        UsageQuery(
            (_ONE,),
            start=_MARCH[0],
            end=_MARCH[1],
            by_tenant=True,
            aggregation="sum",
            order="-value",
            top=10,
        ),
        ("tenant",),
        f"dimension = '{_ONE}' and {_within(*_MARCH)}",
        behind="order by sum(value) desc, tenant limit 10",
    ),
    POINT,
)


# -- answers -------------------------------------------------------------------------------


def lines_of_usage(question: Question, rows: Iterable[UsageRow]) -> list[Line]:
    """tallybook's answer."""
    factor = 1 if question.asked.aggregation == "unique" else 1_000
    return _sorted(question, (_line(question, row, factor) for row in rows))


def _line(question: Question, row: UsageRow, factor: int) -> Line:
    group: list[str | int] = [row.dimension]
    for name in question.groups:
        if name == "day":
            group.append(((row.start or 0) - BEGIN) // DAY)
        elif name == "tenant":
            group.append(row.tenant or "")
        else:
            group.append(row.tags[name.removeprefix("tag:")])
    value = Decimal(row.value or "NaN") * factor
    if value != int(value):
        raise ValueError(f"{row} has more than three decimals, which no event has")
    return Line(tuple(group), int(value), row.events)


def lines_of_rows(question: Question, rows: Iterable[Sequence[Any]]) -> list[Line]:
    """An engine's answer."""
    lines = (Line(tuple(group), int(value), int(events)) for *group, value, events in rows)
    return _sorted(question, lines)


def _sorted(question: Question, lines: Iterable[Line]) -> list[Line]:
    return list(lines) if question.ordered else sorted(lines)
