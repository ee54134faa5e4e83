"""
The server's commands: serve and verify; backup, restore and demo have modules of their own.

They are registered in the one command `tallybook` by entry point, also for commands that
never need them. So this module imports nothing of the server's; each command does, when
it runs, and says what to install where the libraries are missing.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, cast

from tallybook.cli.connection import DEFAULT_ENDPOINT, Server
from tallybook.cli.output import (
    Exit,
    Failure,
    Progress,
    number_of,
    plain,
    print_json,
    print_line,
    say,
)
from tallybook.cli.parser import Commands, add_command
from tallybook.cli.version import missing_of_server
from tallybook.errors import InvalidSetting
from tallybook_server import proving, recovery_command
from tallybook_server.demo import command as demo
from tallybook_server.server_options import add_data, data_of

if TYPE_CHECKING:
    from tallybook_server.settings import Settings

__all__ = ["register"]

_PORT: Final = 8255  # settings.DEFAULT_PORT, which takes pydantic to import; a test compares.


def register(commands: Commands) -> None:
    """Declare the server's commands."""
    _register_serve(commands)
    _register_verify(commands)
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


# -- verify --------------------------------------------------------------------------------


def _register_verify(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        _verify,
        summary="compute the whole ledger anew and compare it with what is there",
        words="Without --endpoint no server may run on the directory; nothing is written to it.",
        examples=[
            "tallybook verify --data /srv/tallybook",
            "tallybook verify --endpoint http://127.0.0.1:8255",
            "tallybook verify --backup /mnt/backup",
        ],
    )
    place = parser.add_mutually_exclusive_group()
    add_data(place)
    place.add_argument("--endpoint", metavar="URL", help="let the server that runs there do it")
    place.add_argument("--backup", type=Path, metavar="DIR", help="verify a backup instead")


@dataclass(frozen=True, slots=True)
class _Verified:
    """
    What `verify` found.

    Attributes:
        where: The directory or the server.
        entries: Entries of the ledger; None where too much is wrong to say.
        events: Counted events; likewise, and None where a server was asked or a backup read.
        findings: What is wrong: what, where, detail.
        more: There is more of it than is shown.
    """

    where: str
    entries: int | None
    events: int | None
    findings: list[dict[str, str]]
    more: bool = False


def _verify(arguments: Namespace) -> int:
    needs_server("verify")
    if arguments.endpoint is not None:
        verified = _verify_through(Server.of(arguments.endpoint))
    elif arguments.backup is not None:
        findings = recovery_command.verify_backup(arguments.backup)
        verified = _Verified(str(arguments.backup), None, None, findings)
    else:
        verified = _verify_closed(data_of(arguments))
    if arguments.json:
        print_json(asdict(verified))
    else:
        for finding in verified.findings:
            print_line(plain(f"{finding['what']}  {finding['where']}: {finding['detail']}"))
    say(_words(verified))
    return Exit.FINDING if verified.findings else Exit.OK


def _words(verified: _Verified) -> str:
    words: list[str] = []
    if verified.entries is not None:
        words.append(number_of(verified.entries, "entry", "entries"))
    if verified.events is not None:
        words.append(number_of(verified.events, "event"))
    if verified.findings:
        more = "more than " if verified.more else ""
        words.append(f"{more}{number_of(len(verified.findings), 'finding')}")
    else:
        words.append("nothing wrong")
    return f"{verified.where}: {', '.join(words)}"


def _verify_through(server: Server) -> _Verified:
    """Ask the server that runs on the ledger; it takes as long as it takes."""
    document = server.get("/v1/verify", timeout_seconds=None).document
    return _Verified(
        where=server.endpoint,
        entries=int(str(document["position"]).partition(".")[2]),
        events=None,
        findings=cast(list[dict[str, str]], document["findings"]),
        more=bool(document["more"]),
    )


def _verify_closed(directory: Path) -> _Verified:
    """Read the directory itself, locked against a server that would start meanwhile."""
    from tallybook_server.book import Book
    from tallybook_server.ledger import LedgerDamaged, LedgerLocked
    from tallybook_server.settings import Settings
    from tallybook_server.verify import (
        open_unchanged,
        verify_directory,
    )
    from tallybook_server.writer import read_snapshot

    book = Book(Settings(directory=directory).book)
    if not book.journal.is_file():
        raise Failure(
            f"there is no ledger in {directory}; expected a server's directory, see --data",
            Exit.USAGE,
        )
    progress = Progress()
    findings: list[dict[str, str]] = []
    try:
        book.open_to_read()
        progress.show(f"{directory}: computing everything anew")
        findings += (asdict(finding) for finding in verify_directory(book.directory))
        if findings:
            return _Verified(str(directory), None, None, findings)
        with TemporaryDirectory() as aside:
            journal = open_unchanged(book, Path(aside))
            try:
                snapshot = read_snapshot(journal, number=1)
            finally:
                journal.close()
    except LedgerLocked:
        raise Failure(
            f"a server runs on {directory}; let it do the work: tallybook verify --endpoint "
            f"{DEFAULT_ENDPOINT}",
            Exit.USAGE,
        ) from None
    except LedgerDamaged as error:
        findings.append({"what": "journal", "where": str(book.journal), "detail": str(error)})
        return _Verified(str(directory), None, None, findings)
    finally:
        progress.end()
        book.close()
    events = sum(segment.rows for segment in snapshot.segments) + sum(
        part.generation.events for part in snapshot.tail
    )
    return _Verified(str(directory), snapshot.position, events, findings)
