"""
The server's commands: serve; the others have modules of their own.

They are registered in the one command `tallybook` by entry point, also for commands that
never need them. So this module imports nothing of the server's; each command does, when
it runs, and says what to install where the libraries are missing.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallybook.cli.output import Exit, Failure, print_json, say
from tallybook.cli.parser import Commands, add_command
from tallybook.cli.version import missing_of_server
from tallybook.errors import InvalidSetting
from tallybook_server import proving, recovery_command, verify_command
from tallybook_server.demo import command as demo
from tallybook_server.server_options import add_data, data_of

if TYPE_CHECKING:
    from tallybook_server.settings import Settings

__all__ = ["register"]

_PORT: Final = 8255  # settings.DEFAULT_PORT, which takes pydantic to import; a test compares.


def register(commands: Commands) -> None:
    """Declare the server's commands."""
    _register_serve(commands)
    verify_command.register(commands, needs_server)
    proving.register(commands)
    recovery_command.register(commands, needs_server)
    demo.register(commands, needs_server)


def needs_server(command: str) -> None:
    """
    Make sure that the libraries of the server are there.

    Raises:
        Failure: They are not; the message says what to install.
    """
    missing = missing_of_server()
    if missing:
        raise Failure(
            f"{command} needs the server: pip install 'tallybook[server]' "
            f"(missing: {', '.join(missing)})",
            Exit.USAGE,
        )


# -- serve ---------------------------------------------------------------------------------


def _register_serve(commands: Commands) -> None:
    parser = add_command(
        commands,
        "serve",
        _serve,
        summary="take events in, keep the ledger, and answer questions",
        examples=["tallybook serve", "tallybook serve --data /srv/tallybook --port 0"],
    )
    add_data(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; %(default)s")
    parser.add_argument(
        "--port", type=int, default=_PORT, help="the port, 0 for any free one; %(default)s"
    )


def _serve(arguments: Namespace) -> int:
    needs_server("serve")
    settings = _settings(data_of(arguments), arguments.host, arguments.port)
    from tallybook_server.embedded import EmbeddedLedger
    from tallybook_server.ledger import LedgerDamaged
    from tallybook_server.serve import run

    try:
        ledger = EmbeddedLedger(settings.book)
    except LedgerDamaged as error:
        raise Failure(str(error), Exit.FINDING) from None
    except OSError as error:
        raise Failure(
            f"the ledger cannot be opened in {settings.directory}: {error.strerror}; expected a "
            "directory that this user can write, see --data",
            Exit.USAGE,
        ) from None
    # It logs the error that `run` raises as well, in other words.
    logging.getLogger("uvicorn.error").addFilter(lambda line: not isinstance(line.msg, OSError))

    def listening(host: str, port: int) -> None:
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        if arguments.json:
            print_json(
                {"url": url, "data": str(settings.directory), "ledger": ledger.id}, indent=None
            )
        say(f"listening on {url}, keeping {settings.directory}")

    run(ledger, settings, on_listening=listening)
    return Exit.OK


def _settings(directory: Path, host: str, port: int) -> Settings:
    from pydantic import ValidationError

    from tallybook_server.settings import Settings

    try:
        return Settings(directory=directory, host=host, port=port)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        words = wrong["msg"].removeprefix("Value error, ")
        if not words.startswith(name):
            words = f"{name} is {wrong['input']!r}: {words}"
        raise InvalidSetting(name, words) from None
