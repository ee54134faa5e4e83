"""Corrections, declarations and branches, against the lists by which they are found."""

from __future__ import annotations

from collections.abc import Iterator

from tallybook_server.branching import read_lineage
from tallybook_server.catalogue import Declaration
from tallybook_server.change import digest_of
from tallybook_server.correction import Void
from tallybook_server.journal import Journal
from tallybook_server.ledger import Finding, LedgerDamaged
from tallybook_server.verify.pages import Read
from tallybook_server.verify.record import Record

__all__ = ["check_branches", "check_changes"]


def check_changes(record: Record, read: Read) -> Iterator[Finding]:
    """What corrects and declares."""
    rows, head = read(_changes)
    noted = {at: (name, digest) for at, name, digest in rows}
    for at, change in record.changes.items():
        where = f"entry {at}"
        name = None if isinstance(change, Declaration) else change.id
        if noted.pop(at, None) != (name, digest_of(change)):
            yield Finding("change", where, "it is not noted as what it says")
        if isinstance(change, Void):
            yield from _taken_back(record, change, where)
    for at in noted:
        if at <= record.position or at > head:
            yield Finding("change", f"entry {at}", "noted as a change, which it is not")


def _changes(journal: Journal) -> tuple[list[tuple[int, str | None, bytes]], int]:
    return journal.changes(), journal.head.position


def _taken_back(record: Record, void: Void, where: str) -> Iterator[Finding]:
    for run in void.runs:
        fits = 0 < run.entry < void.position and 0 <= run.first <= run.last
        if not fits or run.last >= record.size(run.entry):
            words = f"it takes back events {run.first} to {run.last} of entry {run.entry}"
            yield Finding("change", where, f"{words}, which has none such")
    if void.corrects and isinstance(record.changes.get(void.corrects), None | Declaration):
        words = f"it takes back the correction of entry {void.corrects}, which is none"
        yield Finding("change", where, words)


def check_branches(record: Record, read: Read) -> Iterator[Finding]:
    """What begins a branch."""
    noted, head = read(_restores)
    if [at for at in noted if at <= record.position or at > head] != record.restores:
        yield Finding("branch", "restores", "not the entries that begin a branch are noted")
        return
    try:
        read(read_lineage)
    except LedgerDamaged as error:
        yield Finding("branch", "restores", str(error))


def _restores(journal: Journal) -> tuple[list[int], int]:
    return journal.restores(), journal.head.position
