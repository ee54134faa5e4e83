"""
What a user may set: the options of `Meter`, each with its TALLYBOOK_* variable.

An argument wins over the variable, the variable over the default. The values are
checked here, once, and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args
from urllib.parse import urlsplit

import msgspec

from tallybook.errors import InvalidEvent, InvalidSetting
from tallybook.event import check_source
from tallybook.limits import (
    CLOSE_SECONDS,
    ENDPOINT_CHARS_MAX,
    QUEUE_BYTES_MAX,
    QUEUE_BYTES_MIN,
    REQUEST_TIMEOUT_SECONDS,
)

__all__ = ["Durability", "OnFull", "Settings", "read_settings"]

Durability = Literal["buffered", "process", "power"]
OnFull = Literal["drop", "raise", "block"]

_T = TypeVar("_T")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """
    The checked options of a Meter; `Meter` documents each.

    The API key is kept out of the repr.
    """

    source: str | None
    endpoint: str | None
    api_key: str | None
    directory: Path
    durability: Durability
    on_full: OnFull
    queue_bytes_max: int
    request_timeout_seconds: float
    close_seconds: float

    def __repr__(self) -> str:
        # Written by hand, so that the key is in no log and in no traceback.
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["api_key"] = "***" if self.api_key else None
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def read_settings(
    environment: Mapping[str, str],
    *,
    source: str | None = None,
    endpoint: str | None = None,
    api_key: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    durability: str | None = None,
    on_full: str | None = None,
    queue_bytes_max: int | None = None,
    request_timeout_seconds: float | None = None,
    close_seconds: float | None = None,
) -> Settings:
    """
    The settings from arguments, *environment* and defaults.

    Raises:
        InvalidSetting: The first option whose value it cannot have.
    """

    def option(name: str, given: _T | None, read: Callable[[str], _T], default: _T) -> _T:
        if given is not None:
            return given
        text = environment.get(f"TALLYBOOK_{name.upper()}", "").strip()
        if not text:
            return default
        try:
            return read(text)
        except ValueError:
            raise InvalidSetting(
                name, f"TALLYBOOK_{name.upper()} is {text!r}; expected a number"
            ) from None

    settings = Settings(
        source=option("source", source, str, cast(str | None, None)),
        endpoint=option("endpoint", endpoint, str, cast(str | None, None)),
        api_key=option("api_key", api_key, str, cast(str | None, None)),
        directory=Path(
            option("directory", None if directory is None else os.fspath(directory), str, "")
            or default_directory(environment)
        ).absolute(),  # A daemon changes its working directory.
        durability=cast(Durability, option("durability", durability, str, "process")),
        on_full=cast(OnFull, option("on_full", on_full, str, "drop")),
        queue_bytes_max=option("queue_bytes_max", queue_bytes_max, int, QUEUE_BYTES_MAX),
        request_timeout_seconds=option(
            "request_timeout_seconds", request_timeout_seconds, float, REQUEST_TIMEOUT_SECONDS
        ),
        close_seconds=option("close_seconds", close_seconds, float, CLOSE_SECONDS),
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    try:
        check_source(settings.source)
    except InvalidEvent as error:
        raise InvalidSetting("source", str(error)) from None
    for name, value, allowed in (
        ("durability", settings.durability, get_args(Durability)),
        ("on_full", settings.on_full, get_args(OnFull)),
    ):
        if value not in allowed:
            raise InvalidSetting(
                name, f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}"
            )
    if settings.endpoint is not None:
        _check_endpoint(settings.endpoint)
    if settings.api_key is not None and not re.fullmatch(r"[!-~]*", settings.api_key):
        # Without the value, which the HTTP library would put into its message.
        raise InvalidSetting(
            "api_key",
            "api_key (TALLYBOOK_API_KEY) has a blank, a line break or a letter outside ASCII; "
            "expected the key as the server's operator gave it",
        )
    if settings.queue_bytes_max < QUEUE_BYTES_MIN:
        raise InvalidSetting(
            "queue_bytes_max",
            f"queue_bytes_max is {settings.queue_bytes_max}; expected at least {QUEUE_BYTES_MIN}",
        )
    for name, seconds in (
        ("request_timeout_seconds", settings.request_timeout_seconds),
        ("close_seconds", settings.close_seconds),
    ):
        if not 0 <= seconds < float("inf"):
            raise InvalidSetting(name, f"{name} is {seconds}; expected seconds, 0 or more")


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        # The port is read only when it is asked for, and refuses then.
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        known, parts = False, None
    if parts and (parts.username or parts.password):
        raise InvalidSetting(
            "endpoint", "endpoint has a user name or password in it; pass api_key= instead"
        )
    if not known or len(endpoint) > ENDPOINT_CHARS_MAX:
        raise InvalidSetting(
            "endpoint",
            f"endpoint is {endpoint[:200]!r}; expected a URL such as http://127.0.0.1:8255, of at "
            f"most {ENDPOINT_CHARS_MAX} characters",
        )


def default_directory(environment: Mapping[str, str]) -> Path:
    """Where queues lie when nobody says: the user's state directory (XDG base directories)."""
    state = environment.get("XDG_STATE_HOME")
    if state:
        return Path(state) / "tallybook"
    home = environment.get("HOME")
    return Path(home or "/var/lib") / (".local/state/tallybook" if home else "tallybook")
