"""
The sealer: it turns the oldest generation of the tail into a segment.

Each stage may be the last thing that happens before a crash, and none loses or doubles:

1. *begin*: the growing generation is frozen; events go into a new one. Nothing on disk.
2. *write*: DuckDB writes the Parquet file under a temporary name. A leftover is removed.
3. *install*: the file is synced, renamed, the directory synced. The journal does not know
   it yet: at the next start it is removed, and the blocks are still there.
4. *enter*: one transaction of the journal: the seal's entry and the manifest's row. From
   here on the segment counts and the blocks do not.
5. *sweep*: the blocks' bytes leave the journal in small steps; what is left is removed by
   a later sweep.

Ingest and queries go on all the while; only *begin*, *enter* and each step of *sweep*
take a turn on the writer's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tallybook.errors import InvariantBroken, TallybookError
from tallybook_server.book import sync_directory, sync_file
from tallybook_server.limits import SWEEP_BLOCKS
from tallybook_server.segment import (
    WRITING_PREFIX,
    Segment,
    choose_columns,
    file_digest,
    identifier,
    quoted,
    segment_name,
)
from tallybook_server.snapshot import Part
from tallybook_server.tables import Tables
from tallybook_server.writer import Writer

__all__ = ["SealThresholds", "SealVoid", "Sealer", "Sealing"]


@dataclass(frozen=True, slots=True)
class SealThresholds:
    """
    When a seal is due.

    Attributes:
        events: Unsealed events.
        bytes: Their memory.
        age_seconds: The age of the oldest one.
    """

    events: int
    bytes: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Sealing:
    """
    A seal that has begun.

    Attributes:
        part: The frozen generation, whole.
        last: The last entry that it covers.
    """

    part: Part
    last: int

    @property
    def name(self) -> str:
        """The segment's name."""
        return segment_name(self.part.generation.first, self.last)


class SealVoid(TallybookError):
    """The tail was built anew, after a failed commit, and this seal has nothing to seal."""


class Sealer:
    """Seals, one generation at a time. One thread at a time."""

    def __init__(
        self, writer: Writer, tables: Tables, directory: Path, thresholds: SealThresholds
    ) -> None:
        self._writer = writer
        self._tables = tables
        self._directory = directory
        self._thresholds = thresholds

    def step(self, *, force: bool = False) -> bool:
        """
        Seal if a seal is due, all stages.

        Args:
            force: Seal whatever there is.

        Returns:
            Whether a segment was made.

        Raises:
            LedgerFull: The journal refused; the next step tries again.
            OSError, duckdb.Error: The file could not be written; likewise.
        """
        sealing = self.begin(force=force)
        if sealing is None:
            return False
        try:
            segment = self.write(sealing)
            self.install(sealing)
        except SealVoid:
            return False
        except BaseException:
            self._temporary(sealing).unlink(missing_ok=True)
            raise
        entered = self.enter(segment)
        while self.sweep():
            pass
        return entered

    def is_due(self) -> bool:
        """Whether the tail is large or old enough."""
        snapshot = self._writer.snapshots.current
        if snapshot.frozen is not None:
            return True  # A seal that did not come to its end.
        growing = snapshot.growing
        if not growing.blocks:
            return False
        begun_at = growing.begun_at or 0
        return (
            growing.events >= self._thresholds.events
            or growing.bytes >= self._thresholds.bytes
            or self._writer.now() - begun_at >= self._thresholds.age_seconds * 1_000_000
        )

    # -- the stages ------------------------------------------------------------------------

    def begin(self, *, force: bool = False) -> Sealing | None:
        """Freeze what is to be sealed; None if nothing is due."""
        snapshots = self._writer.snapshots
        if snapshots.current.frozen is None:
            blocks = snapshots.current.growing.blocks
            if not (self.is_due() or (force and blocks)):
                return None
            self._writer.run(lambda _: self._writer.freeze()).result()
        snapshot = snapshots.current
        if snapshot.frozen is None:
            return None  # A failed commit had the tail built anew just now.
        return Sealing(snapshot.frozen, snapshot.growing.first - 1)

    def write(self, sealing: Sealing) -> Segment:
        """
        Write the file, under its temporary name, and say what is in it.

        Raises:
            SealVoid: There is nothing to seal any more.
            OSError, duckdb.Error: It could not be written.
        """
        with self._writer.snapshots.hold() as snapshot:
            if snapshot.frozen != sealing.part:
                raise SealVoid(f"{sealing.name}: the tail was built anew")
            return self._write(sealing)

    def _write(self, sealing: Sealing) -> Segment:
        self._tables.load([sealing.part])
        path = self._temporary(sealing)
        generation = sealing.part.generation
        number = generation.number
        with self._tables.cursor() as cursor:
            tags, more = choose_columns(cursor.execute(_USES.format(n=number)).fetchall())
            copy = _copy(
                number,
                tags,
                more,
                path,
                wides=self._tables.has_wides(generation),
                extras=self._tables.has_extras(generation),
            )
            cursor.execute(copy)
            found = cursor.execute(_TOTALS.format(n=number)).fetchone()
        if found is None or found[0] != sealing.part.generation.events:
            raise InvariantBroken(
                f"generation {number} has {sealing.part.generation.events} events, "
                f"its tables have {found and found[0]}"
            )
        sha256, size = file_digest(path)
        rows, time_min, time_max, wides = found
        return Segment(
            name=sealing.name,
            sha256=sha256,
            bytes=size,
            rows=rows,
            first=sealing.part.generation.first,
            last=sealing.last,
            time_min=time_min,
            time_max=time_max,
            wides=wides,
            tags=tags,
            more=more,
        )

    def install(self, sealing: Sealing) -> None:
        """Make the file durable, and give it its name."""
        path = self._temporary(sealing)
        sync_file(path)
        path.rename(self._directory / sealing.name)
        sync_directory(self._directory)

    def enter(self, segment: Segment) -> bool:
        """Let the segment count; False if it does not, and its file is gone."""
        entered = self._writer.run(lambda _: self._writer.enter_segment(segment)).result()
        if not entered:
            (self._directory / segment.name).unlink(missing_ok=True)
        return entered

    def sweep(self) -> bool:
        """Remove the bytes of some sealed blocks; whether there were any."""
        return self._writer.run(lambda _: self._writer.sweep(SWEEP_BLOCKS)).result() > 0

    def _temporary(self, sealing: Sealing) -> Path:
        return self._directory / f"{WRITING_PREFIX}{sealing.name}"


