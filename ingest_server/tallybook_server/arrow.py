"""
Columns for DuckDB, as Arrow, without a copy and without pyarrow or numpy.

The only module that touches arro3, whose types are not complete.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from arro3.core import (
    Array,
    DataType,
    Table,
    list_array,  # pyright: ignore[reportUnknownVariableType]
)

__all__ = ["Column", "Rows", "integers", "lists", "numbers", "rows", "texts", "times"]

Column = Array
Rows = Table


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
