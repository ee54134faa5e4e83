"""The server's commands, as processes: serve, and verify on a closed and on a running ledger."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tallybook.cli.program import build_parser
from tallybook_server.settings import DEFAULT_PORT
from tests.conftest import ServerProcess

WITHOUT_LIBRARIES = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("starlette", "duckdb") else find_spec(name)
from tallybook.cli import main
sys.exit(main(sys.argv[1:]))
"""


def tallybook(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, with these variables beside the usual ones."""
    return subprocess.run(
        [sys.executable, "-m", "tallybook.cli", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def process(tmp_path: Path) -> Generator[ServerProcess]:
    """``tallybook serve``, with one event in its ledger."""
    process = ServerProcess(tmp_path / "data")
    process.start()
    event = {"dimension": "calls", "id": "1", "source": "test"}
    httpx.post(f"{process.url}/v1/events", json=event).raise_for_status()
    yield process
    process.kill()


# -- serve ---------------------------------------------------------------------------------


def test_serve_ends_well_on_sigterm_and_keeps_the_ledger(process: ServerProcess) -> None:
    """A clean stop is exit 0, and the next start has everything."""
    assert process.stop() == 0
    process.start()

    assert process.total("calls") == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_as_json_where_it_listens(tmp_path: Path, number: signal.Signals) -> None:
    """With port 0 the port is known only then. Ctrl-C ends it as well as SIGTERM: exit 0."""
    arguments = ["serve", "--data", str(tmp_path / "data"), "--port", "0", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "tallybook.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        document = json.loads(server.stdout.readline())
        root = httpx.get(document["url"]).json()
        server.send_signal(number)

    assert server.returncode == 0
    assert set(document) == {"url", "data", "ledger"}
    assert document["data"] == str(tmp_path / "data")
    assert document["ledger"] == root["ledger"]


def test_directory_comes_from_the_environment(tmp_path: Path) -> None:
    """TALLYBOOK_DATA is the default of --data: a file there is what serve complains about."""
    (tmp_path / "file").touch()
    ran = tallybook("serve", "--port", "0", TALLYBOOK_DATA=str(tmp_path / "file"))

    assert ran.returncode == 2
    assert str(tmp_path / "file") in ran.stderr
    assert "Traceback" not in ran.stderr


def test_second_server_on_a_directory_is_refused(process: ServerProcess) -> None:
    """One book has one server; the second says which and leaves."""
    ran = tallybook("serve", "--data", str(process.data), "--port", "0")

    assert ran.returncode == 2
    assert "held by a running server" in ran.stderr


def test_port_that_is_taken_is_one_sentence(process: ServerProcess, tmp_path: Path) -> None:
    """Not the same error twice, once in uvicorn's words."""
    ran = tallybook("serve", "--data", str(tmp_path / "other"), "--port", str(process.port))

    assert ran.returncode == 2
    assert ran.stderr.startswith(f"tallybook: cannot listen on 127.0.0.1 port {process.port}")
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "host is '0.0.0.0'; expected an address of this machine"),
        (["--port", "70000"], "port is 70000"),
        (["--port", "x"], "'x'"),
    ],
)
def test_wrong_address_is_refused_before_anything_is_made(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    """Exit 2, a sentence with the value, and no directory."""
    ran = tallybook("serve", "--data", str(tmp_path / "data"), *arguments)

    assert ran.returncode == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "data").exists()


def test_default_port_is_the_one_of_the_settings() -> None:
    """It is written twice, so that the parser need not import pydantic."""
    assert build_parser().parse_args(["serve"]).port == DEFAULT_PORT


@pytest.mark.parametrize("command", ["serve", "verify"])
def test_missing_libraries_are_named_with_how_to_install_them(command: str) -> None:
    """The light install lists the server's commands, and says what they need: exit 2."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARIES, command],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ran.returncode == 2
    assert ran.stderr == (
        f"tallybook: {command} needs the server: pip install 'tallybook[server]' "
        "(missing: starlette, duckdb)\n"
    )


def test_every_library_of_the_extra_is_looked_for() -> None:
    """What the extra installs and what the command looks for is the same list."""
    from tallybook.cli.version import SERVER_LIBRARIES

    try:
        required = importlib.metadata.requires("tallybook") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from a source tree: nothing is installed, so nothing says what it needs")
    extra = {
        requirement.partition(">")[0]
        for requirement in required
        if "extra == 'server'" in requirement or 'extra == "server"' in requirement
    }

    # tzdata is rules and no code: on most machines the system's are used.
    assert extra - {"tzdata"} == set(SERVER_LIBRARIES.values())


# -- verify --------------------------------------------------------------------------------


def verify(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of ``tallybook verify --json``."""
    ran = tallybook("verify", "--json", *arguments)
    return ran.returncode, json.loads(ran.stdout)


def test_verify_of_a_closed_directory_counts_what_is_there(process: ServerProcess) -> None:
    """Exit 0, and the numbers of entries and events that were computed anew."""
    entries = int(str(process.get("/")["position"]).partition(".")[2])
    process.stop()
    code, document = verify("--data", str(process.data))

    assert code == 0
    assert document == {
        "where": str(process.data),
        "entries": entries,
        "events": 1,
        "findings": [],
        "more": False,
    }


def test_verify_of_a_killed_server_needs_no_restart(process: ServerProcess) -> None:
    """What a crash leaves is verified as it lies."""
    process.kill()
    code, document = verify("--data", str(process.data))

    assert (code, document["events"], document["findings"]) == (0, 1, [])


def test_verify_through_a_running_server(process: ServerProcess) -> None:
    """The server holds the lock, so it does the work."""
    code, document = verify("--endpoint", process.url)

    assert (code, document["findings"]) == (0, [])
    assert document["where"] == process.url


def test_verify_of_a_directory_that_a_server_has_says_how(process: ServerProcess) -> None:
    """Exit 2, and the next step: ask that server."""
    ran = tallybook("verify", "--data", str(process.data))

    assert ran.returncode == 2
    assert "tallybook verify --endpoint" in ran.stderr


def test_finding_is_a_line_and_exit_1(process: ServerProcess) -> None:
    """A file that belongs to nobody is found, and named."""
    process.stop()
    (process.data / "books" / "default" / "stray").touch()
    ran = tallybook("verify", "--data", str(process.data))

    assert ran.returncode == 1
    assert "stray" in ran.stdout
    assert ran.stderr.endswith("1 finding\n")


def test_directory_without_a_ledger_is_a_mistake(tmp_path: Path) -> None:
    """A mistyped path must not look like a ledger without a fault; nothing is made there."""
    ran = tallybook("verify", "--data", str(tmp_path / "typo"))

    assert ran.returncode == 2
    assert f"there is no ledger in {tmp_path / 'typo'}" in ran.stderr
    assert not (tmp_path / "typo").exists()


def test_verify_of_a_server_that_is_away_is_exit_3() -> None:
    """Nothing is known, so nothing is well."""
    assert tallybook("verify", "--endpoint", "http://127.0.0.1:1").returncode == 3


def test_data_and_endpoint_exclude_each_other(tmp_path: Path) -> None:
    """Which one was meant cannot be guessed."""
    ran = tallybook("verify", "--data", str(tmp_path), "--endpoint", "http://127.0.0.1:1")

    assert ran.returncode == 2
