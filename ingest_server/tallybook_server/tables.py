"""
The engine's DuckDB: in memory, it answers queries and writes segments.

The hot tail goes into it lazily, chunk by chunk, when a query or a seal needs it: five
tables per generation, dropped whole once the generation is sealed and nobody looks at
it any more. Columns are handed over as Arrow without a copy; neither pyarrow nor numpy
is needed (measured: 6.7 million rows a second).
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from threading import Lock

import duckdb
import msgspec

from tallybook.errors import InvariantBroken
from tallybook_server.arrow import Column, Rows, lists, numbers, rows, texts
from tallybook_server.limits import QUERY_MEMORY_BYTES
from tallybook_server.segment import quoted
from tallybook_server.snapshot import Part, Snapshot
from tallybook_server.tail import Chunk, Generation

__all__ = ["Tables", "open_database"]

_CREATE = """
CREATE TABLE events_{n} (
    of_user UINTEGER, of_tagset UINTEGER, "time" BIGINT, "value" BIGINT, scale TINYINT,
    given TINYINT, entry BIGINT, "index" INTEGER
);
CREATE TABLE users_{n} (number UINTEGER, dimension VARCHAR, tenant VARCHAR);
CREATE TABLE tagsets_{n} (number UINTEGER, tags MAP(VARCHAR, VARCHAR));
CREATE TABLE wides_{n} (
    of_user UINTEGER, of_tagset UINTEGER, "time" BIGINT, scale TINYINT, entry BIGINT,
    "index" INTEGER, wide VARCHAR
);
CREATE TABLE extras_{n} (entry BIGINT, "index" INTEGER, "key" VARCHAR, id VARCHAR);
"""
_NAMES = ("events", "users", "tagsets", "wides", "extras")


def open_database(
    segments: Path, spill: Path, *, memory_bytes: int, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """
    A DuckDB in memory that reaches the files of a book's segments, and nothing else.

    Args:
        segments: The directory of the segments.
        spill: Where it may write what does not fit into memory.
        memory_bytes: What it may take before it does so.
        threads: That it works with; None: one for each core.
    """
    database = duckdb.connect(":memory:")
    settings = [
        f"temp_directory = {quoted(str(spill))}",
        f"memory_limit = '{memory_bytes}B'",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "python_enable_replacements = false",
        "parquet_metadata_cache = true",
        "enable_progress_bar = false",  # In a session of Python it draws one on stdout.
        f"allowed_directories = [{quoted(str(segments))}, {quoted(str(spill))}]",
        "enable_external_access = false",  # But for the directories just named.
        "lock_configuration = true",
    ]
    if threads is not None:
        settings.insert(0, f"threads = {threads}")
    for setting in settings:
        database.execute(f"SET {setting}")
    return database


class Tables:
    """DuckDB with the loaded part of the tail. For any number of threads."""

    def __init__(self, segments: Path, spill: Path) -> None:
        """
        Open it.

        Args:
            segments: The directory of the segments; no other file can be reached by SQL.
            spill: Where it may write what does not fit into memory; emptied here.
        """
        shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(exist_ok=True)
        self._db = open_database(segments, spill, memory_bytes=QUERY_MEMORY_BYTES)
        self._lock = Lock()
        # By generation: chunks, users, tagsets.
        self._loaded: dict[int, tuple[int, int, int]] = {}
        self._wides: set[int] = set()
        self._extras: set[int] = set()

    def close(self) -> None:
        """Let go of the memory."""
        with self._lock:
            self._db.close()

    @contextmanager
    def cursor(self) -> Generator[duckdb.DuckDBPyConnection]:
        """A connection of its own for one thread."""
        cursor = self._db.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def load(self, parts: Sequence[Part]) -> None:
        """Make the tables hold each of the *parts*, at least."""
        for generation, chunks in parts:
            # Without the lock first: a tail that nobody has added to is the common case.
            if self._loaded.get(generation.number, (-1,))[0] < chunks:
                with self._lock:
                    self._load(generation, chunks)

    @property
    def loaded(self) -> set[int]:
        """The numbers of the generations that have tables."""
        return set(self._loaded)

    def has_wides(self, generation: Generation) -> bool:
        """Whether a loaded generation has values beyond 63 bits."""
        return generation.number in self._wides

    def has_extras(self, generation: Generation) -> bool:
        """Whether a loaded generation has keys or ids."""
        return generation.number in self._extras

    def dimensions(self, snapshot: Snapshot) -> set[str]:
        """Every dimension that was declared, or of which something that counts was recorded."""
        names = set(snapshot.catalogue.names)
        names.update(*(segment.dimensions for segment in snapshot.segments))
        self.load(snapshot.tail)
        with self.cursor() as cursor:
            for part in snapshot.tail:
                number = part.generation.number
                found = cursor.execute(
                    f"SELECT DISTINCT dimension FROM users_{number} "
                    f"WHERE number IN (SELECT of_user FROM events_{number})"
                ).fetchall()
                names.update(name for (name,) in found)
        return names

    def drop(self, generation: Generation) -> None:
        """Remove the tables of a generation that no snapshot needs."""
        with self._lock:
            if self._loaded.pop(generation.number, None) is not None:
                for name in _NAMES:
                    self._db.execute(f"DROP TABLE {name}_{generation.number}")

    def _load(self, generation: Generation, upto: int) -> None:
        number = generation.number
        if number not in self._loaded:
            self._db.execute(_CREATE.format(n=number))
            self._loaded[number] = (0, 0, 0)
        chunks_before, users_before, tagsets_before = self._loaded[number]
        chunks = [chunk for chunk in generation.chunks[chunks_before:upto] if chunk is not None]
        if not chunks:
            return
        if len(chunks) != upto - chunks_before:
            raise InvariantBroken(f"a chunk of generation {number} left before it was loaded")
        users = [user for chunk in chunks for user in chunk.fresh_users]
        tagsets = [tagset for chunk in chunks for tagset in chunk.fresh_tagsets]
        self._db.execute("BEGIN")
        try:
            self._insert(f"events_{number}", _events(chunks))
            self._insert_halves(f"users_{number}", users, users_before, _users, "*")
            self._insert_halves(
                f"tagsets_{number}", tagsets, tagsets_before, _tagsets, _TAGSETS_SELECT
            )
            if any(chunk.wides for chunk in chunks):
                self._insert(f"wides_{number}", _wides(chunks))
                self._wides.add(number)
            if any(chunk.extras for chunk in chunks):
                self._insert(f"extras_{number}", _extras(chunks))
                self._extras.add(number)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._loaded[number] = (upto, users_before + len(users), tagsets_before + len(tagsets))
        for at in range(chunks_before, upto):
            generation.chunks[at] = None

    def _insert_halves(
        self,
        table: str,
        fresh: list[bytes],
        first: int,
        decoded: Callable[[Sequence[bytes], int], Rows],
        select: str,
    ) -> None:
        for at in range(0, len(fresh), _HALVES_AT_ONCE):
            self._insert(table, decoded(fresh[at : at + _HALVES_AT_ONCE], first + at), select)

    def _insert(self, table: str, arriving: Rows, select: str = "*") -> None:
        self._db.register("arriving", arriving)
        try:
            self._db.execute(f"INSERT INTO {table} SELECT {select} FROM arriving")
        finally:
            self._db.unregister("arriving")


def _column(chunks: Sequence[Chunk], name: str) -> Column:
    whole: array[int] = getattr(chunks[0], name)
    if len(chunks) > 1:
        whole = array(whole.typecode)
        for chunk in chunks:
            whole.extend(getattr(chunk, name))
    return numbers(whole)


def _events(chunks: Sequence[Chunk]) -> Rows:
    names = ("users", "tagsets", "times", "mantissas", "scales", "given", "entries", "indices")
    return rows({name: _column(chunks, name) for name in names})


_HALVES_AT_ONCE = 20_000  # So that what is decoded dies young: a million dicts keep the gc busy.
_TAGSETS_SELECT = "number, map(keys, texts)"
_USER = msgspec.msgpack.Decoder(tuple[str, str | None])
_TAGSET: msgspec.msgpack.Decoder[dict[str, str] | None] = msgspec.msgpack.Decoder(
    dict[str, str] | None
)


def _users(fresh: Sequence[bytes], first: int) -> Rows:
    read = [_USER.decode(b"\x92" + user) for user in fresh]
    return rows(
        {
            "number": numbers(array("I", range(first, first + len(read)))),
            "dimension": texts([dimension for dimension, _ in read]),
            "tenant": texts([tenant for _, tenant in read]),
        }
    )


def _tagsets(fresh: Sequence[bytes], first: int) -> Rows:
    read = [_TAGSET.decode(tagset) or {} for tagset in fresh]
    offsets = array("i", accumulate(map(len, read), initial=0))
    keys = texts(list(chain.from_iterable(read)))
    values = texts(list(chain.from_iterable(tags.values() for tags in read)))
    return rows(
        {
            "number": numbers(array("I", range(first, first + len(read)))),
            "keys": lists(offsets, keys),
            "texts": lists(offsets, values),
        }
    )


def _wides(chunks: Sequence[Chunk]) -> Rows:
    wides = [wide for chunk in chunks for wide in chunk.wides]
    return rows(
        {
            "of_user": numbers(array("I", [row.user for row in wides])),
            "of_tagset": numbers(array("I", [row.tagset for row in wides])),
            "time": numbers(array("q", [row.time for row in wides])),
            "scale": numbers(array("b", [row.scale for row in wides])),
            "entry": numbers(array("q", [row.entry for row in wides])),
            "index": numbers(array("i", [row.place for row in wides])),
            "wide": texts([row.mantissa for row in wides]),
        }
    )


def _extras(chunks: Sequence[Chunk]) -> Rows:
    extras = [extra for chunk in chunks for extra in chunk.extras]
    return rows(
        {
            "entry": numbers(array("q", [row.entry for row in extras])),
            "index": numbers(array("i", [row.place for row in extras])),
            "key": texts([row.key for row in extras]),
            "id": texts([row.id for row in extras]),
        }
    )
