"""
Tallies: how it is found that a row was changed which no entry speaks of. Pure.

What changes an answer is an entry, and the chain covers it. What producers announce, the
keys of tenants, and what was stated and noted are rows alone, and nothing else in the
journal would tell a changed one from a true one. So of each such table the journal keeps,
in the same transaction, the sum of its rows' hashes. A changed, removed or added row
changes the sum, whatever the order of the rows.

A sum is over a *part*: rows whose numbers differ in their last 8 bits only. Then a row is
written without reading the others, and a table is checked part by part, each as it is at
one moment, while the ledger goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

__all__ = ["TALLIED", "TALLY_BITS", "TalliedPart", "difference", "tally_of"]

TALLIED: Final = {
    "producers": "number",
    "tenant_keys": "number",
    "proof_groups": "number",
    "checkpoints": "position",
    "notes": "number",
}
"""The tables that have tallies, each with its first column: a row's number."""

TALLY_BITS: Final = 8
"""A part is ``number >> TALLY_BITS``: 256 rows are read and hashed in half a millisecond."""

_BYTES: Final = 32
_SUMS: Final = 1 << (8 * _BYTES)

_Row = Sequence[Any]


class TalliedPart(NamedTuple):
    """
    A part of a table, at one moment.

    Attributes:
        number: Which part.
        rows: Its rows, whole.
        tally: What the journal keeps of it; None: nothing.
    """

    number: int
    rows: list[tuple[Any, ...]]
    tally: bytes | None


def tally_of(rows: Iterable[_Row]) -> bytes:
    """The tally of a part with these *rows*."""
    return _written(sum(map(_mark, rows)))


def difference(tally: bytes | None, before: _Row | None, after: _Row) -> bytes:
    """What a part's *tally* is once a row that was *before*, or not there, is *after*."""
    total = 0 if tally is None else int.from_bytes(tally, "little")
    return _written(total + _mark(after) - (0 if before is None else _mark(before)))


def _mark(row: _Row) -> int:
    return int.from_bytes(sha256(msgspec.msgpack.encode(tuple(row))).digest(), "little")


def _written(total: int) -> bytes:
    return (total % _SUMS).to_bytes(_BYTES, "little")
