"""``tallybook checkpoint`` and ``prove``: a proof that is checked without the server."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.conftest import ServerProcess
from tests.sdk.cli.conftest import NOWHERE, Command


@pytest.fixture(scope="module")
def name(shared: ServerProcess) -> str:
    """An event that the server holds."""
    event = {"dimension": "proofs", "value": "2.5", "id": "one", "source": "test"}
    httpx.post(f"{shared.url}/v1/events", json=event).raise_for_status()
    listed = httpx.get(f"{shared.url}/v1/events", params={"dimension": "proofs"}).json()["data"][0]
    return f"{listed['producer']}-{listed['sequence']}"


@pytest.fixture
def files(tallybook: Command, shared: ServerProcess, name: str, tmp_path: Path) -> Path:
    """A folder with ``checkpoint.json`` and ``proof.json``."""
    checkpoint = tallybook("checkpoint", "--endpoint", shared.url)
    (tmp_path / "checkpoint.json").write_text(checkpoint.out)
    proof = tallybook("prove", name, "--endpoint", shared.url)
    (tmp_path / "proof.json").write_text(proof.out)
    return tmp_path


CHECK = ("prove", "--check", "proof.json", "--against", "checkpoint.json")


def test_a_proof_is_checked_without_the_server(tallybook: Command, files: Path) -> None:
    """What it shows is the event."""
    ran = tallybook(*CHECK, "--json", "--endpoint", NOWHERE)
    assert ran.code == 0
    assert (ran.json["dimension"], ran.json["value"]) == ("proofs", "2.5")
    assert "exactly so" in ran.words


def test_a_changed_proof_is_a_finding(tallybook: Command, files: Path) -> None:
    """Exit code 1, and a sentence."""
    proof = files / "proof.json"
    proof.write_text(proof.read_text().replace('"2.5"', '"2.4"'))
    ran = tallybook(*CHECK)
    assert ran.code == 1
    assert "was changed" in ran.words


def test_a_proof_for_another_checkpoint_says_so(
    tallybook: Command, shared: ServerProcess, name: str, files: Path
) -> None:
    """The checkpoint is chosen by its position."""
    first = httpx.get(f"{shared.url}/v1/checkpoints").json()["data"][-1]["position"]
    httpx.post(f"{shared.url}/v1/events", json={"dimension": "x", "id": "2", "source": "test"})
    later = tallybook("checkpoint", "--endpoint", shared.url)
    (files / "checkpoint.json").write_text(later.out)
    ran = tallybook(*CHECK)
    assert ran.code == 1
    assert "ask for a proof for this one" in ran.words
    older = tallybook("prove", name, "--checkpoint", first, "--endpoint", shared.url)
    assert older.json["checkpoint"]["position"] == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prove"], "expected an EVENT"),
        (["prove", "x", "--against", "checkpoint.json"], "expected an EVENT"),
        (["prove", "--check", "proof.json"], "needs --against"),
        (["prove", "--check", "no.json", "--against", "checkpoint.json"], "cannot be read"),
        (["prove", "--check", "checkpoint.json", "--against", "checkpoint.json"], "EventProof"),
    ],
)
def test_a_wrong_call_is_a_sentence(
    tallybook: Command, files: Path, arguments: list[str], words: str
) -> None:
    """With what was expected, and exit code 2."""
    ran = tallybook(*arguments)
    assert ran.code == 2
    assert words in ran.words
