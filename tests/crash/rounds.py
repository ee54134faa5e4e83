"""
Round after round: a fresh copy, a process that works on it, a kill, and a look at what is left.

Most calls of a process change no file, so most kills leave what the one before has left. Files
that are equal, name by name and byte by byte, are looked at once: what comes next starts from
them, and can tell no difference.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from tests.crash.processes import Job
from tests.crash.tracing import kill_at, points_in

__all__ = ["Tally", "kill_at_each", "state_of"]


class Tally(NamedTuple):
    """
    What the rounds came to.

    Attributes:
        points: Rounds.
        kills: Those in which the process came to its point, and died there.
        states: Different files that were left.
        outcomes: How often the look said what.
    """

    points: int
    kills: int
    states: int
    outcomes: Counter[str]

    def __str__(self) -> str:
        outcomes = ", ".join(f"{n} times {what}" for what, n in sorted(self.outcomes.items()))
        return f"{self.points} points: {self.kills} kills, {self.states} states: {outcomes}"


def kill_at_each(
    start: Callable[[], Job],
    look: Callable[[], str],
    *,
    whole: Path,
    killed: Path,
    stride: int,
) -> Tally:
    """
    Kill a job before each of its calls, and look at what it leaves.

    Args:
        start: Starts the job on the copy.
        look: Fails if what is left is wrong; says in words what it is. It may change it.
        whole: What there is before.
        killed: Where its copy lies in each round; there is nothing yet.
        stride: Of so many calls, one is a point.

    Raises:
        AssertionError: The job came past more than one point in twenty.
    """
    shutil.copytree(whole, killed)
    points = points_in(start, killed.with_name("calls"))[::stride]
    shutil.rmtree(killed)
    kills, outcomes, known = 0, Counter[str](), dict[bytes, str]()
    for point in points:
        shutil.copytree(whole, killed)
        kills += kill_at(start, point)
        state = state_of(killed)
        if state not in known:
            try:
                known[state] = look()
            except BaseException as error:
                error.add_note(f"killed before {point}")
                raise
        outcomes[known[state]] += 1
        shutil.rmtree(killed)
    tally = Tally(len(points), kills, len(known), outcomes)
    assert kills > len(points) * 0.95, tally
    return tally


def state_of(folder: Path) -> bytes:
    """A digest of every name below *folder*, and of every byte that whoever comes next reads."""
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        # The index of SQLite's log is computed anew by whoever is the first to open it again.
        content = path.read_bytes() if path.is_file() and path.suffix != ".db-shm" else b""
        name = str(path.relative_to(folder)).encode()
        digest.update(b"%d %s %d %s" % (path.is_dir(), name, len(content), content))
    return digest.digest()