# -- SQL -----------------------------------------------------------------------------------

_USES: Final = (
    "SELECT tag, count(*) FROM (SELECT unnest(map_keys(tags)) AS tag FROM tagsets_{n}) GROUP BY tag"
)
_TOTALS: Final = (
    'SELECT count(*), min("time"), max("time"), (SELECT count(*) FROM wides_{n}) FROM events_{n}'
)


def _copy(
    n: int, tags: tuple[str, ...], more: tuple[str, ...], path: Path, *, wides: bool, extras: bool
) -> str:
    # A COPY takes no parameters. Tag keys have no control characters, and a quote in a
    # literal is doubled, which is all the escaping that DuckDB's literals know.
    columns = "".join(f", tags[{quoted(key)}] AS {identifier(f'tag:{key}')}" for key in tags)
    names = "".join(f", t.{identifier(f'tag:{key}')}" for key in tags)
    if more:
        keys = ", ".join(map(quoted, more))
        chosen = f"list_filter(map_entries(tags), lambda one: one.key IN ({keys}))"
        columns += f", map_from_entries({chosen}) AS more_tags"
        names += ", t.more_tags"
    # Few generations have any; where there is none, a join is a search per event for nothing.
    value, wide, join = 'e."value"', "NULL::VARCHAR AS wide", ""
    if wides:
        value, wide = 'CASE WHEN w.wide IS NULL THEN e."value" END', "w.wide"
        join += f'LEFT JOIN wides_{n} AS w ON w.entry = e.entry AND w."index" = e."index" '
    identity = 'NULL::VARCHAR AS "key", NULL::VARCHAR AS id'
    if extras:
        identity = 'x."key", x.id'
        join += f'LEFT JOIN extras_{n} AS x ON x.entry = e.entry AND x."index" = e."index" '
    # The users are put in order once, so that the events are sorted by numbers alone.
    return (
        f'COPY (SELECT u.dimension, u.tenant, e."time", {value} AS "value", e.scale, {wide}, '
        f'e.entry, e."index", {identity}, e.given = 1 AS given{names} FROM events_{n} AS e '
        "JOIN (SELECT number, dimension, tenant, "
        f"dense_rank() OVER (ORDER BY tenant, dimension) AS place FROM users_{n}) AS u "
        "ON u.number = e.of_user "
        f"JOIN (SELECT number{columns} FROM tagsets_{n}) AS t ON t.number = e.of_tagset "
        f'{join}ORDER BY u.place, e."time", e.entry, e."index") '
        f"TO {quoted(str(path))} (FORMAT parquet, COMPRESSION zstd, PARQUET_VERSION v2, "
        "KV_METADATA {'tallybook.segment': '1'})"
    )
