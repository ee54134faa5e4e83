"""
The hot tail: the events that are not sealed, as columns in memory.

It is made of *generations*. The last one grows; the others are on their way into a
segment. A seal turns exactly one generation into exactly one segment, so a query that
sees the one or the other sees each event once, whatever the sealer does meanwhile.

Within a generation each series is interned once. That it is there means that it was
checked: an event of a known series costs one look into a dict, and no validation.

The rows of one commit are a *chunk*, which never changes. A chunk is handed to DuckDB
when a query first needs it, and then leaves here.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress, count, repeat
from typing import Final, NamedTuple

from tallybook.block import Columns
from tallybook.event import INT64_MAX
from tallybook.limits import BLOCK_EVENTS_MAX
from tallybook_server.entry import Verdict, VerdictRun

__all__ = ["Chunk", "Extra", "Generation", "Stored", "Wide"]

UNCOUNTED: Final = (Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.REJECTED)

_ROW_BYTES: Final = 2 * 34  # The columns once here and once, later, in DuckDB.
_SERIES_BYTES: Final = 400  # A dict's slot, a list's, the bytes object; and DuckDB's row.
_EXTRA_BYTES: Final = 300

_INDICES: Final = array("i", range(BLOCK_EVENTS_MAX))


class Stored(NamedTuple):
    """
    A block that is durable.

    Attributes:
        position: Its entry.
        columns: Its events.
        times: Per event, microseconds since 1970 UTC.
        runs: Its exceptions.
        unfit: Indices of its series that are out of bounds; only rejected events have them.
    """

    position: int
    columns: Columns
    times: array[int]
    runs: Sequence[VerdictRun]
    unfit: Collection[int] = ()


class Wide(NamedTuple):
    """A counted event whose mantissa is beyond 63 bits."""

    series: int
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
    The counted events of one commit, by column, and the series that it brought.

    Attributes:
        fresh: Series that the generation did not know before, in the order of their numbers.
        series: Per event, its series' number.
        times: Per event, microseconds since 1970 UTC, corrected where its host's clock was wrong.
        mantissas: Per event; 0 where it is wide.
        scales: Per event.
        given: Per event, 1 where the caller gave the time.
        entries: Per event, the position of its entry.
        indices: Per event, its place in the entry.
        wides: The wide ones.
        extras: The ones with a key or an id.
    """

    fresh: list[bytes] = field(default_factory=list[bytes])
    series: array[int] = field(default_factory=lambda: array("I"))
    times: array[int] = field(default_factory=lambda: array("q"))
    mantissas: array[int] = field(default_factory=lambda: array("q"))
    scales: array[int] = field(default_factory=lambda: array("b"))
    given: array[int] = field(default_factory=lambda: array("b"))
    entries: array[int] = field(default_factory=lambda: array("q"))
    indices: array[int] = field(default_factory=lambda: array("i"))
    wides: list[Wide] = field(default_factory=list[Wide])
    extras: list[Extra] = field(default_factory=list[Extra])


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
        series: The number of each known series; to be a key here is to have been checked.
        chunks: One per commit; None once DuckDB has it.
    """

    def __init__(self, number: int, first: int) -> None:
        self.number = number
        self.first = first
        self.events = 0
        self.bytes = 0
        self.blocks = 0
        self.begun_at: int | None = None
        self.series: dict[bytes, int] = {}
        self.chunks: list[Chunk | None] = []

    def fill(self, blocks: Iterable[Stored], recorded_at: int) -> None:
        """Add the blocks of one commit as one chunk. Nobody sees it before the snapshot says so."""
        chunk = Chunk()
        for block in blocks:
            self._add(chunk, block)
            self.blocks += 1
            if self.begun_at is None:
                self.begun_at = recorded_at
        if not chunk.times:
            # No row, no chunk. So the series that only uncounted events brought are not
            # known either: who brings them next has to introduce them.
            for series in chunk.fresh:
                del self.series[series]
            return
        self.events += len(chunk.times)
        self.bytes += (
            _ROW_BYTES * len(chunk.times)
            + sum(map(len, chunk.fresh)) * 2
            + _SERIES_BYTES * len(chunk.fresh)
            + _EXTRA_BYTES * (len(chunk.extras) + len(chunk.wides))
        )
        self.chunks.append(chunk)

    def _add(self, chunk: Chunk, block: Stored) -> None:
        columns = block.columns
        size = len(columns.of)
        numbers = self._numbers(chunk, block)
        series = array("I", [*map(numbers.__getitem__, columns.of)])
        times = block.times
        mantissas = array("q", columns.mantissas)
        scales = array("b", columns.scales) if columns.scales else array("b", bytes(size))
        given = array("b", bytes(size))
        for index in columns.given:
            given[index] = 1
        counted = None
        if block.runs:
            times, counted = _apply(block.runs, times)
        if columns.wides:
            _add_wides(chunk, block, series, times, mantissas, scales, counted)
        if columns.keys or columns.ids:
            _add_extras(chunk, block, counted)
        indices = _INDICES[:size]
        if counted is not None:
            series, times, mantissas, scales, given, indices = (
                array(column.typecode, compress(column, counted))
                for column in (series, times, mantissas, scales, given, indices)
            )
        chunk.series.extend(series)
        chunk.times.extend(times)
        chunk.mantissas.extend(mantissas)
        chunk.scales.extend(scales)
        chunk.given.extend(given)
        chunk.indices.extend(indices)
        chunk.entries.extend(array("q", (block.position,)) * len(times))

    def _numbers(self, chunk: Chunk, block: Stored) -> list[int]:
        known = self.series
        try:
            return list(map(known.__getitem__, block.columns.series))
        except KeyError:
            pass
        series = block.columns.series
        unfit = {series[at] for at in block.unfit}  # Of rejected events only: never interned.
        fresh = [one for one in dict.fromkeys(series) if one not in known and one not in unfit]
        known.update(zip(fresh, count(len(known)), strict=False))
        chunk.fresh.extend(fresh)
        return [known.get(one, 0) for one in series]


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
    series: array[int],
    times: array[int],
    mantissas: array[int],
    scales: array[int],
    counted: bytearray | None,
) -> None:
    for index, text in block.columns.wides:
        mantissa = int(text)
        if mantissa <= INT64_MAX:
            mantissas[index] = mantissa
            continue
        mantissas[index] = 0
        if counted is None or counted[index]:
            chunk.wides.append(
                Wide(
                    series[index], times[index], scales[index], block.position, index, str(mantissa)
                )
            )


def _add_extras(chunk: Chunk, block: Stored, counted: bytearray | None) -> None:
    keys, ids = dict(block.columns.keys), dict(block.columns.ids)
    for index in sorted(keys.keys() | ids.keys()):
        if counted is None or counted[index]:
            chunk.extras.append(Extra(block.position, index, keys.get(index), ids.get(index)))
