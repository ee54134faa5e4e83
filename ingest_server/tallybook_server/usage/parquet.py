"""
An answer as a Parquet file.

DuckDB writes it, as it writes the segments: it is here anyway, and neither pyarrow nor
numpy is needed. The value is text, as everywhere: a sum can have more digits than any
decimal type of Parquet's readers, and a float would not be the value.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import duckdb
import msgspec

from tallybook_server.arrow import Column, integers, rows, texts, times
from tallybook_server.problems import Problem
from tallybook_server.question import Usage, UsageQuery
from tallybook_server.segment import identifier, quoted
from tallybook_server.usage.answer import head_of
from tallybook_server.usage.flat import FlatRow, columns_of, flat_rows

__all__ = ["answer_parquet"]


def answer_parquet(query: UsageQuery, usage: Usage, cursor: str | None) -> bytes:
    """
    The file; its metadata has the answer without its rows, as JSON, under ``tallybook``.

    Raises:
        Problem: Two tags differ in case only, and most readers would show one of them twice.
    """
    _check_names(query)
    head = msgspec.json.encode(head_of(query, usage, cursor)).decode()
    with tempfile.TemporaryDirectory(prefix="tallybook-") as directory:
        path = Path(directory, "usage.parquet")
        with duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"}) as db:
            db.register("answer", rows(_columns(query, usage)))
            names = ", ".join(identifier(name) for name in columns_of(query))
            db.execute(
                f"COPY (SELECT {names} FROM answer) TO {quoted(str(path))} (FORMAT parquet, "
                f"COMPRESSION zstd, KV_METADATA {{tallybook: {quoted(head)}}})"
            )
        return path.read_bytes()


def _check_names(query: UsageQuery) -> None:
    folded: dict[str, str] = {}
    for key in query.by_tags:
        other = folded.setdefault(key.casefold(), key)
        if other != key:
            raise Problem(
                "parameters-conflict",
                f"group_by has the tags {other!r} and {key!r}, and readers of Parquet do not "
                "tell capital letters from small ones in a column's name; ask for CSV or NDJSON",
                more={"parameters": ["group_by"]},
            )


def _columns(query: UsageQuery, usage: Usage) -> Mapping[str, Column]:
    flat: list[FlatRow] = [row for some in flat_rows(usage) for row in some]
    return {
        "from": times([row.start for row in usage.rows]),
        "to": times([row.end for row in usage.rows]),
        "dimension": texts([row.dimension for row in flat]),
        "aggregation": texts([row.aggregation for row in flat]),
        "unit": texts([row.unit for row in flat]),
        "tenant": texts([row.tenant for row in flat]),
        **{f"tag:{key}": texts([row.tags.get(key) for row in flat]) for key in query.by_tags},
        "value": texts([row.value for row in flat]),
        "events": integers([row.events for row in flat]),
        "adjustments": integers([row.adjustments for row in flat]),
    }
