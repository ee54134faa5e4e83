"""Raw events over HTTP: the parameters of a search, and one event with its proof."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Generator
from typing import Any

import pytest

from tests.ingest_server.conftest import PRODUCER, Running, block_of, running

EVENTS = """[
  {"dimension": "calls", "id": "a", "source": "api", "value": 1, "tenant": "acme",
   "time": "2026-01-01T00:00:00Z", "tags": {"region": "eu", "model": "large"}},
  {"dimension": "calls", "id": "b", "source": "web", "value": 2, "tenant": "globex",
   "time": "2026-01-01T01:00:00Z", "tags": {"region": "us"}},
  {"dimension": "bytes", "id": "a", "source": "web", "value": 3, "key": "k",
   "time": "2026-01-01T02:00:00Z", "tags": {"region": "eu"}},
  {"dimension": "calls", "id": "x\\u2028y", "source": "api", "value": 4, "tenant": "a&b=c",
   "time": "2026-01-01T03:00:00Z"}
]"""


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """A server with four JSON events, each in an order of its own, and a producer's block."""
    with running(tmp_path_factory.mktemp("stocked")) as server:
        server.post(EVENTS)
        server.post_blocks(block_of(5, 6))
        yield server


def values(server: Running, **parameters: str | list[str]) -> list[str]:
    """The values of a page, in its order."""
    answer = server.http.get("/v1/events", params=parameters)
    answer.raise_for_status()
    return [row["value"] for row in answer.json()["data"]]


