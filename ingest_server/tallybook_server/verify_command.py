"""The command ``tallybook verify``: of a directory, through a server, or of a backup."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from tallybook.cli.connection import DEFAULT_ENDPOINT, Server
from tallybook.cli.output import Exit, Failure, number_of, plain, print_json, print_line, say
from tallybook.cli.parser import Commands, add_command
from tallybook_server import recovery_command
from tallybook_server.progress_line import ProgressLine
from tallybook_server.server_options import add_data, data_of

__all__ = ["register"]


def register(commands: Commands, needs_server: Callable[[str], None]) -> None:
    """Declare ``verify``; *needs_server* fails where its libraries are missing."""

    def run(arguments: Namespace) -> int:
        needs_server("verify")
        return _verify(arguments)

    parser = add_command(
        commands,
        "verify",
        run,
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
    line = ProgressLine(server.endpoint)
    line.show("the server computes everything anew")
    try:
        document = server.get("/v1/verify", timeout_seconds=None).document
    finally:
        line.end()
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
    from tallybook_server.verify import Progress, verify_directory

    book = Book(Settings(directory=directory).book)
    if not book.journal.is_file():
        raise Failure(
            f"there is no ledger in {directory}; expected a server's directory, see --data",
            Exit.USAGE,
        )
    line = ProgressLine(str(directory))
    counts: dict[str, int] = {}

    def report(progress: Progress) -> None:
        counts[progress.check] = progress.total
        line(progress)

    findings: list[dict[str, str]] = []
    try:
        findings += (asdict(finding) for finding in verify_directory(book.directory, report=report))
    except LedgerLocked:
        raise Failure(
            f"a server runs on {directory}; let it do the work: tallybook verify --endpoint "
            f"{DEFAULT_ENDPOINT}",
            Exit.USAGE,
        ) from None
    except LedgerDamaged as error:
        findings.append({"what": "journal", "where": str(book.journal), "detail": str(error)})
    finally:
        line.end()
    if findings:
        return _Verified(str(directory), None, None, findings)
    return _Verified(str(directory), counts["entries"], counts["events"], findings)
