"""``tallybook doctor``: each check says what is there, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallybook.cli.connection import Reply
from tallybook.cli.doctor import clock_check, file_system_check, space_check, sqlite_check
from tests.conftest import ServerProcess
from tests.sdk.cli.conftest import NOWHERE, Command, Die, Ran


def level_of(ran: Ran, name: str) -> str:
    """The level of one check."""
    (level,) = (check["level"] for check in ran.json["data"] if check["name"] == name)
    return str(level)


def test_healthy_machine_is_fit(tallybook: Command, shared: ServerProcess) -> None:
    """Exit 0, every check is there, and the ledger is named."""
    ran = tallybook("doctor", "--json", "--endpoint", shared.url)

    assert ran.code == 0
    assert ran.json["ok"] is True
    assert [check["name"] for check in ran.json["data"]] == [
        *("Python", "SQLite", "fork guard", "directory", "file system", "space"),
        *("server", "clock", "dead queues"),
    ]
    assert str(shared.get("/")["ledger"]) in ran.out


def test_doctor_leaves_no_trace(
    tallybook: Command, queue: Path, tmp_path: Path, shared: ServerProcess
) -> None:
    """It makes neither the directory nor a file in its parent."""
    tallybook("doctor", "--endpoint", shared.url)

    assert not queue.exists()
    assert list(tmp_path.iterdir()) == []


def test_named_server_that_is_away_fails(tallybook: Command) -> None:
    """Usage would pile up: exit 1."""
    ran = tallybook("doctor", "--json", "--endpoint", NOWHERE)

    assert ran.code == 1
    assert level_of(ran, "server") == "FAIL"


def test_another_program_at_the_endpoint_fails(tallybook: Command, shared: ServerProcess) -> None:
    """A page that answers is no tallybook server."""
    ran = tallybook("doctor", "--json", "--endpoint", f"{shared.url}/problems?")

    assert level_of(ran, "server") == "FAIL"


def test_directory_that_is_a_file_fails(tallybook: Command, tmp_path: Path) -> None:
    """A spool can be made neither in a file nor below one."""
    (tmp_path / "file").touch()
    ran = tallybook("doctor", "--json", TALLYBOOK_DIRECTORY=str(tmp_path / "file" / "queue"))

    assert ran.code == 1
    assert level_of(ran, "directory") == "FAIL"


def test_dead_queues_are_worth_a_warning(
    tallybook: Command, die: Die, shared: ServerProcess
) -> None:
    """They are sent by the next Meter, or now: exit 0, with the command."""
    die(NOWHERE, "acme")
    ran = tallybook("doctor", "--json", "--endpoint", shared.url)

    assert (ran.code, level_of(ran, "dead queues")) == (0, "warn")
    assert "tallybook queue flush" in ran.out


def test_text_has_a_line_per_check(tallybook: Command, shared: ServerProcess) -> None:
    """Level first, so that FAIL is found at a glance."""
    ran = tallybook("doctor", "--endpoint", shared.url)

    assert {row[0] for row in ran.rows} <= {"ok", "warn", "FAIL"}
    assert len(ran.rows) == 9


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((4, 0, 0), False),
    ],
)
def test_sqlite_is_ok_and_says_whether_it_is_affected(
    version: tuple[int, ...], affected: bool
) -> None:
    """The fault needs two connections on one file, so it is never a failure."""
    check = sqlite_check(version)

    assert check.level == "ok"
    assert ("affected" in check.found) is affected


@pytest.mark.parametrize(
    ("skew", "level"),
    [
        (0, "ok"),
        (59, "ok"),
        (-59, "ok"),
        (62, "warn"),
        (-62, "warn"),
        (302, "FAIL"),
        (-302, "FAIL"),
    ],
)
def test_clock_is_compared_with_the_servers(skew: int, level: str) -> None:
    """Ahead or behind, by the same bounds."""
    reply = Reply("", {}, time=1_000_000.0)

    assert clock_check(reply, 1_000_000.5 + skew).level == level


@pytest.mark.parametrize(
    ("kind", "level"),
    [("ext4", "ok"), ("", "ok"), ("tmpfs", "warn"), ("nfs4", "FAIL"), ("cifs", "FAIL")],
)
def test_file_system_decides(kind: str, level: str) -> None:
    """Memory is worth a warning, a network is refused."""
    assert file_system_check(Path("/queue"), kind).level == level


@pytest.mark.parametrize(("free", "level"), [(2 << 30, "ok"), (1 << 29, "warn"), (1 << 22, "FAIL")])
def test_space_is_compared_with_the_limit_of_the_queue(free: int, level: str) -> None:
    """Less than the queue may take is worth a warning, less than a spool is a failure."""
    assert space_check(free, 1 << 30).level == level
