"""An answer as Parquet, read again by DuckDB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tallybook_server.problems import Problem
from tallybook_server.question import AppliedRule, Position, Usage, UsageQuery, UsageRow
from tallybook_server.usage.parquet import answer_parquet

JANUARY = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
LARGEST = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
DIGITS = "12345678901234567890123456789012345678901234.000000001"
QUERY = UsageQuery(("calls",), by_tenant=True, by_tags=("region", "a \"b\" 'c'"))
USAGE = Usage(
    [
        UsageRow(JANUARY, LARGEST, "calls", "acme", {"region": "eu"}, DIGITS, 2**40, 1),
        UsageRow(None, None, "calls", None, {"a \"b\" 'c'": ""}, None, 0),
    ],
    Position(1, 42),
    True,
    None,
    {},
    "2026.1",
    [AppliedRule("calls", "it's", "sum")],
)


def read(tmp_path: Path, file: bytes, select: str) -> list[tuple[Any, ...]]:
    """What *select* gives of the file; ``FILE`` in it stands for its path."""
    path = tmp_path / "usage.parquet"
    path.write_bytes(file)
    with duckdb.connect(":memory:") as db:
        return db.execute(select.replace("FILE", f"'{path}'")).fetchall()


def test_columns_have_types_that_lose_nothing(tmp_path: Path) -> None:
    """Moments in UTC; the value as text, whatever its digits."""
    file = answer_parquet(QUERY, USAGE, None)
    columns = read(tmp_path, file, "SELECT column_name, column_type FROM (DESCRIBE FROM FILE)")
    assert columns == [
        ("from", "TIMESTAMP WITH TIME ZONE"),
        ("to", "TIMESTAMP WITH TIME ZONE"),
        ("dimension", "VARCHAR"),
        ("aggregation", "VARCHAR"),
        ("unit", "VARCHAR"),
        ("tenant", "VARCHAR"),
        ("tag:region", "VARCHAR"),
        ("tag:a \"b\" 'c'", "VARCHAR"),
        ("value", "VARCHAR"),
        ("events", "BIGINT"),
        ("adjustments", "BIGINT"),
    ]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    """In their order, with every digit and every microsecond; nothing is null."""
    rows = read(
        tmp_path,
        answer_parquet(QUERY, USAGE, None),
        'SELECT epoch_us("from"), epoch_us("to"), COLUMNS(* EXCLUDE ("from", "to")) FROM FILE',
    )
    assert rows == [
        (JANUARY, LARGEST, "calls", "sum", "it's", "acme", "eu", None, DIGITS, 2**40, 1),
        (None, None, "calls", "sum", "it's", None, None, "", None, 0, 0),
    ]


def test_an_answer_without_rows_is_a_file_with_columns(tmp_path: Path) -> None:
    """A reader that expects the columns finds them."""
    empty = Usage([], Position(1, 1), True, None, {}, "2026.1")
    file = answer_parquet(UsageQuery(("calls",)), empty, None)
    assert read(tmp_path, file, "SELECT count(*), count(value) FROM FILE") == [(0, 0)]


def test_the_file_says_what_it_rests_on(tmp_path: Path) -> None:
    """A file is passed on without the header fields that it came with."""
    ((key, value),) = read(
        tmp_path,
        answer_parquet(QUERY, USAGE, "abc"),
        "SELECT key, value FROM parquet_kv_metadata(FILE)",
    )
    head = json.loads(value)
    assert (key, head["position"], head["next"], head["data"]) == (b"tallybook", "1.42", "abc", [])
    assert head["rules"][0]["unit"] == "it's"


def test_tags_that_differ_in_case_only_are_refused() -> None:
    """Readers would show the one with the values of the other."""
    query = UsageQuery(("calls",), by_tags=("Region", "region"))
    with pytest.raises(Problem, match="'Region' and 'region'") as caught:
        answer_parquet(query, USAGE, None)
    assert caught.value.kind.slug == "parameters-conflict"


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written into a directory that goes with it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer_parquet(QUERY, USAGE, None)
    assert list(tmp_path.iterdir()) == []
