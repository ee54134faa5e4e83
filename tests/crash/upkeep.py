"""What a server does beside its work: seals, compactions, backups; and what of it a kill hit."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tallybook_server.journal import Journal
from tallybook_server.segment import WRITING_PREFIX, read_name
from tallybook_server.settings import Settings
from tests.conftest import ServerProcess

__all__ = ["Backups", "being_written", "entered", "merged"]

_PAUSE_SECONDS = 0.05
_BACKUP_SECONDS_MAX = 120.0


class Backups:
    """
    Asks a server for a backup into the same directory, and soon for the next one.

    Args:
        server: It may be killed and started again at any time.
        target: The directory.

    Attributes:
        made: Backups that the server said were finished.
        cut_short: Requests that a server took, and died over.
        refused: What else it answered; there is no reason for any.
    """

    def __init__(self, server: ServerProcess, target: Path) -> None:
        self._url = f"{server.url}/v1/backup"
        self._document = {"directory": str(target)}
        self.made = 0
        self.cut_short = 0
        self.refused: list[str] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backups")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(_PAUSE_SECONDS):
            self.make()

    def make(self) -> None:
        """Ask once."""
        try:
            answer = httpx.post(self._url, json=self._document, timeout=_BACKUP_SECONDS_MAX)
        except httpx.ConnectError:
            return  # It is not there yet.
        except httpx.TransportError:
            self.cut_short += 1
            return
        if answer.is_success:
            self.made += 1
        else:
            self.refused.append(answer.text)


def being_written(data: Path) -> set[str]:
    """Whether the file of a seal, or of a compaction, is begun and not finished."""
    segments = Settings(directory=data).book / "segments"
    names = [path.name.removeprefix(WRITING_PREFIX) for path in segments.glob(f"{WRITING_PREFIX}*")]
    found = [name for name in map(read_name, names) if name is not None]
    return {"compaction" if name.begun else "seal" for name in found}


def merged(data: Path) -> set[str]:
    """The files of compactions that are finished."""
    segments = Settings(directory=data).book / "segments"
    found = {path.name: read_name(path.name) for path in segments.iterdir()}
    return {name for name, said in found.items() if said is not None and said.begun}


def entered(data: Path) -> Counter[str]:
    """How many entries of each kind the ledger of a stopped server has."""
    journal = Journal(Settings(directory=data).book / "journal.db")
    try:
        return Counter(
            journal.entry(position).kind for position in range(1, journal.head.position + 1)
        )
    finally:
        journal.close()
