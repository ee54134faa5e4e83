"""Corrections and declarations over HTTP: what is taken, what is refused, and how it reads."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
import pytest

from tests.ingest_server.conftest import PRODUCER, Running, Start, block_of

CREDIT = {"id": "credit-7", "dimension": "calls", "value": "-2.50", "reason": "outage"}
EVENT = f"{PRODUCER.hex()}-1"


def post(server: Running, document: Mapping[str, object], **headers: str) -> httpx.Response:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.http.post("/v1/adjustments", json=document, headers=fields)


def put(server: Running, name: str, **document: object) -> httpx.Response:
    return server.http.put(f"/v1/dimensions/{name}", json=document)


@pytest.fixture
def filled(server: Running) -> Running:
    """A server with three events of ``calls``, in entry 2."""
    server.post_blocks(block_of(1, 2, 3)).raise_for_status()
    return server


def test_an_adjustment_is_created_once(filled: Running) -> None:
    """201, then 200 for a retry, with the same answer."""
    first = post(filled, CREDIT)
    again = post(filled, CREDIT)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json() == {
        "position": "1.3",
        "kind": "adjustment",
        "id": "credit-7",
        "reason": "outage",
        "recorded_at": first.json()["recorded_at"],
        "dimension": "calls",
        "value": "-2.5",
        "tenant": None,
        "time": first.json()["time"],
        "tags": {},
        "voids": None,
        "events": None,
        "selection": None,
    }


def test_a_retry_without_a_time_is_the_same_adjustment(filled: Running) -> None:
    """Its time is that of its first arrival: now is another moment each time it is sent."""
    assert post(filled, CREDIT).status_code == 201
    assert post(filled, CREDIT).status_code == 200


def test_the_idempotency_key_is_an_id(filled: Running) -> None:
    """As with events."""
    document = {name: value for name, value in CREDIT.items() if name != "id"}
    answer = post(filled, document, Idempotency_Key="k-1")
    assert answer.json()["id"] == "k-1"
    assert post(filled, document, Idempotency_Key="k-1").status_code == 200


def test_another_correction_under_the_same_id_is_a_conflict(filled: Running) -> None:
    """The problem names the one that is there."""
    post(filled, CREDIT)
    answer = post(filled, CREDIT | {"value": 3})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/correction-conflict")
    assert answer.json()["position"] == 3


def test_an_event_is_voided_and_restored(filled: Running) -> None:
    """By its identity, and the void by its position."""
    void = post(filled, {"id": "v1", "void": EVENT, "reason": "a test"}).json()
    assert (void["kind"], void["events"], void["voids"]) == ("void", 1, None)
    restored = post(filled, {"id": "v2", "void": void["position"], "reason": "it was not"}).json()
    assert (restored["voids"], restored["events"]) == (void["position"], 0)
    again = post(filled, {"id": "v3", "void": void["position"], "reason": "it was not"})
    assert (again.status_code, again.json()["type"]) == (409, "/problems/already-voided")


def test_every_event_of_a_choice_is_voided(filled: Running) -> None:
    """Up to this moment; again it is the same void, and voiding it restores what it took."""
    document = {"id": "w", "reason": "a bug", "void_where": {"producer": PRODUCER.hex()}}
    first = post(filled, document)
    assert (first.status_code, first.json()["events"]) == (201, 3)
    assert first.json()["selection"] == '{"producer":"' + PRODUCER.hex() + '"}'
    filled.post_blocks(block_of(5, first=4)).raise_for_status()
    assert post(filled, document).json() == first.json()
    assert filled.usage() == "5"
    post(filled, {"id": "x", "reason": "no bug", "void": first.json()["position"]})
    assert filled.usage() == "11"


def test_a_choice_leaves_what_was_voided_before(filled: Running) -> None:
    """So that taking it back restores what it took, and nothing else."""
    post(filled, {"id": "v", "reason": "a test", "void": EVENT})
    chosen = post(filled, {"id": "w", "reason": "r", "void_where": {"dimension": "calls"}}).json()
    assert chosen["events"] == 2
    post(filled, {"id": "x", "reason": "r", "void": chosen["position"]})
    assert filled.usage() == "5"


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ({"tenant": "acme", "to": "2026-01-01T00:00:00.000001Z"}, "5"),
        ({"from": "2026-01-01T00:00:00.000001Z"}, "1"),
        ({"source": "api"}, "0"),
    ],
)
def test_a_choice_is_by_anything(filled: Running, choice: dict[str, str], left: str) -> None:
    """By tenant, time, source and the rest, all of them together."""
    assert post(filled, {"id": "w", "reason": "r", "void_where": choice}).status_code == 201
    assert filled.usage() == left


def test_a_choice_of_nothing_is_nothing_to_void(filled: Running) -> None:
    """As with one event, and null is a tenant of its own: nobody."""
    for choice in ({"tenant": None}, {"source": "other"}, {"key": "k"}, {"tags": {"a": "b"}}):
        answer = post(filled, {"id": "w", "reason": "r", "void_where": choice})
        assert answer.json()["type"] == "/problems/nothing-to-void"


def test_a_void_of_nothing_is_kept_as_a_rejection(filled: Running) -> None:
    """With the page that says what to do."""
    answer = post(filled, {"id": "v", "void": f"{PRODUCER.hex()}-9", "reason": "a test"})
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/nothing-to-void")
    (rejection,) = filled.rejections()
    assert rejection["type"] == "/problems/nothing-to-void"
    assert filled.http.get(rejection["type"]).status_code == 200


@pytest.mark.parametrize(
    ("document", "slug", "words"),
    [
        ({"reason": "r"}, "document-invalid", "neither an id nor an Idempotency-Key"),
        ({"id": "a"}, "document-invalid", "reason is missing"),
        ({"id": "a", "reason": " "}, "document-invalid", "reason is ' '"),
        ({"id": "", "reason": "r"}, "document-invalid", "id is ''"),
        ({"id": "x" * 256, "reason": "r"}, "document-invalid", "256 bytes"),
        ({"id": "a\n", "reason": "r"}, "document-invalid", "printable"),
        ({"id": "a", "reason": "r", "value": "1"}, "document-invalid", "dimension is missing"),
        ({"id": "a", "reason": "r", "dimension": "calls"}, "document-invalid", "value is missing"),
        (CREDIT | {"value": "x"}, "document-invalid", "value is 'x'"),
        (CREDIT | {"value": "0.00"}, "document-invalid", "not zero"),
        (CREDIT | {"value": "--1"}, "document-invalid", "value"),
        (CREDIT | {"value": 0.5}, "document-invalid", "value"),
        (CREDIT | {"value": "1." + "1" * 10}, "document-invalid", "decimals"),
        (CREDIT | {"value": "-" + "9" * 39}, "document-invalid", "digits"),
        (CREDIT | {"value": "NaN"}, "document-invalid", "value is 'NaN'"),
        (CREDIT | {"dimension": "Calls"}, "document-invalid", "dimension is 'Calls'"),
        (CREDIT | {"tenant": ""}, "document-invalid", "tenant is empty"),
        (CREDIT | {"tags": {"": "x"}}, "document-invalid", "tag key is empty"),
        (CREDIT | {"tags": {"a": 1}}, "document-invalid", "tags.a is 1"),
        (CREDIT | {"time": "2026-01-01"}, "document-invalid", "2026-01-01"),
        (CREDIT | {"time": "2999-01-01T00:00:00Z"}, "document-invalid", "ahead of the server"),
        (CREDIT | {"valeu": 1}, "field-unknown", "Did you mean 'value'"),
        (CREDIT | {"void": EVENT}, "document-invalid", "do not go together"),
        ({"id": "a", "reason": "r", "void": "x"}, "document-invalid", "void is 'x'"),
        ({"id": "a", "reason": "r", "void": f"{EVENT}0" + "0" * 19}, "document-invalid", "void is"),
        ({"id": "a", "reason": "r", "void_where": {}}, "document-invalid", "take back everything"),
        ({"id": "a", "reason": "r", "void_where": {"producer": "x"}}, "document-invalid", "32 hex"),
        ({"id": "a", "reason": "r", "void_where": {"produce": "x"}}, "field-unknown", "produce"),
        ({"id": "a", "reason": "r", "void_where": {"from": "x"}}, "document-invalid", "RFC 3339"),
        (
            {
                "id": "a",
                "reason": "r",
                "void_where": {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
            },
            "document-invalid",
            "a moment after from",
        ),
        (
            {"id": "a", "reason": "r", "void": EVENT, "void_where": {"key": "k"}},
            "document-invalid",
            "do not go together",
        ),
        (CREDIT | {"dimension": "call"}, "dimension-unknown", "Did you mean 'calls'"),
    ],
)
def test_a_wrong_correction_is_refused(
    shared: Running, document: Mapping[str, object], slug: str, words: str
) -> None:
    """The problem names the value, what was expected, and stores nothing."""
    shared.post_blocks(block_of(1, 2, 3)).raise_for_status()
    before = shared.ledger.position()
    answer = post(shared, document)
    assert answer.json()["type"] == f"/problems/{slug}"
    assert words in answer.json()["detail"]
    assert shared.ledger.position() == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"1", b"\xff", b'{"id":"\\ud800"}'])
def test_what_is_no_json_object_is_refused(shared: Running, body: bytes) -> None:
    """Whatever it is instead."""
    headers = {"Content-Type": "application/json"}
    answer = shared.http.post("/v1/adjustments", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_field_that_is_there_twice_is_refused(shared: Running) -> None:
    """Which of the two was meant, nobody can say."""
    body = b'{"id":"a","reason":"r","dimension":"calls","value":"1","value":"2"}'
    headers = {"Content-Type": "application/json"}
    answer = shared.http.post("/v1/adjustments", content=body, headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (422, "value")
    assert "value is there twice" in answer.json()["detail"]


def test_a_document_over_its_limit_is_refused(shared: Running) -> None:
    """By the name of the limit."""
    answer = post(shared, CREDIT | {"reason": "x" * 70_000})
    assert (answer.status_code, answer.json()["limit"]) == (413, "DOCUMENT_BYTES_MAX")


def test_another_content_type_is_refused(shared: Running) -> None:
    """Expected is named in the Accept header, too."""
    answer = shared.http.post("/v1/adjustments", content=b"{}")
    assert (answer.status_code, answer.headers["accept"]) == (415, "application/json")


def test_what_is_no_sum_is_not_adjusted(filled: Running) -> None:
    """Of a level, the events themselves are wrong."""
    put(filled, "calls", aggregation="last").raise_for_status()
    answer = post(filled, CREDIT)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/correction-unfit")


def test_corrections_are_listed_in_pages(filled: Running) -> None:
    """In the ledger's order."""
    for n in range(3):
        post(filled, CREDIT | {"id": f"c-{n}"}).raise_for_status()
    page = filled.http.get("/v1/adjustments", params={"limit": 2}).json()
    assert [one["id"] for one in page["data"]] == ["c-0", "c-1"]
    rest = filled.http.get("/v1/adjustments", params={"limit": 2, "after": page["next"]}).json()
    assert ([one["id"] for one in rest["data"]], rest["next"]) == (["c-2"], None)


