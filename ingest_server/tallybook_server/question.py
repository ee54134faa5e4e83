"""
A question to the ledger, and the shape of its answer. Pure.

Dimensions have different units, so their quantities are never added: every row names its
dimension. Everything else that a row is split by has to be asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from tallybook.errors import TallybookError
from tallybook_server.limits import PERCENTILE_DECIMALS_MAX

__all__ = [
    "AGGREGATIONS",
    "ORDERS",
    "WINDOWS",
    "Aggregation",
    "AppliedRule",
    "Explanation",
    "Order",
    "Position",
    "TagFilter",
    "TagTest",
    "UnanswerableQuestion",
    "Usage",
    "UsageQuery",
    "UsageRow",
    "Window",
    "read_percentile",
    "read_position",
]

Aggregation = Literal[
    "sum", "count", "min", "max", "avg", "last", "unique", "percentile", "time_weighted"
]
Window = Literal["none", "minute", "hour", "day", "week", "month", "quarter", "year"]
Order = Literal["group", "value", "-value"]
TagTest = Literal["in", "not_in", "exists", "absent", "prefix"]

AGGREGATIONS: Final[tuple[Aggregation, ...]] = (
    "sum",
    "count",
    "min",
    "max",
    "avg",
    "last",
    "unique",
    "percentile",
    "time_weighted",
)
WINDOWS: Final[tuple[Window, ...]] = (
    "none",
    "minute",
    "hour",
    "day",
    "week",
    "month",
    "quarter",
    "year",
)
ORDERS: Final[tuple[Order, ...]] = ("group", "value", "-value")


class UnanswerableQuestion(TallybookError, ValueError):
    """
    A question that has no answer, whatever the ledger holds.

    Attributes:
        field: Which field of `UsageQuery` is missing, or cannot be what it is.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Position(NamedTuple):
    """
    A place in the ledger. An answer names the one that it holds for.

    Attributes:
        incarnation: From 1; one more after each restore from a backup.
        n: The number of entries up to here.
    """

    incarnation: int
    n: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.n}"


@dataclass(frozen=True, slots=True)
class TagFilter:
    """
    Which events are asked about, by one tag.

    Attributes:
        key: The tag.
        test: ``in``: its value is one of `values`. ``not_in``: it is none of them, or the
            event lacks the tag. ``exists``, ``absent``: whether the event has the tag.
            ``prefix``: its value begins with one of `values`.
        values: At least one for ``in``, ``not_in`` and ``prefix``; none for the others.
    """

    key: str
    test: TagTest
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """
    One question to the ledger.

    Attributes:
        dimensions: What was used, at least one, each once. Every row names its own.
        tenants: Only these; None among them is "unattributed". None instead: all.
        start: Microseconds since 1970 UTC, or None: from the beginning.
        end: The first microsecond that no longer counts, or None: to the end.
        window: Split [start, end) where the calendar of `time_zone` begins a new one. Needs a
            start and an end.
        month_day: With ``month``: the day on which it begins, 1 to 31; in a month that lacks
            it, its last day. A billing month.
        time_zone: An IANA name.
        fill: With a window: a row also for each window in which a group has no events.
        by_tenant: One row per tenant.
        by_tags: One row per combination of these tags' values; absent is its own value.
        filters: Only events that pass every one of them.
        aggregation: None: what each dimension declares.
        unique_of: ``unique`` counts the different values of this tag, or of the value: None.
        percentile: For ``percentile``, 0 < p <= 100 in decimal text: ``"99.9"``.
        order: ``group``: by window, dimension, tenant, tags. ``value``, ``-value``: within
            each window by the value, rising or falling, and then as ``group``.
        top: Only the first so many rows of each window and dimension, by ``order``.
        as_of: The answer that would have been given at this position; None: the newest.
        as_of_time: Likewise, at this recording time in microseconds; not with `as_of`.
        skip: Rows that earlier pages had. Pages agree when all name one `as_of`.
        limit: Rows at most; `Usage.more` says that there are further ones.
        explain: Say what was read.
    """

    dimensions: tuple[str, ...]
    tenants: tuple[str | None, ...] | None = None
    start: int | None = None
    end: int | None = None
    window: Window = "none"
    month_day: int = 1
    time_zone: str = "UTC"
    fill: bool = False
    by_tenant: bool = False
    by_tags: tuple[str, ...] = ()
    filters: tuple[TagFilter, ...] = ()
    aggregation: Aggregation | None = None
    unique_of: str | None = None
    percentile: str | None = None
    order: Order = "group"
    top: int | None = None
    as_of: Position | None = None
    as_of_time: int | None = None
    skip: int = 0
    limit: int = 100_000
    explain: bool = False


