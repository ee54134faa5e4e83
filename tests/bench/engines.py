"""
What people keep usage in otherwise, each with the same events: the contestants of `query`.

Each is set up as somebody would who knows it: values as whole thousandths, which every
engine adds faster than decimals; time as an integer; indexes for the questions that are
asked; statistics; memory enough for everything. The events lie in the order of their
arrival, which is that of their time, but for chdb, whose tables have an order of their own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import duckdb
import psycopg

from tests.bench.columns import TAGS, Dataset
from tests.bench.data import DIMENSIONS, TENANTS
from tests.bench.questions import Dialect, Question

__all__ = ["DuckDB", "Engine", "PostgreSQL", "SQLite", "export_csv", "export_parquet"]

_AT_ONCE: Final = 1_000_000
_TAG_COLUMNS: Final = ", ".join(TAGS)


class Engine(Protocol):
    """An engine that holds the events."""

    @property
    def name(self) -> str:
        """What it is called in the table."""
        ...

    @property
    def bytes(self) -> int:
        """What the events take on the disk, with their indexes."""
        ...

    def asker(self, question: Question) -> Callable[[], Sequence[Sequence[Any]]]:
        """A call that asks and returns all rows."""
        ...


# -- DuckDB --------------------------------------------------------------------------------


class DuckDB:
    """A native file; tags are columns. Its threads and memory are what it chooses."""

    name = "DuckDB native"

    def __init__(self, path: Path, events: Dataset) -> None:
        self._path = path
        self.connection = duckdb.connect(str(path))
        texts = ", ".join(f"{key} varchar" for key in TAGS)
        self.connection.execute(
            "create table events (tenant varchar, dimension varchar, time bigint, value bigint, "
            f"{texts})"
        )
        for at in range(0, len(events), _AT_ONCE):
            self._insert(events.part(at, at + _AT_ONCE))
        self.connection.execute("checkpoint")
        self.connection.execute("analyze")

    def _insert(self, part: Dataset) -> None:
        lists = [list(TENANTS), list(DIMENSIONS), *map(list, TAGS.values())]
        arriving = {
            "tenant": part.tenant,
            "dimension": part.dimension,
            "time": part.time,
            "value": part.thousandths,
            **part.tags,
        }
        self.connection.register("arriving", arriving)
        texts = ", ".join(f"${at}[{key} + 1]" for at, key in enumerate(TAGS, 3))
        self.connection.execute(
            "insert into events select $1[tenant + 1], $2[dimension + 1], time, value, "
            f"{texts} from arriving",
            lists,
        )
        self.connection.unregister("arriving")

    @property
    def bytes(self) -> int:
        return self._path.stat().st_size

    def asker(self, question: Question) -> Callable[[], Sequence[Sequence[Any]]]:
        sql = question.sql(Dialect(quotient="({} // {})"))
        cursor = self.connection.cursor()
        return lambda: cursor.execute(sql).fetchall()


def export_csv(source: DuckDB, path: Path) -> None:
    """The events of *source* as PostgreSQL's COPY reads them."""
    pairs = " || ',' || ".join(f"""'"{key}":"' || {key} || '"'""" for key in TAGS)
    source.connection.execute(
        f"copy (select tenant, dimension, time, value, '{{' || {pairs} || '}}' from events) "
        f"to '{path}' (format csv, header false)"
    )


def export_parquet(source: DuckDB, path: Path) -> None:
    """The events of *source* as Parquet."""
    source.connection.execute(f"copy events to '{path}' (format parquet)")


# -- SQLite --------------------------------------------------------------------------------


class SQLite:
    """A file; tags are columns, and an index holds all that an invoice wants."""

    name = "SQLite"

    def __init__(self, path: Path, source: DuckDB) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = off", "synchronous = off", "cache_size = -2000000"):
            self._connection.execute(f"pragma {setting}")
        self._connection.execute(f"pragma mmap_size = {8 << 30}")
        texts = ", ".join(f"{key} text" for key in TAGS)
        self._connection.execute(
            "create table events (tenant text, dimension text, time int, value int, "
            f"{texts}) strict"
        )
        marks = ", ".join("?" * (4 + len(TAGS)))
        self._connection.execute("begin")
        cursor = source.connection.cursor().execute("select * from events")
        while rows := cursor.fetchmany(100_000):
            self._connection.executemany(f"insert into events values ({marks})", rows)
        self._connection.execute("commit")
        self._connection.execute(
            "create index by_tenant on events (tenant, dimension, time, value)"
        )
        self._connection.execute("create index by_time on events (time)")
        self._connection.execute("analyze")

    @property
    def bytes(self) -> int:
        return self._path.stat().st_size

    def asker(self, question: Question) -> Callable[[], Sequence[Sequence[Any]]]:
        sql = question.sql(Dialect())
        return lambda: self._connection.execute(sql).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


# -- PostgreSQL ----------------------------------------------------------------------------


class PostgreSQL:
    """
    A table with JSONB tags; parallel workers as they are by default.

    An index brings tenant, dimension and time, and holds the value, so that most questions
    need nothing else; another one, small, brings a time. A GIN index would help a filter on
    a tag, of which there is none here.
    """

    name = "PostgreSQL"

    SETTINGS: Final = {
        "shared_buffers": "4GB",
        "effective_cache_size": "12GB",
        "work_mem": "256MB",
        "maintenance_work_mem": "1GB",
        "random_page_cost": "1.1",
        "max_wal_size": "16GB",
    }
    """Beside those of `tests.bench.postgres`: what a machine of its own would be given."""

    def __init__(self, dsn: str, csv: Path) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._connection.execute(
            "create table events (tenant text not null, dimension text not null, "
            "time bigint not null, value bigint not null, tags jsonb not null)"
        )
        with (
            csv.open("rb") as file,
            self._connection.cursor() as cursor,
            cursor.copy("copy events from stdin (format csv)") as copy,
        ):
            while part := file.read(1 << 20):
                copy.write(part)
        self._connection.execute("create index on events (tenant, dimension, time) include (value)")
        self._connection.execute("create index on events using brin (time)")
        self._connection.execute("vacuum analyze events")

    @property
    def bytes(self) -> int:
        found = self._connection.execute("select pg_total_relation_size('events')").fetchone()
        return int(found[0]) if found else 0

    def asker(self, question: Question) -> Callable[[], Sequence[Sequence[Any]]]:
        sql = question.sql(Dialect(tag="(tags ->> '{}')"))
        return lambda: self._connection.execute(sql).fetchall()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()
