"""
Damages: what a disk, a slip of the hand or a wrong copy does to a book behind its back.

They are drawn by a seed, none twice. Each says which finding would name its place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any, Final

from tallybook_server.ledger import Finding
from tests.ingest_server.ledger.full_book import FullBook

__all__ = ["Damage", "Pristine", "damages", "logical_content"]

_Row = tuple[Any, ...]


@dataclass(frozen=True)
class Damage:
    """
    One damage.

    Attributes:
        kind: Which of the kinds that `damages` draws.
        words: What is done; no two damages have the same.
        apply: Does it to the book in a directory.
        named: Whether a finding names the place.
    """

    kind: str
    words: str
    apply: Callable[[Path], None]
    named: Callable[[Finding], bool]


class Pristine:
    """The book as it was, to be put back after each damage."""

    def __init__(self, book: Path) -> None:
        self._book = book
        self.files = {path: path.read_bytes() for path in book.rglob("*") if path.is_file()}
        self.content = logical_content(book / "journal.db")

    def restore(self) -> None:
        """Put everything back."""
        for path in list(self._book.rglob("*")):
            if path.is_file() and path not in self.files:
                path.unlink()
        for path, data in self.files.items():
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)

    @property
    def segments(self) -> list[Path]:
        """The segments' files."""
        return sorted(path for path in self.files if path.suffix == ".parquet")


def logical_content(journal: Path) -> object:
    """
    Everything that SQLite reads from a journal; None if it finds fault with the file.

    What is the same for two files is the same for whoever reads them: its own check has
    compared each index with its table.
    """
    address = f"{journal.absolute().as_uri()}?immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as db:
            db.text_factory = bytes
            if db.execute("PRAGMA integrity_check").fetchall() != [(b"ok",)]:
                return None
            schema = sorted(
                db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"), key=repr
            )
            pragmas = ("user_version", "application_id", "encoding")
            said = [db.execute(f"PRAGMA {name}").fetchall() for name in pragmas]
            names = [row[1].decode() for row in schema if row[0] == b"table"]
            rows = {n: sorted(db.execute(f"SELECT * FROM {n}").fetchall(), key=repr) for n in names}
    except (sqlite3.Error, UnicodeDecodeError):  # The second: of its words about a fault.
        return None
    return schema, said, rows


def damages(book: FullBook, pristine: Pristine, seed: int) -> Iterator[Damage]:
    """Damages without end, of every kind, none twice."""
    chance = Random(seed)
    journal = book.book / "journal.db"
    segments = pristine.segments
    kinds: list[tuple[int, Iterator[Damage]]] = [
        (35, _flips(chance, [journal], pristine)),
        (15, _flips(chance, segments, pristine)),
        (5, _cuts(chance, [journal], pristine)),
        (5, _cuts(chance, segments, pristine)),
        (5, _files(chance, book, segments, pristine)),
        (35, _rows(chance, journal)),
    ]
    seen: set[str] = set()
    weights = [weight for weight, _ in kinds]
    while True:
        (kind,) = chance.choices([kind for _, kind in kinds], weights)
        damage = next(kind, None)
        if damage is not None and damage.words not in seen:
            seen.add(damage.words)
            yield damage


# -- bytes ---------------------------------------------------------------------------------


def _flips(chance: Random, paths: Sequence[Path], pristine: Pristine) -> Iterator[Damage]:
    """Any bits of one byte."""
    sizes = [len(pristine.files[path]) for path in paths]
    while True:
        (path,) = chance.choices(paths, sizes)
        at, bits = chance.randrange(len(pristine.files[path])), chance.randrange(1, 256)
        words = f"byte {at} of {path.name} with {bits:#04x}"
        yield Damage("flip", words, partial(_flip, path, at, bits), _names(path))


def _flip(path: Path, at: int, bits: int, _: Path) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ bits]))


def _cuts(chance: Random, paths: Sequence[Path], pristine: Pristine) -> Iterator[Damage]:
    """The end of a file is missing."""
    while True:
        path = chance.choice(paths)
        size = chance.randrange(len(pristine.files[path]))
        words = f"{path.name} cut to {size} bytes"
        yield Damage("truncation", words, partial(_cut, path, size), _names(path))


