"""
The branches of a ledger. Pure.

A ledger is one line of entries until it is restored from a backup. What came behind the
backup is lost then, and what is appended from there on is another history: a *branch*,
begun by a chained ``restore`` entry, with the next incarnation and a random name. The
incarnation orders the branches of one ledger; the name tells apart two ledgers that were
restored from the same backup, which would otherwise hand out the same positions.

A receipt holds as long as the entry that it names is part of this history. Up to where it
holds for each earlier branch is what a restored server tells its producers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tallybook_server.entry import Entry, EntryDamaged
from tallybook_server.question import Position

__all__ = ["Branch", "Lineage", "lineage_of", "restore_detail"]

_NAME_CHARS: Final = 32


class Branch(NamedTuple):
    """
    A stretch of a ledger's history, up to the next branch.

    Attributes:
        incarnation: From 1.
        name: 32 hex digits; the first branch has the ledger's id.
        begins: Its first entry.
        agreed: Up to this entry, receipts of the branch before it hold here.
    """

    incarnation: int
    name: str
    begins: int
    agreed: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """
    Every branch of a ledger's history, the current one last.

    Attributes:
        branches: At least one.
    """

    branches: tuple[Branch, ...]

    @property
    def current(self) -> Branch:
        """The branch that grows."""
        return self.branches[-1]

    def next(self, name: str, *, begins: int, agreed: int) -> Lineage:
        """This history and a branch that begins at entry *begins*."""
        branch = Branch(self.current.incarnation + 1, name, begins, agreed)
        return Lineage((*self.branches, branch))

    def earlier(self) -> list[tuple[str, int]]:
        """Of each branch before the current one: its name, and up to where it holds here."""
        return [
            (branch.name, after.agreed)
            for branch, after in zip(self.branches, self.branches[1:], strict=False)
        ]

    def holds(self, position: Position) -> bool:
        """
        Whether *position* names a state that this history has been in, the head left aside.

        ``1.40`` and ``2.40`` are the same if incarnation 2 began behind 40; ``1.41`` was lost
        if it began with 41.
        """
        for branch, after in zip(self.branches, self.branches[1:], strict=False):
            if branch.incarnation == position.incarnation:
                return 0 <= position.n < after.begins
        return position.incarnation == self.current.incarnation and position.n >= 0


def lineage_of(genesis: Entry, restores: Iterable[Entry]) -> Lineage:
    """
    The lineage that these entries tell.

    Args:
        genesis: Entry 1.
        restores: Every ``restore`` entry, in order.

    Raises:
        EntryDamaged: They are not what they should be.
    """
    if genesis.kind != "genesis" or len(genesis.detail) != 2:
        raise EntryDamaged(f"entry 1 is a {genesis.kind}; expected the genesis")
    ledger, incarnation = genesis.detail
    lineage = Lineage((Branch(incarnation, ledger, 1, 0),))
    for entry in restores:
        incarnation, name, agreed = _read(entry)
        if incarnation != lineage.current.incarnation + 1:
            raise EntryDamaged(
                f"entry {entry.position} begins incarnation {incarnation} after "
                f"{lineage.current.incarnation}"
            )
        lineage = lineage.next(name, begins=entry.position, agreed=agreed)
    return lineage


def _read(entry: Entry) -> tuple[int, str, int]:
    match entry.detail:
        case [int(incarnation), str(name), int(agreed)] if (
            len(name) == _NAME_CHARS and 0 < agreed < entry.position
        ):
            return incarnation, name, agreed
        case _:
            raise EntryDamaged(f"entry {entry.position} is no restore: {entry.detail!r}")


def restore_detail(branch: Branch) -> list[Any]:
    """The detail of the entry that begins *branch*."""
    return [branch.incarnation, branch.name, branch.agreed]
