"""
Time, identity and chance: the only place of the SDK that reaches for them.

Everything else gets a `Clock` and an `Ids` through its constructor, so that a
test can move time and repeat chance.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "Ids", "SystemClock", "SystemIds", "boot_id"]


class Clock(Protocol):
    """
    Now, twice.

    Attributes:
        time_ns: Nanoseconds since 1970 UTC, as the host believes. It may jump.
        monotonic: Seconds since some moment. It never goes back.
    """

    @property
    def time_ns(self) -> Callable[[], int]: ...

    @property
    def monotonic(self) -> Callable[[], float]: ...


class Ids(Protocol):
    """Where producers' ids and the jitter of waiting come from."""

    def producer(self) -> bytes:
        """16 random bytes, never twice."""
        ...

    def fraction(self) -> float:
        """A number in [0, 1)."""
        ...


class SystemClock:
    """The clock of this machine."""

    # The functions themselves, not methods that call them: `record` pays for each call.
    time_ns = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)


class SystemIds:
    """The randomness of this machine."""

    def producer(self) -> bytes:
        return os.urandom(16)

    def fraction(self) -> float:
        # Own state per call: a seeded `random` of the host is neither used nor moved.
        return random.SystemRandom().random()


def boot_id() -> str:
    """The kernel's id of this boot, or ``""`` where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
