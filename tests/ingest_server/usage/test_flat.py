"""An answer as a table: CSV and NDJSON, from hand-made rows."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook_server.question import AppliedRule, Position, Usage, UsageQuery, UsageRow
from tallybook_server.usage.flat import answer_csv, answer_ndjson

JANUARY = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
DAY = 86_400_000_000
BY_REGION = UsageQuery(("calls",), by_tenant=True, by_tags=("region",))


def usage_of(*rows: UsageRow, rules: tuple[AppliedRule, ...] = ()) -> Usage:
    """An answer of these rows."""
    return Usage(list(rows), Position(1, 42), True, None, {}, "2026.1", list(rules))


def row_of(tenant: str | None = None, value: str | None = "1", **tags: str) -> UsageRow:
    """A row of ``calls``."""
    return UsageRow(None, None, "calls", tenant, tags, value, 1)


def table(query: UsageQuery, usage: Usage) -> str:
    """The CSV, as text."""
    return b"".join(answer_csv(query, usage)).decode()


def cells(text: str) -> list[list[str]]:
    """What a reader of CSV makes of it."""
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_a_table_has_heads_and_a_line_per_row() -> None:
    """Lines end in CR LF, as RFC 4180 says; an open end and an absent tag are empty cells."""
    usage = usage_of(
        UsageRow(JANUARY, JANUARY + DAY, "calls", "acme", {"region": "eu"}, "-1.5", 2, 3),
        row_of(),
        rules=(AppliedRule("calls", "request", "sum"),),
    )
    assert table(BY_REGION, usage) == (
        "from,to,dimension,aggregation,unit,tenant,tag:region,value,events,adjustments\r\n"
        "2026-01-01T00:00:00Z,2026-01-02T00:00:00Z,calls,sum,request,acme,eu,-1.5,2,3\r\n"
        ",,calls,sum,request,,,1,1,0\r\n"
    )


def test_columns_are_those_that_were_asked_for() -> None:
    """Without a group there is neither a tenant nor a tag; without a unit an empty text."""
    usage = usage_of(row_of(value=None), rules=(AppliedRule("calls", "", "min"),))
    assert table(UsageQuery(("calls",)), usage) == (
        'from,to,dimension,aggregation,unit,value,events,adjustments\r\n,,calls,min,"",,1,0\r\n'
    )


def test_an_empty_tag_is_not_an_absent_one() -> None:
    """Most readers take a quoted empty cell for an empty text, and a bare one for nothing."""
    lines = table(BY_REGION, usage_of(row_of("a", region=""), row_of("a"))).splitlines()
    assert lines[1:] == [',,calls,,,a,"",1,1,0', ",,calls,,,a,,1,1,0"]


@given(st.text(), st.text())
def test_any_text_is_one_cell(tenant: str, region: str) -> None:
    """Quotes, separators and line breaks stay within; one apostrophe may be in front."""
    text = table(BY_REGION, usage_of(row_of(tenant, region=region)))
    row = cells(text)[1]
    assert [cell.removeprefix("'") for cell in row[5:7]] == [
        text.removeprefix("'") if not text.startswith("'") else text for text in (tenant, region)
    ]
    assert len(row) == 10


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "\uff1d1"]
)
def test_no_text_begins_like_a_formula(text: str) -> None:
    """A spreadsheet would run it, and it may come from whoever was metered."""
    row = cells(table(BY_REGION, usage_of(row_of(text, region=text))))[1]
    assert row[5:7] == [f"'{text}", f"'{text}"]


def test_numbers_are_never_touched() -> None:
    """A negative value begins like a formula, and is a number to every reader."""
    row = cells(table(UsageQuery(("calls",)), usage_of(row_of(value="-12.5"))))[1]
    assert row[5] == "-12.5"


def test_a_head_of_any_key_is_one_cell() -> None:
    """A key may hold what separates cells."""
    query = UsageQuery(("calls",), by_tags=('a,"b;c',))
    assert cells(table(query, usage_of()))[0][5] == 'tag:a,"b;c'


def test_every_row_has_the_rule_that_held() -> None:
    """Where the rule changes, the unit and the aggregation change with it."""
    usage = usage_of(
        UsageRow(JANUARY, JANUARY + DAY, "calls", None, {}, "1", 1),
        UsageRow(JANUARY + DAY, JANUARY + 2 * DAY, "calls", None, {}, "1", 1),
        UsageRow(JANUARY, JANUARY + DAY, "bytes", None, {}, "1", 1),
        rules=(
            AppliedRule("calls", "call", "sum"),
            AppliedRule("calls", "k-call", "max", start=JANUARY + DAY),
            AppliedRule("bytes", "B", "sum"),
        ),
    )
    rows = [json.loads(line) for line in b"".join(answer_ndjson(usage)).splitlines()]
    assert [(row["aggregation"], row["unit"]) for row in rows] == [
        ("sum", "call"),
        ("max", "k-call"),
        ("sum", "B"),
    ]


def test_ndjson_is_one_object_a_line() -> None:
    """A line stands for itself: it has the rule, too."""
    usage = usage_of(row_of("acme", region="eu"), rules=(AppliedRule("calls", "request", "sum"),))
    (line,) = b"".join(answer_ndjson(usage)).splitlines()
    assert json.loads(line) == {
        "from": None,
        "to": None,
        "dimension": "calls",
        "aggregation": "sum",
        "unit": "request",
        "tenant": "acme",
        "tags": {"region": "eu"},
        "value": "1",
        "events": 1,
        "adjustments": 0,
    }


def test_ndjson_without_rows_is_empty() -> None:
    """No line is no row."""
    assert b"".join(answer_ndjson(usage_of())) == b""


def test_rows_of_many_pieces_are_all_there() -> None:
    """In both formats, each row once and in order."""
    usage = usage_of(*(row_of(value=str(n)) for n in range(3_500)))
    lines = b"".join(answer_ndjson(usage)).splitlines()
    assert [json.loads(line)["value"] for line in lines] == [str(n) for n in range(3_500)]
    table_rows = cells(table(UsageQuery(("calls",)), usage))[1:]
    assert [row[5] for row in table_rows] == [str(n) for n in range(3_500)]
