"""
The hot tail: the events that are not sealed, as columns in memory.

It is made of *generations*. The last one grows; the others are on their way into a
segment. A seal turns exactly one generation into exactly one segment, so a query that
sees the one or the other sees each event once, whatever the sealer does meanwhile.

A series is cut into its *user* (the bytes of dimension and tenant) and its *tagset* (the
bytes of the tags), and within a generation each of the two is interned once: most events
bring a series that nobody has seen, but hardly any brings a new half. (Of 300,000 events
of 1,000 tenants, 20 dimensions and 1,000 tagsets, 237,000 series were new.) That a half is
there means that it was checked, and a number, once given, never means another half. So a
known half is looked up once, where its block is checked, without a lock and before the
writer has it: it needs no validation, and the number is the one that goes into the column.
(A look-up costs 120 ns, most of them waiting for memory: measured.)

The rows of one commit are a *chunk*, which never changes. A chunk is handed to DuckDB
when a query first needs it, and then leaves here.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from operator import itemgetter
from typing import Final, NamedTuple

from tallybook.block import Columns, int64s
from tallybook.errors import FrameDamaged
from tallybook.event import INT64_MAX
from tallybook.frame import encode_series, read_series
from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.entry import Verdict, VerdictRun

__all__ = [
    "Chunk",
    "Extra",
    "Generation",
    "Halves",
    "Known",
    "Numbering",
    "Numbers",
    "Stored",
    "Wide",
    "halve",
]

UNCOUNTED: Final = (Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.REJECTED)

_ROW_BYTES: Final = 2 * 38  # The columns once here and once, later, in DuckDB.
# A dict's slot, a list's, the bytes object; and DuckDB's row, which for tags is a map.
_USER_BYTES: Final = 300
_TAGSET_BYTES: Final = 400
_EXTRA_BYTES: Final = 300

_INDICES: Final = array("i", range(BLOCK_EVENTS_MAX))


class Halves(NamedTuple):
    """
    The series of a block, each cut in two, in the block's order.

    Attributes:
        users: The bytes of dimension and tenant.
        tagsets: The bytes of the tags.

    Of a series that cannot be read, at least one half cannot be read either, or is empty.
    """

    users: list[bytes]
    tagsets: list[bytes]


class Stored(NamedTuple):
    """
    A block that is durable.

    Attributes:
        position: Its entry.
        columns: Its events.
        users: The first half of each series.
        tagsets: The second half of each series.
        times: Per event, microseconds since 1970 UTC.
        runs: Its exceptions.
        unfit: Indices of its series that are out of bounds; only rejected events have them.
    """

    position: int
    columns: Columns
    users: Numbering
    tagsets: Numbering
    times: array[int]
    runs: Sequence[VerdictRun]
    unfit: Collection[int] = ()


class Wide(NamedTuple):
    """A counted event whose mantissa is beyond 63 bits."""

    user: int
    tagset: int
    time: int
    scale: int
    entry: int
    place: int
    mantissa: str


class Extra(NamedTuple):
    """The key and the id of a counted event that has one."""

    entry: int
    place: int
    key: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    The counted events of one commit, by column, and the halves of series that it brought.

    Attributes:
        fresh_users: Those that the generation did not know before, in the order of their numbers.
        fresh_tagsets: Likewise.
        users: Per event, its user's number.
        tagsets: Per event, its tagset's number.
        times: Per event, microseconds since 1970 UTC, corrected where its host's clock was wrong.
        mantissas: Per event; 0 where it is wide.
        scales: Per event.
        given: Per event, 1 where the caller gave the time.
        entries: Per event, the position of its entry.
        indices: Per event, its place in the entry.
        wides: The wide ones.
        extras: The ones with a key or an id.
    """

    fresh_users: list[bytes] = field(default_factory=list[bytes])
    fresh_tagsets: list[bytes] = field(default_factory=list[bytes])
    users: array[int] = field(default_factory=lambda: array("I"))
    tagsets: array[int] = field(default_factory=lambda: array("I"))
    times: array[int] = field(default_factory=lambda: array("q"))
    mantissas: array[int] = field(default_factory=lambda: array("q"))
    scales: array[int] = field(default_factory=lambda: array("b"))
    given: array[int] = field(default_factory=lambda: array("b"))
    entries: array[int] = field(default_factory=lambda: array("q"))
    indices: array[int] = field(default_factory=lambda: array("i"))
    wides: list[Wide] = field(default_factory=list[Wide])
    extras: list[Extra] = field(default_factory=list[Extra])


