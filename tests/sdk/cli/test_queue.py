"""``tallybook queue status``: who lives, what waits, and nothing is touched to find out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

from tallybook import Meter
from tests.sdk.cli.conftest import NOWHERE, Command, Die


def publish(queue: Path, producer: str, **counts: object) -> None:
    """What a producer would have written beside its queue."""
    document = {"producer": producer, "source": "api", "endpoint": NOWHERE, **counts}
    (queue / f"{producer}.status").write_text(json.dumps(document))


def test_killed_producer_is_dead(tallybook: Command, die: Die) -> None:
    """Its lock can be taken: no pid is asked, which another process may have by now."""
    producer = die(NOWHERE, "acme")
    (row,) = tallybook("queue", "status", "--json").json["data"]

    assert (row["producer"], row["alive"]) == (producer, False)
    assert (row["source"], row["endpoint"]) == ("api", NOWHERE)


def test_living_producer_is_alive(tallybook: Command, queue: Path) -> None:
    """A Meter that has recorded holds its lock as long as it lives."""
    with Meter("api", directory=queue) as meter:
        meter.record("calls")
        (row,) = tallybook("queue", "status", "--json").json["data"]

    assert (row["alive"], row["pid"]) == (True, os.getpid())


def test_counts_are_those_that_were_published(tallybook: Command, queue: Path, die: Die) -> None:
    """Recorded, waiting, set aside and dropped; the totals add them up."""
    for pending in (3, 4):
        publish(queue, die(NOWHERE, "acme"), recorded=9, pending=pending, aside=0, dropped=0)
    document = tallybook("queue", "status", "--json").json

    assert sorted(row["pending"] for row in document["data"]) == [3, 4]
    assert document["totals"]["recorded"] == 18
    assert document["totals"]["pending"] == 7


def test_producer_that_published_nothing_is_unknown_and_not_empty(
    tallybook: Command, queue: Path, die: Die
) -> None:
    """Who wrote the queue is in its spool's header; how much is in it, nobody can say."""
    producer = die(NOWHERE, "acme")
    (queue / f"{producer}.status").unlink(missing_ok=True)
    ran = tallybook("queue", "status", "--json")
    (row,) = ran.json["data"]

    assert (row["source"], row["endpoint"], row["pending"]) == ("api", NOWHERE, None)
    assert "at least 0 events" in ran.words


def test_counts_of_another_producer_are_not_believed(
    tallybook: Command, queue: Path, die: Die
) -> None:
    """Regression: a Meter that had closed published zeros in the name of no producer."""
    producer = die(NOWHERE, "acme")
    publish(queue, producer, recorded=0, pending=0, aside=0, dropped=0)
    document = json.loads((queue / f"{producer}.status").read_text())
    (queue / f"{producer}.status").write_text(json.dumps(document | {"producer": None}))
    (row,) = tallybook("queue", "status", "--json").json["data"]

    assert row["pending"] is None


def test_nothing_is_changed_by_looking(tallybook: Command, queue: Path, die: Die) -> None:
    """No file appears, goes, or is written: looking is safe at any time."""

    def files() -> dict[str, tuple[int, int]]:
        return {
            path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in queue.iterdir()
        }

    die(NOWHERE, "acme")
    before = files()
    assert tallybook("queue", "status").code == 0
    assert files() == before


def test_two_who_look_do_not_see_each_other(tallybook: Command, queue: Path, die: Die) -> None:
    """The lock is tried shared: somebody else's look does not make a dead producer alive."""
    producer = die(NOWHERE, "acme")
    with (queue / f"{producer}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        (row,) = tallybook("queue", "status", "--json").json["data"]

    assert row["alive"] is False


def test_aside_is_a_finding(tallybook: Command, queue: Path, die: Die) -> None:
    """Exit 1, and the words say how it is sent again."""
    publish(queue, die(NOWHERE, "acme"), pending=0, aside=2, dropped=0)
    ran = tallybook("queue", "status")

    assert ran.code == 1
    assert "--retry-aside" in ran.words


def test_dropped_is_a_finding(tallybook: Command, queue: Path, die: Die) -> None:
    """Usage was lost: exit 1, with the number."""
    publish(queue, die(NOWHERE, "acme"), pending=0, aside=0, dropped=12)
    ran = tallybook("queue", "status")

    assert ran.code == 1
    assert "12 events dropped" in ran.words


def test_held_queue_is_a_finding_with_its_reason(tallybook: Command, queue: Path, die: Die) -> None:
    """A living Meter that leaves a dead one's queue as it is publishes why."""
    held = die(NOWHERE, "acme")
    publish(queue, die(NOWHERE, "acme"), held={held: "it is meant for another"})
    ran = tallybook("queue", "status", "--json")
    (reason,) = (row["held"] for row in ran.json["data"] if row["producer"] == held)

    assert ran.code == 1
    assert reason == "it is meant for another"
    assert ran.json["totals"]["held"] == 1


def test_table_has_a_line_per_producer(tallybook: Command, queue: Path, die: Die) -> None:
    """Without --json: the same, to be read."""
    producer = die(NOWHERE, "acme")
    publish(queue, producer, recorded=5, pending=3, aside=0, dropped=0, last_error="refused")
    heads, row = tallybook("queue", "status").rows

    assert heads[:4] == ["producer", "state", "source", "endpoint"]
    assert row[:8] == [producer, "dead", "api", NOWHERE, "5", "3", "0", "0"]
    assert row[-1] == "refused"


def test_unreadable_status_is_no_traceback(tallybook: Command, queue: Path, die: Die) -> None:
    """Half a document, of a disk that was full, is no document."""
    (queue / f"{die(NOWHERE, 'acme')}.status").write_text('{"recorded": ')

    assert tallybook("queue", "status").code == 0


def test_directory_that_nobody_has_made_yet_is_empty(tallybook: Command, queue: Path) -> None:
    """The default place before the first event: nothing, and not made by looking."""
    ran = tallybook("queue", "status", "--json")

    assert (ran.code, ran.json["data"]) == (0, [])
    assert not queue.exists()


def test_directory_that_is_named_and_missing_is_a_mistake(
    tallybook: Command, tmp_path: Path
) -> None:
    """A mistyped path must not look like a queue that is empty."""
    ran = tallybook("queue", "status", "--directory", str(tmp_path / "typo"))

    assert ran.code == 2
    assert str(tmp_path / "typo") in ran.words


def test_foreign_files_are_passed_over(tallybook: Command, queue: Path, die: Die) -> None:
    """Only what has a producer's name is a queue."""
    producer = die(NOWHERE, "acme")
    (queue / "notes.lock").touch()
    shutil.copy(queue / f"{producer}.lock", queue / f"{producer.upper()}x.lock")

    assert len(tallybook("queue", "status", "--json").json["data"]) == 1
