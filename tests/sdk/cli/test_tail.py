"""``tallybook tail``: the newest events, and those that come."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.conftest import ServerProcess
from tests.sdk.cli.conftest import NOWHERE, Command


def post(url: str, *values: int, tenant: str = "acme") -> None:
    """Record an event per value; each request is an entry of its own."""
    for value in values:
        event = {"dimension": "calls", "tenant": tenant, "value": value, "id": str(value)}
        httpx.post(f"{url}/v1/events", json=event | {"source": "test"}).raise_for_status()


@contextmanager
def following(url: str, *options: str) -> Generator[Iterator[str]]:
    """``tallybook tail --follow --json``, and the values that it shows, as they come."""
    command = ["tail", "--follow", "--json", "--endpoint", url, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "tallybook.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process:
        yield (json.loads(line)["value"] for line in process.stdout)
        process.kill()


@pytest.fixture(scope="module")
def endpoint(shared: ServerProcess) -> str:
    """A server with 30 events, and with entries behind them that count nothing."""
    post(shared.url, *range(1, 31))
    post(shared.url, 7, 7, 7)
    return shared.url


@pytest.mark.parametrize("limit", [1, 3, 9, 50])
def test_newest_events_come_in_the_order_of_the_ledger(
    tallybook: Command, endpoint: str, limit: int
) -> None:
    """However many are asked for: the last of them, none left out."""
    ran = tallybook("tail", "--limit", str(limit), "--endpoint", endpoint)

    assert [row[3] for row in ran.rows] == [str(value) for value in range(1, 31)][-limit:]


def test_json_lines_go_on_behind_a_cursor(tallybook: Command, endpoint: str) -> None:
    """Each line has the cursor that the next call begins behind."""
    page = ("tail", "--json", "--limit", "2", "--endpoint", endpoint, "--after")
    first = tallybook(*page, "0").out.splitlines()
    after = tallybook(*page, json.loads(first[-1])["cursor"]).out.splitlines()

    assert [json.loads(line)["value"] for line in first + after] == ["1", "2", "3", "4"]


def test_empty_ledger_has_no_lines(tallybook: Command, server: ServerProcess) -> None:
    """Nothing is nothing, and no error."""
    ran = tallybook("tail", "--endpoint", server.url)

    assert (ran.code, ran.out) == (0, "")


def test_follow_shows_what_is_there_and_what_comes(server: ServerProcess) -> None:
    """An event that is recorded later appears without another call."""
    post(server.url, 1)
    with following(server.url) as values:
        assert next(values) == "1"
        post(server.url, 2)
        assert next(values) == "2"


def test_follow_outlives_the_server(server: ServerProcess) -> None:
    """A restart of the server costs a pause, and no line comes twice or never."""
    post(server.url, 1)
    with following(server.url) as values:
        assert next(values) == "1"
        server.kill()
        server.start()
        post(server.url, 2)
        assert next(values) == "2"


def test_follow_goes_on_behind_a_cursor(server: ServerProcess) -> None:
    """Everything behind it, however much, and then what comes."""
    post(server.url, *range(1, 31))
    with following(server.url, "--after", "0") as values:
        assert [next(values) for _ in range(30)] == [str(value) for value in range(1, 31)]
        post(server.url, 31)
        assert next(values) == "31"


def test_follow_shows_only_what_passes(server: ServerProcess) -> None:
    """The filters hold for what is there and for what comes."""
    post(server.url, 1, 2)
    post(server.url, 3, tenant="globex")
    with following(server.url, "--tenant", "globex", "--source", "test") as values:
        assert next(values) == "3"
        post(server.url, 4)
        post(server.url, 5, tenant="globex")
        assert next(values) == "5"


FILTERS = [
    (["--tenant", "acme"], ["1", "3"]),
    (["--tenant", ""], ["2"]),
    (["--tenant", "", "--tenant", "acme"], ["1", "2", "3"]),
    (["--dimension", "bytes"], ["3"]),
    (["--source", "web"], ["2"]),
    (["--tag", "region=eu"], ["1", "3"]),
    (["--tag", "region=eu", "--tag", "model=small"], ["1"]),
    (["--tag", "region=us", "--tag", "region=eu"], ["1", "3"]),
    (["--not-tag", "model=small"], ["2", "3"]),
    (["--prefix-tag", "model=sm"], ["1"]),
    (["--exists-tag", "region=false"], ["2"]),
    (["--from", "2026-01-02T00:00:00Z"], ["2", "3"]),
    (["--to", "2026-01-02T00:00:00+01:00"], ["1"]),
    (["--key", "k"], ["3"]),
    (["--id", "a"], ["1"]),
    (["--producer", "0" * 32], []),
    (["--tenant", "nobody"], []),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A server with three events that differ in everything."""
    process = ServerProcess(tmp_path_factory.mktemp("mixed"))
    process.start()
    eu = {"region": "eu"}
    events: list[dict[str, object]] = [
        {"tenant": "acme", "id": "a", "source": "api", "tags": eu | {"model": "small"}},
        {"id": "b", "source": "web"},
        {"tenant": "acme", "dimension": "bytes", "key": "k", "source": "api", "tags": eu},
    ]
    for day, event in enumerate(events, 1):
        event = {"dimension": "calls", "value": day, "time": f"2026-01-0{day}T12:00:00Z"} | event
        httpx.post(f"{process.url}/v1/events", json=event).raise_for_status()
    yield process.url
    process.stop()


@pytest.mark.parametrize(("options", "shown"), FILTERS)
def test_filters_choose(
    tallybook: Command, mixed: str, options: list[str], shown: list[str]
) -> None:
    """Each option, with what it lets through."""
    ran = tallybook("tail", "--json", *options, "--endpoint", mixed)

    assert [json.loads(line)["value"] for line in ran.out.splitlines()] == shown


def test_control_characters_do_not_reach_the_terminal(
    tallybook: Command, server: ServerProcess
) -> None:
    """A tenant's id comes from outside; it must not be able to clear the screen."""
    post(server.url, 1, tenant="\x1b[2Jacme")
    ran = tallybook("tail", "--endpoint", server.url)

    assert "\x1b" not in ran.out
    assert "\\x1b[2Jacme" in ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--limit", "0"],
        ["--limit", "x"],
        ["--after", "x"],
        ["--follow", "--after", "x"],
        ["--producer", "x"],
        ["--from", "yesterday"],
        ["--tag", "x"],
    ],
)
def test_wrong_argument_is_exit_2(tallybook: Command, endpoint: str, arguments: list[str]) -> None:
    """Read here or by the server, it is a sentence."""
    ran = tallybook("tail", *arguments, "--endpoint", endpoint)

    assert ran.code == 2
    assert repr(arguments[-1]) in ran.words


def test_server_away_is_exit_3(tallybook: Command) -> None:
    """At the start there is nothing to follow yet."""
    assert tallybook("tail", "--follow", "--endpoint", NOWHERE).code == 3