def test_corrections_outlive_the_server(start: Start) -> None:
    """A retry after a restart finds them."""
    first = start()
    first.post_blocks(block_of(1)).raise_for_status()
    post(first, CREDIT).raise_for_status()
    first.ledger.close()
    assert post(start(), CREDIT).status_code == 200


# -- dimensions ----------------------------------------------------------------------------


def test_a_dimension_is_declared_and_read(filled: Running) -> None:
    """PUT answers with what is declared, and the same again is the same."""
    document = {"unit": "GB", "aggregation": "time_weighted", "description": "Stored."}
    first, again = put(filled, "storage", **document), put(filled, "storage", **document)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert first.json() == {
        "dimension": "storage",
        "unit": "GB",
        "aggregation": "time_weighted",
        "unique_of": None,
        "percentile": None,
        "description": "Stored.",
        "from": None,
        "position": "1.3",
    }
    assert filled.http.get("/v1/dimensions/storage").json() == {"data": [first.json()]}


def test_every_dimension_is_listed(filled: Running) -> None:
    """One that nobody declared is a sum; what holds is the newest rule."""
    put(filled, "seats", aggregation="last").raise_for_status()
    put(filled, "seats", aggregation="max", **{"from": "2026-02-01T00:00:00Z"}).raise_for_status()
    listed = filled.http.get("/v1/dimensions").json()["data"]
    assert [(one["dimension"], one["aggregation"], one["position"]) for one in listed] == [
        ("calls", "sum", None),
        ("seats", "max", "1.4"),
    ]
    history = filled.http.get("/v1/dimensions/seats").json()["data"]
    assert [one["from"] for one in history] == [None, "2026-02-01T00:00:00Z"]
    assert filled.http.get("/v1/dimensions/calls").json()["data"][0]["aggregation"] == "sum"


