"""
The guard: whether this is the process that set it, or a child of its fork.

The kernel gives a child of fork a page of zeros, whoever forked and however. Reading a byte
of it is the check of the pid that costs 25 ns instead of a system call.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

__all__ = ["Guard", "make_guard", "wiped_page"]

_WIPE_ON_FORK: Final = 18


class _PidGuard:
    """The same by asking for the pid, where the kernel does not wipe pages."""

    def __init__(self) -> None:
        self._pid = 0

    def __getitem__(self, index: int) -> int:
        return int(self._pid == os.getpid())

    def __setitem__(self, index: int, value: int) -> None:
        self._pid = os.getpid() if value else 0


Guard = mmap.mmap | _PidGuard


def make_guard() -> Guard:
    """One byte that is 1 in the process that set it and 0 in every other."""
    return wiped_page() or _PidGuard()


def wiped_page() -> mmap.mmap | None:
    """A page that is zeros again in every child; None where the kernel has no such pages."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (OSError, ValueError, AttributeError):
        return None
    return page
