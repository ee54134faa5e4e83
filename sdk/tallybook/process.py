"""
The process: what becomes of its Meters when it forks, and when it ends.
"""

# What is called here is a part of Meter, and none of what its users see.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import atexit
import os
import sys
import weakref
from contextlib import suppress
from typing import Protocol

__all__ = ["Metered", "closed", "ends", "made", "opened"]


class Metered(Protocol):
    """A Meter."""

    def _forget(self) -> None:
        """In a child after fork: begin anew."""
        ...

    def _close_at_exit(self) -> None:
        """Close, for the last time."""
        ...


_made: weakref.WeakSet[Metered] = weakref.WeakSet()
# With an open producer, a Meter lives until it is closed, whoever forgets it.
_open: set[Metered] = set()
_ending = False
_closes_with_multiprocessing = 0


def made(meter: Metered) -> None:
    """From now on it is told of forks."""
    _made.add(meter)


def opened(meter: Metered) -> None:
    """From now on it is closed when the process ends."""
    _close_with_multiprocessing()
    _open.add(meter)


def closed(meter: Metered) -> None:
    """It needs no closing any more."""
    _open.discard(meter)


def ends() -> bool:
    """Whether the process is ending: a thread that began now would be cut off."""
    return _ending


def _after_fork_in_child() -> None:
    global _ending
    _ending = False
    _open.clear()
    for meter in list(_made):
        meter._forget()


def _at_exit() -> None:
    global _ending
    _ending = True
    for meter in list(_open):
        with suppress(Exception):
            meter._close_at_exit()


def _close_with_multiprocessing() -> None:
    """Its children end by `os._exit`, which runs nothing of `atexit`; they run these."""
    global _closes_with_multiprocessing
    process = sys.modules.get("multiprocessing.process")
    util = sys.modules.get("multiprocessing.util")
    if process is None or util is None or process.parent_process() is None:
        return
    if _closes_with_multiprocessing != os.getpid():
        _closes_with_multiprocessing = os.getpid()
        util.Finalize(None, _at_exit, exitpriority=0)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
