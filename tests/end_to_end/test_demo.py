"""
The demo keeps its promise, would notice if it were broken, and leaves nothing behind.

And the tutorial, which is the demo by hand, works as it is written.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tallybook_server.demo.chaos import plan
from tallybook_server.demo.reading import REQUESTS, TOKENS, Event, compare
from tallybook_server.demo.traffic import TENANTS, Request

SECONDS_MAX = 90.0
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial" / "first-usage.md"


class Demo:
    """``tallybook demo`` as the leader of a session, by which its descendants are known."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tallybook.cli", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(directory)},
            start_new_session=True,
        )

    def descendants(self) -> dict[int, str]:
        """Pid and command line of every living process of its session but itself."""
        found: dict[int, str] = {}
        for path in Path("/proc").iterdir():
            with suppress(OSError):
                if path.name.isdigit() and int(path.name) != self.process.pid:
                    state, _, _, session = _stat(path)
                    if int(session) == self.process.pid and state != "Z":
                        line = (path / "cmdline").read_bytes().replace(b"\0", b" ")
                        found[int(path.name)] = line.decode()
        return found

    def wait_for(self, what: Callable[[dict[int, str]], bool]) -> dict[int, str]:
        """Its descendants, once they are as *what* says."""
        deadline = time.monotonic() + SECONDS_MAX
        while not what(found := self.descendants()):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def end(self) -> tuple[int, str, str]:
        """Exit code, data and words; nothing of it may be left."""
        out, words = self.process.communicate(timeout=SECONDS_MAX)
        assert self.descendants() == {}
        assert list(self.directory.iterdir()) == []
        return self.process.returncode, out, words


def _stat(path: Path) -> list[str]:
    """State, parent, group and session: what stands behind the name in parentheses."""
    return (path / "stat").read_text().rpartition(")")[2].split()[:4]


def has_workers(found: dict[int, str]) -> bool:
    return sum("demo.worker" in line for line in found.values()) == 2


def check(document: dict[str, Any]) -> None:
    """The invariant, of every dimension and of the whole."""
    assert set(document) >= {"sent", "answered", "recorded", "missing", "duplicates"}
    assert document["missing"] == document["duplicates"] == document["strangers"] == 0
    assert document["findings"] == []
    for count in (document, *document["dimensions"].values()):
        assert 0 < count["answered"] <= count["recorded"] <= count["sent"]
    assert set(document["usage"]) == set(TENANTS)
    for name, count in ((REQUESTS, document), (TOKENS, None)):
        values = [int(of[name]) for of in document["usage"].values()]
        assert count is None or sum(values) == count["recorded"]


# -- the whole of it -------------------------------------------------------------------------


def test_every_answered_request_is_in_the_ledger_exactly_once(tmp_path: Path) -> None:
    """A short run without chaos: the count is right, and everything that ran has ended."""
    code, out, words = Demo(tmp_path, "--seconds", "2", "--json").end()

    assert code == 0, words
    document = json.loads(out)
    check(document)
    assert document["kills"] == document["outages"] == 0
    assert document["answered"] == document["sent"]


@pytest.mark.slow
def test_the_count_is_right_although_workers_and_the_server_are_killed(tmp_path: Path) -> None:
    """The acceptance of the demo: kills in the middle of requests, an outage, nothing missing."""
    code, out, words = Demo(tmp_path, "--seconds", "20", "--chaos", "--json").end()

    assert code == 0, words
    document = json.loads(out)
    check(document)
    assert document["answered"] >= 1_000
    assert document["kills"] >= 5
    assert document["outages"] >= 1
    assert document["answered"] < document["sent"]


