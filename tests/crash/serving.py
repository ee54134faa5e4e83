"""A server whose process can be killed within milliseconds of its start: a child of a zygote."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tallybook import Meter
from tallybook.clock import SystemClock, SystemIds
from tallybook.transport import Response
from tallybook.wire import encode_answer, read_request
from tallybook_server.compaction import Policy
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Delivery
from tallybook_server.restore import Restore
from tallybook_server.serve import run
from tallybook_server.settings import Settings
from tests.conftest import ServerProcess
from tests.crash.processes import Job, Zygote
from tests.crash.zygote import await_start, say

__all__ = [
    "COMPACTION",
    "ForkedServer",
    "backup_once",
    "compact_once",
    "meter_into",
    "restore_once",
    "seal_once",
    "serve",
]

COMPACTION = Policy(fan_in=2, rows_min=1)
"""Two segments are enough to merge, and one event for a month."""


def serve(*, data: str, port: int, seal_events: int, seal_age_seconds: float) -> None:
    """What `tallybook serve` does, with seals as often as one likes, and compactions after two."""
    settings = Settings(directory=Path(data), port=port)
    ledger = EmbeddedLedger(
        settings.book,
        seal_events=seal_events,
        seal_age_seconds=seal_age_seconds,
        compaction=COMPACTION,
    )
    run(ledger, settings, on_listening=lambda host, port: say(f"listening {port}"))


class ForkedServer(ServerProcess):
    """
    As `ServerProcess`, and quick to start.

    Args:
        zygote: Its parent, which forks nothing else meanwhile.
        data: Its directory.
        seal_events: A seal is due at so many events.
        seal_age_seconds: Or when the oldest of them is so old.
    """

    def __init__(
        self,
        zygote: Zygote,
        data: Path,
        *,
        seal_events: int = 1_000_000,
        seal_age_seconds: float = 86_400.0,
    ) -> None:
        super().__init__(data)
        self._zygote = zygote
        self._thresholds = {"seal_events": seal_events, "seal_age_seconds": seal_age_seconds}
        self._job: Job | None = None

    @property
    def pid(self) -> int:
        """Its process, while it lives."""
        if self._job is None:
            raise RuntimeError("it does not run")
        return self._job.pid

    def start(self) -> None:
        self._job = self._zygote.run(serve, data=self.data, port=self.port, **self._thresholds)
        port = self._job.hear("listening")
        if port is None:
            raise RuntimeError(f"the server did not start: {self._job.code}")
        self.port = int(port)

    def alive(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=30).is_success
        except httpx.TransportError:
            return False

    def died(self) -> int:
        """Wait until something else has killed it; its exit code."""
        if self._job is None:
            raise RuntimeError("it does not run")
        code, self._job = self._job.wait(), None
        return code

    def _end(self, number: signal.Signals) -> int:
        if self._job is None:
            return 0
        os.kill(self._job.pid, number)
        return self.died()


class LedgerTransport:
    """A transport straight into a ledger of this process."""

    def __init__(self, ledger: EmbeddedLedger) -> None:
        self._ledger = ledger

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        announcement, blocks = read_request(body)
        done = self._ledger.append(Delivery(announcement=announcement, blocks=blocks)).result()
        return Response(200, encode_answer(done.answer()))

    def close(self) -> None:
        """There is nothing to let go of."""


@contextmanager
def meter_into(ledger: EmbeddedLedger, queue: Path) -> Generator[Meter]:
    """A Meter whose flush puts events straight into a ledger of this process."""
    with Meter(
        "crash",
        directory=queue,
        endpoint="http://127.0.0.1:1",
        transport=LedgerTransport(ledger),
        threads=False,
    ) as meter:
        yield meter


def backup_once(*, data: str, target: str) -> None:
    """Open the ledger, and back it up once told to."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ledger = EmbeddedLedger(Settings(directory=Path(data)).book, threads=False)
    await_start()
    ledger.backup(target)
    say("backed up")
    ledger.close()


def restore_once(*, source: str, data: str) -> None:
    """Restore a backup once told to."""
    book = Settings(directory=Path(data)).book
    restore = Restore(Path(source), book, clock=SystemClock(), ids=SystemIds())
    await_start()
    restore.make()
    say("restored")


def seal_once(*, data: str) -> None:
    """Open the ledger, and seal what is there once told to."""
    # DuckDB has a thread for each core, and which of them does what differs from run to run.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ledger = EmbeddedLedger(Settings(directory=Path(data)).book, threads=False)
    await_start()
    assert ledger.sealer.step(force=True)
    say("sealed")
    ledger.close()


def compact_once(*, data: str) -> None:
    """Open the ledger, and compact what is there once told to."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # As in `seal_once`.
    directory = Settings(directory=Path(data)).book
    ledger = EmbeddedLedger(directory, threads=False, compaction=COMPACTION)
    await_start()
    assert ledger.compactor.step()
    say("compacted")
    ledger.close()
