"""``tallybook version``: which versions work together here."""

from __future__ import annotations

import platform
from argparse import Namespace
from importlib.util import find_spec
from typing import Final

from tallybook import __version__
from tallybook.cli.output import Exit, print_json, print_line
from tallybook.cli.parser import Commands, add_command

__all__ = ["SERVER_LIBRARIES", "missing_of_server", "register"]

SERVER_LIBRARIES: Final = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "uvloop": "uvloop",
    "httptools": "httptools",
    "duckdb": "duckdb",
    "arro3": "arro3-core",
    "pydantic": "pydantic",
}
"""What ``tallybook[server]`` installs: the module, and the library's name."""


def missing_of_server() -> list[str]:
    """The libraries of the server that are not installed. None of them is imported."""
    return [name for module, name in SERVER_LIBRARIES.items() if find_spec(module) is None]


def register(commands: Commands) -> None:
    """Declare ``version``."""
    add_command(
        commands,
        "version",
        _version,
        summary="print the versions of tallybook and of what it stands on",
    )


def _version(arguments: Namespace) -> int:
    import sqlite3

    missing = missing_of_server()
    if arguments.json:
        print_json(
            {
                "tallybook": __version__,
                "python": platform.python_version(),
                "sqlite": sqlite3.sqlite_version,
                "server": not missing,
            }
        )
    else:
        server = "installed" if not missing else "not installed: pip install 'tallybook[server]'"
        print_line(f"tallybook {__version__}")
        print_line(f"Python    {platform.python_version()}")
        print_line(f"SQLite    {sqlite3.sqlite_version}")
        print_line(f"server    {server}")
    return Exit.OK
