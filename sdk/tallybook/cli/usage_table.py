"""An answer about usage for people: a table, and in words what it rests on. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast
from zoneinfo import ZoneInfo

from tallybook.cli.connection import Document
from tallybook.cli.output import number_of, table

__all__ = ["basis_of", "basis_of_headers", "explanation_of", "table_of"]

_Row = dict[str, Any]


def table_of(document: Document) -> list[str]:
    """The lines of the answer; a column for whatever was asked for or is there, and no other."""
    rows = cast(list[_Row], document["data"])
    rules = cast(list[_Row], document["rules"])
    names = cast(list[str], document["group_by"])
    keys = [name.removeprefix("tag:") for name in names if name != "tenant"]
    windowed = document["window"] != "none"
    several = len(cast(list[str], document["dimensions"])) > 1
    units = any(rule["unit"] for rule in rules)
    adjusted = any(row["adjustments"] for row in rows)
    zone = ZoneInfo(str(document["time_zone"]))
    heads = [
        *(["from", "to"] if windowed else []),
        *(["dimension"] if several else []),
        *(["tenant"] if "tenant" in names else []),
        *keys,
        "value",
        *(["unit"] if units else []),
        "events",
        *(["adjustments"] if adjusted else []),
    ]
    lines = [
        [
            *([_local(row["from"], zone), _local(row["to"], zone)] if windowed else []),
            *([row["dimension"]] if several else []),
            *([_or_dash(row["tenant"])] if "tenant" in names else []),
            *(_or_dash(row["tags"].get(key)) for key in keys),
            _or_dash(row["value"]),
            *([_unit(row, rules)] if units else []),
            str(row["events"]),
            *([str(row["adjustments"])] if adjusted else []),
        ]
        for row in rows
    ]
    return table(heads, lines, right=("value", "events", "adjustments"))


def _unit(row: _Row, rules: Sequence[_Row]) -> str:
    """That of the last rule of the dimension that held when the row's window began."""
    held = [
        rule["unit"]
        for rule in rules
        if rule["dimension"] == row["dimension"] and _held(rule["from"], row["from"])
    ]
    return held[-1] if held else ""


def _held(since: str | None, time: str | None) -> bool:
    if since is None or time is None:
        return since is None
    return datetime.fromisoformat(since) <= datetime.fromisoformat(time)


def _local(time: str, zone: ZoneInfo) -> str:
    return datetime.fromisoformat(time).astimezone(zone).isoformat()


def _or_dash(text: str | None) -> str:
    return "-" if text is None else text


# -- words ---------------------------------------------------------------------------------


def basis_of(document: Document) -> str:
    """What the answer rests on."""
    producers = cast(dict[str, Any], document["producers"])
    known = [
        f"{producers[name]} {words}"
        for name, words in (
            ("silent", "producers silent"),
            ("missing", "events announced and missing"),
            ("dropped", "events dropped before they were kept"),
        )
        if producers.get(name)
    ]
    incomplete = f"NOT complete: {', '.join(known)}"
    return _basis(
        str(document["position"]),
        "complete" if document["complete"] else incomplete,
        cast(str | None, document["through"]),
    )


def basis_of_headers(headers: Mapping[str, str]) -> str:
    """The same for an answer that has no place for it in itself."""
    complete = headers.get("tallybook-complete") == "true"
    return _basis(
        headers["tallybook-position"],
        "complete" if complete else "NOT complete: --json says what is known to be missing",
        headers.get("tallybook-through"),
    )


def _basis(position: str, completeness: str, through: str | None) -> str:
    known = [f"everything recorded before {through} is in"] if through else []
    return "; ".join([f"position {position}", completeness, *known])


def explanation_of(document: Document) -> list[str]:
    """What was read for the answer, if that was asked for."""
    read = cast(_Row | None, document["explanation"])
    if read is None:
        return []
    return [
        f"read {number_of(len(read['segments']), 'segment')} of {read['segment_rows']} rows and "
        f"{read['tail_rows']} rows that are not sealed; "
        f"{number_of(read['segments_skipped'], 'segment')} left out; {read['voided']} voided, "
        f"{number_of(read['adjustments'], 'adjustment')}; {read['seconds']:.3f} seconds"
    ]
