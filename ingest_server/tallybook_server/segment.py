"""
A segment: sealed events in one Parquet file. docs/reference/formats.md.

Here is what a segment is called, which columns it has, and how its rows are read and
written in SQL. Who seals when is `tallybook_server.sealer`, who merges when
`tallybook_server.compactor`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from tallybook_server.limits import SEGMENT_TAG_COLUMNS_MAX

__all__ = [
    "FILE_SUFFIX",
    "WRITING_PREFIX",
    "Segment",
    "SegmentName",
    "choose_columns",
    "file_digest",
    "identifier",
    "merged_name",
    "quoted",
    "read_name",
    "segment_name",
    "tag_value",
]

FILE_SUFFIX: Final = ".parquet"
WRITING_PREFIX: Final = "writing-"
"""How a file is called that is not finished; one that a crash leaves is removed at start."""


class Segment(NamedTuple):
    """
    A line of the manifest. A segment never changes.

    Attributes:
        name: The file's name.
        sha256: Of the whole file.
        bytes: The file's length.
        rows: Events in it.
        first: The first entry that it covers.
        last: The last entry that it covers. Every entry between is covered, too: what it
            brought is in this segment, or, of merged ones, in this or another that covers it.
        time_min: The earliest event, or None without any.
        time_max: The latest event, or None without any.
        wides: How many values are beyond 63 bits.
        tags: The tag keys that have a column of their own.
        more: The tag keys that are in the map.
        dimensions: What was used in it, sorted.
        month: All its events are of this month; None: of any. See `compaction.month_of`.
        level: How often the oldest of its rows was written anew; 0: it was sealed like this.
    """

    name: str
    sha256: bytes
    bytes: int
    rows: int
    first: int
    last: int
    time_min: int | None
    time_max: int | None
    wides: int
    tags: tuple[str, ...]
    more: tuple[str, ...]
    dimensions: tuple[str, ...]
    month: int | None = None
    level: int = 0


class SegmentName(NamedTuple):
    """
    What a segment's name says.

    Attributes:
        first: The first entry that it covers.
        last: The last entry that it covers.
        begun: The head when its compaction began; 0: it was sealed.
    """

    first: int
    last: int
    begun: int = 0


_NAME: Final = re.compile(
    r"([0-9]{16})-([0-9]{16})(?:-([0-9]{16})-(?:[0-9]{4}-[0-9]{2}|mixed))?" + re.escape(FILE_SUFFIX)
)


def segment_name(first: int, last: int) -> str:
    """The name of the file that a seal of the entries *first* to *last* makes."""
    return f"{first:016d}-{last:016d}{FILE_SUFFIX}"


def merged_name(first: int, last: int, begun: int, month: int | None) -> str:
    """
    The name of a file that a compaction makes; no other ever has it.

    Args:
        first: The first entry that it covers.
        last: The last entry that it covers.
        begun: The ledger's head when the compaction began: the next one begins at a later
            head, since this one's own entry comes in between.
        month: See `Segment`.
    """
    what = "mixed" if month is None else f"{month // 12:04d}-{month % 12 + 1:02d}"
    return f"{first:016d}-{last:016d}-{begun:016d}-{what}{FILE_SUFFIX}"


def read_name(name: str) -> SegmentName | None:
    """What a file's name says, or None: no segment's name."""
    match = _NAME.fullmatch(name)
    return None if match is None else SegmentName(*(int(part or 0) for part in match.groups()))


def choose_columns(
    uses: Iterable[tuple[str, int]], columns_max: int = SEGMENT_TAG_COLUMNS_MAX
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """
    Which tag keys get a column, and which go into the map.

    The most used come first. Parquet readers, DuckDB among them, do not tell ``Region``
    from ``region`` in a column's name; of such keys one gets the column and the others
    go into the map, or the one would be answered with the values of the other.

    Args:
        uses: Each key once, with how often it is used.
        columns_max: Columns at most.
    """
    columns: list[str] = []
    more: list[str] = []
    taken: set[str] = set()
    for key, _ in sorted(Counter(dict(uses)).items(), key=lambda use: (-use[1], use[0])):
        folded = key.casefold()
        if len(columns) < columns_max and folded not in taken:
            taken.add(folded)
            columns.append(key)
        else:
            more.append(key)
    return tuple(sorted(columns)), tuple(sorted(more))


def tag_value(key: str, segment: Segment, literal: Callable[[str], str]) -> str:
    """The SQL for the value of tag *key* in a row of *segment*; *literal* writes a text in SQL."""
    if key in segment.tags:
        return identifier(f"tag:{key}")
    return f"more_tags[{literal(key)}]" if key in segment.more else "NULL::VARCHAR"


def identifier(name: str) -> str:
    """*name* as an SQL identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def quoted(text: str) -> str:
    """
    *text* as an SQL literal, for the places where DuckDB takes no parameter.

    A quote is doubled; DuckDB's plain literals know no other escape.
    """
    return "'" + text.replace("'", "''") + "'"


def file_digest(path: Path) -> tuple[bytes, int]:
    """SHA-256 and length of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.digest(), os.fstat(file.fileno()).st_size