@dataclass(slots=True)
class Numbering:
    """
    One half of each series of a block, as far as it was known when it was looked up.

    Attributes:
        halves: In the block's order.
        owner: Where they were looked up; elsewhere the numbers mean nothing.
        numbers: Of each half; `_UNKNOWN` where it was not known.
        missing: The indices of those.
    """

    halves: list[bytes]
    owner: Numbers | None = None
    numbers: list[int] = field(default_factory=list[int])
    missing: list[int] = field(default_factory=list[int])

    def fresh(self) -> set[bytes]:
        """The halves that were not known."""
        return {self.halves[at] for at in self.missing}


_UNKNOWN: Final = -1  # No array of numbers takes it, should it ever be forgotten.


class Numbers(dict[bytes, int]):
    """
    Halves, numbered in the order of their coming; none ever leaves.

    One thread lets it grow, by `intern`; any number of threads look halves up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fresh: list[bytes] = []

    def __missing__(self, half: bytes) -> int:
        # So that a block of known halves is numbered in one loop that is not Python's.
        number = self[half] = len(self)
        self._fresh.append(half)
        return number

    def look_up(self, halves: list[bytes]) -> Numbering:
        """The numbers of the *halves* that are known."""
        numbers = list(map(self.get, halves, repeat(_UNKNOWN)))
        if _UNKNOWN not in numbers:
            return Numbering(halves, self, numbers)
        missing = [at for at, number in enumerate(numbers) if number == _UNKNOWN]
        return Numbering(halves, self, numbers, missing)

    def intern(self, block: Numbering, unfit: Collection[int]) -> list[int]:
        """
        The number of each half of a block; those that are new get one.

        Args:
            block: Looked up here, or anywhere.
            unfit: Which of them only rejected events have; these get 0 and are not kept.
        """
        if unfit:
            return [0 if at in unfit else self[half] for at, half in enumerate(block.halves)]
        if block.owner is not self:
            return list(map(self.__getitem__, block.halves))
        for at in block.missing:
            block.numbers[at] = self[block.halves[at]]
        return block.numbers

    def take_fresh(self) -> list[bytes]:
        """What is new since the last call, in the order of their numbers."""
        fresh, self._fresh = self._fresh, []
        return fresh


class Known(NamedTuple):
    """Halves that were checked already."""

    users: Numbers = Numbers()
    tagsets: Numbers = Numbers()


class Generation:
    """
    A growing part of the tail. One thread fills it; any number of threads read chunks.

    Attributes:
        number: Its name; never used again within a process.
        first: The first entry that it covers.
        events: Counted events in it.
        bytes: What it takes in memory, by estimate.
        blocks: Blocks in it, counted or not.
        begun_at: When its first block was recorded, or None.
        users: The number of each known user; to be a key here is to have been checked.
        tagsets: The number of each known tagset; likewise.
        chunks: One per commit; None once DuckDB has it.
    """

    def __init__(self, number: int, first: int) -> None:
        self.number = number
        self.first = first
        self.events = 0
        self.bytes = 0
        self.blocks = 0
        self.begun_at: int | None = None
        self.users = Numbers()
        self.tagsets = Numbers()
        self.chunks: list[Chunk | None] = []

    def fill(self, blocks: Iterable[Stored], recorded_at: int) -> None:
        """Add the blocks of one commit as one chunk. Nobody sees it before the snapshot says so."""
        chunk = Chunk()
        for block in blocks:
            self._add(chunk, block)
            self.blocks += 1
            if self.begun_at is None:
                self.begun_at = recorded_at
        chunk.fresh_users.extend(self.users.take_fresh())
        chunk.fresh_tagsets.extend(self.tagsets.take_fresh())
        if not chunk.times:
            return
        self.events += len(chunk.times)
        self.bytes += (
            _ROW_BYTES * len(chunk.times)
            + sum(map(len, chunk.fresh_users)) * 2
            + _USER_BYTES * len(chunk.fresh_users)
            + sum(map(len, chunk.fresh_tagsets)) * 2
            + _TAGSET_BYTES * len(chunk.fresh_tagsets)
            + _EXTRA_BYTES * (len(chunk.extras) + len(chunk.wides))
        )
        self.chunks.append(chunk)

    def _add(self, chunk: Chunk, block: Stored) -> None:
        columns = block.columns
        size = len(columns.of)
        times, counted = block.times, None
        if block.runs:
            times, counted = _apply(block.runs, times)
            if counted is not None and not any(counted):
                # No row, so its halves are not numbered either: a chunk without rows is
                # none, and numbers that came with it would be known here and to nobody else.
                return
        users, tagsets = self._numbers(block)
        mantissas = int64s(columns.mantissas)
        # Through bytes for the speed of it, as in `int64s`.
        scales = array("b", bytes(columns.scales or size))
        given = array("b", bytes(size))
        for index in columns.given:
            given[index] = 1
        if columns.wides:
            _add_wides(chunk, block, (users, tagsets), times, mantissas, scales, counted)
        if columns.keys or columns.ids:
            _add_extras(chunk, block, counted)
        indices = _INDICES[:size]
        if counted is not None:
            users, tagsets, times, mantissas, scales, given, indices = (
                array(column.typecode, compress(column, counted))
                for column in (users, tagsets, times, mantissas, scales, given, indices)
            )
        chunk.users.extend(users)
        chunk.tagsets.extend(tagsets)
        chunk.times.extend(times)
        chunk.mantissas.extend(mantissas)
        chunk.scales.extend(scales)
        chunk.given.extend(given)
        chunk.indices.extend(indices)
        chunk.entries.extend(array("q", (block.position,)) * len(times))

    def _numbers(self, block: Stored) -> tuple[array[int], array[int]]:
        """Per event, its user's and its tagset's number."""
        of = block.columns.of
        users = self.users.intern(block.users, block.unfit)
        tagsets = self.tagsets.intern(block.tagsets, block.unfit)
        if len(of) == 1:  # Of one index, itemgetter makes no tuple.
            return array("I", [users[of[0]]]), array("I", [tagsets[of[0]]])
        # Measured: 19 ns an event; a map over the list's getter takes 55.
        pick = itemgetter(*of)
        return array("I", pick(users)), array("I", pick(tagsets))


# -- halves --------------------------------------------------------------------------------

# By a msgpack value's first byte, how long the value is: a short text and nil. A text with
# one byte of length has 0 here, and anything else ends beyond every series.
_BEYOND: Final = 1 << 30
_LENGTHS: Final = (
    *repeat(_BEYOND, 0xA0),
    *range(1, 33),  # 0xa0 to 0xbf: fixstr.
    1,  # 0xc0: nil.
    *repeat(_BEYOND, 0xD9 - 0xC1),
    0,  # 0xd9: str 8.
    *repeat(_BEYOND, 0xFF - 0xD9),
)


def halve(series: Sequence[bytes]) -> Halves:
    """
    Each series cut in two behind its tenant.

    The cut comes from the headers of dimension and tenant; nothing is decoded, and nothing
    is checked. Where the one half is two msgpack values and the other one is one, the cut
    is right, because a msgpack value says where it ends. Measured: 0.3 us a series.
    """
    lengths = _LENGTHS
    try:
        users = [
            one[: (at := lengths[one[0]] or one[1] + 2) + (lengths[one[at]] or one[at + 1] + 2)]
            for one in series
        ]
    except IndexError:
        users = []
    if users:
        tagsets = list(map(bytes.removeprefix, series, users))
        if b"" not in tagsets:
            return Halves(users, tagsets)
    pairs = [_halve_slowly(one) for one in series]
    return Halves([user for user, _ in pairs], [tagset for _, tagset in pairs])


def _halve_slowly(series: bytes) -> tuple[bytes, bytes]:
    """The halves of a series with unusual headers, as the SDK would have written them."""
    try:
        dimension, tenant, tags = read_series(series)
    except FrameDamaged:
        return b"", b""
    user = encode_series(dimension, tenant, {})[:-1]  # But for the nil of the tags.
    return user, encode_series(dimension, tenant, tags).removeprefix(user)


def _apply(runs: Sequence[VerdictRun], times: array[int]) -> tuple[array[int], bytearray | None]:
    """The times as corrected, and which events are counted; None: all of them."""
    counted: bytearray | None = None
    for run in runs:
        if run.verdict in UNCOUNTED:
            if counted is None:
                counted = bytearray(repeat(1, len(times)))
            counted[run.first : run.last + 1] = bytes(run.last + 1 - run.first)
        elif run.reason == "clock" and run.reference:
            times = times[:]
            for index in range(run.first, run.last + 1):
                times[index] -= run.reference
    return times, counted


def _add_wides(
    chunk: Chunk,
    block: Stored,
    numbers: tuple[array[int], array[int]],
    times: array[int],
    mantissas: array[int],
    scales: array[int],
    counted: bytearray | None,
) -> None:
    users, tagsets = numbers
    for index, text in block.columns.wides:
        mantissa = int(text)
        if mantissa <= INT64_MAX:
            mantissas[index] = mantissa
            continue
        mantissas[index] = 0
        if counted is None or counted[index]:
            chunk.wides.append(
                Wide(
                    users[index],
                    tagsets[index],
                    times[index],
                    scales[index],
                    block.position,
                    index,
                    str(mantissa),
                )
            )


def _add_extras(chunk: Chunk, block: Stored, counted: bytearray | None) -> None:
    keys, ids = dict(block.columns.keys), dict(block.columns.ids)
    for index in sorted(keys.keys() | ids.keys()):
        if counted is None or counted[index]:
            chunk.extras.append(Extra(block.position, index, keys.get(index), ids.get(index)))
