"""
Proofs that an event is in the ledger, for whoever does not trust whoever keeps it. Pure.

A *checkpoint* is a statement about the whole ledger up to one position, made to be given
away: its root is that of a tree of hashes whose leaves are the events that count. A *proof*
is the way from one event up to that root; it can be checked without the ledger, and shows
nothing of any other event. The trees are those of RFC 9162, section 2.1.

The tree has two levels, so that a checkpoint only reads what is new: the events of a fixed
number of entries are a *group* with a root of its own, and the checkpoint's root is over the
groups' roots. A leaf is salted by a key that each tenant has for itself: a hash of little
content could be guessed, and the neighbour's hash is part of a proof.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

import msgspec

from tallybook.errors import TallybookError
from tallybook.event import Event, format_time, format_value, read_value
from tallybook_server.content import event_digest
from tallybook_server.rfc3339 import read_rfc3339

__all__ = [
    "Checkpoint",
    "CheckpointUnknown",
    "EventProof",
    "ProofWrong",
    "ProvenEvent",
    "Unproven",
    "check",
    "leaf",
    "path",
    "root",
    "salt_of",
]

_LEAF: Final = b"\0"
_NODE: Final = b"\1"
EMPTY_ROOT: Final = hashlib.sha256().digest()
"""The root of a tree without leaves."""


class ProofWrong(TallybookError):
    """A proof does not show what it claims; the message says which step fails."""


class CheckpointUnknown(TallybookError):
    """There is no checkpoint at this position."""


class Unproven(TallybookError):
    """The event is not in the ledger, does not count, or came behind the checkpoint."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What the ledger was at one position.

    Attributes:
        format: 1.
        ledger: The ledger's id, 32 hex digits.
        position: ``incarnation.n``.
        chain: The chain's head behind that entry, in hex.
        recorded_at: When that entry was recorded, RFC 3339.
        groups: How many groups the tree has.
        events: How many events count.
        root: The tree's root, in hex.
    """

    format: int
    ledger: str
    position: str
    chain: str
    recorded_at: str
    groups: int
    events: int
    root: str


class ProvenEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    An event as a proof shows it.

    Attributes:
        producer: 32 hex digits.
        sequence: Its place in its producer's life.
        source: The application's name, or null.
        dimension: What was used.
        value: Exact decimal text.
        tenant: Who used it, or null.
        time: RFC 3339.
        tags: By key.
        key: The caller's idempotency key, or null.
        id: Its id elsewhere, or null.
        given: Whether the caller gave the time.
    """

    producer: str
    sequence: int
    source: str | None
    dimension: str
    value: str
    tenant: str | None
    time: str
    tags: dict[str, str]
    key: str | None
    id: str | None
    given: bool

    @classmethod
    def of(cls, event: Event, source: str | None, producer: str, sequence: int) -> ProvenEvent:
        """What a proof shows of an event."""
        return cls(
            producer=producer,
            sequence=sequence,
            source=source,
            dimension=event.dimension,
            value=format_value(*event.value),
            tenant=event.tenant,
            time=format_time(event.time),
            tags=event.tags,
            key=event.key,
            id=event.id,
            given=event.given,
        )

    def event(self) -> Event:
        """The event again."""
        return Event(
            dimension=self.dimension,
            value=read_value(self.value),
            tenant=self.tenant,
            time=read_rfc3339(self.time),
            tags=self.tags,
            key=self.key,
            id=self.id,
            given=self.given,
        )


class EventProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The way from an event to a checkpoint's root.

    Attributes:
        format: 1.
        checkpoint: Which one.
        event: The event.
        salt: Of its leaf, in hex.
        index: Its place among the leaves of its group, from 0.
        size: How many leaves the group has.
        path: The hashes beside the way up to the group's root, in hex, from below.
        group: The group's place in the checkpoint's tree, from 0.
        group_path: The hashes beside the way from there up to the checkpoint's root.
    """

    format: int
    checkpoint: Checkpoint
    event: ProvenEvent
    salt: str
    index: int
    size: int
    path: list[str]
    group: int
    group_path: list[str]


def salt_of(tenant_key: bytes, producer: bytes, sequence: int) -> bytes:
    """The salt of a leaf: nobody without the tenant's key can tell it."""
    name = producer + sequence.to_bytes(8, "big")
    return hmac.digest(tenant_key, name, "sha256")


def leaf(event: Event, source: str | None, producer: bytes, sequence: int, salt: bytes) -> bytes:
    """The hash of one event."""
    said = event_digest(event, source)
    return hashlib.sha256(_LEAF + salt + producer + sequence.to_bytes(8, "big") + said).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over *leaves*, hashes in their order."""
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    while len(level) > 1:
        level = _above(level)
    return level[0]


def _above(level: list[bytes]) -> list[bytes]:
    """The nodes over a level; one without a partner goes up as it is."""
    above = [_node(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
    return above + level[-1:] if len(level) % 2 else above


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from leaf *index* up to the root, from below."""
    beside: list[bytes] = []
    level = list(leaves)
    while len(level) > 1:
        other = index ^ 1
        if other < len(level):
            beside.append(level[other])
        level, index = _above(level), index // 2
    return beside


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _climb(start: bytes, index: int, size: int, beside: Sequence[bytes], what: str) -> bytes:
    """The root that the way leads to. RFC 9162, section 2.1.3.2."""
    if not 0 <= index < size:
        raise ProofWrong(f"{what} {index} is not one of {size}")
    found, place, last = start, index, size - 1
    for hash_ in beside:
        if not last:
            raise ProofWrong(f"the path from {what} {index} is longer than its tree is high")
        if place % 2 or place == last:
            found = _node(hash_, found)
            while not place % 2 and place:
                place, last = place // 2, last // 2
        else:
            found = _node(found, hash_)
        place, last = place // 2, last // 2
    if last:
        raise ProofWrong(f"the path from {what} {index} ends below the root")
    return found


def check(proof: EventProof, checkpoint: Checkpoint) -> ProvenEvent:
    """
    The event that *proof* shows to be in the ledger as *checkpoint* states it.

    Args:
        proof: From whoever keeps the ledger.
        checkpoint: From wherever it was published; the proof's own copy proves nothing.

    Raises:
        ProofWrong: It does not show that; the message says which step fails.
    """
    if proof.format != 1 or checkpoint.format != 1:
        raise ProofWrong(
            "the proof or the checkpoint is not of format 1; a newer tallybook reads it"
        )
    if proof.checkpoint != checkpoint:
        raise ProofWrong(
            f"the proof is for the checkpoint at {proof.checkpoint.position} of ledger "
            f"{proof.checkpoint.ledger}, this one is at {checkpoint.position} of ledger "
            f"{checkpoint.ledger}, or says something else: ask for a proof for this one"
        )
    shown = proof.event
    try:
        producer, salt = bytes.fromhex(shown.producer), bytes.fromhex(proof.salt)
        beside = [bytes.fromhex(one) for one in proof.path]
        above = [bytes.fromhex(one) for one in proof.group_path]
        event = shown.event()
        start = leaf(event, shown.source, producer, shown.sequence, salt)
    except (ValueError, OverflowError) as error:
        raise ProofWrong(f"the proof cannot be read: {error}") from None
    group = _climb(start, proof.index, proof.size, beside, "leaf")
    found = _climb(group, proof.group, checkpoint.groups, above, "group")
    if found.hex() != checkpoint.root:
        raise ProofWrong(
            f"the way from the event leads to the root {found.hex()}, the checkpoint has "
            f"{checkpoint.root}: the event, the proof or the checkpoint was changed"
        )
    return shown