class UsageRow(NamedTuple):
    """
    One row of an answer.

    Attributes:
        start: The window's first microsecond, or the query's start.
        end: The first microsecond behind the window, or the query's end.
        dimension: What was used.
        tenant: With `by_tenant`; None is unattributed.
        tags: The values of `by_tags`; a tag that the events lack is not in it.
        value: Exact decimal text; None where there is nothing to say: the least of no events.
        events: How many events it rests on.
        adjustments: How many adjustments it contains; only a sum has any.
    """

    start: int | None
    end: int | None
    dimension: str
    tenant: str | None
    tags: dict[str, str]
    value: str | None
    events: int
    adjustments: int = 0


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """
    How the rows of one dimension were computed.

    Attributes:
        dimension: Its name.
        unit: As declared, "" if it is not.
        aggregation: What was applied.
        unique_of: With ``unique``: the tag; None: the value.
        percentile: With ``percentile``: which.
        start: From when on, if the rule changes within what was asked for; else None.
    """

    dimension: str
    unit: str
    aggregation: Aggregation
    unique_of: str | None = None
    percentile: str | None = None
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    What was read for an answer.

    Attributes:
        segments: The names of the segments that could hold something.
        segments_skipped: How many could not, by their time, dimensions or position.
        segment_rows: Rows in those that were read.
        tail_rows: Rows that were not sealed.
        voided: Events that were taken back, among those that were read.
        adjustments: Adjustments that applied.
        seconds: How long it took.
    """

    segments: tuple[str, ...]
    segments_skipped: int
    segment_rows: int
    tail_rows: int
    voided: int
    adjustments: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    """
    An answer.

    Attributes:
        rows: In the order asked for.
        position: The position that it holds for.
        complete: Nothing is known to be missing: no producer is silent, none that closed has
            a gap, none announced a drop.
        through: By the server's clock: everything recorded before is in; None: nobody records.
        producers: The counts behind `complete`: open, closed, silent, written_off, missing,
            dropped; and the silent ones by name.
        tzdata: The version of the time zone rules used.
        rules: How each dimension was computed.
        events: How many events all rows together rest on, those of other pages included.
        more: Whether there are rows behind these.
        explanation: If asked for.
    """

    rows: list[UsageRow]
    position: Position
    complete: bool
    through: int | None
    producers: dict[str, int | list[str]]
    tzdata: str
    rules: list[AppliedRule] = field(default_factory=list[AppliedRule])
    events: int = 0
    more: bool = False
    explanation: Explanation | None = None


# -- text ----------------------------------------------------------------------------------

_POSITION: Final = re.compile(r"([1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,17})", re.ASCII)
_PERCENTILE: Final = re.compile(
    rf"([0-9]{{1,3}})(?:\.([0-9]{{1,{PERCENTILE_DECIMALS_MAX}}}))?", re.ASCII
)


def read_position(text: str) -> Position | None:
    """The position that *text* names, ``1.42``; None if it names none."""
    match = _POSITION.fullmatch(text)
    return None if match is None else Position(int(match[1]), int(match[2]))


def read_percentile(text: str) -> tuple[int, int]:
    """
    The share of events that *text* names, as two integers: part and whole.

    Raises:
        UnanswerableQuestion: It is no number above 0 and at most 100.
    """
    match = _PERCENTILE.fullmatch(text)
    if match is not None:
        decimals = match[2] or ""
        part, whole = int(match[1] + decimals), 100 * 10 ** len(decimals)
        if 0 < part <= whole:
            return part, whole
    raise UnanswerableQuestion(
        "percentile",
        f"percentile is {text[:40]!r}; expected a number above 0 and up to 100, with at most "
        f'{PERCENTILE_DECIMALS_MAX} decimals, such as "99.9"',
    )
