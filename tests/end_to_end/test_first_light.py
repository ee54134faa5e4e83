"""One event, the whole way, through two crashes: the test that everything else stands on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tallybook import Meter

if TYPE_CHECKING:
    from tests.conftest import ServerProcess

RECORD_AND_DIE = """
import os, signal, sys
from tallybook import Meter
meter = Meter("first-light", directory=sys.argv[1], endpoint=sys.argv[2])
meter.record("http.requests", tenant="acme", tags={"route": "/v1/items/{id}"})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_event_survives_a_kill_of_the_application_and_of_the_server(
    tmp_path: Path, server: ServerProcess
) -> None:
    """record, SIGKILL, adoption, a real socket, SIGKILL of the server: the answer is exactly 1."""
    queue = tmp_path / "queue"
    url = server.url
    server.kill()
    died = subprocess.run([sys.executable, "-c", RECORD_AND_DIE, str(queue), url])
    assert died.returncode == -signal.SIGKILL
    assert [path.suffix for path in queue.glob("*.lock")] == [".lock"]

    server.start()
    assert server.url == url
    with Meter("first-light", directory=queue, endpoint=url) as adopter:
        adopter.record("adopter.began", tenant="acme")
        while list(queue.glob("*.lock")) != [queue / f"{adopter.stats().producer}.lock"]:
            adopter.flush()
        server.kill()  # Right after the acknowledgement: it has to be on the server's disk.

    server.start()
    usage = server.rows(dimension="http.requests", group_by="tenant,tag:route")
    rows = [(row["tenant"], row["tags"], row["value"], row["events"]) for row in usage]
    assert rows == [("acme", {"route": "/v1/items/{id}"}, "1", 1)]
    findings = httpx.get(f"{url}/v1/verify", timeout=30).json()["findings"]
    assert findings == []
