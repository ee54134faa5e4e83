"""
What a flusher sends and what the server answers. Pure. docs/reference/formats.md.

A request carries one producer's announcement and any number of its blocks::

    4s magic "TBQ1"   u32 length   u32 crc32(announcement)   announcement (msgpack map)
    blocks, one behind the other

The announcement goes with every request, and alone every 30 seconds, so that usage that
is lost with a disk is a number at the server and not silence. The answer is JSON, and
is no answer unless it echoes each block.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Final, Literal
from zlib import crc32

import msgspec

from tallybook.block import block_bytes, read_header
from tallybook.errors import BlockDamaged, MessageDamaged

__all__ = [
    "CONTENT_TYPE",
    "HEAD_BYTES_MAX",
    "Announcement",
    "Answer",
    "Exceptions",
    "Receipt",
    "encode_answer",
    "encode_request",
    "read_announcement",
    "read_answer",
    "read_request",
]

CONTENT_TYPE: Final = "application/vnd.tallybook.blocks"
MAGIC: Final = b"TBQ1"
_HEAD: Final = struct.Struct("<4sII")
_ANNOUNCEMENT_BYTES_MAX: Final = 16_384
HEAD_BYTES_MAX: Final = _HEAD.size + _ANNOUNCEMENT_BYTES_MAX
"""What a request has before its first block, at most."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a producer says of itself with every request.

    Attributes:
        producer: 16 bytes.
        sent_at: Microseconds since 1970 UTC by the host's clock, at sending.
        blocks: How many blocks follow.
        recorded: Events that have a sequence or wait for one.
        dropped: Events that could not be kept, counted.
        highest: The highest sequence given out; 0 before the first.
        through: By the host's clock: every event recorded before it has a sequence
            of at most `highest`.
        closed: The producer will never record again.
        source: The application's name, or None.
        ledger: The ledger that this queue belongs to, from its first answer, or None.
        receipt: The (incarnation, position) of the receipt that reaches furthest, or None.
        sdk: The version of the sender.
        branch: The branch of the ledger that gave that receipt; left out before the first.
        chain: The chain's head there, in hex; left out where it is not known any more.
    """

    producer: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    sent_at: int
    blocks: Annotated[int, msgspec.Meta(ge=0)]
    recorded: Annotated[int, msgspec.Meta(ge=0)]
    dropped: Annotated[int, msgspec.Meta(ge=0)]
    highest: Annotated[int, msgspec.Meta(ge=0)]
    through: int
    closed: bool
    source: str | None = None
    ledger: str | None = None
    receipt: tuple[int, int] | None = None
    sdk: str = ""
    # Left out where there is nothing to say, so that the bytes are those of ever.
    branch: str | msgspec.UnsetType = msgspec.UNSET
    chain: str | msgspec.UnsetType = msgspec.UNSET


class Exceptions(msgspec.Struct, frozen=True, array_like=True):
    """
    A run of events of one block that did not simply count.

    Attributes:
        first: The first sequence of the run.
        last: The last sequence of the run.
        verdict: ``duplicate``: held already. ``conflict``: another event has this identity.
            ``rejected``: not acceptable, kept as a rejection. ``flagged``: counted, with a note.
        reason: A stable word: ``sequence``, ``key``, ``clock``, or the field at fault.
        reference: A position in the ledger, or a number that the reason explains.
    """

    first: int
    last: int
    verdict: Literal["duplicate", "conflict", "rejected", "flagged"]
    reason: str
    reference: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """
    What became of one block.

    Attributes:
        producer: The block's producer, in hex: the echo, with `first` and `sha256`.
        first: The block's first sequence.
        count: The block's number of events.
        sha256: The block's digest, in hex.
        status: ``stored``, or ``duplicate``: held already, both are success.
            ``damaged``: it was changed on the way; send it again.
            ``refused``: it will never be taken; the reason says why.
        position: Its place in the ledger, when stored or held already.
        chain: The chain's head at that position, in hex.
        exceptions: Runs of events that did not simply count.
        reason: With ``damaged`` and ``refused``: what is wrong, in words.
    """

    producer: str
    first: int
    count: int
    sha256: str
    status: Literal["stored", "duplicate", "damaged", "refused"]
    position: int | None = None
    chain: str | None = None
    exceptions: list[Exceptions] = []
    reason: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    The server's answer, sent after the durable commit.

    Attributes:
        ledger: The ledger's id, in hex.
        incarnation: From 1; one more after each restore from a backup.
        position: The ledger's head.
        archived: Blocks up to this position are safe in a backup, 0 while there is none.
        receipts: One per block, in order.
        branch: What this incarnation is called; left out by the first, whose name is the
            ledger's. Two ledgers restored from one backup have the same incarnation, and
            never the same branch.
        holds: Of each branch before it, the last position of it that this ledger holds.
    """

    ledger: str
    incarnation: int
    position: int
    archived: int
    receipts: list[Receipt]
    branch: str | msgspec.UnsetType = msgspec.UNSET
    holds: list[tuple[str, int]] | msgspec.UnsetType = msgspec.UNSET

    @property
    def branch_name(self) -> str:
        """The branch that this answer's receipts are of."""
        return self.ledger if self.branch is msgspec.UNSET else self.branch

    def held_of(self, branch: str) -> int | None:
        """
        The last position of *branch* that the ledger still holds; None: all of it.

        A branch that it has never heard of is one of another restore from the same backup:
        what the two have in common is not known, so nothing is taken for held.
        """
        if branch == self.branch_name:
            return None
        return 0 if self.holds is msgspec.UNSET else dict(self.holds).get(branch, 0)


