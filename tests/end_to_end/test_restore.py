"""A server is lost and restored from yesterday's backup: what anybody still holds is not lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from tallybook import Meter
from tests.conftest import ServerProcess


class Disaster:
    """
    A server, its backup, and applications that go on while it is lost and restored.

    Attributes:
        server: The server; after `strike`, the restored one, at the same address.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server = ServerProcess(folder / "data")
        self.server.start()

    def meter(self, name: str) -> Meter:
        """An application on a host of its own."""
        return Meter(name, directory=self._folder / f"queue-{name}", endpoint=self.server.url)

    def back_up(self) -> dict[str, Any]:
        """As an operator does; what the server answered."""
        answer = httpx.post(
            f"{self.server.url}/v1/backup",
            json={"directory": str(self._folder / "backup")},
            timeout=60,
        )
        answer.raise_for_status()
        return cast(dict[str, Any], answer.json())

    def strike(self) -> str:
        """The server's disk is gone; what was said when it was restored onto another one."""
        self.server.kill()
        shutil.rmtree(self.server.data)
        self.server.data = self._folder / "restored"
        arguments = [str(self._folder / "backup"), "--data", str(self.server.data)]
        ran = subprocess.run(
            [sys.executable, "-m", "tallybook.cli", "restore", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        self.server.start()
        return ran.stderr

    def totals(self) -> dict[str, str]:
        """Events per application, whose name is a tag."""
        rows = self.server.rows(dimension="calls", group_by="tag:app", aggregation="count")
        return {row["tags"]["app"]: row["value"] for row in rows}

    def producers(self) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], self.server.get("/v1/producers")["data"])


@pytest.fixture
def disaster(tmp_path: Path) -> Iterator[Disaster]:
    disaster = Disaster(tmp_path)
    yield disaster
    disaster.server.kill()


def record(meter: Meter, app: str, events: int) -> None:
    """Record, and have it acknowledged."""
    for _ in range(events):
        meter.record("calls", tenant="acme", tags={"app": app})
    assert meter.flush(timeout=30).ok


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_what_was_acknowledged_since_the_backup_is_counted_again_once(
    disaster: Disaster,
) -> None:
    """One application goes on, one restarts, one has ended: each event is there once."""
    living, ending = disaster.meter("living"), disaster.meter("ending")
    record(living, "living", 30)
    record(ending, "ending", 20)
    done = disaster.back_up()
    record(living, "living", 70)
    record(ending, "ending", 40)
    assert ending.close(timeout=30).ok
    with disaster.meter("short") as short:
        record(short, "short", 9)
    assert disaster.totals() == {"living": "100", "ending": "60", "short": "9"}

    said = disaster.strike()
    assert f"the ledger at {done['position']}, from here on incarnation 2; nothing wrong" in said
    assert disaster.totals() == {"living": "30", "ending": "20"}
    record(living, "living", 1)
    with disaster.meter("ending") as again:
        record(again, "ending", 5)
        until(lambda: disaster.totals().get("ending") == "65")
    with disaster.meter("short") as again:
        record(again, "short", 1)
        until(lambda: disaster.totals().get("short") == "10")

    living.close(timeout=30)
    assert disaster.totals() == {"living": "101", "ending": "65", "short": "10"}
    assert [one["missing"] for one in disaster.producers()] == [0] * len(disaster.producers())
    assert disaster.server.get("/v1/usage", dimension="calls")["complete"] is True
    assert disaster.server.get("/v1/verify")["findings"] == []


def test_what_nobody_holds_any_more_is_named(disaster: Disaster) -> None:
    """The ranges are in the producer's report, and answers do not call themselves complete."""
    meter = disaster.meter("app")
    record(meter, "app", 30)
    disaster.back_up()
    record(meter, "app", 70)
    worker = meter._worker
    assert worker is not None
    worker.producer.queue.prune(0, 0)  # As beyond the limit of what is kept.
    disaster.strike()
    record(meter, "app", 1)
    meter.close(timeout=30)

    (report,) = disaster.producers()
    assert disaster.totals() == {"app": "31"}
    assert (report["missing"], report["gaps"], report["state"]) == (70, [[31, 100]], "closed")
    assert disaster.server.get("/v1/usage", dimension="calls")["complete"] is False


def test_a_backup_while_usage_arrives_is_whole(disaster: Disaster) -> None:
    """One backup after another under load; restored, the end is exact."""
    meter = disaster.meter("app")
    recorded = 0
    ends = time.monotonic() + 3
    positions: list[str] = []
    while time.monotonic() < ends:
        for _ in range(200):
            meter.record("calls", tenant="acme", tags={"app": "app"})
        recorded += 200
        positions.append(disaster.back_up()["position"])
    assert meter.flush(timeout=30).ok
    disaster.strike()
    meter.record("calls", tenant="acme", tags={"app": "app"})
    assert meter.flush(timeout=30).ok
    meter.close(timeout=30)

    assert disaster.totals() == {"app": str(recorded + 1)}
    assert disaster.server.get("/v1/verify")["findings"] == []
    assert len(positions) > 2
