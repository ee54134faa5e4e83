"""
Columns for DuckDB, as Arrow, without a copy and without pyarrow or numpy.

The only module that touches arro3, whose types are not complete.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from arro3.core import (
    Array,
    DataType,
    RecordBatch,
    RecordBatchReader,
    Table,
    list_array,  # pyright: ignore[reportUnknownVariableType]
)

__all__ = [
    "Column",
    "Results",
    "Rows",
    "Stream",
    "integers",
    "lists",
    "numbers",
    "rows",
    "streamed",
    "texts",
    "times",
]

Column = Array
Rows = Table
Stream = RecordBatchReader


class Results(Protocol):
    """What DuckDB answers, as Arrow."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


def numbers(values: array[int]) -> Column:
    """A column of integers, over the array's own memory: it must not grow afterwards."""
    return Array.from_buffer(values)  # pyright: ignore[reportUnknownMemberType]


def texts(values: Sequence[str | None]) -> Column:
    """A column of text."""
    return Array(list(values), DataType.string())


def integers(values: Sequence[int | None]) -> Column:
    """A column of integers, copied; it may be empty, or have none in places."""
    return Array(list(values), DataType.int64())


def times(values: Sequence[int | None]) -> Column:
    """A column of moments in UTC, from microseconds since 1970."""
    return integers(values).cast(DataType.timestamp("us", tz="UTC"))


def lists(offsets: array[int], values: Column) -> Column:
    """A column of lists: list *i* is ``values[offsets[i]:offsets[i + 1]]``."""
    return list_array(numbers(offsets), values)


def rows(columns: Mapping[str, Column]) -> Rows:
    """Columns of equal length, named."""
    return Table.from_pydict(dict(columns))  # pyright: ignore[reportUnknownMemberType]


def streamed(like: Results, parts: Iterable[Results]) -> Stream:
    """
    The rows of *parts* as one stream, in their order; a part is asked for when its turn comes.

    Args:
        like: Its columns are those of every part.
        parts: What raises in here raises an error of DuckDB in whoever reads the stream.
    """

    def batches() -> Iterator[RecordBatch]:
        for part in parts:
            yield from RecordBatchReader.from_stream(part)

    return RecordBatchReader.from_batches(RecordBatchReader.from_stream(like).schema, batches())