def _cut(path: Path, size: int, _: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def _names(path: Path) -> Callable[[Finding], bool]:
    """Whether a finding names a file: a segment by its name, the journal by any place in it."""
    if path.suffix != ".parquet":
        return lambda finding: bool(finding.where)
    return lambda finding: path.name in finding.where


# -- files ---------------------------------------------------------------------------------


def _files(
    chance: Random, book: FullBook, segments: Sequence[Path], pristine: Pristine
) -> Iterator[Damage]:
    """Segments that are swapped, missing, others, or too many."""
    all_of_them: list[Damage] = []

    def add(words: str, path: Path, files: dict[Path, bytes | None]) -> None:
        all_of_them.append(Damage("segment", words, partial(_put, files), _names(path)))

    for one, other in permutations(segments, 2):
        mine, theirs = pristine.files[one], pristine.files[other]
        add(f"{one.name} in the place of {other.name}", other, {other: mine})
        if one < other:
            add(f"{one.name} and {other.name} swapped", one, {one: theirs, other: mine})
    for at, path in enumerate(segments):
        add(f"{path.name} removed", path, {path: None})
        add(f"{path.name} under another name", path, {path: None, path.with_name("x"): b""})
        for number, strange in enumerate(book.strange):
            add(f"strange {number} in the place of {path.name}", path, {path: strange})
        unknown = path.with_name(f"{at + 1:016d}-{at + 1:016d}.parquet")
        add(f"{path.name} once more", unknown, {unknown: pristine.files[path]})
    chance.shuffle(all_of_them)
    yield from all_of_them


def _put(files: dict[Path, bytes | None], _: Path) -> None:
    for path, data in files.items():
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)


# -- rows ----------------------------------------------------------------------------------

# By table: what the findings are called that name a row of it.
_WHAT: Final = {
    "entries": {"chain"},
    "blocks": {"block"},
    "ranges": {"sequence"},
    "identities": {"identity"},
    "rejections": {"rejection"},
    "producers": {"row"},
    "changes": {"change"},
    "tenant_keys": {"row"},
    "proof_groups": {"row"},
    "checkpoints": {"row"},
    "restores": {"branch"},
    "notes": {"row"},
    "tallies": {"row"},
    "segments": {"segment"},
}


class _Table:
    """A table's rows, and how they are changed behind the journal's back."""

    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        self.name = name
        columns = db.execute(f"PRAGMA table_info({name})").fetchall()
        self.columns = [column[1] for column in columns]
        self.types = [column[2] for column in columns]
        self.nullable = [not column[3] and not column[5] for column in columns]
        keys = [at for at, column in enumerate(columns) if column[5]]
        self.keys = keys or [0, 1]  # Of rejections: entry and place.
        self.rows: list[_Row] = db.execute(f"SELECT * FROM {name}").fetchall()

    def delete(self, db: sqlite3.Connection, row: _Row) -> None:
        conditions = " AND ".join(f"{column} IS ?" for column in self.columns)
        if db.execute(f"DELETE FROM {self.name} WHERE {conditions}", row).rowcount != 1:
            raise LookupError(f"{self.name} has no row {row!r}")

    def insert(self, db: sqlite3.Connection, row: _Row) -> None:
        marks = ", ".join("?" * len(row))
        db.execute(f"INSERT INTO {self.name} VALUES ({marks})", row)


def _rows(chance: Random, journal: Path) -> Iterator[Damage]:
    """Rows that are missing, changed, swapped, or too many."""
    address = f"{journal.absolute().as_uri()}?immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as db:
        tables = [_Table(db, name) for name in _WHAT]
    whats: list[Callable[[Random, _Table], tuple[str, list[_Row], list[_Row]] | None]] = [
        _deleted,
        _changed,
        _changed,
        _changed,
        _swapped,
        _added,
    ]
    while True:
        table = chance.choice(tables)
        drawn = chance.choice(whats)(chance, table)
        if drawn is None:
            continue
        what, gone, come = drawn
        change = partial(_exchange, journal, table, gone, come)
        words = f"{what} of {table.name}: {gone!r} -> {come!r}"
        try:
            with closing(sqlite3.connect(":memory:")) as trial:
                _try(trial, journal, table, gone, come)
        except (sqlite3.IntegrityError, OverflowError):
            continue  # The journal cannot even hold these.
        yield Damage(f"row {what}", words, change, partial(_is_of, table.name))


