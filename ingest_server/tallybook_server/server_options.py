"""Options that several commands of the server's have."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

__all__ = ["add_data", "data_of"]


class _Options(Protocol):
    """A parser, or a group of options of it."""

    def add_argument(
        self, *names: str, type: Callable[[str], object], metavar: str, help: str
    ) -> object: ...


def add_data(options: _Options) -> None:
    """Declare ``--data``."""
    options.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the server's directory; by default TALLYBOOK_DATA, else ./tallybook-data",
    )


def data_of(arguments: Namespace) -> Path:
    """What ``--data`` says, or the environment, or the default."""
    given: Path | None = arguments.data
    return given or Path(os.environ.get("TALLYBOOK_DATA") or "tallybook-data")
