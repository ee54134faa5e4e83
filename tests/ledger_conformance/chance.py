"""
Chance, a byte at a time.

Each event and each question is read off a few bytes, which hypothesis draws at once and
makes smaller byte by byte when a test fails. Drawn field by field, a world would cost ten
times as much, and that would be most of the time of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """Choices, read off bytes. A zero chooses the first, and so does what is missing."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)

    def one_of(self, options: Sequence[T]) -> T:
        """One of at most 256."""
        return options[next(self._bytes, 0) % len(options)]

    def mostly(self, usual: T, options: Sequence[T]) -> T:
        """In three of four cases the usual, else one of the others."""
        return usual if self.below(4) < 3 else self.one_of(options)

    def often(self, usual: T, options: Sequence[T]) -> T:
        """In half of the cases the usual, else one of the others."""
        return usual if self.below(2) == 0 else self.one_of(options)

    def below(self, bound: int) -> int:
        """From 0 on, less than *bound*, which is at most 256."""
        return next(self._bytes, 0) % bound

    def upto(self, greatest: int) -> int:
        """From 0 to *greatest*, of any size."""
        return int.from_bytes([next(self._bytes, 0) for _ in range(4)]) * greatest >> 32

    def some(self, options: Sequence[T], at_most: int) -> tuple[T, ...]:
        """A few of them, each once."""
        chosen = [self.one_of(options) for _ in range(self.below(at_most) + 1)]
        return tuple(dict.fromkeys(chosen))
