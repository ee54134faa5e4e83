"""``tallybook usage``: the server's answer as a table, and its refusals as sentences."""

from __future__ import annotations

import httpx
import pytest

from tests.conftest import ServerProcess
from tests.sdk.cli.conftest import NOWHERE, Command

EVENTS = [
    ("acme", "eu", "2026-10-25T00:30:00Z", "1"),
    ("acme", "us", "2026-10-25T01:30:00Z", "2.5"),
    ("globex", "eu", "2026-10-26T12:00:00Z", "4"),
]


@pytest.fixture(scope="module")
def endpoint(shared: ServerProcess) -> str:
    """A server that holds `EVENTS`."""
    events = [
        {
            "dimension": "calls",
            "tenant": tenant,
            "tags": {"region": region},
            "time": time,
            "value": value,
            "id": time,
            "source": "test",
        }
        for tenant, region, time, value in EVENTS
    ]
    httpx.post(f"{shared.url}/v1/events", json=events).raise_for_status()
    return shared.url


def test_answer_is_an_aligned_table(tallybook: Command, endpoint: str) -> None:
    """Numbers stand at the right under their heads; the rest is words on standard error."""
    ran = tallybook("usage", "calls", "--group-by", "tenant", "--endpoint", endpoint)

    assert ran.out.splitlines() == [
        "tenant  value  events",
        "acme      3.5       2",
        "globex      4       1",
    ]
    assert ran.words.startswith("position 1.")
    assert "complete" in ran.words


def test_several_groups_may_be_named_at_once(tallybook: Command, endpoint: str) -> None:
    """Commas and repetition mean the same, and each name is a column."""
    commas = tallybook("usage", "calls", "--group-by", "tenant,tag:region", "--endpoint", endpoint)
    twice = tallybook(
        *("usage", "calls", "--group-by", "tenant", "--group-by", "tag:region"),
        *("--endpoint", endpoint),
    )

    assert commas.out == twice.out
    assert commas.rows[:2] == [["tenant", "region", "value", "events"], ["acme", "eu", "1", "1"]]


def test_bare_date_is_midnight_in_the_time_zone(tallybook: Command, endpoint: str) -> None:
    """The day on which Berlin's clocks go back has 25 hours, and its edges carry their offsets."""
    ran = tallybook(
        *("usage", "calls", "--from", "2026-10-25", "--to", "2026-10-26", "--window", "day"),
        *("--time-zone", "Europe/Berlin", "--endpoint", endpoint),
    )

    assert ran.rows[1:] == [["2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", "3.5", "2"]]


def test_filter_leaves_only_events_with_the_tag(tallybook: Command, endpoint: str) -> None:
    """``--filter`` is the server's ``tag.``."""
    ran = tallybook("usage", "calls", "--filter", "region=eu", "--endpoint", endpoint)

    assert ran.rows[1:] == [["5", "2"]]


def test_aggregation_and_tenant_are_passed_on(tallybook: Command, endpoint: str) -> None:
    """``count`` counts events, of the one tenant."""
    ran = tallybook(
        *("usage", "calls", "--aggregation", "count", "--tenant", "acme", "--endpoint", endpoint)
    )

    assert ran.rows[1:] == [["2", "2"]]


def test_json_is_the_document_of_the_server(tallybook: Command, endpoint: str) -> None:
    """Nothing is renamed or reformatted on the way."""
    ran = tallybook("usage", "calls", "--json", "--endpoint", endpoint)

    assert ran.json == httpx.get(f"{endpoint}/v1/usage?dimension=calls").json()


def test_endpoint_comes_from_the_environment(tallybook: Command, endpoint: str) -> None:
    """TALLYBOOK_ENDPOINT is the default."""
    assert tallybook("usage", "calls", TALLYBOOK_ENDPOINT=endpoint).rows[1:] == [["7.5", "3"]]


def test_refusal_is_title_and_detail(tallybook: Command, endpoint: str) -> None:
    """A problem document becomes a sentence; exit 2, since the question has to change."""
    ran = tallybook("usage", "Calls", "--endpoint", endpoint)

    assert ran.code == 2
    assert ran.words.startswith("tallybook: A query parameter has a value that it cannot have: ")
    assert "dimension is 'Calls'" in ran.words


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "Europe"])
def test_unknown_time_zone_is_a_sentence(tallybook: Command, endpoint: str, zone: str) -> None:
    """Also where the command itself has to read the zone, for a bare date."""
    ran = tallybook(
        "usage", "calls", "--from", "2026-10-25", "--time-zone", zone, "--endpoint", endpoint
    )

    assert ran.code == 2
    assert repr(zone) in ran.words
    assert "Traceback" not in ran.words


def test_day_that_does_not_exist_is_a_sentence(tallybook: Command, endpoint: str) -> None:
    """2026 is no leap year."""
    ran = tallybook("usage", "calls", "--from", "2026-02-29", "--endpoint", endpoint)

    assert ran.code == 2
    assert "there is no day 2026-02-29" in ran.words


def test_server_away_is_exit_3(tallybook: Command) -> None:
    """The endpoint is named, with how to start a server."""
    ran = tallybook("usage", "calls", "--endpoint", NOWHERE)

    assert ran.code == 3
    assert ran.words.startswith(f"tallybook: no answer from {NOWHERE}: ")
    assert ran.out == ""
