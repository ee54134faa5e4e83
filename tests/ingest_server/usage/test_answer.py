"""An answer as JSON, from hand-made rows."""

from __future__ import annotations

import json
from typing import Any

from tallybook_server.question import (
    AppliedRule,
    Explanation,
    Position,
    Usage,
    UsageQuery,
    UsageRow,
)
from tallybook_server.usage.answer import answer_json

JANUARY = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
DAY = 86_400_000_000
QUERY = UsageQuery(
    ("calls", "seats"),
    start=JANUARY,
    end=JANUARY + 2 * DAY,
    window="day",
    time_zone="Europe/Berlin",
    by_tenant=True,
    by_tags=("region",),
)
USAGE = Usage(
    rows=[
        UsageRow(JANUARY, JANUARY + DAY, "calls", "acme", {"region": "eu"}, "1.5", 2, 1),
        UsageRow(JANUARY + DAY, JANUARY + 2 * DAY, "seats", None, {}, None, 0),
    ],
    position=Position(1, 42),
    complete=False,
    through=JANUARY + 1,
    producers={"silent": 1, "silent_producers": ["00ff"]},
    tzdata="2026.1",
    rules=[
        AppliedRule("calls", "request", "sum"),
        AppliedRule("seats", "", "unique", start=JANUARY + DAY),
    ],
    events=9,
)


def answered(query: UsageQuery, usage: Usage, cursor: str | None = None) -> dict[str, Any]:
    """The document."""
    document: dict[str, Any] = json.loads(b"".join(answer_json(query, usage, cursor)))
    return document


def test_an_answer_has_the_documented_fields() -> None:
    """No more, no less, and in this order."""
    assert answered(QUERY, USAGE, "abc") == {
        "dimensions": ["calls", "seats"],
        "rules": [
            {
                "dimension": "calls",
                "unit": "request",
                "aggregation": "sum",
                "unique_of": None,
                "percentile": None,
                "from": None,
            },
            {
                "dimension": "seats",
                "unit": "",
                "aggregation": "unique",
                "unique_of": "value",
                "percentile": None,
                "from": "2026-01-02T00:00:00Z",
            },
        ],
        "from": "2026-01-01T00:00:00Z",
        "to": "2026-01-03T00:00:00Z",
        "window": "day",
        "time_zone": "Europe/Berlin",
        "group_by": ["tenant", "tag:region"],
        "position": "1.42",
        "complete": False,
        "through": "2026-01-01T00:00:00.000001Z",
        "producers": {"silent": 1, "silent_producers": ["00ff"]},
        "tzdata": "2026.1",
        "events": 9,
        "explanation": None,
        "next": "abc",
        "data": [
            {
                "from": "2026-01-01T00:00:00Z",
                "to": "2026-01-02T00:00:00Z",
                "dimension": "calls",
                "tenant": "acme",
                "tags": {"region": "eu"},
                "value": "1.5",
                "events": 2,
                "adjustments": 1,
            },
            {
                "from": "2026-01-02T00:00:00Z",
                "to": "2026-01-03T00:00:00Z",
                "dimension": "seats",
                "tenant": None,
                "tags": {},
                "value": None,
                "events": 0,
                "adjustments": 0,
            },
        ],
    }


def test_an_answer_without_rows_is_whole() -> None:
    """The rows are put between brackets that are there anyway."""
    usage = Usage([], Position(1, 1), True, None, {}, "2026.1")
    assert answered(UsageQuery(("calls",)), usage)["data"] == []


def test_rows_of_many_pieces_are_all_there() -> None:
    """Pieces end in the middle of the list, and nothing is lost between them."""
    rows = [UsageRow(None, None, "calls", f"t{n}", {}, str(n), 1) for n in range(3_500)]
    usage = Usage(rows, Position(1, 1), True, None, {}, "2026.1")
    pieces = list(answer_json(UsageQuery(("calls",)), usage, None))
    values = [row["value"] for row in json.loads(b"".join(pieces))["data"]]
    assert values == [str(n) for n in range(3_500)]
    assert len(pieces) == 6


def test_a_tag_is_the_rule_of_unique() -> None:
    """Written as it is asked for, so that the answer can be asked again."""
    usage = Usage(
        [], Position(1, 1), True, None, {}, "2026.1", [AppliedRule("calls", "", "unique", "user")]
    )
    assert answered(UsageQuery(("calls",)), usage)["rules"][0]["unique_of"] == "tag:user"


def test_an_explanation_is_shown_as_it_is() -> None:
    """What was read, in the words of the ledger."""
    explanation = Explanation(("a.parquet",), 2, 300, 40, 1, 1, 0.5)
    usage = Usage([], Position(1, 1), True, None, {}, "2026.1", explanation=explanation)
    assert answered(UsageQuery(("calls",)), usage)["explanation"] == {
        "segments": ["a.parquet"],
        "segments_skipped": 2,
        "segment_rows": 300,
        "tail_rows": 40,
        "voided": 1,
        "adjustments": 1,
        "seconds": 0.5,
    }
