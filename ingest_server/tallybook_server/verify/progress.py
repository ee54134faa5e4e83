"""How far a verification has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Progress", "Report", "silent"]


class Progress(NamedTuple):
    """
    How far a verification has come.

    Attributes:
        check: What is looked at.
        done: How many of them.
        total: Of how many; 0: nobody knows.
        unit: Of what: entries, events, bytes.
    """

    check: str
    done: int = 0
    total: int = 0
    unit: str = ""


Report = Callable[[Progress], None]
"""
Told at the beginning of each check, and then every few milliseconds of work. It is called on
the thread that verifies, which waits for it; what it raises ends the verification.
"""


def silent(progress: Progress) -> None:
    """Tell nobody."""
