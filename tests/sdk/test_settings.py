"""Settings: argument, then environment, then default; each checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tallybook.errors import InvalidSetting
from tallybook.limits import CLOSE_SECONDS, QUEUE_BYTES_MAX
from tallybook.settings import read_settings


def test_an_argument_wins_over_the_variable_and_that_over_the_default() -> None:
    """For every option."""
    environment = {"TALLYBOOK_SOURCE": "outside", "TALLYBOOK_QUEUE_BYTES_MAX": "2000000"}
    settings = read_settings(environment, source="inside")
    assert (settings.source, settings.queue_bytes_max) == ("inside", 2_000_000)
    assert (settings.durability, settings.on_full) == ("process", "drop")
    assert settings.close_seconds == CLOSE_SECONDS


def test_every_option_has_its_variable() -> None:
    """By its name."""
    environment = {
        "TALLYBOOK_SOURCE": "s",
        "TALLYBOOK_ENDPOINT": "http://h:1",
        "TALLYBOOK_API_KEY": "k",
        "TALLYBOOK_DIRECTORY": "/d",
        "TALLYBOOK_DURABILITY": "power",
        "TALLYBOOK_ON_FULL": "block",
        "TALLYBOOK_QUEUE_BYTES_MAX": "2000000",
        "TALLYBOOK_REQUEST_TIMEOUT_SECONDS": "1.5",
        "TALLYBOOK_CLOSE_SECONDS": "0",
    }
    settings = read_settings(environment)
    assert [getattr(settings, name) for name in settings.__struct_fields__] == [
        "s", "http://h:1", "k", Path("/d"), "power", "block", 2_000_000, 1.5, 0.0,
    ]  # fmt: skip


def test_an_empty_variable_is_none() -> None:
    """As a shell and a container set it."""
    assert read_settings({"TALLYBOOK_QUEUE_BYTES_MAX": " "}).queue_bytes_max == QUEUE_BYTES_MAX
    assert read_settings({"TALLYBOOK_ENDPOINT": ""}).endpoint is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", ""),
        ("source", "x" * 129),
        ("endpoint", "localhost:8255"),
        ("endpoint", "ftp://h"),
        ("endpoint", "http://"),
        ("endpoint", "http://[::1"),
        ("endpoint", "http://h:99999"),
        ("endpoint", "http://h:port"),
        ("endpoint", "http://me:secret@h"),
        ("endpoint", "http://h/" + "x" * 3000),
        ("api_key", "line\nbreak"),
        ("api_key", "schlüssel"),
        ("durability", "eventually"),
        ("on_full", "panic"),
        ("queue_bytes_max", 1000),
        ("queue_bytes_max", "many"),
        ("request_timeout_seconds", -1.0),
        ("request_timeout_seconds", float("nan")),
        ("close_seconds", float("inf")),
        ("close_seconds", "soon"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(name: str, value: Any) -> None:
    """By the option's name, from either side, and without showing a secret."""
    sides: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({f"TALLYBOOK_{name.upper()}": str(value)}, {})
    ]
    if not isinstance(value, str) or name not in ("queue_bytes_max", "close_seconds"):
        sides.append(({}, {name: value}))
    if value == "":
        sides.pop(0)  # An empty variable is one that is not set.
    for environment, arguments in sides:
        with pytest.raises(InvalidSetting) as raised:
            read_settings(environment, **arguments)
        assert raised.value.name == name
        assert "secret" not in str(raised.value)
        assert "schlüssel" not in str(raised.value)


def test_a_directory_is_where_it_was_when_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon changes its working directory; its queue stays."""
    monkeypatch.chdir(tmp_path)
    settings = read_settings({}, directory="queue")
    assert settings.directory == tmp_path / "queue"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_STATE_HOME": "/x"}, "/x/tallybook"),
        ({"HOME": "/h"}, "/h/.local/state/tallybook"),
        ({}, "/var/lib/tallybook"),
    ],
)
def test_a_queue_lies_in_the_users_state_directory(
    environment: dict[str, str], expected: str
) -> None:
    """When nobody says another."""
    assert read_settings(environment).directory == Path(expected)


def test_no_secret_in_a_repr() -> None:
    """Logs and tracebacks show settings."""
    assert "tb_1" not in repr(read_settings({}, api_key="tb_1"))
