"""
The prover: checkpoints of a ledger, and proofs for them.

A group's root does not change once the ledger has grown past its last entry, so it is kept.
A checkpoint reads only the events of the groups that are new since the last one, and those
of the last, unfinished group. To prove one event its group is read again, and must come to
the root that was kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from tallybook.clock import Ids
from tallybook.errors import InvariantBroken
from tallybook.event import format_time
from tallybook_server.event_filter import INDEX_MAX, EventFilter, Place
from tallybook_server.journal import Journal
from tallybook_server.ledger import EventId, LedgerEvent, Scan
from tallybook_server.limits import PROOF_GROUP_ENTRIES, SCAN_EVENTS
from tallybook_server.proof import (
    Checkpoint,
    CheckpointUnknown,
    EventProof,
    ProvenEvent,
    Unproven,
    leaf,
    path,
    root,
    salt_of,
)
from tallybook_server.question import Position
from tallybook_server.writer import Writer

__all__ = ["Prover"]


class _Leaf(NamedTuple):
    """An event of a group that counts, and the salt of its leaf."""

    event: LedgerEvent
    salt: bytes

    def hash(self) -> bytes:
        """What stands for it in the tree."""
        one = self.event
        return leaf(one.event, one.source, bytes.fromhex(one.producer), one.sequence, self.salt)


class Prover:
    """Makes checkpoints and proofs. For any number of threads; one checkpoint at a time."""

    def __init__(
        self,
        writer: Writer,
        scan: Scan,
        ids: Ids,
        *,
        group_entries: int = PROOF_GROUP_ENTRIES,
    ) -> None:
        """
        Args:
            writer: The journal's owner.
            scan: The ledger's events.
            ids: For the tenants' keys.
            group_entries: Entries of a group; the same for the whole life of a ledger.
        """
        self._writer = writer
        self._scan = scan
        self._ids = ids
        self._size = group_entries

    # -- checkpoints -----------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """
        Make a checkpoint of the ledger as it is, and keep it.

        Raises:
            LedgerFull: The journal refused.
        """
        head = self._writer.snapshots.current.position
        known = self._writer.run(lambda journal: journal.checkpoint(head)).result()
        if known is not None:
            return msgspec.json.decode(known, type=Checkpoint)
        groups = [self._root(number, head) for number in range(self._count(head))]
        entry, chain = self._writer.run(lambda journal: journal.entry_and_chain(head)).result()
        made = Checkpoint(
            format=1,
            ledger=self._writer.ledger_id,
            position=str(Position(self._writer.incarnation, head)),
            chain=chain.hex(),
            recorded_at=format_time(entry.recorded_at),
            groups=len(groups),
            events=sum(events for _, events in groups),
            root=root([group for group, _ in groups]).hex(),
        )
        data = msgspec.json.encode(made)
        self._writer.note(lambda journal: journal.add_checkpoint(head, data)).result()
        return made

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint that was made, in the ledger's order."""
        kept = self._writer.run(Journal.checkpoints).result()
        return [msgspec.json.decode(data, type=Checkpoint) for data in kept]

    def _count(self, head: int) -> int:
        """How many groups there are up to entry *head*."""
        return -(-head // self._size)

    def _root(self, number: int, head: int, read: list[bytes] | None = None) -> tuple[bytes, int]:
        """
        The root of a group as of *head*, and how many events it has.

        Args:
            number: Of the group, from 0.
            head: Entries behind it are left out.
            read: Its leaves, if they were read already.
        """
        kept = self._writer.run(lambda journal: journal.proof_group(number)).result()
        whole = (number + 1) * self._size <= head
        if whole and kept is not None:
            return kept
        leaves = read
        if leaves is None:
            leaves = [one.hash() for one in self._leaves(number, head)]
        made = root(leaves), len(leaves)
        if whole:
            self._writer.note(lambda journal: journal.add_proof_group(number, *made)).result()
        return made

    # -- proofs ----------------------------------------------------------------------------

    def prove(self, name: EventId, entry: int, position: Position | None = None) -> EventProof:
        """
        The way from an event to a checkpoint's root.

        Args:
            name: The event.
            entry: The position of the entry that holds it.
            position: Of the checkpoint; None: the newest.

        Raises:
            CheckpointUnknown: There is none there.
            Unproven: The event does not count, or came behind the checkpoint.
            InvariantBroken: The group has changed since its root was kept.
        """
        checkpoint, head = self._checkpoint_at(position)
        number = (entry - 1) // self._size
        leaves: list[bytes] = []
        found: tuple[int, _Leaf] | None = None
        for index, one in enumerate(self._leaves(number, head)):
            leaves.append(one.hash())
            if (one.event.producer, one.event.sequence) == name:
                found = index, one
        if found is None:
            raise Unproven(
                f"event {name} does not count at the checkpoint {checkpoint.position}; make a "
                "newer one if it came behind it"
            )
        roots = [
            self._root(at, head, leaves if at == number else None)[0]
            for at in range(self._count(head))
        ]
        if roots[number] != root(leaves) or root(roots).hex() != checkpoint.root:
            raise InvariantBroken(
                f"the events of entries {number * self._size + 1} to {(number + 1) * self._size} "
                "are not those of the checkpoint any more: run verify"
            )
        index, (shown, salt) = found
        return EventProof(
            format=1,
            checkpoint=checkpoint,
            event=ProvenEvent.of(shown.event, shown.source, shown.producer, shown.sequence),
            salt=salt.hex(),
            index=index,
            size=len(leaves),
            path=[one.hex() for one in path(leaves, index)],
            group=number,
            group_path=[one.hex() for one in path(roots, number)],
        )

    def _checkpoint_at(self, position: Position | None) -> tuple[Checkpoint, int]:
        """The checkpoint, and the number of its entry."""
        for one in reversed(self.checkpoints()):
            if position is None or one.position == str(position):
                return one, int(one.position.partition(".")[2])
        where = "" if position is None else f" at position {position}"
        raise CheckpointUnknown(f"there is no checkpoint{where}; make one, and publish it")

    # -- groups ----------------------------------------------------------------------------

    def _events(self, number: int, head: int) -> Iterator[LedgerEvent]:
        """The events of a group that count, as of *head*, in the ledger's order."""
        last = min((number + 1) * self._size, head)
        chosen = EventFilter(upto=Place(last, INDEX_MAX))
        after = Place(number * self._size, INDEX_MAX)
        while page := self._scan(chosen, after=after, limit=SCAN_EVENTS):
            yield from page
            after = Place(page[-1].position, page[-1].index)

    def _leaves(self, number: int, head: int) -> Iterator[_Leaf]:
        """The leaves of a group as of *head*, in the ledger's order."""
        keys: dict[str | None, bytes] = {}
        for one in self._events(number, head):
            tenant = one.event.tenant
            if tenant not in keys:
                keys[tenant] = self._key(tenant)
            yield _Leaf(one, salt_of(keys[tenant], bytes.fromhex(one.producer), one.sequence))

    def _key(self, tenant: str | None) -> bytes:
        """The tenant's own key, made when it is first needed."""
        name, fresh = tenant or "", self._ids.producer() + self._ids.producer()
        return self._writer.note(lambda journal: journal.tenant_key(name, fresh)).result()
