"""
A journal entry, and the chain that runs over all of them. Pure. docs/reference/formats.md.

An entry is a msgpack array::

    [1, position, recorded_at, kind, detail, verdicts]

and the chain's head behind it is ``SHA-256(head before it || entry)``. What changes an
answer is an entry; what is not an entry changes no answer.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Any, Final, Literal

import msgspec

from tallybook.errors import FormatError

__all__ = [
    "CHAIN_START",
    "Entry",
    "EntryDamaged",
    "Kind",
    "Verdict",
    "VerdictRun",
    "encode_entry",
    "link",
    "read_entry",
]

CHAIN_START: Final = bytes(32)
"""What the chain's head is before the first entry."""

Kind = Literal[
    "genesis",
    "block",
    "rejection",
    "seal",
    "compaction",
    "restore",
    "dimension",
    "adjustment",
    "void",
]


class EntryDamaged(FormatError):
    """A journal entry that cannot be read."""


class Verdict(IntEnum):
    """
    What an event that did not simply count is.

    Decided once, in the transaction that stores its block, and never computed again.
    """

    DUPLICATE = 1
    """Held already, under the same identity and with the same content. Not counted."""
    CONFLICT = 2
    """Another event holds this identity. Not counted; kept as evidence."""
    REJECTED = 3
    """Outside its bounds. Not counted; kept as a rejection."""
    FLAGGED = 4
    """Counted, with a note: its host's clock was wrong, for example."""


class VerdictRun(msgspec.Struct, frozen=True, array_like=True):
    """
    A run of events of a block with the same verdict.

    Attributes:
        first: The first event's index in the block, from 0.
        last: The last event's index in the block.
        verdict: A `Verdict`.
        reason: A stable word: ``sequence``, ``key``, ``id``, ``clock``, or the field at fault.
        reference: The position of the entry that holds the identity; for ``clock``, the
            microseconds that were taken off the time; else 0.
    """

    first: int
    last: int
    verdict: Verdict
    reason: str
    reference: int


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """
    One line of the journal.

    Attributes:
        version: 1.
        position: From 1, without a gap.
        recorded_at: Microseconds since 1970 UTC by the server's clock; never falls.
        kind: What it is.
        detail: By kind. ``genesis``: [ledger id, incarnation]. ``block``: [producer, first,
            count, SHA-256, announced source or nil]. ``rejection``: [count, SHA-256 of the
            rejected bytes]. ``seal``: [segment, SHA-256 of the file, rows, first position,
            last position]. ``compaction``: [segments that were merged, segments made of
            them], each a list of what a seal says of one. ``restore``: [incarnation, branch,
            last position for which receipts of the branch before it hold], see
            `tallybook_server.lineage`. ``dimension``, ``adjustment``, ``void``: see
            `tallybook_server.change`.
        verdicts: For a block: its exceptions, rising, not overlapping.
    """

    version: int
    position: int
    recorded_at: int
    kind: Kind
    detail: list[Any]
    verdicts: list[VerdictRun] = []

    def verdict_at(self, index: int) -> VerdictRun | None:
        """The exception that the event at *index* is part of; None: it simply counts."""
        return next((run for run in self.verdicts if run.first <= index <= run.last), None)


def encode_entry(entry: Entry) -> bytes:
    """The entry's bytes: what the chain covers."""
    return _encode(entry)


def read_entry(data: bytes) -> Entry:
    """
    The entry in *data*.

    Raises:
        EntryDamaged: Not an entry of format 1.
    """
    try:
        entry = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EntryDamaged(f"a journal entry cannot be read: {error}") from None
    if entry.version != 1:
        raise EntryDamaged(f"a journal entry of version {entry.version}; expected 1")
    return entry


def link(head: bytes, entry: bytes) -> bytes:
    """The chain's head behind *entry*."""
    return hashlib.sha256(head + entry).digest()


_encode = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Entry)
