"""
An answer as a table: CSV, RFC 4180, and NDJSON. Pure.

A table has no place for the rules of a dimension, so each row names its aggregation and
its unit. What holds for the whole answer is in the header fields, or in the Parquet file.

A cell of CSV that begins like a formula is run as one by a spreadsheet, and a tenant's
name or a tag may come from whoever sent the request that was metered. So text that begins
with one of ``= + - @``, a tab or a line break gets an apostrophe in front, and so does text
that begins with an apostrophe: whoever takes one apostrophe off each cell that begins with
it has the text as it was. Numbers are numbers; they are never touched.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import msgspec

from tallybook_server.question import Aggregation, AppliedRule, Usage, UsageQuery, UsageRow
from tallybook_server.usage.answer import batches, shown_time

__all__ = ["FlatRow", "answer_csv", "answer_ndjson", "columns_of", "flat_rows"]

_FORMULA: Final = re.compile(r"['=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20]")  # The wide ones, too.
_SPECIAL: Final = re.compile(r'[",;\r\n]')  # The semicolon separates where the comma is decimal.


class FlatRow(msgspec.Struct, frozen=True):
    """
    A row that stands for itself: a line of NDJSON.

    Attributes:
        start: As in `UsageAnswerRow`. Called ``from``.
        end: Likewise. Called ``to``.
        dimension: Likewise.
        aggregation: What was applied.
        unit: As declared, "" if it is not.
        tenant: As in `UsageAnswerRow`.
        tags: Likewise.
        value: Likewise.
        events: Likewise.
        adjustments: Likewise.
    """

    start: str | None = msgspec.field(name="from")
    end: str | None = msgspec.field(name="to")
    dimension: str
    aggregation: Aggregation | None
    unit: str | None
    tenant: str | None
    tags: dict[str, str]
    value: str | None
    events: int
    adjustments: int


def flat_rows(usage: Usage) -> Iterator[list[FlatRow]]:
    """The rows, as many at a time as are written in one piece."""
    rules: defaultdict[str, list[AppliedRule]] = defaultdict(list)
    for rule in usage.rules:
        rules[rule.dimension].append(rule)
    for rows in batches(usage.rows):
        yield [_flat(row, _rule_of(row, rules[row.dimension])) for row in rows]


def _rule_of(row: UsageRow, rules: list[AppliedRule]) -> AppliedRule | None:
    """The last one that held when the row's window began: none changes within a window."""
    held = [
        rule
        for rule in rules
        if rule.start is None or (row.start is not None and rule.start <= row.start)
    ]
    return held[-1] if held else None


def _flat(row: UsageRow, rule: AppliedRule | None) -> FlatRow:
    return FlatRow(
        start=shown_time(row.start),
        end=shown_time(row.end),
        dimension=row.dimension,
        aggregation=None if rule is None else rule.aggregation,
        unit=None if rule is None else rule.unit,
        tenant=row.tenant,
        tags=row.tags,
        value=row.value,
        events=row.events,
        adjustments=row.adjustments,
    )


def answer_ndjson(usage: Usage) -> Iterator[bytes]:
    """One object a line, in pieces."""
    encoder = msgspec.json.Encoder()
    for rows in flat_rows(usage):
        yield encoder.encode_lines(rows)


# -- CSV -----------------------------------------------------------------------------------


def columns_of(query: UsageQuery) -> list[str]:
    """The columns of a table: the tenant only with ``group_by=tenant``, and each tag its own."""
    return [
        "from",
        "to",
        "dimension",
        "aggregation",
        "unit",
        *(["tenant"] if query.by_tenant else []),
        *(f"tag:{key}" for key in query.by_tags),
        "value",
        "events",
        "adjustments",
    ]


def answer_csv(query: UsageQuery, usage: Usage) -> Iterator[bytes]:
    """A line of heads and a line per row, in pieces."""
    yield _lines([[_quoted(name) for name in columns_of(query)]])
    for rows in flat_rows(usage):
        yield _lines([_cells(query, row) for row in rows])


def _cells(query: UsageQuery, row: FlatRow) -> list[str]:
    return [
        row.start or "",
        row.end or "",
        _text(row.dimension),
        row.aggregation or "",
        _text(row.unit),
        *([_text(row.tenant)] if query.by_tenant else []),
        *(_text(row.tags.get(key)) for key in query.by_tags),
        row.value or "",
        str(row.events),
        str(row.adjustments),
    ]


def _lines(rows: list[list[str]]) -> bytes:
    return "".join(f"{','.join(cells)}\r\n" for cells in rows).encode()


@functools.lru_cache(maxsize=4_096)  # Names come again and again.
def _text(text: str | None) -> str:
    """A cell of text. None is an empty cell, the empty text a quoted one: most readers differ."""
    if text is None:
        return ""
    return _quoted(f"'{text}" if _FORMULA.match(text) else text)


def _quoted(text: str) -> str:
    if text and not _SPECIAL.search(text):
        return text
    return '"' + text.replace('"', '""') + '"'
