"""The count at the end: read the whole ledger, and compare it with what returned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tallybook_server.embedded import EmbeddedLedger
from tests.conftest import ServerProcess
from tests.crash.events import STREAM_EVENTS, shape_of

__all__ = ["Outcome", "compare", "compare_closed", "finish", "held_events", "held_once", "verify"]


@dataclass
class Outcome:
    """
    What a run came to.

    Attributes:
        kills: Processes killed.
        returned: Events whose `record` returned.
        held: Events in the ledger.
        lost: Numbers that returned and are not held.
        doubled: Numbers that are held more than once.
        strange: What is held and was never recorded, or not like this.
    """

    kills: int = 0
    returned: int = 0
    held: int = 0
    lost: list[int] = field(default_factory=list[int])
    doubled: list[int] = field(default_factory=list[int])
    strange: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.returned} events returned, {self.held} counted, "
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, strange {len(self.strange)}"
        )

    @property
    def clean(self) -> bool:
        """Nothing was lost, doubled or invented."""
        return not (self.lost or self.doubled or self.strange)


def held_events(data: Path) -> tuple[Counter[int], list[str]]:
    """
    How often the ledger of a stopped server counts each number, and what is not as recorded.
    """
    ledger = EmbeddedLedger(data / "books" / "default", threads=False)
    try:
        return held_in(ledger)
    finally:
        ledger.close()


def held_in(ledger: EmbeddedLedger) -> tuple[Counter[int], list[str]]:
    """As `held_events`, of a ledger that is open."""
    held: Counter[int] = Counter()
    strange: list[str] = []
    after = (0, -1)
    while rows := ledger.scan(after=after, limit=50_000):
        for row in rows:
            mantissa, scale = row.event.value
            shape = shape_of(mantissa)
            held[mantissa] += 1
            event = row.event
            if scale or shape != (event.dimension, event.tenant, event.tags, event.key):
                strange.append(f"{row}")
        after = (rows[-1].position, rows[-1].index)
    return held, strange


def held_once(ledger: EmbeddedLedger) -> set[int]:
    """What a ledger that verifies holds; fails if it does not, or holds anything twice."""
    assert list(ledger.verify()) == []
    held, strange = held_in(ledger)
    assert (set(held.values()), strange) == ({1}, [])
    return set(held)


def compare(
    returned: Iterable[int],
    server: ServerProcess,
    *,
    kills: int,
    begun: Iterable[int] | None = None,
) -> Outcome:
    """
    Stop the server, and compare what returned with what its ledger holds, number by number.

    Args:
        returned: The numbers whose calls have returned, and that had to survive.
        server: It runs, and has everything.
        kills: For the summary.
        begun: The numbers whose calls have returned, where not all of them had to survive.
    """
    sums = _sums(server)
    server.stop()
    held, strange = held_events(server.data)
    if sums != _expected_sums(held):
        strange.append(f"the server's sums are {sums}")
    return _outcome(set(returned), held, strange, kills=kills, begun=begun)


def compare_closed(returned: Iterable[int], data: Path, *, kills: int) -> Outcome:
    """As `compare`, with the directory of a ledger that nobody has open."""
    return _outcome(set(returned), *held_events(data), kills=kills, begun=None)


def _outcome(
    promised: set[int],
    held: Counter[int],
    strange: list[str],
    *,
    kills: int,
    begun: Iterable[int] | None,
) -> Outcome:
    invented = [f"{n} was never recorded" for n in _never_begun(begun or promised, held)]
    return Outcome(
        kills=kills,
        returned=len(promised),
        held=len(held),
        lost=sorted(promised - held.keys()),
        doubled=sorted(n for n, times in held.items() if times > 1),
        strange=strange + invented,
    )


def _never_begun(returned: Iterable[int], held: Iterable[int]) -> list[int]:
    """
    What is held and cannot have been recorded.

    A thread counts upwards, so beyond the last call that returned there is one at most: the
    one that the kill hit.
    """
    last: dict[int, int] = {}
    for n in returned:
        last[n // STREAM_EVENTS] = max(last.get(n // STREAM_EVENTS, 0), n)
    return [n for n in held if n > last.get(n // STREAM_EVENTS, n - n % STREAM_EVENTS) + 1]


def _sums(server: ServerProcess) -> dict[tuple[str, str | None], int]:
    """The server's own sums, by dimension and tenant."""
    found: dict[tuple[str, str | None], int] = {}
    for dimension in {shape_of(n).dimension for n in range(3)}:
        for row in server.rows(dimension=dimension, group_by="tenant"):
            found[dimension, row["tenant"]] = int(row["value"])
    return found


def _expected_sums(numbers: Iterable[int]) -> dict[tuple[str, str | None], int]:
    sums: dict[tuple[str, str | None], int] = defaultdict(int)
    for n in numbers:
        sums[shape_of(n).dimension, shape_of(n).tenant] += n
    return dict(sums)


def finish(name: str, server: ServerProcess, outcome: Outcome) -> None:
    """Print the summary, and fail if anything is wrong with a stopped server's ledger."""
    print(f"{name}: {outcome}")
    assert outcome.clean, (outcome.lost[:9], outcome.doubled[:9], outcome.strange[:9])
    assert verify(server.data) == []


def verify(data: Path) -> list[object]:
    """What `tallybook verify` finds wrong in a stopped server's directory."""
    command = [sys.executable, "-m", "tallybook.cli", "verify", "--json", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True)
    document = json.loads(done.stdout)
    findings: list[object] = document["findings"]
    assert done.returncode == (1 if findings else 0), done
    return findings
