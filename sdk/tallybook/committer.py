"""
The committer: takes frames from the spool, cuts blocks, commits them to the queue.

It packs from the spool and from nothing else, so an event's sequence is its place there,
fixed when its block is committed, before anybody outside sees it. A thread that dies
between two lines of `record` leaves no gap, and a recovery after a crash is the same code
over the same bytes (`tallybook.adoption`).

Whatever ends a step in its middle, a disk that refuses or a KeyboardInterrupt, the next one
begins again behind the last commit: frames that were taken and not cut are taken once more,
and never twice into a block.

The frames of a block are taken apart by hand (`_fill`, `split_body`), not by a decoder: this
loop shares the interpreter with the application.
"""

from __future__ import annotations

from errno import ENOSPC
from typing import Final
from zlib import crc32

from tallybook.block import Columns, encode_block
from tallybook.errors import FrameDamaged, InvariantBroken
from tallybook.event import INT64_MAX
from tallybook.frame import COMMON, END, HEAD, MAGIC, Frame, frame_seed, scan, split_body
from tallybook.limits import BLOCK_EVENTS_MAX, BLOCK_RAW_BYTES_CUT
from tallybook.queue import Packed, Queue, QueueDamaged

__all__ = ["Committer"]

_END: Final = END[0]
_OTHER: Final = (0, 0, 0, 0, 0)


