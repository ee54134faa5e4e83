"""``tallybook record``: what became of the event decides the words and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.conftest import ServerProcess
from tests.sdk.cli.conftest import NOWHERE, Command


def test_recorded_event_is_counted_exactly(tallybook: Command, server: ServerProcess) -> None:
    """Exit 0 means that the server has it, and the total has every digit."""
    ran = tallybook(
        "record", "gpu.seconds", "0.000000001", "--tenant", "acme", "--endpoint", server.url
    )

    assert ran.code == 0
    assert ran.out == ""
    assert ran.words.startswith("gpu.seconds 0.000000001 for acme: counted")
    assert server.total("gpu.seconds", tenant="acme") == "0.000000001"


def test_every_option_reaches_the_ledger(tallybook: Command, server: ServerProcess) -> None:
    """Tenant, tags, time, key and source are those of the command line."""
    tallybook(
        *("record", "tokens", "7", "--tenant", "acme", "--tag", "model=small", "--tag", "eu=1"),
        *("--time", "2026-01-02T03:04:05+01:00", "--key", "k1", "--source", "nightly"),
        *("--endpoint", server.url),
    )

    listed = cast(list[dict[str, object]], server.get("/v1/events")["data"])
    (event,) = listed
    expected = {
        "dimension": "tokens",
        "value": "7",
        "tenant": "acme",
        "tags": {"model": "small", "eu": "1"},
        "time": "2026-01-02T02:04:05Z",
        "key": "k1",
        "source": "nightly",
    }
    assert {name: event[name] for name in expected} == expected


def test_server_away_keeps_the_event(tallybook: Command, queue: Path) -> None:
    """Exit 3: it is on disk, and the words say that nothing is lost."""
    ran = tallybook("record", "calls", "--endpoint", NOWHERE, "--timeout", "0.2", "--json")

    assert ran.code == 3
    assert ran.json["status"] == "kept"
    assert f"kept in {queue}, nothing is lost" in ran.words
    assert list(queue.glob("*.db"))


def test_kept_event_goes_with_the_next_one(tallybook: Command, server: ServerProcess) -> None:
    """What one `record` could not send, a later one brings: each counts once."""
    url = server.url
    server.kill()
    assert tallybook("record", "calls", "2", "--endpoint", url, "--timeout", "0.2").code == 3
    server.start()
    assert tallybook("record", "calls", "3", "--endpoint", url).code == 0
    assert tallybook("queue", "flush", "--endpoint", url).code == 0

    assert server.total("calls") == "5"


def test_same_key_again_is_a_duplicate(tallybook: Command, shared: ServerProcess) -> None:
    """A script that runs twice may say the same twice: exit 0, counted once."""
    event = ("record", "twice", "5", "--source", "s", "--key", "k", "--endpoint", shared.url)
    tallybook(*event)
    ran = tallybook(*event, "--json")

    assert (ran.code, ran.json["status"], ran.json["reason"]) == (0, "duplicate", "key")
    assert shared.total("twice") == "5"


def test_same_key_for_another_event_is_a_finding(tallybook: Command, shared: ServerProcess) -> None:
    """Exit 1: the event did not count, although it was delivered."""
    event = ("--source", "s", "--key", "k", "--endpoint", shared.url)
    tallybook("record", "clash", "5", *event)
    ran = tallybook("record", "clash", "6", *event, "--json")

    assert (ran.code, ran.json["status"]) == (1, "conflict")
    assert "/v1/rejections" in ran.words
    assert shared.total("clash") == "5"


def test_json_has_the_documented_keys(tallybook: Command, shared: ServerProcess) -> None:
    """The keys on the page, and no others."""
    ran = tallybook("record", "calls", "--endpoint", shared.url, "--json")

    assert set(ran.json) == {
        *("dimension", "value", "tenant", "tags"),
        *("producer", "status", "reason", "position", "error"),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Calls"], "dimension is 'Calls'"),
        (["calls", "-1"], "value -1 is negative"),
        (["calls", "many"], "value is 'many'; expected a decimal number"),
        (["calls", "0.0000000001"], "has 10 decimals"),
        (["calls", "--tenant", ""], "tenant is empty"),
        (["calls", "--tag", "eu"], "'eu' is no tag; expected key=value"),
        (["calls", "--tag", "a=1", "--tag", "a=2"], "--tag names 'a' twice"),
        (["calls", "--time", "now"], "'now' is no time"),
        (["calls", "--time", "2026-01-01T00:00:00"], "has no time zone"),
        (["calls", "--key", "k"], "--key needs --source"),
        (["calls", "--timeout", "soon"], "'soon' is no time; expected seconds"),
        (["calls", "--endpoint", "localhost"], "endpoint is 'localhost'; expected a URL"),
    ],
)
def test_wrong_event_is_refused_before_anything_is_written(
    tallybook: Command, queue: Path, arguments: list[str], words: str
) -> None:
    """Exit 2, one sentence that names the value, no traceback, and no event on disk."""
    ran = tallybook("record", *arguments)

    assert ran.code == 2
    assert words in ran.words
    assert "Traceback" not in ran.words
    assert not list(queue.glob("*.db"))


def test_directory_that_is_a_file_is_a_sentence(tallybook: Command, tmp_path: Path) -> None:
    """Nothing was recorded, and the words say so and what to change."""
    (tmp_path / "file").touch()
    ran = tallybook("record", "calls", "--directory", str(tmp_path / "file"))

    assert ran.code == 2
    assert ran.words.startswith("tallybook: nothing was recorded: ")
    assert "--directory" in ran.words


def test_level_of_the_environment_cannot_lose_the_event(tallybook: Command, tmp_path: Path) -> None:
    """A buffered event would be gone with the process when the directory cannot be used."""
    (tmp_path / "file").touch()
    ran = tallybook(
        *("record", "calls", "--directory", str(tmp_path / "file")),
        TALLYBOOK_DURABILITY="buffered",
        TALLYBOOK_ON_FULL="drop",
    )

    assert ran.code == 2
