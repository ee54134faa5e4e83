"""
The flusher: sends blocks until the server has them. It never gives up and never re-cuts.

It serves any number of outboxes: this process's producer, and the queues of dead ones that
it has adopted. One step is one request; threads and tests call the same step.

What an answer means:

    200, echoing each block     marked acknowledged; conflicts are issued again
    200, anything else          no answer: a portal, a proxy. Wait, send again
    400 that says: retryable    changed on the way. Wait, send again
    400, 413, 422               fewer blocks at a time; one that is refused alone is set aside
    401, 403, 404 ...           everything is kept; wait long, say so
    409                         another ledger than this queue's: the queue is held
    429, 5xx, no response       wait, send again
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

from tallybook.backoff import wait_seconds
from tallybook.block import (
    REISSUED,
    check_digest,
    columns_bodies,
    derived_producer,
    encode_block,
    pack,
    read_header,
    read_payload,
)
from tallybook.clock import Clock, Ids
from tallybook.errors import (
    BlockDamaged,
    MessageDamaged,
    ServerRefused,
    ServerUnreachable,
)
from tallybook.limits import (
    BACKOFF_SECONDS_MAX,
    REQUEST_BLOCKS_MAX,
    REQUEST_BYTES_MAX,
)
from tallybook.queue import Queue, QueuedBlock, Reentered
from tallybook.transport import Response, Transport
from tallybook.warning import Warner
from tallybook.wire import (
    CONTENT_TYPE,
    Announcement,
    Answer,
    Receipt,
    encode_request,
    read_answer,
)

__all__ = ["Flusher", "Outbox"]

_REFUSED_ALONE: Final = frozenset({400, 413, 422})
_REFUSALS_MAX: Final = 3
"""A block that is refused alone this often in a row is set aside: a proxy may have hiccups."""


class Outbox(Protocol):
    """
    A queue whose blocks are to be sent.

    Attributes:
        queue: The queue.
        held: Why it is not sent, or None.
        sending_blocked: Set here: nothing can be sent just now.
    """

    @property
    def queue(self) -> Queue: ...

    held: str | None
    sending_blocked: bool

    def announcement(self, blocks: int, *, closed: bool = False) -> Announcement:
        """What goes with a request of so many blocks."""
        ...


class Flusher:
    """
    Sends the blocks of outboxes through one transport.

    Attributes:
        ledger: The ledger behind the endpoint, from its first answer, or None.
        standing: The last answer without its receipts: what the server said of its ledger, of
            its branches and of what is archived; None before the first.
        acknowledged: Events that the server has, over this flusher's life.
        duplicates: Of them, those that it had already.
        last_error: What went wrong last, or None since the last success.
    """

    def __init__(self, transport: Transport, clock: Clock, ids: Ids) -> None:
        self._transport = transport
        self._clock = clock
        self._ids = ids
        self._lock = threading.RLock()
        self._sender = 0
        self._failures = 0
        self._due_at = clock.monotonic()
        self._blocks_max = REQUEST_BLOCKS_MAX
        self._refused_block = b""
        self._refusals = 0
        self._warn = Warner(clock)
        self.ledger: str | None = None
        self.standing: Answer | None = None
        self.acknowledged = 0
        self.duplicates = 0
        self.last_error: str | None = None

    def wait_seconds(self) -> float:
        """Seconds until the next attempt is due; 0 when it is."""
        return max(0.0, self._due_at - self._clock.monotonic())

    def step(
        self,
        outbox: Outbox,
        *,
        closed: bool = False,
        announce: bool = False,
        timeout_seconds: float | None = None,
    ) -> bool:
        """
        Send one request for *outbox*, if there is something to send.

        Args:
            outbox: Whose blocks.
            closed: The producer will never record again.
            announce: Send the announcement even without blocks.
            timeout_seconds: Wait no longer, for another request that is under way and for this.

        Returns:
            Whether the server answered.

        Raises:
            Reentered: This thread is in the middle of a step.
        """
        if not self._lock.acquire(timeout=-1 if timeout_seconds is None else timeout_seconds):
            return False
        try:
            return self._step(outbox, closed, announce, timeout_seconds)
        finally:
            self._lock.release()

    def _step(
        self, outbox: Outbox, closed: bool, announce: bool, timeout_seconds: float | None
    ) -> bool:
        if self._sender:
            raise Reentered("in the middle of a request")
        self._sender = threading.get_ident()
        try:
            if outbox.held:
                return False
            queued = outbox.queue.pending(self._blocks_max, REQUEST_BYTES_MAX)
            if not queued and not announce:
                return False
            return self._send(outbox, queued, closed, timeout_seconds)
        finally:
            self._sender = 0

    @property
    def entered(self) -> bool:
        """Whether the calling thread is in the middle of a step."""
        return self._sender == threading.get_ident()

    def _send(
        self,
        outbox: Outbox,
        queued: Sequence[QueuedBlock],
        closed: bool,
        timeout_seconds: float | None,
    ) -> bool:
        sound = self._set_damaged_aside(outbox, queued)
        if queued and not sound:
            return False  # The next ones have their turn at once.
        blocks = [block.data for block in sound]
        # "Closed" is said only with the last blocks: after it, the server counts what is missing.
        last = closed and outbox.queue.counts().pending_blocks == len(blocks)
        body = encode_request(outbox.announcement(len(blocks), closed=last), blocks)
        try:
            response = self._transport.send(body, CONTENT_TYPE, timeout_seconds)
            answer = self._answer(response, blocks)
        except _RefusedBlocks as refused:
            self._refused(outbox, sound, str(refused))
            return False
        except _OtherLedger as other:
            outbox.held = str(other)
            self._warn("held", f"a queue is held: {other}")
            return False
        except Exception as error:
            # Whatever a transport raises, the blocks are kept and their turn comes again.
            retry_after = error.retry_after_seconds if isinstance(error, ServerRefused) else None
            self._fail(outbox, sound, str(error) or type(error).__name__, retry_after)
            return False
        self._settle(outbox, sound, answer)
        return True

    def _answer(self, response: Response, blocks: Sequence[bytes]) -> Answer:
        status = response.status
        if status == 200:
            try:
                return read_answer(response.body, blocks)
            except MessageDamaged as error:
                raise ServerUnreachable(
                    f"a 200 that is no answer: {error}; is the endpoint a tallybook server?"
                ) from None
        words = response.body[:300].decode("utf-8", "replace")
        if status == 409:
            raise _OtherLedger(f"the server keeps another ledger than this queue's: {words}")
        if status in _REFUSED_ALONE and blocks and not _is_retryable(response.body):
            raise _RefusedBlocks(f"HTTP {status}: {words}")
        retry_after = response.retry_after_seconds
        if status in (401, 403, 404, 405, 410) or 300 <= status < 400:
            # Not a matter of seconds: somebody has to mend the key or the address.
            retry_after = max(retry_after or 0.0, BACKOFF_SECONDS_MAX)
        raise ServerRefused(
            status, f"HTTP {status} from the server: {words}", retry_after_seconds=retry_after
        )

    def _set_damaged_aside(
        self, outbox: Outbox, queued: Sequence[QueuedBlock]
    ) -> list[QueuedBlock]:
        """Bit rot in the queue is not sent, and never holds up the next block."""
        sound: list[QueuedBlock] = []
        for block in queued:
            try:
                check_digest(block.data, read_header(block.data))
                sound.append(block)
            except BlockDamaged as error:
                outbox.queue.settle([(block.id, "aside", f"damaged in the queue: {error}")])
                self._warn("aside", f"a block is set aside: {error}")
        return sound

    def _settle(self, outbox: Outbox, sent: Sequence[QueuedBlock], answer: Answer) -> None:
        settled: list[tuple[int, Literal["acknowledged", "aside"], str | None]] = []
        reissued: list[bytes] = []
        receipts: dict[int, tuple[int, str | None]] = {}
        damaged: str | None = None
        for block, receipt in zip(sent, answer.receipts, strict=True):
            if receipt.status == "damaged":
                damaged = receipt.reason or "a block was damaged on the way"  # It goes again.
            elif receipt.status == "refused":
                settled.append((block.id, "aside", receipt.reason))
                self._warn("aside", f"the server refuses a block for good: {receipt.reason}")
            else:
                settled.append((block.id, "acknowledged", None))
                if receipt.position is not None:
                    receipts[block.id] = (receipt.position, receipt.chain)
                reissued += _reissue(block.data, receipt)
        outbox.queue.settle(
            settled,
            reissued=reissued,
            meta={
                "ledger": answer.ledger,
                "branch": answer.branch_name,
                "incarnation": answer.incarnation,
                "archived": answer.archived,
            },
            now=self._clock.time_ns() // 1000,
            receipts=receipts,
            held=self._held(outbox.queue, answer),
        )
        self.ledger = answer.ledger
        self.standing = msgspec.structs.replace(answer, receipts=[])
        for receipt in answer.receipts:
            self._count(receipt)
        if damaged is not None:
            self._fail(outbox, sent, damaged, None)
            return
        self._failures = self._refusals = 0
        self._due_at = self._clock.monotonic()
        self._blocks_max = min(REQUEST_BLOCKS_MAX, self._blocks_max * 2)
        outbox.sending_blocked = False
        self.last_error = None

    def _held(self, queue: Queue, answer: Answer) -> int | None:
        """Up to where the server has what this queue was told that it has; None: all of it."""
        branch = queue.note("branch")
        held = answer.held_of(branch) if isinstance(branch, str) else None
        if held is not None:
            self._warn(
                "restored",
                f"the server was restored to position {held} of {branch}; what it has "
                "lost and is still kept is sent again",
            )
        return held

    def _count(self, receipt: Receipt) -> None:
        if receipt.status in ("damaged", "refused"):
            return
        self.acknowledged += receipt.count
        if receipt.status == "duplicate":
            self.duplicates += receipt.count
        else:
            self.duplicates += sum(
                run.last - run.first + 1 for run in receipt.exceptions if run.verdict == "duplicate"
            )

    def _refused(self, outbox: Outbox, sent: Sequence[QueuedBlock], words: str) -> None:
        if len(sent) > 1:
            # Which one it is shows when each goes alone; the others are not held up.
            self._blocks_max = max(1, len(sent) // 2)
            return
        digest = read_header(sent[0].data).sha256
        self._refusals = self._refusals + 1 if digest == self._refused_block else 1
        self._refused_block = digest
        if self._refusals >= _REFUSALS_MAX:
            outbox.queue.settle([(sent[0].id, "aside", words)])
            outbox.sending_blocked = False
            self._warn("aside", f"the server refuses a block alone, it is set aside: {words}")
        else:
            self._fail(outbox, sent, words, None)

    def _fail(
        self,
        outbox: Outbox,
        sent: Sequence[QueuedBlock],
        words: str,
        retry_after_seconds: float | None,
    ) -> None:
        self._failures += 1
        wait = wait_seconds(self._failures, self._ids.fraction(), retry_after_seconds)
        self._due_at = self._clock.monotonic() + wait
        # With nothing to send, the next block is cut as ever: its answer is what unblocks.
        outbox.sending_blocked = bool(sent)
        self.last_error = words
        self._warn("send", f"nothing is lost, but sending fails: {words}")

    def close(self) -> None:
        """Let go of the transport. Idempotent."""
        self._transport.close()


class _RefusedBlocks(Exception):
    """The server does not take these blocks together."""


class _OtherLedger(Exception):
    """The server keeps another ledger."""


class _Problem(msgspec.Struct):
    """What a refusal says of itself. RFC 9457, and `retryable` of our own."""

    retryable: bool = False


_problem: Final = msgspec.json.Decoder(_Problem)


def _is_retryable(body: bytes) -> bool:
    try:
        return _problem.decode(body).retryable
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _reissue(block: bytes, receipt: Receipt) -> list[bytes]:
    """
    The blocks that bring the conflicting events again, under the derived producer.

    The same sequences, and everything follows from the block alone: a clone that does
    the same makes the same events under the same identities.
    """
    runs = [
        run for run in receipt.exceptions if run.verdict == "conflict" and run.reason == "sequence"
    ]
    if not runs:
        return []
    header = read_header(block)
    columns = read_payload(block, header)
    bodies = columns_bodies(columns)
    derived = derived_producer(header.producer, header.first, header.sha256)
    return [
        encode_block(
            pack(columns.source, bodies[run.first - header.first : run.last - header.first + 1]),
            producer=derived,
            first=run.first,
            flags=REISSUED,
        )
        for run in runs
    ]