def test_unique_and_percentile_say_of_what(server: Running) -> None:
    """With the aggregation that they belong to."""
    users = put(server, "users", aggregation="unique", unique_of="tag:user").json()
    values = put(server, "values", aggregation="unique", unique_of="value").json()
    latency = put(server, "latency", aggregation="percentile", percentile="99.9").json()
    assert (users["unique_of"], values["unique_of"]) == ("tag:user", "value")
    assert latency["percentile"] == "99.9"


@pytest.mark.parametrize(
    ("name", "document", "slug", "words"),
    [
        ("Calls", {}, "document-invalid", "dimension is 'Calls'"),
        ("calls", {"aggregation": "median"}, "document-invalid", "aggregation is 'median'"),
        ("calls", {"aggregaton": "sum"}, "field-unknown", "Did you mean 'aggregation'"),
        ("calls", {"unit": "x" * 65}, "document-invalid", "65 bytes"),
        ("calls", {"unit": "a\tb"}, "document-invalid", "printable"),
        ("calls", {"unit": 1}, "document-invalid", "unit is 1"),
        ("calls", {"from": "yesterday"}, "document-invalid", "from:"),
        ("calls", {"aggregation": "unique"}, "document-invalid", "unique_of is missing"),
        ("calls", {"unique_of": "value"}, "document-invalid", "goes with unique"),
        ("c", {"aggregation": "unique", "unique_of": "user"}, "document-invalid", "tag:<key>"),
        ("c", {"aggregation": "unique", "unique_of": "tag:"}, "document-invalid", "empty"),
        ("c", {"aggregation": "percentile"}, "document-invalid", "percentile is missing"),
        ("c", {"percentile": "50"}, "document-invalid", "goes with percentile"),
        *(
            (
                "c",
                {"aggregation": "percentile", "percentile": text},
                "document-invalid",
                "up to 100",
            )
            for text in ("0", "100.1", "-1", "1e1", "NaN", "", "9" * 20, "٩", "5_0", "1.2.3")
        ),
    ],
)
def test_a_wrong_declaration_is_refused(
    shared: Running, name: str, document: Mapping[str, object], slug: str, words: str
) -> None:
    """The problem names the value, what was expected, and stores nothing."""
    before = shared.ledger.position()
    answer = put(shared, name, **document)
    assert answer.json()["type"] == f"/problems/{slug}"
    assert words in answer.json()["detail"]
    assert shared.ledger.position() == before


def test_an_unknown_dimension_has_no_page(filled: Running) -> None:
    """The nearest one is named."""
    answer = filled.http.get("/v1/dimensions/call")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/dimension-unknown")
    assert "Did you mean 'calls'" in answer.json()["detail"]
