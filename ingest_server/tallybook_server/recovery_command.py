"""The commands ``tallybook backup`` and ``tallybook restore``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallybook.cli.connection import DEFAULT_ENDPOINT, Document, Server
from tallybook.cli.output import Exit, Failure, Progress, number_of, plain, print_json, say
from tallybook.cli.parser import Commands, add_command
from tallybook_server.progress_line import ProgressLine
from tallybook_server.server_options import add_data, data_of

if TYPE_CHECKING:
    from tallybook_server.ledger import BackedUp

__all__ = ["register", "verify_backup"]

_BOOKS: Final = "books"  # Where a server's directory has its books.


def register(commands: Commands, needs_server: Callable[[str], None]) -> None:
    """Declare ``backup`` and ``restore``; *needs_server* fails where its libraries are missing."""

    def run_backup(arguments: Namespace) -> int:
        needs_server("backup")
        return _backup(arguments)

    def run_restore(arguments: Namespace) -> int:
        needs_server("restore")
        return _restore(arguments)

    backup = add_command(
        commands,
        "backup",
        run_backup,
        summary="copy what is new in the ledger to a backup, while the server runs",
        words="Without --endpoint no server may run on the directory. With it the server makes the "
        "backup, into a directory of its own machine.",
        examples=[
            "tallybook backup /mnt/backup --endpoint http://127.0.0.1:8255",
            "tallybook backup /mnt/backup --data /srv/tallybook",
        ],
    )
    backup.add_argument("directory", type=Path, metavar="DIR", help="the backup's directory")
    place = backup.add_mutually_exclusive_group()
    add_data(place)
    place.add_argument("--endpoint", metavar="URL", help="let the server that runs there do it")
    restore = add_command(
        commands,
        "restore",
        run_restore,
        summary="make a ledger of a backup, in a new directory, and verify it",
        words="Producers that reach the restored server send again what they still hold of what "
        "it lacks.",
        examples=["tallybook restore /mnt/backup --data /srv/tallybook-new"],
    )
    restore.add_argument("directory", type=Path, metavar="DIR", help="the backup's directory")
    restore.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="NEW",
        help="the new server's directory; empty, or not there",
    )


# -- backup --------------------------------------------------------------------------------


def _backup(arguments: Namespace) -> int:
    from tallybook_server.backups import BackupAnswer

    directory: Path = arguments.directory.absolute()
    if arguments.endpoint is not None:
        document: Document = {"directory": str(directory)}
        server = Server.of(arguments.endpoint)
        reply = server.send("POST", "/v1/backup", document, timeout_seconds=None)
        made = BackupAnswer.model_validate(reply.document)
    else:
        made = BackupAnswer.of(_backup_closed(directory, data_of(arguments)))
    if arguments.json:
        print_json(made.model_dump())
    say(
        plain(
            f"{made.directory}: the ledger at {made.position}, "
            f"{number_of(made.files, 'file')}, {number_of(made.bytes, 'byte')}; "
            f"{number_of(made.copied_files, 'file')}, {number_of(made.copied_bytes, 'byte')} of "
            "them copied now"
        )
    )
    return Exit.OK


def _backup_closed(directory: Path, data: Path) -> BackedUp:
    """Open the ledger as a server would, and back it up."""
    from tallybook_server.book import Book
    from tallybook_server.embedded import EmbeddedLedger
    from tallybook_server.ledger import BackupRefused, LedgerDamaged, LedgerFull, LedgerLocked
    from tallybook_server.settings import Settings

    book = Book(Settings(directory=data).book)
    if not book.journal.is_file():
        raise Failure(
            f"there is no ledger in {data}; expected a server's directory, see --data", Exit.USAGE
        )
    progress = Progress()
    progress.show(f"{data}: copying what is new")
    try:
        ledger = EmbeddedLedger(book.directory, threads=False)
        try:
            return ledger.backup(str(directory))
        finally:
            ledger.close()
    except LedgerLocked:
        raise Failure(
            f"a server runs on {data}; let it make the backup: tallybook backup {directory} "
            f"--endpoint {DEFAULT_ENDPOINT}",
            Exit.USAGE,
        ) from None
    except BackupRefused as error:
        raise Failure(str(error), Exit.USAGE) from None
    except (LedgerDamaged, LedgerFull, OSError) as error:
        raise Failure(
            f"no backup was made: {error}; one that was there before is whole", Exit.FINDING
        ) from None
    finally:
        progress.end()


# -- restore -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Restored:
    """
    What ``restore --json`` prints.

    Attributes:
        data: The new server's directory.
        ledger: Whose backup it was.
        backup: The position that the backup holds.
        position: The new head, of the next incarnation.
        branch: The name of the branch that begins there.
        findings: What verify found: what, where, detail.
    """

    data: str
    ledger: str
    backup: str
    position: str
    branch: str
    findings: list[dict[str, str]]


def _restore(arguments: Namespace) -> int:
    import sqlite3

    from tallybook.clock import SystemClock, SystemIds
    from tallybook_server.backup_manifest import BackupDamaged
    from tallybook_server.ledger import BackupRefused, LedgerDamaged
    from tallybook_server.restore import Restore
    from tallybook_server.settings import Settings
    from tallybook_server.verify import verify_directory

    data: Path = arguments.data
    _check_new(data)
    book = Settings(directory=data).book
    line = ProgressLine(str(data))
    try:
        line.show("copying the backup and checking every byte")
        restore = Restore(arguments.directory, book, clock=SystemClock(), ids=SystemIds())
        done = restore.make()
        findings = [asdict(finding) for finding in verify_directory(book, report=line)]
    except BackupRefused as error:
        raise Failure(str(error), Exit.USAGE) from None
    except (BackupDamaged, LedgerDamaged, OSError, sqlite3.Error) as error:
        raise Failure(f"nothing was restored: {error}", Exit.FINDING) from None
    finally:
        line.end()
    restored = _Restored(
        data=str(data),
        ledger=done.ledger,
        backup=str(done.backup),
        position=str(done.position),
        branch=done.branch,
        findings=findings,
    )
    if arguments.json:
        print_json(asdict(restored))
    for finding in findings:
        say(plain(f"{finding['what']}  {finding['where']}: {finding['detail']}"))
    words = number_of(len(findings), "finding") if findings else "nothing wrong"
    say(
        f"{data}: the ledger at {restored.backup}, from here on incarnation "
        f"{done.position.incarnation}; {words}. Start it with tallybook serve --data {data}"
    )
    return Exit.FINDING if findings else Exit.OK


def _check_new(data: Path) -> None:
    """A ledger is restored into a directory of its own, not into one that is used for others."""
    if not data.exists():
        return
    strange = [path.name for path in data.iterdir() if path.name != _BOOKS] if data.is_dir() else []
    if strange or not data.is_dir():
        what = f"holds {strange[0]}" if strange else "is no directory"
        raise Failure(
            plain(f"{data} {what}; expected a directory that is empty or is not there"), Exit.USAGE
        )


# -- verify --backup -----------------------------------------------------------------------


def verify_backup(directory: Path) -> list[dict[str, str]]:
    """
    What is wrong with a backup: what, where, detail.

    Raises:
        Failure: It is in use, or there is none.
    """
    from tallybook_server.backup_manifest import BackupDamaged
    from tallybook_server.ledger import BackupRefused
    from tallybook_server.restore import check_backup

    line = ProgressLine(str(directory))
    line.show("checking every byte")
    try:
        return [asdict(finding) for finding in check_backup(directory, report=line)]
    except BackupDamaged as error:
        return [{"what": "backup", "where": str(directory), "detail": str(error)}]
    except BackupRefused as error:
        raise Failure(str(error), Exit.USAGE) from None
    finally:
        line.end()
