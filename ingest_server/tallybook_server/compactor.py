"""
The compactor: it merges segments, and puts events to their months. Why and which:
`tallybook_server.compaction`.

Each stage may be the last thing that happens before a crash, and none loses or doubles:

1. *begin*: the inputs are chosen. Nothing on disk.
2. *write*: each output is written under a temporary name, read again, and compared with
   the inputs. A leftover is removed at the next start.
3. *install*: the files are synced, renamed, the directory synced. The journal does not
   know them yet: at the next start they are removed, and the inputs are still there.
4. *enter*: one transaction of the journal: the compaction's entry, and in the manifest
   the outputs in the place of the inputs. From here on the outputs count and the inputs
   do not. No answer changes: each row is in one of them, with its entry and its index.
5. *sweep*: the inputs' files go as soon as no snapshot has them; what is left is removed
   at the next start.

Ingest and queries go on all the while; only *enter* takes a turn on the writer's thread,
as long as a seal's. Seals come first: the work pauses for them, about every half second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tallybook_server.book import sync_directory, sync_file
from tallybook_server.compaction import Policy, choose, choose_months
from tallybook_server.limits import COMPACTION_MEMORY_BYTES
from tallybook_server.merge import Extent, Merge, Piece
from tallybook_server.segment import WRITING_PREFIX, Segment, merged_name
from tallybook_server.tables import open_database
from tallybook_server.writer import Writer

__all__ = ["Compacting", "Compactor"]

_log = logging.getLogger("tallybook.ledger")


@dataclass(frozen=True, slots=True)
class Compacting:
    """
    A compaction that has begun.

    Attributes:
        inputs: What is merged.
        head: The ledger's head at that moment: no other compaction begins there.
    """

    inputs: tuple[Segment, ...]
    head: int


class Compactor:
    """Merges segments, one group at a time. One thread at a time."""

    def __init__(self, writer: Writer, directory: Path, spill: Path, policy: Policy) -> None:
        """
        Begin nothing yet.

        Args:
            writer: Of the same book.
            directory: Of the segments.
            spill: Where a sort may write what does not fit into memory.
            policy: What is merged when.
        """
        self._writer = writer
        self._directory = directory
        self._spill = spill
        self._policy = policy
        self._seen: tuple[Segment, ...] = ()
        self._unsure: list[Segment] = []
        self._database: duckdb.DuckDBPyConnection | None = None

    def step(self, pause: Callable[[], None] = lambda: None) -> bool:
        """
        Merge if there is something to merge, all stages.

        Args:
            pause: Called about every half second; what it raises ends the step, and nothing
                has changed.

        Returns:
            Whether segments were merged.

        Raises:
            LedgerFull: The journal refused; a later step tries again.
            InvariantBroken: The outputs were not what the inputs are; nothing has changed.
            OSError, duckdb.Error: A file could not be written; likewise.
        """
        self.sweep()
        compacting = self.begin()
        if compacting is None:
            self.close()
            return False
        try:
            outputs = self.write(compacting, pause)
            self.install(outputs)
        except BaseException:
            self.close()
            for path in self._directory.glob(f"{WRITING_PREFIX}*-{compacting.head:016d}-*"):
                path.unlink()
            raise
        entered = self.enter(compacting, outputs)
        self.sweep()
        return entered

    def close(self) -> None:
        """Let go of the memory. Idempotent; another step takes it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _opened(self) -> duckdb.DuckDBPyConnection:
        """
        The DuckDB of this chain of merges.

        A merge often makes the next one possible. To open a DuckDB takes as long as a small
        merge (30 ms), and one that nobody uses keeps memory: so there is one from the first
        merge to the last.
        """
        if self._database is None:
            self._database = open_database(
                self._directory, self._spill, memory_bytes=COMPACTION_MEMORY_BYTES, threads=1
            )
        return self._database

    # -- the stages ------------------------------------------------------------------------

    def begin(self) -> Compacting | None:
        """Choose what is merged; None: nothing."""
        snapshot = self._writer.snapshots.current
        if snapshot.segments is self._seen:
            return None  # As when there was nothing to do.
        inputs = choose(snapshot.segments, self._policy)
        if inputs is None:
            self._seen = snapshot.segments
            return None
        return Compacting(inputs, snapshot.position)

    def write(
        self, compacting: Compacting, pause: Callable[[], None] = lambda: None
    ) -> tuple[Segment, ...]:
        """
        Write the outputs under temporary names, and say what is in them.

        Raises:
            InvariantBroken: They are not what the inputs are.
            OSError, duckdb.Error: They could not be written.
        """
        inputs = compacting.inputs
        level = max(one.level for one in inputs) + 1
        first, last = min(one.first for one in inputs), max(one.last for one in inputs)
        merge = Merge(self._opened(), self._directory, inputs, pause)
        outputs: list[Segment] = []
        for piece in self._pieces(merge.survey()):
            name = merged_name(first, last, compacting.head, piece.month)
            path = self._temporary(name)
            path.unlink(missing_ok=True)  # DuckDB would write to a third name first.
            outputs.append(merge.write(piece, path, name=name, level=level))
        return tuple(outputs)

    def _pieces(self, extents: dict[int, Extent]) -> list[Piece]:
        """What becomes a file: each month, and together what is left."""
        rows = {month: extent.rows for month, extent in extents.items()}
        months = choose_months(rows, self._policy)
        pieces = [Piece(month, (), extents.pop(month)) for month in months]
        # There is always an output, even of no event at all: somebody has to cover the entries.
        if extents or not pieces:
            rest = Extent()
            for extent in extents.values():
                rest.add(extent)
            pieces.append(Piece(None, months, rest))
        return pieces

    def install(self, outputs: Sequence[Segment]) -> None:
        """Make the files durable, and give them their names."""
        for segment in outputs:
            sync_file(self._temporary(segment.name))
        self._unsure = list(outputs)
        for segment in outputs:
            self._temporary(segment.name).rename(self._directory / segment.name)
        sync_directory(self._directory)

    def enter(self, compacting: Compacting, outputs: Sequence[Segment]) -> bool:
        """
        Let the outputs count in the place of the inputs; False if they do not.

        Raises:
            LedgerFull: The journal refused.
        """
        inputs = compacting.inputs
        entered = self._writer.run(lambda _: self._writer.enter_compaction(inputs, outputs))
        done = entered.result()
        if done:
            self._unsure = []
            _log.info(
                "%d segments with %d events became %d",
                len(inputs),
                sum(one.rows for one in inputs),
                len(outputs),
            )
        return done

    def sweep(self) -> None:
        """Remove the files that no snapshot has any more, and outputs that never counted."""
        if self._unsure:
            # A look by the writer, which knows: an entry that failed may be there all the same.
            known = self._writer.run(lambda journal: {one.name for one in journal.segments()})
            names = known.result()
            self._remove(one for one in self._unsure if one.name not in names)
            self._unsure = []
        self._remove(self._writer.snapshots.take_replaced())

    def _remove(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            (self._directory / segment.name).unlink(missing_ok=True)

    def _temporary(self, name: str) -> Path:
        return self._directory / f"{WRITING_PREFIX}{name}"
