"""
Branches of a ledger, in its journal: which there are, and how one begins.

One begins when a backup is restored. And one begins when a producer proves that the
journal was set back without `tallybook restore`, by a copied directory or a machine's
snapshot: it has a receipt of the current branch that names an entry beyond the head, or
one with another chain. Nobody knows where the histories parted, so of that branch only
its first entry is taken for common, and producers send what they still hold.
"""

from __future__ import annotations

import logging
from typing import Final

from msgspec import UNSET

from tallybook.wire import Announcement
from tallybook_server.entry import EntryDamaged
from tallybook_server.journal import Journal
from tallybook_server.ledger import LedgerDamaged
from tallybook_server.lineage import Lineage, lineage_of, restore_detail

__all__ = ["LOST_RECEIPT", "begin_branch", "is_of_another_branch", "is_set_back", "read_lineage"]

LOST_RECEIPT: Final = (
    "its producer has receipts that this restored ledger does not know; send it again"
)

_log = logging.getLogger("tallybook.ledger")


def read_lineage(journal: Journal) -> Lineage:
    """
    The branches of the ledger in *journal*.

    Raises:
        LedgerDamaged: Its first entry, or one that begins a branch, is not what it should be.
    """
    try:
        restores = [journal.entry(position) for position in journal.restores()]
        return lineage_of(journal.entry(1), restores)
    except EntryDamaged as error:
        raise LedgerDamaged(str(error)) from None


def begin_branch(
    journal: Journal, lineage: Lineage, name: str, *, agreed: int, now: int
) -> Lineage:
    """
    Begin a branch, in the journal's open transaction.

    Args:
        journal: The journal.
        lineage: The branches so far.
        name: 32 random hex digits.
        agreed: The last entry for which receipts of the current branch still hold.
        now: Microseconds since 1970 UTC.
    """
    after = lineage.next(name, begins=journal.head.position + 1, agreed=agreed)
    head = journal.add_entry("restore", restore_detail(after.current), recorded_at=now)
    journal.add_restore(head.position)
    return after


def is_set_back(journal: Journal, lineage: Lineage, said: Announcement) -> bool:
    """Whether *said* proves that the journal once held more of its current branch, or other."""
    if said.receipt is None or said.branch != lineage.current.name:
        return False
    position = said.receipt[1]
    if position > journal.head.position:
        _log.error(
            "the journal was set back: a producer has a receipt for entry %d, the head is %d",
            position,
            journal.head.position,
        )
        return True
    if said.chain is UNSET or journal.chain_at(position) == said.chain:
        return False
    _log.error("the journal was set back: a producer has another entry %d than it", position)
    return True


def is_of_another_branch(lineage: Lineage, said: Announcement) -> bool:
    """Whether the producer's receipts are of a branch that this ledger is not on."""
    if said.receipt is None:
        return False
    if said.branch is UNSET:
        return said.receipt[0] != lineage.current.incarnation
    return said.branch != lineage.current.name