def _is_of(table: str, finding: Finding) -> bool:
    if finding.what == "row":
        return table in finding.where or table == "tallies"
    return finding.what in _WHAT[table]


def _try(
    trial: sqlite3.Connection, journal: Path, table: _Table, gone: list[_Row], come: list[_Row]
) -> None:
    with closing(sqlite3.connect(f"{journal.as_uri()}?immutable=1", uri=True)) as db:
        db.backup(trial)
    _apply(trial, table, gone, come)


def _exchange(journal: Path, table: _Table, gone: list[_Row], come: list[_Row], _: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as db:
        _apply(db, table, gone, come)


def _apply(db: sqlite3.Connection, table: _Table, gone: list[_Row], come: list[_Row]) -> None:
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for row in gone:
        table.delete(db, row)
    for row in come:
        table.insert(db, row)
    for _, sql in triggers:
        db.execute(sql)


def _deleted(chance: Random, table: _Table) -> tuple[str, list[_Row], list[_Row]] | None:
    return "deleted", [chance.choice(table.rows)], []


def _changed(chance: Random, table: _Table) -> tuple[str, list[_Row], list[_Row]] | None:
    row, at = chance.choice(table.rows), chance.randrange(len(table.columns))
    value = _other(chance, row[at], table.types[at], nullable=table.nullable[at])
    if value == row[at]:
        return None
    return "changed", [row], [(*row[:at], value, *row[at + 1 :])]


def _swapped(chance: Random, table: _Table) -> tuple[str, list[_Row], list[_Row]] | None:
    """Two rows under each other's key; or with each other's value in one column."""
    if len(table.rows) < 2:
        return None
    one, other = chance.sample(table.rows, 2)
    free = [at for at in range(len(table.columns)) if at not in table.keys]
    if not free:
        return None
    if chance.random() < 0.5:
        free = [chance.choice(free)]
    mine = tuple(other[at] if at in free else one[at] for at in range(len(one)))
    theirs = tuple(one[at] if at in free else other[at] for at in range(len(one)))
    return None if mine == one else ("swapped", [one, other], [mine, theirs])


def _added(chance: Random, table: _Table) -> tuple[str, list[_Row], list[_Row]] | None:
    """A copy of a row under a key that is free."""
    row = list(chance.choice(table.rows))
    for at in table.keys:
        row[at] = _other(chance, row[at], table.types[at], nullable=False)
    for at, column in enumerate(table.columns):
        if (table.name, column) in {
            ("producers", "producer"),
            ("tenant_keys", "tenant"),
            ("notes", "name"),
            ("changes", "id"),
            ("entries", "first"),
        }:
            row[at] = _other(chance, row[at], table.types[at], nullable=False)
    return "added", [], [tuple(row)]


def _other(chance: Random, value: Any, type_: str, *, nullable: bool) -> Any:
    """Another value for a cell."""
    if nullable and value is not None and chance.random() < 0.2:
        return None
    if value is None:
        return {"INTEGER": chance.randrange(1_000), "TEXT": "text", "BLOB": b"blob"}[type_]
    if isinstance(value, int):
        near = value + chance.choice((-1, 1))
        far = chance.randrange(-(1 << 40), 1 << 40)
        return chance.choice((near, near, value ^ (1 << chance.randrange(20)), far))
    if isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        letter = chance.choice("abcxyz[]\"'\\0189é")
        return value[:at] + letter + value[at:] if chance.random() < 0.5 else value[:at] + letter
    if not value or chance.random() < 0.2:
        return value[:-1] if value else b"\0"
    at = chance.randrange(len(value))
    return value[:at] + bytes([value[at] ^ chance.randrange(1, 256)]) + value[at + 1 :]