def test_text_ends_with_the_line_that_matters(tmp_path: Path) -> None:
    """Data on stdout: a row for each tenant, and the five numbers; words on stderr."""
    code, out, words = Demo(tmp_path, "--seconds", "1").end()

    assert code == 0, words
    lines = out.splitlines()
    assert lines[0].split() == ["tenant", REQUESTS, TOKENS]
    assert {line.split()[0] for line in lines[1:6]} == set(TENANTS)
    names = [part.split()[0] for part in lines[-1].split(", ")]
    assert names == ["sent", "answered", "recorded", "missing", "duplicates"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
@pytest.mark.crash
def test_no_process_outlives_the_demo(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """However it is ended; SIGKILL leaves it no time, so there the kernel ends the children."""
    demo = Demo(tmp_path, "--seconds", "60", "--json")
    demo.wait_for(has_workers)

    demo.process.send_signal(number)

    if number != signal.SIGKILL:
        assert demo.end()[:2] == (code, "")
    else:
        demo.process.communicate(timeout=SECONDS_MAX)
        demo.wait_for(lambda found: not found)


def test_a_worker_that_ends_by_itself_ends_the_demo(tmp_path: Path) -> None:
    """A death that the demo did not order would be a fault: exit 1, and it says so."""
    demo = Demo(tmp_path, "--seconds", "60", "--json")
    found = demo.wait_for(has_workers)
    os.kill(next(pid for pid, line in found.items() if "demo.worker" in line), signal.SIGKILL)

    code, out, words = demo.end()

    assert (code, out) == (1, "")
    assert "a worker of the demo's SaaS ended by itself" in words


@pytest.mark.parametrize("seconds", ["0", "x", "1e9"])
def test_a_wrong_duration_is_one_sentence(tmp_path: Path, seconds: str) -> None:
    """Exit 2, with what was expected, and nothing was started."""
    code, _, words = Demo(tmp_path, "--seconds", seconds).end()

    assert code == 2
    assert "expected seconds, 1 to 3600" in words


# -- it would notice -------------------------------------------------------------------------


def answered(*ids: str) -> dict[str, Request]:
    """Requests of acme for 7 tokens each, all answered."""
    return {id: Request(id, "acme", 7, answered=True, tokens=7) for id in ids}


def recorded(*ids: str, tenant: str = "acme", tokens: int = 7) -> list[Event]:
    """What they leave in the ledger."""
    values = ((REQUESTS, 1), (TOKENS, tokens))
    return [Event(name, id, tenant, Decimal(value)) for id in ids for name, value in values]


def test_a_lost_and_a_doubled_event_do_not_make_up_for_each_other() -> None:
    """The totals are right, the ids are not."""
    counted = compare(answered("a", "b"), recorded("a", "a"))

    assert (counted.missing, counted.duplicates) == (1, 1)
    assert counted.named == ["a", "b"]
    assert not counted.well


@pytest.mark.parametrize("dimension", [REQUESTS, TOKENS])
def test_an_event_that_one_dimension_lacks_is_missing(dimension: str) -> None:
    """The other dimension has it."""
    events = [event for event in recorded("a") if event.dimension != dimension]

    assert compare(answered("a"), events).missing == 1


@pytest.mark.parametrize("wrong", [{"tenant": "globex"}, {"tokens": 8}])
def test_another_tenant_or_value_than_answered_is_missing(wrong: dict[str, Any]) -> None:
    """An event of that id is there, and it is not what the client was told."""
    assert compare(answered("a"), recorded("a", **wrong)).missing == 1


def test_an_id_that_nobody_sent_is_a_stranger() -> None:
    """It is no missing and no doubled request, and yet not well."""
    counted = compare(answered("a"), recorded("a", "b"))

    assert (counted.missing, counted.duplicates, counted.strangers) == (0, 0, 1)
    assert not counted.well


def test_unanswered_requests_may_be_recorded_or_not() -> None:
    """A worker that dies between recording and answering leaves an event; before, none."""
    sent = {id: Request(id, "acme", 7) for id in ("a", "b")} | answered("c")

    assert compare(sent, recorded("a", "c")).well


@pytest.mark.parametrize("seconds", [1.0, 5.0, 10.0, 20.0, 300.0])
def test_every_plan_has_kills_and_an_outage_within_the_time(seconds: float) -> None:
    """And 20 seconds have twelve kills, so that a slow machine still does five."""
    kills, outages = plan(seconds)

    assert all(0 < at <= seconds for at in kills)
    assert outages
    assert all(0 < start < end < seconds for start, end in outages)
    assert seconds != 20 or len(kills) == 12


# -- the tutorial ----------------------------------------------------------------------------


def steps(text: str) -> list[tuple[str, str]]:
    """Each command of the tutorial behind its installation, and what it is said to print."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)[1:]:
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = step.partition("\n")
            found.append((command, shown))
    return found


def pattern(shown: str) -> str:
    """What is shown, with anything within a line in the place of its dots."""
    return ".*".join(map(re.escape, shown.split("...")))


def two_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        return a.getsockname()[1], b.getsockname()[1]


def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    """Every command in its order, in one shell, on other ports; only the installation is not."""
    text = TUTORIAL.read_text(encoding="utf-8")
    for port, free in zip(("8255", "8000"), two_ports(), strict=True):
        text = text.replace(port, str(free))
    for name, module in (("tallybook", "tallybook.cli"), ("uvicorn", "uvicorn")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "app.py").write_text(code, encoding="utf-8")
    todo = steps(text)
    lines = [f"exec 2>&1\n{command}\necho '#'" for command, _ in todo]

    shell = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed = shell.communicate(timeout=SECONDS_MAX)[0].split("#\n")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # The server and the application, if it failed.

    assert len(todo) > 10
    for (command, shown), output in zip(todo, printed, strict=False):
        # bash itself says that a job was killed; an interactive one does so at the prompt.
        output = re.sub(r"^bash: line .*Killed.*\n", "", output, flags=re.MULTILINE)
        assert re.fullmatch(pattern(shown), output), f"$ {command}\n{output}"
    assert len(printed) == len(todo) + 1
