"""Progress of a verification: a line on a terminal, and nothing anywhere else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from tallybook.testing import FakeClock
from tallybook_server.progress_line import ProgressLine
from tallybook_server.verify import Progress
from tests.ingest_server.ledger.conftest import Desk, block, event


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What was shown, one over the other."""
        return [line.rstrip() for line in self.getvalue().split("\r") if line.strip()]


def test_line_says_which_check_and_how_far() -> None:
    """Of how many, so that one can tell how long it will take."""
    line = ProgressLine("/srv", FakeClock())
    with redirect_stderr(Terminal()) as terminal:
        line(Progress("journal"))
        line(Progress("segments", 1_200_000, 10_000_000, "events"))
    assert terminal.lines() == [
        "/srv: verifying journal",
        "/srv: verifying segments, 1,200,000 of 10,000,000 events",
    ]


def test_line_shows_four_figures_a_second() -> None:
    """However often it is told; but a new check at once."""
    clock = FakeClock()
    line = ProgressLine("/srv", clock)
    with redirect_stderr(Terminal()) as terminal:
        for done in range(1_000):
            line(Progress("events", done, 1_000, "events"))
            clock.advance(0.001)
        line(Progress("files"))
    figures = [text.partition("events, ")[2] for text in terminal.lines()]
    assert figures == [*(f"{at} of 1,000 events" for at in (0, 250, 500, 750)), ""]
    assert terminal.lines()[-1] == "/srv: verifying files"


def test_what_is_no_terminal_sees_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A log would be full of it."""
    line = ProgressLine("/srv", FakeClock())
    line(Progress("events", 1, 2, "events"))
    line.end()
    assert capsys.readouterr().err == ""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A server's directory with a closed ledger."""
    desk = Desk(tmp_path / "books" / "default")
    desk.send(block(1, event(1), event(2)))
    desk.seal()
    desk.ledger.close()
    return tmp_path


def test_verify_shows_its_progress_on_a_terminal(data: Path) -> None:
    """By a real one; the line is gone at the end."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "tallybook.cli", "verify", "--data", str(data)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave) as running:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # Nobody has the other end any more.
                break
            if not part:
                break
            shown += part
    os.close(master)
    assert running.returncode == 0
    assert b"verifying segments" in shown
    assert shown.rstrip().endswith(b"nothing wrong")


def test_verify_shows_no_progress_to_a_pipe(data: Path) -> None:
    """One line at the end, as ever."""
    command = [sys.executable, "-m", "tallybook.cli", "verify", "--data", str(data)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.stderr == f"{data}: 3 entries, 2 events, nothing wrong\n"
