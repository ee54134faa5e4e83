"""What holds for every command: how it is found, how it fails, and that its page is true."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from tallybook.cli.program import build_parser
from tests.sdk.cli.conftest import NOWHERE, Command

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"


def commands(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that can be run, by what the user types."""
    # argparse tells nobody what it was told: there is no public way to the commands.
    groups = [
        cast(Mapping[str, argparse.ArgumentParser], action.choices)
        for action in parser._actions  # pyright: ignore[reportPrivateUsage]
        if isinstance(cast(object, action.choices), Mapping)
    ]
    if not groups:
        yield name, parser
        return
    for word, below in groups[0].items():
        yield from commands(below, f"{name} {word}".strip())


COMMANDS = dict(commands(build_parser()))


def options_of(command: str) -> set[str]:
    """The long options of *command*, as its help names them."""
    return set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", COMMANDS[command].format_help(), re.M))


def section_of(command: str) -> str:
    """What the page says of *command*."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(command)}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    assert found, f"docs/reference/cli.md has no section '## {command}'"
    return found[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_page_documents_exactly_the_options_of(command: str) -> None:
    """Every option that the parser knows is in the command's table, and no other."""
    documented = set(re.findall(r"^\| `(--[a-z-]+)", section_of(command), re.M))

    assert documented == options_of(command) - {"--help"}


def test_page_documents_exactly_the_commands() -> None:
    """A command that is gone leaves the page, too."""
    headings = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.M)

    assert sorted(headings) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_an_option_of(command: str) -> None:
    """Whoever scripts one command can script them all."""
    assert "--json" in options_of(command)


def test_misspelt_command_is_named_with_its_neighbour(tallybook: Command) -> None:
    """A typing mistake costs one look, not the list of all commands."""
    ran = tallybook("usge", "http.requests")

    assert ran.code == 2
    assert "'usge'" in ran.words
    assert "did you mean usage?" in ran.words
    assert "Try: tallybook --help" in ran.words


def test_option_cannot_be_shortened(tallybook: Command) -> None:
    """A script that says ``--end`` would change its meaning when another option begins so."""
    ran = tallybook("usage", "http.requests", "--end", NOWHERE)

    assert ran.code == 2
    assert "--end" in ran.words


def test_wrong_variable_is_a_sentence(tallybook: Command) -> None:
    """A variable with a wrong value is named, with the value; no traceback."""
    ran = tallybook("usage", "http.requests", TALLYBOOK_CLOSE_SECONDS="soon")

    assert ran.code == 2
    assert ran.words == "tallybook: TALLYBOOK_CLOSE_SECONDS is 'soon'; expected a number\n"


@pytest.mark.parametrize("key", ["se\ncret-9f2", "sécret-9f2", "secret 9f2"])
@pytest.mark.parametrize(
    "arguments", [["usage", "a"], ["record", "a"], ["doctor"], ["queue", "flush"]], ids=" ".join
)
def test_malformed_api_key_is_refused_without_being_shown(
    tallybook: Command, key: str, arguments: list[str]
) -> None:
    """The HTTP library puts a header that it refuses into its message: it never gets there."""
    ran = tallybook(*arguments, TALLYBOOK_ENDPOINT=NOWHERE, TALLYBOOK_API_KEY=key)

    assert ran.code == 2
    assert "TALLYBOOK_API_KEY" in ran.words
    assert "cret" not in ran.words + ran.out


def test_password_in_an_endpoint_is_refused_without_being_shown(tallybook: Command) -> None:
    """A URL with a password in it would end up in the status beside the queue."""
    ran = tallybook("usage", "a", "--endpoint", "http://user:hunter2@127.0.0.1")

    assert ran.code == 2
    assert "hunter2" not in ran.words + ran.out


def test_reader_who_has_read_enough_is_no_error() -> None:
    """``tallybook ... | head`` ends quietly when the pipe is closed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tallybook.cli", "version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, words = process.communicate(timeout=60)

    assert (process.returncode, words) == (0, b"")


def test_commands_of_the_sdk_import_nothing_of_the_server() -> None:
    """The server's commands are listed, yet none of its libraries is loaded for another's sake."""
    program = (
        "import sys; from tallybook.cli import main; code = main(['version'])\n"
        "heavy = {'starlette', 'duckdb', 'pydantic', 'uvicorn', 'arro3', 'httpx'}\n"
        "sys.exit(code or ', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_what_is_installed(tallybook: Command) -> None:
    """The versions come from what runs, with the server's libraries as yes or no."""
    document = tallybook("version", "--json").json

    assert document["python"] == ".".join(map(str, sys.version_info[:3]))
    assert document["server"] is True
    assert set(document) == {"tallybook", "python", "sqlite", "server"}