def encode_request(announcement: Announcement, blocks: Sequence[bytes]) -> bytes:
    """The body of ``POST /v1/events``."""
    head = msgspec.msgpack.encode(announcement)
    return b"".join((_HEAD.pack(MAGIC, len(head), crc32(head)), head, *blocks))


def read_request(body: bytes) -> tuple[Announcement, list[memoryview]]:
    """
    The announcement, and the blocks, cut apart but not looked into.

    Raises:
        MessageDamaged: Another format, cut off, or a checksum that does not hold. Nothing
            of the request is to be stored; sending it again is right.
    """
    announcement, end = _read_head(body)
    view = memoryview(body)
    blocks: list[memoryview] = []
    while end < len(body):
        try:
            size = block_bytes(read_header(view[end:]))
        except BlockDamaged as error:
            raise MessageDamaged(f"block {len(blocks)} of the request: {error}") from None
        if end + size > len(body):
            raise MessageDamaged(f"block {len(blocks)} of the request is cut off")
        blocks.append(view[end : end + size])
        end += size
    if len(blocks) != announcement.blocks:
        raise MessageDamaged(f"{len(blocks)} blocks; the announcement says {announcement.blocks}")
    return announcement, blocks


def read_announcement(head: bytes) -> Announcement:
    """
    The announcement of a request of which only the first `HEAD_BYTES_MAX` are at hand.

    Raises:
        MessageDamaged: As `read_request`.
    """
    return _read_head(head)[0]


def _read_head(body: bytes) -> tuple[Announcement, int]:
    """The announcement, and where the blocks begin."""
    if len(body) < _HEAD.size:
        raise MessageDamaged(f"a request of {len(body)} bytes is cut off")
    magic, length, checksum = _HEAD.unpack_from(body)
    if magic != MAGIC:
        raise MessageDamaged(f"not a request of format 1: it begins with {magic!r}")
    end = _HEAD.size + length
    head = body[_HEAD.size : end]
    if length > _ANNOUNCEMENT_BYTES_MAX or len(head) != length or crc32(head) != checksum:
        raise MessageDamaged("the announcement's checksum does not hold")
    try:
        return _announcement.decode(head), end
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MessageDamaged(f"the announcement cannot be read: {error}") from None


def encode_answer(answer: Answer) -> bytes:
    """The answer's JSON."""
    return msgspec.json.encode(answer)


def read_answer(body: bytes, blocks: Sequence[bytes]) -> Answer:
    """
    The answer to *blocks*, believed only if it echoes each of them, in order.

    Raises:
        MessageDamaged: Not an answer of a tallybook server to this request: a portal's
            page, a cached or truncated answer. Nothing may be removed because of it.
    """
    try:
        answer = _answer.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MessageDamaged(f"the answer cannot be read: {error}") from None
    if len(answer.receipts) != len(blocks):
        raise MessageDamaged(f"{len(answer.receipts)} receipts for {len(blocks)} blocks")
    for receipt, block in zip(answer.receipts, blocks, strict=True):
        header = read_header(block)
        named = (receipt.producer, receipt.first, receipt.count, receipt.sha256)
        if named != (
            header.producer.hex(),
            header.first,
            header.count,
            header.sha256.hex(),
        ):
            raise MessageDamaged("a receipt for another block than the one that was sent")
        if receipt.status in ("stored", "duplicate") and receipt.position is None:
            raise MessageDamaged("a receipt without a position")
        if any(
            not header.first <= run.first <= run.last <= header.last for run in receipt.exceptions
        ):
            raise MessageDamaged("a receipt with exceptions outside of its block")
    return answer


_announcement: Final = msgspec.msgpack.Decoder(Announcement)
_answer: Final = msgspec.json.Decoder(Answer)
