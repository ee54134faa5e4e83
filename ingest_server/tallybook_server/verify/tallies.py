"""Rows that no entry speaks of, against the tallies that were written with them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding, LedgerDamaged
from tallybook_server.tally import TALLIED, TALLY_BITS, TalliedPart, tally_of
from tallybook_server.verify.pages import Read

__all__ = ["check_tallies"]


def check_tallies(read: Read) -> Iterator[Finding]:
    """Each part of each table that has tallies, at one moment."""
    for table in TALLIED:
        after: int | None = None
        while True:
            part: TalliedPart | None = read(partial(_next, table=table, after=after))
            if part is None:
                break
            if after is not None and part.number <= after:
                raise LedgerDamaged(f"rows of {table} are not in their order")
            if not part.rows or tally_of(part.rows) != part.tally:
                yield _wrong(table, part.number)
            after = part.number
    for name in read(Journal.tallied):
        if name not in TALLIED:
            yield Finding("row", "tallies", f"there is a tally of {name!r}, which has none")


def _next(journal: Journal, table: str, after: int | None) -> TalliedPart | None:
    return journal.tallied_part(table, after)


def _wrong(table: str, part: int) -> Finding:
    first, last = part << TALLY_BITS, ((part + 1) << TALLY_BITS) - 1
    where = f"{table}, rows {first} to {last}"
    return Finding("row", where, "a row was changed, removed or added: their tally is another")
