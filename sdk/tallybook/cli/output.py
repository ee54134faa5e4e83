"""
What a command says: data on standard output, words on standard error, an exit code.

No colour and no cursor movement, so that every output can be piped, diffed and pasted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum
from typing import BinaryIO, Self

__all__ = [
    "Exit",
    "Failure",
    "Progress",
    "Sink",
    "number_of",
    "plain",
    "print_json",
    "print_line",
    "say",
    "table",
]


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    FINDING = 1
    USAGE = 2
    UNREACHABLE = 3


class Failure(Exception):
    """
    The command ends here.

    Attributes:
        code: The exit code; the message is one sentence for standard error.
    """

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


def say(words: str) -> None:
    """Words for the person at the terminal."""
    print(words, file=sys.stderr, flush=True)


def print_line(text: str = "") -> None:
    """A line of data, out at once: somebody may read it through a pipe."""
    print(text, flush=True)


def print_json(document: object, *, indent: int | None = 2) -> None:
    """*document* as JSON; without an indent it is one line."""
    print_line(json.dumps(document, indent=indent))


def plain(text: str) -> str:
    """*text* without the characters that could move a terminal's cursor or turn it around."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def number_of(count: int, noun: str, nouns: str = "") -> str:
    """``1 event``, ``2 events``; *nouns* where an s does not do."""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or f'{noun}s'}"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()
) -> list[str]:
    """
    The lines of a table whose columns are as wide as what is in them.

    Args:
        heads: The columns' names.
        rows: A text per column.
        right: The names of the columns that stand at the right, as numbers do.
    """
    lines = [list(heads), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if head in right else cell.ljust(width)
            for head, cell, width in zip(heads, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


class Sink:
    """
    Where the data of a command goes: standard output, or a file.

    The file appears when it is complete: one that breaks off would look like one that ends
    there. What was called so before stays until then.

    Args:
        path: The file; None: standard output.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._part = None if path is None else f"{path}.part"
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self._part is not None:
            self._file = open(self._part, "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if self._file is None or self._part is None or self._path is None:
            return
        self._file.close()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            os.unlink(self._part)

    def write(self, data: bytes) -> None:
        """Write *data* as it is."""
        file = sys.stdout.buffer if self._file is None else self._file
        file.write(data)
        file.flush()

    def write_lines(self, lines: Iterable[str]) -> None:
        """Write *lines* of text, in UTF-8 or in what the terminal takes."""
        for line in lines:
            if self._file is None:
                print_line(line)
            else:
                self._file.write(f"{line}\n".encode())


class Progress:
    """One line on a terminal that is written over; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, words: str) -> None:
        """Say *words* in place of the last ones."""
        if sys.stderr.isatty():
            print(f"\r{words:<{self._shown}}", end="", file=sys.stderr, flush=True)
            self._shown = len(words)

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            print(f"\r{'':<{self._shown}}\r", end="", file=sys.stderr, flush=True)
            self._shown = 0
