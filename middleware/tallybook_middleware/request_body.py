"""The request's body under WSGI, counted as the application reads it, and never read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tallybook_middleware.measure import Usage

__all__ = ["CountedInput"]


class CountedInput:
    """
    ``wsgi.input``, with its bytes added up in ``usage.request_bytes``.

    Every call goes to the server's own stream as it came: reading ahead would block on a
    socket for bytes that the client has not sent yet.
    """

    def __init__(self, stream: Any, usage: Usage) -> None:
        self._stream = stream
        self._usage = usage

    def read(self, *args: int) -> bytes:
        return self._counted(self._stream.read(*args))

    def readline(self, *args: int) -> bytes:
        return self._counted(self._stream.readline(*args))

    def readlines(self, *args: int) -> list[bytes]:
        lines: list[bytes] = self._stream.readlines(*args)
        self._usage.request_bytes += sum(map(len, lines))
        return lines

    def __iter__(self) -> Iterator[bytes]:
        for line in self._stream:
            yield self._counted(line)

    def __getattr__(self, name: str) -> Any:
        """What PEP 3333 does not name, if the server's stream has it."""
        attribute = getattr(self._stream, name)
        if name == "readinto":
            return self._counting_readinto(attribute)
        if name == "read1":
            return self._counting_read1(attribute)
        return attribute

    def _counted(self, data: bytes) -> bytes:
        self._usage.request_bytes += len(data)
        return data

    def _counting_read1(self, read1: Callable[..., bytes]) -> Callable[..., bytes]:
        def counting(*args: int) -> bytes:
            return self._counted(read1(*args))

        return counting

    def _counting_readinto(self, readinto: Callable[[Any], int | None]) -> Callable[[Any], Any]:
        def counting(buffer: Any) -> int | None:
            size = readinto(buffer)
            self._usage.request_bytes += size or 0
            return size

        return counting
