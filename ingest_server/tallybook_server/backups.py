"""
``POST /v1/backup``: a backup of the ledger into a directory of the server's machine.

It runs inside the server, which has the ledger open, and takes as long as it takes.
"""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
from anyio import CapacityLimiter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from tallybook_server.body import BodyBudget
from tallybook_server.documents import Document, read_document
from tallybook_server.ledger import (
    BackedUp,
    BackupRefused,
    Ledger,
    LedgerBusy,
    LedgerDamaged,
    LedgerFull,
)
from tallybook_server.problems import Problem, busy, full
from tallybook_server.settings import Settings

__all__ = ["BackupAnswer", "BackupDocument", "Backups"]


class BackupDocument(Document):
    """
    Where a backup is wanted.

    Attributes:
        directory: Its whole path on the server's machine.
    """

    directory: str


class BackupAnswer(BaseModel):
    """
    A backup that is finished.

    Attributes:
        directory: Where it is.
        ledger: Whose.
        position: What it holds: every entry up to this one.
        files: Files that belong to it.
        bytes: Their length.
        copied_files: Files that were copied now; the others were there from before.
        copied_bytes: Their length.
    """

    model_config = ConfigDict(frozen=True)

    directory: str
    ledger: str
    position: str
    files: int
    bytes: int
    copied_files: int
    copied_bytes: int

    @classmethod
    def of(cls, done: BackedUp) -> BackupAnswer:
        """The answer that says *done*."""
        return cls(
            directory=done.target,
            ledger=done.ledger,
            position=str(done.position),
            files=done.files,
            bytes=done.bytes,
            copied_files=done.copied_files,
            copied_bytes=done.copied_bytes,
        )


class Backups:
    """The way to a backup. One per application."""

    def __init__(self, ledger: Ledger, settings: Settings, budget: BodyBudget) -> None:
        self._ledger = ledger
        self._settings = settings
        self._budget = budget
        self._limiter = CapacityLimiter(1)  # One at a time, and no question waits for it.

    async def post(self, request: Request) -> Response:
        """
        Make a backup, then answer with what it holds.

        Raises:
            Problem: It was refused, or failed; the backup from before is whole.
        """
        document = await read_document(request, BackupDocument, self._settings, self._budget)
        target = document.directory
        if not Path(target).is_absolute() or "\0" in target:
            raise Problem(
                "backup-refused",
                f"directory is {target[:200]!r}; expected a whole path, such as /mnt/tallybook",
            )
        done = await anyio.to_thread.run_sync(self._make, target, limiter=self._limiter)
        return Response(BackupAnswer.of(done).model_dump_json(), media_type="application/json")

    def _make(self, target: str) -> BackedUp:
        try:
            return self._ledger.backup(target)
        except BackupRefused as error:
            raise Problem("backup-refused", str(error)) from error
        except LedgerBusy as error:
            raise busy(error) from error
        except LedgerFull as error:
            raise full(error) from error
        except (LedgerDamaged, OSError) as error:
            raise Problem("backup-failed", str(error)) from error