class Committer:
    """
    One producer's way from spool bytes to queued blocks. One thread at a time.

    Attributes:
        packed: What is committed.
        read: (spool number, offset) up to where frames were taken; ahead of `packed`.
        short: The disk is full: no block is committed while another one waits to be sent, since
            it would take the room that marking the other one needs.
    """

    def __init__(self, queue: Queue, producer: bytes, source: str | None) -> None:
        self._queue = queue
        self._producer = producer
        self._source = source
        self._seed = frame_seed(producer)
        self.packed = queue.packed()
        self.read = (self.packed.number, self.packed.offset)
        self.short = False
        self._uncertain = False
        self._events_max = BLOCK_EVENTS_MAX
        self._open_block()

    def _open_block(self) -> None:
        self._series: dict[bytes, int] = {}
        self._of: list[int] = []
        self._times: list[int] = []
        self._mantissas: list[int] = []
        self._scales: dict[int, int] = {}
        self._wides: list[tuple[int, str]] = []
        self._keys: list[tuple[int, str]] = []
        self._given: list[int] = []
        self._series_bytes = 0
        self._torn = 0

    @property
    def taken(self) -> int:
        """Events taken from the spool that no block holds yet."""
        return len(self._of)

    @property
    def full(self) -> bool:
        """Whether the open block is to be cut before another event goes in."""
        return len(self._of) >= self._events_max or self._series_bytes >= BLOCK_RAW_BYTES_CUT

    def recover(self) -> None:
        """
        After a step that did not come to its end: begin again behind what the queue holds.

        Raises:
            QueueDamaged: It holds less than it did.
        """
        if not self._uncertain:
            return
        packed = self._queue.packed()
        if (packed.sequence, packed.number) < (self.packed.sequence, self.packed.number):
            # Going on from here would give sequences a second time.
            raise QueueDamaged(
                f"the queue says sequence {packed.sequence}; it has said {self.packed.sequence}"
            )
        self.packed = packed
        self.read = (packed.number, packed.offset)
        self._open_block()
        self._uncertain = False

    def take(self, number: int, data: bytes, offset: int, now: int) -> None:
        """
        Take every frame of *data*; blocks that become full are committed on the way.

        Args:
            number: The spool's number: the current one, or the next.
            data: Its bytes from *offset*; no frame is cut off at the end.
            offset: Where *data* begins in the file, behind what was taken before.
            now: Microseconds since 1970 UTC.
        """
        at = 0
        while at < len(data):
            self._uncertain = True
            at = self._fill(data, at)
            if at < len(data) and not self.full:
                at = self._skip(data, at)
            self.read = (number, offset + at)
            if self.full:
                self.cut(now)
        self._uncertain = False

    def _fill(self, data: bytes, at: int) -> int:
        """Take frames until one does not hold, the end, or a full block."""
        head, common, seed = HEAD.unpack_from, COMMON.unpack_from, self._seed
        series, of, times, mantissas = self._series, self._of, self._times, self._mantissas
        last = len(data) - len(END)
        room = self._events_max - len(of)
        while room > 0 and at < last - HEAD.size:
            magic, length, checksum = head(data, at)
            end = at + HEAD.size + length
            body = data[at + HEAD.size : end]
            if magic != MAGIC or end > last or data[end] != _END or crc32(body, seed) != checksum:
                break
            at = end + 1
            room -= 1
            after = COMMON.size - 1  # Where the key begins.
            array, kind, time, value, key = common(body) if length > COMMON.size else _OTHER
            if 0xCC <= value <= 0xCE:  # uint8, uint16, uint32.
                after += 1 << (value - 0xCC)
                value = int.from_bytes(body[11:after], "big")
                key = body[after] if after < length else 0
            elif value > 0x7F:
                array = 0
            if array != 0x96 or kind != 0xCF or key != 0xC0:
                self._take_any(body)
                room = 0 if self.full else self._events_max - len(of)
                continue
            name = body[after + 1 :]
            number = series.get(name)
            if number is None:
                number = series[name] = len(series)
                self._series_bytes += length
                if self._series_bytes >= BLOCK_RAW_BYTES_CUT:
                    room = 0
            of.append(number)
            times.append(time // 1000)
            mantissas.append(value)
        return at

    def _take_any(self, data: bytes) -> None:
        """Take the body of a frame that holds."""
        try:
            body = split_body(data)
        except FrameDamaged:
            # The checksum holds and the content does not: nothing that we wrote.
            self._torn += 1
            return
        index = len(self._of)
        number = self._series.get(body.series)
        if number is None:
            number = self._series[body.series] = len(self._series)
            self._series_bytes += len(body.series)
        self._of.append(number)
        self._times.append(body.time)
        if body.mantissa > INT64_MAX:
            self._wides.append((index, str(body.mantissa)))
            self._mantissas.append(0)
        else:
            self._mantissas.append(body.mantissa)
        if body.scale:
            self._scales[index] = body.scale
        if body.key is not None:
            self._keys.append((index, body.key))
            self._series_bytes += len(body.key)
        if body.given:
            self._given.append(index)

    def _skip(self, data: bytes, at: int) -> int:
        """Step over a stretch of damage; where the next frame that holds begins."""
        found = next(scan(data, at, self._seed), None)
        if isinstance(found, Frame):
            raise InvariantBroken(f"a frame that holds, at {at}, was taken for damage")
        if found is None:
            return len(data)
        self._torn += 1
        return found.end

    def cut(self, now: int) -> None:
        """
        Commit what was taken as one block, and the position behind it.

        On an error nothing is lost, but the commit may be durable all the same: `recover`
        looks, before anything else is taken.

        Args:
            now: Microseconds since 1970 UTC.
        """
        number, offset = self.read
        packed = self.packed._replace(
            number=number,
            offset=offset,
            sequence=self.packed.sequence + len(self._of),
            torn=self.packed.torn + self._torn,
        )
        if packed == self.packed:
            return
        if self.short and self._of and self._queue.counts().pending_blocks:
            raise OSError(ENOSPC, "the disk is full; what is queued is sent first")
        self._uncertain = True
        # Should this fail, the next block is smaller: on a full disk it may still find room.
        before, self._events_max = self._events_max, max(1, len(self._of) // 4)
        if self._of:
            self._queue.commit_block(self._encode(), packed, now)
        else:
            self._queue.move_packed(packed)
        self._events_max = min(BLOCK_EVENTS_MAX, 2 * before)
        self.packed = packed
        self._open_block()
        self._uncertain = False

    def _encode(self) -> bytes:
        times = self._times
        columns = Columns(
            version=1,
            source=self._source,
            series=list(self._series),
            of=self._of,
            times=[times[0], *map(int.__sub__, times[1:], times)],
            mantissas=self._mantissas,
            scales=[self._scales.get(i, 0) for i in range(len(self._of))] if self._scales else [],
            wides=self._wides,
            keys=self._keys,
            ids=[],
            given=self._given,
        )
        return encode_block(columns, producer=self._producer, first=self.packed.sequence)

    def next_spool(self, number: int, dropped: int, now: int) -> None:
        """
        Go on with the next spool file; the one before it is packed to its end.

        Args:
            number: The next file's number.
            dropped: The drops that the file before it has counted.
            now: Microseconds since 1970 UTC.
        """
        self.cut(now)
        packed = self.packed._replace(
            number=number, offset=Packed().offset, dropped=self.packed.dropped + dropped
        )
        self._uncertain = True
        self._queue.move_packed(packed)
        self.packed = packed
        self.read = (number, packed.offset)
        self._uncertain = False
