"""``tallybook adjust``, ``void`` and ``dimension``, against a real server."""

from __future__ import annotations

import httpx
import pytest

from tallybook.cli.dimension import AGGREGATIONS
from tallybook_server import question
from tests.conftest import ServerProcess
from tests.sdk.cli.conftest import NOWHERE, Command


@pytest.fixture(scope="module")
def endpoint(shared: ServerProcess) -> str:
    """A server that holds one event of ``seats``."""
    event = {"dimension": "seats", "value": 1, "id": "one", "source": "test"}
    httpx.post(f"{shared.url}/v1/events", json=event).raise_for_status()
    return shared.url


def corrections(endpoint: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = httpx.get(f"{endpoint}/v1/adjustments").json()["data"]
    return rows


def test_an_adjustment_is_stored_with_everything(tallybook: Command, endpoint: str) -> None:
    """What is printed is its position."""
    ran = tallybook(
        *("adjust", "seats", "-2.50", "--tenant", "acme", "--tag", "plan=pro"),
        *("--time", "2026-01-31T23:00:00+01:00", "--reason", "outage", "--id", "credit-1"),
        *("--endpoint", endpoint),
    )
    assert ran.code == 0
    (stored,) = (one for one in corrections(endpoint) if one["id"] == "credit-1")
    assert ran.out.strip() == stored["position"]
    assert (stored["value"], stored["tenant"], stored["tags"]) == ("-2.5", "acme", {"plan": "pro"})
    assert (stored["time"], stored["reason"]) == ("2026-01-31T22:00:00Z", "outage")


def test_an_adjustment_without_an_id_gets_one(tallybook: Command, endpoint: str) -> None:
    """It is named, so that a repetition can be the same."""
    ran = tallybook("adjust", "seats", "1", "--reason", "r", "--json", "--endpoint", endpoint)
    again = tallybook(
        *("adjust", "seats", "1", "--reason", "r", "--id", ran.json["id"], "--json"),
        *("--endpoint", endpoint),
    )
    assert again.json == ran.json


def test_a_void_is_stored_and_voided(tallybook: Command, endpoint: str) -> None:
    """An event by producer and sequence, a void by its position."""
    event = httpx.get(f"{endpoint}/v1/events").json()["data"][0]
    name = f"{event['producer']}-{event['sequence']}"
    ran = tallybook("void", name, "--reason", "a test", "--endpoint", endpoint)
    assert "taken back" in ran.words
    back = tallybook("void", ran.out.strip(), "--reason", "it was not", "--endpoint", endpoint)
    assert back.code == 0
    assert corrections(endpoint)[-1]["voids"] == ran.out.strip()


def test_events_are_chosen_by_options(tallybook: Command, endpoint: str) -> None:
    """All of those that pass; nobody is a tenant, too."""
    for at in range(3):
        event = {"dimension": "trials", "id": f"trial-{at}", "source": "trial", "tags": {"n": at}}
        httpx.post(f"{endpoint}/v1/events", json=event).raise_for_status()
    ran = tallybook(
        *("void", "--source", "trial", "--tenant", "", "--tag", "n=1", "--dimension", "trials"),
        *("--from", "2026-01-01T00:00:00Z", "--reason", "a test", "--json"),
        *("--endpoint", endpoint),
    )
    assert (ran.code, ran.json["events"]) == (0, 1)


@pytest.mark.parametrize("options", [[], ["1.2", "--source", "trial"]])
def test_a_void_names_one_thing_or_chooses_events(tallybook: Command, options: list[str]) -> None:
    """Neither is a mistake, and so is both."""
    ran = tallybook("void", *options, "--reason", "r", "--endpoint", NOWHERE)
    assert ran.code == 2
    assert "expected either WHAT" in ran.words


def test_a_refusal_is_a_sentence(tallybook: Command, endpoint: str) -> None:
    """With the server's words, and exit code 2."""
    ran = tallybook("adjust", "seatz", "1", "--reason", "r", "--endpoint", endpoint)
    assert ran.code == 2
    assert "Did you mean 'seats'" in ran.words


def test_no_answer_names_the_id_to_repeat_with(tallybook: Command) -> None:
    """What is not known to be stored must not be stored twice."""
    ran = tallybook("void", "1.2", "--reason", "r", "--id", "v-1", "--endpoint", NOWHERE)
    assert ran.code == 3
    assert "repeat it with --id v-1" in ran.words


def test_a_reason_is_required(tallybook: Command) -> None:
    """Nobody can explain a correction without one."""
    ran = tallybook("adjust", "seats", "1")
    assert ran.code == 2
    assert "--reason" in ran.words


def test_dimensions_are_declared_and_shown(tallybook: Command, endpoint: str) -> None:
    """As a table, and as JSON."""
    declared = tallybook(
        *("dimension", "declare", "users", "--aggregation", "unique", "--unique-of", "tag:user"),
        *("--unit", "user", "--from", "2026-12-01T00:00:00Z", "--endpoint", endpoint),
    )
    assert declared.code == 0
    shown = tallybook("dimension", "show", "users", "--endpoint", endpoint)
    assert shown.rows == [
        ["dimension", "aggregation", "unit", "from", "position", "description"],
        ["users", "unique", "tag:user", "user", "2026-12-01T00:00:00Z", declared.out.strip(), "-"],
    ]
    listed = tallybook("dimension", "list", "--json", "--endpoint", endpoint)
    assert {"seats", "users"} <= {one["dimension"] for one in listed.json["data"]}


def test_a_strange_name_is_refused_by_the_server(tallybook: Command, endpoint: str) -> None:
    """It is quoted on its way."""
    ran = tallybook("dimension", "show", "a b?c", "--endpoint", endpoint)
    assert ran.code == 2
    assert "dimension is 'a b?c'" in ran.words


def test_the_aggregations_are_the_servers() -> None:
    """The command cannot import them: the server's libraries may be missing."""
    assert AGGREGATIONS == question.AGGREGATIONS
