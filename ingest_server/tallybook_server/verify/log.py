"""
The write-ahead log that a killed server has left: does it break off in its middle?

SQLite reads the log up to the first frame whose checksum is wrong, and takes what follows
for a write that a crash has cut off. So one flipped byte takes all commits behind it out of
the ledger, acknowledged ones, and what is left holds together. But only the last commit can
have been cut off: each is synced before the next one is written. Where two begin behind the
break, it was none. https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import Struct, iter_unpack
from typing import Final

from tallybook_server.ledger import Finding

__all__ = ["check_log"]

_HEADER: Final = Struct(">8I")  # Magic, version, page size, number, two salts, two sums.
_FRAME: Final = Struct(">6I")  # Page, pages of the database behind a commit, salts, sums.
_MAGIC: Final = 0x377F0682  # Its last bit: whether sums are over words with the first byte first.
_SUMMED: Final = 24  # Of the header; of a frame's header 8, and the page.
_PAGE: Final = 4096  # SQLite's own size, which a journal has.
_WORD: Final = 0xFFFFFFFF

_Sums = tuple[int, int]


def check_log(path: Path) -> Iterator[Finding]:
    """Whether the log at *path*, if there is one, has commits that SQLite does not read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    if len(data) < _HEADER.size + _FRAME.size:
        return
    magic, _, page_size, _, *salts, first, second = _HEADER.unpack_from(data)
    order = ">" if magic & 1 else "<"
    sums = _summed(data[:_SUMMED], (0, 0), order)
    whole = magic & ~1 == _MAGIC and sums == (first, second)
    # Where the header was changed, it is not believed, and the frames know better.
    size = _FRAME.size + (page_size if whole else _PAGE)
    frames = [data[at : at + size] for at in range(_HEADER.size, len(data) - size + 1, size)]
    read = _readable(frames, salts, sums, order) if whole else 0
    unread = frames[read:]
    of = salts if whole else list(_FRAME.unpack_from(data, _HEADER.size)[2:4])
    commits = sum(1 for frame in unread if _is_commit(frame, of))
    if commits > 1:
        words = f"{commits} commits behind frame {read} cannot be read: it was changed there"
        yield Finding("journal", path.name, words)


def _readable(frames: list[bytes], salts: list[int], sums: _Sums, order: str) -> int:
    """How many frames SQLite reads."""
    for at, frame in enumerate(frames):
        _, _, *of, first, second = _FRAME.unpack_from(frame)
        sums = _summed(frame[_FRAME.size :], _summed(frame[:8], sums, order), order)
        if of != salts or sums != (first, second):
            return at
    return len(frames)


def _is_commit(frame: bytes, salts: list[int]) -> bool:
    """Whether a frame is the last one of a commit of this log, and not of an older one."""
    _, pages, *of, _, _ = _FRAME.unpack_from(frame)
    return pages > 0 and of == salts


def _summed(data: bytes, sums: _Sums, order: str) -> _Sums:
    """SQLite's checksum, continued."""
    first, second = sums
    for one, other in iter_unpack(f"{order}2I", data):
        first = (first + one + second) & _WORD
        second = (second + other + first) & _WORD
    return first, second
