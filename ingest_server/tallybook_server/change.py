"""
Corrections and declarations as journal entries, there and back. Pure. docs/reference/formats.md.

An entry's detail is a msgpack array, by kind::

    dimension   [name, unit, aggregation, unique_of, percentile, description, start]
    adjustment  [id, dimension, tenant, mantissa, scale, time, given, tags, reason]
    void        [id, reason, runs, corrects, selection]

A mantissa is decimal text, since it may have 38 digits. Runs are [entry, first, last].
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import msgspec

from tallybook_server.catalogue import Catalogue, Declaration
from tallybook_server.correction import Adjustment, Corrections, Run, Void
from tallybook_server.entry import Entry, EntryDamaged, Kind
from tallybook_server.question import Aggregation

__all__ = ["CHANGES", "Change", "change_of", "changes_of", "detail_of", "digest_of"]

_RUNS: Final = 2
_TIME: Final = 5

Change = Declaration | Adjustment | Void
"""What changes answers without being an event."""

CHANGES: Final[tuple[Kind, ...]] = ("dimension", "adjustment", "void")
"""The kinds of entry that are one."""


def detail_of(change: Change) -> tuple[Kind, list[Any]]:
    """The kind and the detail of the entry that says *change*."""
    if isinstance(change, Declaration):
        return "dimension", [
            change.name,
            change.unit,
            change.aggregation,
            change.unique_of,
            change.percentile,
            change.description,
            change.start,
        ]
    if isinstance(change, Adjustment):
        mantissa, scale = change.value
        return "adjustment", [
            change.id,
            change.dimension,
            change.tenant,
            str(mantissa),
            scale,
            change.time,
            change.given,
            dict(sorted(change.tags.items())),
            change.reason,
        ]
    runs = [list(run) for run in change.runs]
    return "void", [change.id, change.reason, runs, change.corrects, change.selection]


def digest_of(change: Change) -> bytes:
    """
    SHA-256 of what *change* says, wherever in the ledger it says so.

    A void of what a filter chose is the same one when its filter is: a repetition may find
    events that were not there the first time. And an adjustment without a time is made at
    another moment when it is repeated.
    """
    kind, detail = detail_of(change)
    if isinstance(change, Void) and change.selection:
        detail[_RUNS] = None
    if isinstance(change, Adjustment) and not change.given:
        detail[_TIME] = None
    return sha256(msgspec.msgpack.encode([kind, detail])).digest()


def change_of(entry: Entry) -> Change:
    """
    What the entry says.

    Raises:
        EntryDamaged: Its detail is not that of a change.
    """
    try:
        if entry.kind == "dimension":
            return _dimension(entry)
        if entry.kind == "adjustment":
            return _adjustment(entry)
        if entry.kind == "void":
            return _void(entry)
    except (msgspec.ValidationError, ValueError) as error:
        raise EntryDamaged(f"entry {entry.position} cannot be read: {error}") from None
    raise EntryDamaged(f"entry {entry.position} is a {entry.kind}; expected a change")


def changes_of(entries: list[Entry]) -> tuple[Corrections, Catalogue]:
    """What all *entries*, in the ledger's order, add up to."""
    changes = [change_of(entry) for entry in entries]
    return (
        Corrections(one for one in changes if not isinstance(one, Declaration)),
        Catalogue(one for one in changes if isinstance(one, Declaration)),
    )


def _dimension(entry: Entry) -> Declaration:
    name, unit, aggregation, unique_of, percentile, description, start = msgspec.convert(
        entry.detail, tuple[str, str, Aggregation, str | None, str | None, str, int | None]
    )
    return Declaration(
        name=name,
        unit=unit,
        aggregation=aggregation,
        unique_of=unique_of,
        percentile=percentile,
        description=description,
        start=start,
        position=entry.position,
    )


def _adjustment(entry: Entry) -> Adjustment:
    change_id, dimension, tenant, mantissa, scale, time, given, tags, reason = msgspec.convert(
        entry.detail, tuple[str, str, str | None, str, int, int, bool, dict[str, str], str]
    )
    return Adjustment(
        id=change_id,
        dimension=dimension,
        value=(int(mantissa), scale),
        tenant=tenant,
        time=time,
        tags=tags,
        reason=reason,
        given=given,
        position=entry.position,
        recorded_at=entry.recorded_at,
    )


def _void(entry: Entry) -> Void:
    change_id, reason, runs, corrects, selection = msgspec.convert(
        entry.detail, tuple[str, str, list[tuple[int, int, int]], int, str]
    )
    return Void(
        id=change_id,
        reason=reason,
        runs=tuple(Run(*run) for run in runs),
        corrects=corrects,
        selection=selection,
        position=entry.position,
        recorded_at=entry.recorded_at,
    )