PARAMETERS: dict[str, tuple[dict[str, str | list[str]], list[str]]] = {
    "nothing": ({}, ["1", "4", "2", "3", "5", "6"]),
    "dimension": ({"dimension": "bytes"}, ["3"]),
    "dimensions": ({"dimension": ["bytes", "calls"], "source": "web"}, ["2", "3"]),
    "tenant": ({"tenant": "a&b=c"}, ["4"]),
    "unattributed": ({"tenant": ""}, ["3"]),
    "tenants": ({"tenant": ["globex", ""]}, ["2", "3"]),
    "tag": ({"tag.region": "eu"}, ["1", "3"]),
    "tags": ({"tag.region": "eu", "tag.model": "large"}, ["1"]),
    "not a tag": ({"not.tag.region": "eu", "dimension": "calls", "source": "api"}, ["4", "5", "6"]),
    "prefix of a tag": ({"prefix.tag.model": "la"}, ["1"]),
    "existing tag": ({"exists.tag.model": "true"}, ["1"]),
    "time": ({"from": "2026-01-01T02:00:00+01:00", "to": "2026-01-01T03:00:00Z"}, ["2", "3"]),
    "producer": ({"producer": PRODUCER.hex().upper()}, ["5", "6"]),
    "source": ({"source": "web"}, ["2", "3"]),
    "no source": ({"source": ""}, []),
    "key": ({"key": "k"}, ["3"]),
    "id": ({"id": "a"}, ["1", "3"]),
    "id with a strange character": ({"id": "x\u2028y"}, ["4"]),
    "all": (
        {"dimension": "calls", "tenant": "acme", "tag.region": "eu", "source": "api", "id": "a"},
        ["1"],
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_choose(stocked: Running, name: str) -> None:
    """Each parameter, and what passes."""
    parameters, passed = PARAMETERS[name]
    assert sorted(values(stocked, **parameters)) == sorted(passed)


def test_a_range_of_places_can_be_asked_for(stocked: Running) -> None:
    """Behind one cursor and up to another one, or a position."""
    rows = stocked.http.get("/v1/events").json()["data"]
    cursors = [row["cursor"] for row in rows]
    found = values(stocked, after=cursors[0], upto=cursors[2])
    assert found == [row["value"] for row in rows[1:3]]
    position = cursors[0].partition(".")[0]
    last = [row["value"] for row in rows if row["cursor"].startswith(f"{position}.")]
    assert values(stocked, upto=position) == last


def test_pages_of_a_search_are_the_search(stocked: Running) -> None:
    """The filter stands beside the cursor."""
    found: list[str] = []
    after: str | None = "0"
    while after is not None:
        parameters = {"dimension": "calls", "after": after, "limit": "2"}
        page = stocked.http.get("/v1/events", params=parameters).json()
        found += [row["value"] for row in page["data"]]
        after = page["next"]
    assert found == values(stocked, dimension="calls")


@pytest.mark.parametrize(
    "query",
    [
        "dimension=No%20Such",
        "tenant=" + "x" * 256,
        "source=" + "x" * 129,
        "key=",
        "id=" + "x" * 256,
        "producer=0f",
        "producer=" + "g" * 32,
        "from=yesterday",
        "from=2026-01-02T00:00:00Z&to=2026-01-02T00:00:00Z",
        "upto=x",
        "upto=1.x",
        "tag.=x",
        "tag.a=" + "x" * 257,
        "key=a&key=b",
    ],
)
def test_a_wrong_parameter_is_named(stocked: Running, query: str) -> None:
    """A filter that is passed over would show other events than those asked for."""
    answer = stocked.http.get(f"/v1/events?{query}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/parameter-invalid")
    name = answer.json()["parameter"]
    assert name in (*(part.partition("=")[0] for part in query.split("&")), "tags")
    assert name.removesuffix("s") in answer.json()["detail"]


def test_an_unknown_parameter_is_named(stocked: Running) -> None:
    """With the one that was meant."""
    answer = stocked.http.get("/v1/events?tennant=acme").json()
    assert answer["type"] == "/problems/parameter-unknown"
    assert "'tenant'" in answer["detail"]


# -- one event -----------------------------------------------------------------------------


def shown(server: Running, name: str) -> dict[str, Any]:
    """One event, as it is shown."""
    answer = server.http.get(f"/v1/events/{name}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_an_event_is_shown_as_listed(stocked: Running) -> None:
    """Whatever a list says of it, by either of its names."""
    for row in stocked.http.get("/v1/events").json()["data"]:
        one = shown(stocked, f"{row['producer']}-{row['sequence']}")
        assert one == shown(stocked, row["cursor"])
        flat = one | one["event"]
        assert {name: flat[name] for name in row if name != "voided"} == {
            name: value for name, value in row.items() if name != "voided"
        }
        assert (one["verdict"], one["void"], one["others"]) == ("counted", None, [])


def test_the_proof_is_the_link_of_the_receipt(stocked: Running) -> None:
    """The head behind the event's entry is the one that its producer was told."""
    receipt = stocked.post_blocks(block_of(5, 6)).json()["receipts"][0]
    proof = shown(stocked, f"{PRODUCER.hex()}-2")["proof"]
    before, entry = bytes.fromhex(proof["head_before"]), base64.b64decode(proof["entry"])
    assert hashlib.sha256(before + entry).hexdigest() == proof["head"] == receipt["chain"]


def test_an_event_that_does_not_count_says_why(server: Running) -> None:
    """With the position that holds its identity, the problem's page, and its bytes."""
    server.post('{"dimension": "calls", "id": "1", "source": "api", "value": 1}')
    server.post('{"dimension": "calls", "id": "1", "source": "api", "value": 2}')
    held = server.http.get("/v1/events").json()["data"][0]["position"]
    (rejection,) = server.rejections()
    one = shown(server, rejection["cursor"])
    assert (one["verdict"], one["reason"], one["held_at"]) == ("conflict", "id", held)
    assert one["type"] == rejection["type"] == "/problems/identity-conflict"
    assert (one["data"], one["encoding"]) == (rejection["data"], "utf-8")
    assert one["event"] is None
    assert one == shown(server, f"{one['producer']}-{one['sequence']}")


def test_what_is_no_text_is_shown_in_base64(server: Running) -> None:
    """The bytes of a rejection are kept as they came."""
    server.post(b'[{"dimension": "calls", "id": "\xff", "source": "api"}]')
    (rejection,) = server.rejections()
    one = shown(server, rejection["cursor"])
    assert (one["encoding"], one["producer"]) == ("base64", None)
    assert b"\xff" in base64.b64decode(one["data"])


@pytest.mark.parametrize("name", ["99.0", "1.0", "2.7", f"{'0' * 32}-1"])
def test_an_unknown_event_is_a_problem(stocked: Running, name: str) -> None:
    """404, and the detail says what there is instead."""
    answer = stocked.http.get(f"/v1/events/{name}")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/event-unknown")


@pytest.mark.parametrize("name", ["17", "x", "1.2.3", f"{'0' * 31}-1", f"{'0' * 32}-0"])
def test_a_name_that_cannot_be_is_answered_with_those_that_can(stocked: Running, name: str) -> None:
    """Both shapes are in the detail."""
    answer = stocked.http.get(f"/v1/events/{name}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/event-name-invalid")
    assert "<producer>-<sequence>" in answer.json()["detail"]
    assert "<position>.<index>" in answer.json()["detail"]


def test_one_event_takes_no_parameters(stocked: Running) -> None:
    """Nothing is passed over here, either."""
    assert stocked.http.get("/v1/events/2.0?limit=1").status_code == 400
