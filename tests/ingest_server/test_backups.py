"""``POST /v1/backup``: made by the server that runs, or refused in words that help."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tallybook_server.ledger import LedgerBusy, LedgerFull
from tallybook_server.restore import check_backup
from tests.ingest_server.conftest import Running, block_of


def back_up(server: Running, directory: Path | str) -> tuple[int, dict[str, object]]:
    answer = server.http.post("/v1/backup", json={"directory": str(directory)})
    document: dict[str, object] = answer.json()
    return answer.status_code, document


def test_a_backup_is_made_while_the_server_runs(server: Running, tmp_path: Path) -> None:
    """The answer names what it holds, and what of that was copied now."""
    server.post_blocks(block_of(1, 2))
    status, document = back_up(server, tmp_path / "backup")

    assert (status, document["position"], document["ledger"]) == (200, "1.2", server.ledger.id)
    assert document["copied_bytes"] == document["bytes"]
    assert (document["files"], document["directory"]) == (1, str(tmp_path / "backup"))
    assert list(check_backup(tmp_path / "backup")) == []


def test_producers_are_told_what_a_backup_holds(server: Running, tmp_path: Path) -> None:
    """``archived`` in the answer to their next request."""
    before = server.post_blocks(block_of(1)).json()["archived"]
    back_up(server, tmp_path / "backup")
    after = server.post_blocks(block_of(2, first=2)).json()["archived"]

    assert (before, after) == (0, 2)


@pytest.mark.parametrize("directory", ["relative", "", "/tmp/a\0b"])
def test_a_path_that_is_not_whole_is_refused(directory: str, server: Running) -> None:
    """Relative to what, only the server would know."""
    status, document = back_up(server, directory)

    assert (status, document["type"]) == (409, "/problems/backup-refused")
    assert "expected a whole path" in str(document["detail"])


def test_a_directory_that_is_used_for_others_is_refused(server: Running, tmp_path: Path) -> None:
    """409, and nothing in it was touched."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    status, document = back_up(server, tmp_path / "photos")

    assert (status, document["retryable"]) == (409, False)
    assert "one.jpg" in str(document["detail"])
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]


def test_a_directory_that_cannot_be_made_is_a_failure_and_not_the_servers_end(
    server: Running, tmp_path: Path
) -> None:
    """500 with the reason; usage is taken as before."""
    (tmp_path / "file").touch()
    status, document = back_up(server, tmp_path / "file" / "backup")

    assert (status, document["type"]) == (500, "/problems/backup-failed")
    assert "Not a directory" in str(document["detail"])
    assert server.post_blocks(block_of(1)).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status"), [(LedgerBusy("closing", 1.0), 503), (LedgerFull("no room"), 507)]
)
def test_a_ledger_that_cannot_just_now_says_when_to_come_again(
    fault: Exception, status: int, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retryable, with Retry-After, as for any other request."""

    def refuse(target: str) -> None:
        raise fault

    monkeypatch.setattr(server.ledger, "backup", refuse)
    answer = server.http.post("/v1/backup", json={"directory": "/somewhere"})

    assert (answer.status_code, "retry-after" in answer.headers) == (status, True)


def test_two_at_once_are_made_one_after_the_other(server: Running, tmp_path: Path) -> None:
    """Neither fails."""
    server.post_blocks(block_of(1))
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(back_up(server, tmp_path / "backup")[0]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [200, 200, 200]
    assert list(check_backup(tmp_path / "backup")) == []


def test_only_a_json_document_is_taken(server: Running, tmp_path: Path) -> None:
    """A form that a page in a browser posts is none: it could be sent from anywhere."""
    answer = server.http.post("/v1/backup", data={"directory": str(tmp_path / "backup")})

    assert (answer.status_code, (tmp_path / "backup").exists()) == (415, False)
