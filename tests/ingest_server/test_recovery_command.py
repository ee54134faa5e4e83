"""``tallybook backup``, ``restore`` and ``verify --backup``, as processes."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ServerProcess
from tests.ingest_server.test_cli import tallybook


@pytest.fixture
def process(tmp_path: Path) -> Generator[ServerProcess]:
    """A server with one event in its ledger."""
    process = ServerProcess(tmp_path / "data")
    process.start()
    add(process, "1")
    yield process
    process.kill()


def add(process: ServerProcess, name: str) -> None:
    event = {"dimension": "calls", "id": name, "source": "test"}
    httpx.post(f"{process.url}/v1/events", json=event).raise_for_status()


def test_backup_through_the_server_and_restore(process: ServerProcess, tmp_path: Path) -> None:
    """What was there at the backup is there in the restored server, and no more."""
    backup, new = str(tmp_path / "backup"), str(tmp_path / "new")
    made = tallybook("backup", backup, "--endpoint", process.url, "--json")
    add(process, "2")
    process.stop()
    restored = tallybook("restore", backup, "--data", new, "--json")
    document = json.loads(restored.stdout)
    process.data = Path(new)
    process.start()

    assert (made.returncode, restored.returncode) == (0, 0)
    assert set(json.loads(made.stdout)) == {
        "directory", "ledger", "position", "files", "bytes", "copied_files", "copied_bytes",
    }  # fmt: skip
    assert (document["backup"], document["position"], document["findings"]) == ("1.2", "2.3", [])
    assert set(document) == {"data", "ledger", "backup", "position", "branch", "findings"}
    assert process.total("calls") == "1"


def test_backup_of_a_directory_that_no_server_has(process: ServerProcess, tmp_path: Path) -> None:
    """The same, without a server; the words say how much was copied."""
    process.stop()
    made = tallybook("backup", str(tmp_path / "backup"), "--data", str(process.data))
    checked = tallybook("verify", "--backup", str(tmp_path / "backup"))

    assert (made.returncode, checked.returncode) == (0, 0)
    assert f"{tmp_path / 'backup'}: the ledger at 1.2, 1 file, " in made.stderr
    assert checked.stderr == f"{tmp_path / 'backup'}: nothing wrong\n"


def test_backup_of_a_directory_that_a_server_has_names_the_way(
    process: ServerProcess, tmp_path: Path
) -> None:
    """Through the server, that is."""
    ran = tallybook("backup", str(tmp_path / "backup"), "--data", str(process.data))

    assert ran.returncode == 2
    assert f"tallybook backup {tmp_path / 'backup'} --endpoint http" in ran.stderr


def test_backup_of_a_directory_without_a_ledger_makes_none(tmp_path: Path) -> None:
    """A mistyped path is a sentence, and no empty ledger with an empty backup."""
    ran = tallybook("backup", str(tmp_path / "backup"), "--data", str(tmp_path / "nowhere"))

    assert (ran.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "there is no ledger in" in ran.stderr


def test_backup_that_the_server_refuses_is_wrong_usage(
    process: ServerProcess, tmp_path: Path
) -> None:
    """With the server's words."""
    ran = tallybook("backup", str(process.data), "--endpoint", process.url)

    assert ran.returncode == 2
    assert "lie within each other" in ran.stderr


def test_a_changed_byte_ends_a_restore_and_is_named(process: ServerProcess, tmp_path: Path) -> None:
    """Exit 1, the file's name, and no new directory that could be taken for a ledger."""
    tallybook("backup", str(tmp_path / "backup"), "--endpoint", process.url)
    (path,) = (tmp_path / "backup" / "files").iterdir()
    data = bytearray(path.read_bytes())
    data[5_000] ^= 1
    path.write_bytes(data)
    ran = tallybook("restore", str(tmp_path / "backup"), "--data", str(tmp_path / "new"))
    checked = tallybook("verify", "--backup", str(tmp_path / "backup"), "--json")

    assert (ran.returncode, checked.returncode) == (1, 1)
    assert f"nothing was restored: files/{path.name} has changed" in ran.stderr
    assert not (tmp_path / "new" / "books" / "default").exists()
    assert f"files/{path.name}" in [one["where"] for one in json.loads(checked.stdout)["findings"]]


@pytest.mark.parametrize("command", ["restore", "verify"])
def test_a_directory_without_a_finished_backup_is_a_finding(command: str, tmp_path: Path) -> None:
    """Both say what is missing."""
    (tmp_path / "backup").mkdir()
    arguments = {
        "restore": ["restore", str(tmp_path / "backup"), "--data", str(tmp_path / "new")],
        "verify": ["verify", "--backup", str(tmp_path / "backup")],
    }
    ran = tallybook(*arguments[command])

    assert ran.returncode == 1
    assert "holds no finished backup" in ran.stdout + ran.stderr


@pytest.mark.parametrize("what", ["a ledger", "something else", "a file"])
def test_restore_into_a_directory_that_is_not_empty_is_refused(
    what: str, process: ServerProcess, tmp_path: Path
) -> None:
    """A ledger is never restored over another, nor among files of others."""
    tallybook("backup", str(tmp_path / "backup"), "--endpoint", process.url)
    process.stop()
    new = process.data
    if what != "a ledger":
        new = tmp_path / "new"
        new.mkdir() if what == "something else" else new.touch()
    if what == "something else":
        (new / "notes.txt").touch()
    ran = tallybook("restore", str(tmp_path / "backup"), "--data", str(new))

    assert ran.returncode == 2
    assert "not empty" in ran.stderr or "expected a directory that is empty" in ran.stderr


def test_serve_refuses_a_directory_with_half_a_restore(tmp_path: Path) -> None:
    """It would begin another ledger beside it."""
    (tmp_path / "data" / "books" / "restoring-default").mkdir(parents=True)
    ran = tallybook("serve", "--data", str(tmp_path / "data"), "--port", "0")

    assert ran.returncode == 1
    assert "run tallybook restore again, or remove it" in ran.stderr
