"""The routes of usage, over a socket."""

from __future__ import annotations

import csv
import gzip
import io
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from tallybook_server.question import AppliedRule, Position, Usage, UsageRow
from tests.ingest_server.conftest import Running, Start

EVENTS = """[
    {"dimension": "calls", "source": "api", "id": "1", "value": 1.5, "tenant": "acme",
     "tags": {"region": "eu"}, "time": "2026-01-01T10:00:00Z"},
    {"dimension": "calls", "source": "api", "id": "2", "value": 2, "tenant": "acme",
     "tags": {"region": "us"}, "time": "2026-01-01T23:30:00Z"},
    {"dimension": "calls", "source": "api", "id": "3", "value": 4, "tenant": "zeta",
     "tags": {}, "time": "2026-01-02T00:00:00Z"},
    {"dimension": "calls", "source": "api", "id": "4", "value": 8, "time": "2026-01-02T10:00:00Z"}
]"""
ROWS = [UsageRow(None, None, "calls", f"t{n}", {}, str(n), 1) for n in range(25)]
PAGED = Usage(
    ROWS, Position(1, 0), True, None, {}, "2026.1", [AppliedRule("calls", "call", "sum")], 25
)
BY_TENANT = {"dimension": "calls", "group_by": "tenant"}


@pytest.fixture
def paged(server: Running) -> Running:
    """A server whose ledger answers every question with `ROWS`."""
    server.ledger.answer = PAGED
    return server


def ask(server: Running, body: dict[str, Any], path: str = "/v1/usage/query") -> httpx.Response:
    """The answer to a question as JSON."""
    return server.http.post(path, json=body)


def slug_of(answer: httpx.Response) -> tuple[int, str]:
    """The status of a refusal, and its type."""
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


# -- questions -----------------------------------------------------------------------------


def test_windows_follow_the_time_zone(server: Running) -> None:
    """23:30 in London is the next day in Berlin; edges are named in UTC."""
    server.post(EVENTS)
    rows = server.http.get(
        "/v1/usage?dimension=calls&window=day&time_zone=Europe/Berlin"
        "&from=2025-12-31T23:00:00Z&to=2026-01-02T23:00:00Z"
    ).json()["data"]
    assert [(row["from"], row["value"]) for row in rows if row["events"]] == [
        ("2025-12-31T23:00:00Z", "1.5"),
        ("2026-01-01T23:00:00Z", "14"),
    ]


def test_groups_and_filters_reach_the_ledger(server: Running) -> None:
    """By tenant and tag, of one tenant, of one tag's value."""
    server.post(EVENTS)
    by_tenant = server.http.get("/v1/usage?dimension=calls&group_by=tenant").json()["data"]
    assert {row["tenant"]: row["value"] for row in by_tenant} == {
        "acme": "3.5",
        "zeta": "4",
        None: "8",
    }
    by_region = server.http.get("/v1/usage?dimension=calls&group_by=tag:region&tenant=acme")
    assert {row["tags"]["region"]: row["value"] for row in by_region.json()["data"]} == {
        "eu": "1.5",
        "us": "2",
    }
    assert server.usage(**{"tag.region": "eu"}) == "1.5"
    assert server.usage(tenant="") == "8"
    assert server.usage(aggregation="count") == "4"


@pytest.mark.parametrize(
    ("filters", "total"),
    [
        ("tag.region=eu&tag.region=us", "3.5"),
        ("not.tag.region=eu", "14"),
        ("prefix.tag.region=e", "1.5"),
        ("exists.tag.region=true", "3.5"),
        ("exists.tag.region=false", "12"),
        ("exists.tag.region=true&not.tag.region=eu", "2"),
    ],
)
def test_every_filter_reaches_the_ledger(server: Running, filters: str, total: str) -> None:
    """An event without the tag is not one of another value that is asked for."""
    server.post(EVENTS)
    (row,) = server.http.get(f"/v1/usage?dimension=calls&{filters}").json()["data"]
    assert row["value"] == total


def test_top_and_order_reach_the_ledger(server: Running) -> None:
    """The largest two; the smallest first."""
    server.post(EVENTS)
    top = server.http.get("/v1/usage", params=BY_TENANT | {"top": 2}).json()["data"]
    assert [row["value"] for row in top] == ["8", "4"]
    rising = server.http.get("/v1/usage", params=BY_TENANT | {"order": "value"}).json()["data"]
    assert [row["value"] for row in rising] == ["3.5", "4", "8"]


def test_json_is_answered_like_a_url(server: Running) -> None:
    """The same question, the same document."""
    server.post(EVENTS)
    by_url = server.http.get("/v1/usage?dimension=calls&group_by=tenant&tag.region=eu")
    by_json = ask(server, BY_TENANT | {"filters": [{"tag": "region", "in": ["eu"]}]})
    assert by_json.json() == by_url.json()
    assert [row["value"] for row in by_json.json()["data"]] == ["1.5"]


def test_a_question_may_be_compressed(paged: Running) -> None:
    """As any other body."""
    answer = paged.http.post(
        "/v1/usage/query",
        content=gzip.compress(b'{"dimension": "calls"}'),
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )
    assert len(answer.json()["data"]) == 25


@pytest.mark.parametrize("compressed", [False, True])
def test_a_question_that_is_too_long_is_refused(start: Start, compressed: bool) -> None:
    """By its own limit, which holds on the wire and for what it decompresses to."""
    server = start(question_bytes_max=1024)
    body = json.dumps({"dimension": "calls", "tenant": ["x" * 250] * 5}).encode()
    answer = server.http.post(
        "/v1/usage/query",
        content=gzip.compress(body) if compressed else body,
        headers={"Content-Type": "application/json"}
        | ({"Content-Encoding": "gzip"} if compressed else {}),
    )
    assert slug_of(answer) == (413, "body-too-large")
    assert answer.json()["limit"] == "question_bytes_max"


def test_a_question_that_is_no_json_is_refused(shared: Running) -> None:
    """A form would be read as nothing at all."""
    answer = shared.http.post("/v1/usage/query", data={"dimension": "calls"})
    assert slug_of(answer) == (415, "content-type-unsupported")


def test_a_field_that_does_not_exist_is_refused(shared: Running) -> None:
    """In JSON as in a URL."""
    answer = ask(shared, {"dimension": "calls", "tennant": "acme"})
    assert slug_of(answer) == (400, "parameter-unknown")
    assert answer.json()["parameter"] == "tennant"


# -- refusals of the ledger ----------------------------------------------------------------


def declare(server: Running, name: str, **fields: object) -> None:
    """Declare a dimension."""
    server.http.put(f"/v1/dimensions/{name}", json=fields).raise_for_status()


def test_an_unknown_dimension_is_not_found(server: Running) -> None:
    """With the name that it is like."""
    server.post(EVENTS)
    answer = server.http.get("/v1/usage?dimension=cals")
    assert slug_of(answer) == (404, "dimension-unknown")
    assert answer.json()["dimension"] == "cals"
    assert answer.json()["detail"] == "there is no dimension 'cals'. Did you mean 'calls'?"


def test_a_declared_dimension_without_events_is_an_empty_answer(server: Running) -> None:
    """It is known, and nobody used it."""
    declare(server, "seats", aggregation="last")
    assert server.http.get("/v1/usage?dimension=seats").json()["data"] == []


def test_an_aggregation_that_does_not_fit_is_refused(server: Running) -> None:
    """With what is declared, and what would fit."""
    declare(server, "seats", aggregation="last")
    answer = server.http.get("/v1/usage?dimension=seats&aggregation=sum")
    assert slug_of(answer) == (422, "aggregation-unfit")
    assert answer.json()["declared"] == "last"
    assert "time_weighted" in answer.json()["available"]


def test_a_rule_that_changes_within_a_row_is_refused(server: Running) -> None:
    """With the moment, so that the question can be cut there."""
    declare(server, "calls", aggregation="sum")
    declare(server, "calls", aggregation="max", **{"from": "2026-01-02T00:00:00Z"})
    answer = server.http.get("/v1/usage?dimension=calls")
    assert slug_of(answer) == (422, "rule-changes")
    assert answer.json()["moment"] == "2026-01-02T00:00:00Z"


def test_a_rule_that_changes_between_rows_is_named(server: Running) -> None:
    """Each window by its own; a table names it in each row."""
    server.post(EVENTS)
    declare(server, "calls", unit="call")
    declare(server, "calls", aggregation="max", **{"from": "2026-01-02T00:00:00Z"})
    days = "dimension=calls&window=day&from=2026-01-01T00:00:00Z&to=2026-01-03T00:00:00Z"
    document = server.http.get(f"/v1/usage?{days}").json()
    assert [(rule["aggregation"], rule["from"]) for rule in document["rules"]] == [
        ("sum", None),
        ("max", "2026-01-02T00:00:00Z"),
    ]
    rows = csv.DictReader(io.StringIO(server.http.get(f"/v1/usage.csv?{days}").text, newline=""))
    assert [(row["aggregation"], row["unit"], row["value"]) for row in rows] == [
        ("sum", "call", "3.5"),
        ("max", "", "8"),
    ]


def test_a_declared_level_needs_an_end(server: Running) -> None:
    """Nothing in the question says so, but the declaration does."""
    declare(server, "seats", aggregation="time_weighted")
    answer = server.http.get("/v1/usage?dimension=seats")
    assert slug_of(answer) == (400, "parameter-missing")
    assert answer.json()["parameter"] == "to"


def test_a_position_beyond_the_head_is_refused(server: Running) -> None:
    """With the last one that there is."""
    server.post(EVENTS)
    answer = server.http.get("/v1/usage?dimension=calls&as_of=1.999")
    assert slug_of(answer) == (422, "position-unknown")
    assert answer.json()["head"] == str(server.ledger.position())


def test_an_earlier_answer_is_given_again(server: Running) -> None:
    """By the position that it named, whatever came later."""
    server.post(EVENTS)
    before = server.http.get("/v1/usage", params=BY_TENANT).json()
    server.post('{"dimension": "calls", "id": "5", "source": "api", "tenant": "acme"}')
    again = {"as_of": before["position"]}
    after = server.http.get("/v1/usage", params=BY_TENANT | again).json()
    assert (after["data"], after["position"]) == (before["data"], before["position"])
    assert server.http.get("/v1/usage", params=BY_TENANT).json()["data"] != before["data"]


# -- pages ---------------------------------------------------------------------------------


def test_pages_hold_for_the_position_of_the_first(paged: Running) -> None:
    """Events that arrive between two pages change none of them."""
    paged.post(EVENTS)
    first = paged.http.get("/v1/usage", params=BY_TENANT | {"limit": 10}).json()
    paged.post('{"dimension": "calls", "id": "5", "source": "api"}')
    following = {"limit": 10, "cursor": first["next"]}
    second = paged.http.get("/v1/usage", params=BY_TENANT | following).json()
    assert second["position"] == first["position"] != str(paged.ledger.position())


def test_all_pages_have_each_row_once(paged: Running) -> None:
    """The last one has no cursor; the size may change on the way."""
    sizes, values = [10, 8, 100], list[str]()
    cursor: str | None = None
    for size in sizes:
        page = ask(paged, BY_TENANT | {"limit": size, "cursor": cursor}).json()
        values += [row["value"] for row in page["data"]]
        cursor = page["next"]
    assert (values, cursor) == ([str(n) for n in range(25)], None)


def test_pages_of_the_real_ledger_stay_together(server: Running) -> None:
    """A tenant that comes in front of all others between two pages moves no row."""
    server.post(EVENTS)
    values: list[str] = []
    cursor: str | None = None
    for number in range(3):
        page = ask(server, BY_TENANT | {"limit": 1, "cursor": cursor}).json()
        values += [row["value"] for row in page["data"]]
        cursor = page["next"]
        server.post(f'{{"dimension": "calls", "id": "n{number}", "source": "api", "tenant": "a"}}')
    assert (sorted(values), cursor) == (["3.5", "4", "8"], None)


def test_a_cursor_of_a_url_goes_on_as_json(paged: Running) -> None:
    """It is the same question in both ways."""
    cursor = paged.http.get("/v1/usage", params=BY_TENANT | {"limit": 10}).json()["next"]
    page = ask(paged, BY_TENANT | {"limit": 1, "cursor": cursor}).json()
    assert [row["value"] for row in page["data"]] == ["10"]


def test_a_cursor_of_another_question_is_refused(paged: Running) -> None:
    """Its rows would be left out of an answer that has others."""
    cursor = paged.http.get("/v1/usage", params=BY_TENANT | {"limit": 10}).json()["next"]
    answer = ask(paged, {"dimension": "tokens", "limit": 10, "cursor": cursor})
    assert slug_of(answer) == (400, "cursor-invalid")


def test_an_answer_is_never_cut_unasked(paged: Running) -> None:
    """Who does not know of pages would send an invoice from the first one."""
    paged.ledger.answer = replace(PAGED, rows=[ROWS[0]] * 100_001)
    answer = paged.http.get("/v1/usage", params=BY_TENANT)
    assert slug_of(answer) == (422, "too-many-rows")
    assert "set limit" in answer.json()["detail"]


def test_the_link_leads_to_the_next_page(paged: Running) -> None:
    """Relative to the address that was asked, in its format, to the last page."""
    key = "a>b, ü&c"
    url = httpx.URL("/v1/usage.ndjson", params=BY_TENANT | {"limit": 10, f"tag.{key}": "x"})
    values: list[str] = []
    while True:
        page = paged.http.get(url)
        values += [json.loads(line)["value"] for line in page.text.splitlines()]
        assert paged.ledger.queries[-1].filters[0].key == key
        if "next" not in page.links:
            break
        url = page.url.join(page.links["next"]["url"])
    assert values == [str(n) for n in range(25)]


def test_a_long_question_has_its_cursor_without_a_link(paged: Running) -> None:
    """Proxies refuse answers with long header fields."""
    tenants = ["x" * 250] * 10
    page = paged.http.get("/v1/usage", params=BY_TENANT | {"limit": 10, "tenant": tenants})
    assert "link" not in page.headers
    assert page.headers["Tallybook-Next"] == page.json()["next"]


def test_json_has_no_link_to_its_next_page(paged: Running) -> None:
    """A link is got, and a question in a body cannot be."""
    page = ask(paged, BY_TENANT | {"limit": 10})
    assert "link" not in page.headers
    assert page.headers["Tallybook-Next"] == page.json()["next"]


# -- formats -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "content_type"),
    [
        ("json", "application/json"),
        ("csv", "text/csv; charset=utf-8; header=present"),
        ("ndjson", "application/x-ndjson"),
        ("parquet", "application/vnd.apache.parquet"),
    ],
)
def test_a_format_comes_by_suffix_and_by_accept(
    paged: Running, suffix: str, content_type: str
) -> None:
    """By URL and by JSON: four ways to the same bytes."""
    accept = {"Accept": content_type.partition(";")[0]}
    answers = [
        paged.http.get(f"/v1/usage.{suffix}", params=BY_TENANT),
        paged.http.get("/v1/usage", params=BY_TENANT, headers=accept),
        paged.http.post(f"/v1/usage/query.{suffix}", json=BY_TENANT),
        paged.http.post("/v1/usage/query", json=BY_TENANT, headers=accept),
    ]
    assert {answer.headers["Content-Type"] for answer in answers} == {content_type}
    assert len({answer.content for answer in answers}) == 1


def test_the_suffix_is_stronger_than_accept(paged: Running) -> None:
    """A browser accepts anything, and the address was chosen."""
    answer = paged.http.get("/v1/usage.csv?dimension=calls", headers={"Accept": "text/html"})
    assert answer.text.startswith("from,to,dimension")


def test_several_accept_fields_are_one(paged: Running) -> None:
    """RFC 9110 section 5.3."""
    fields = [("Accept", "text/html"), ("Accept", "text/csv")]
    answer = paged.http.get("/v1/usage?dimension=calls", headers=fields)
    assert answer.headers["Content-Type"].startswith("text/csv")


def test_what_is_not_acceptable_is_refused(shared: Running) -> None:
    """With what there is."""
    answer = shared.http.get("/v1/usage?dimension=calls", headers={"Accept": "text/html"})
    assert slug_of(answer) == (406, "not-acceptable")
    assert "text/csv" in answer.json()["available"]


@pytest.mark.parametrize("path", ["/v1/usage.xlsx?dimension=calls", "/v1/usage."])
def test_an_unknown_suffix_is_not_found(shared: Running, path: str) -> None:
    """As any other address."""
    assert slug_of(shared.http.get(path)) == (404, "not-found")


@pytest.mark.parametrize("suffix", ["json", "csv", "ndjson", "parquet"])
def test_header_fields_say_what_the_answer_rests_on(paged: Running, suffix: str) -> None:
    """A table has no place for it."""
    headers = paged.http.get(f"/v1/usage.{suffix}", params=BY_TENANT).headers
    assert headers["Tallybook-Position"] == str(paged.ledger.position())
    assert headers["Tallybook-Complete"] == "true"
    assert headers["Tallybook-Events"] == "25"
    assert headers["Tallybook-Tzdata"] == "2026.1"
    assert headers["Cache-Control"] == "no-store"
    assert "tallybook-next" not in headers


def test_a_table_is_saved_under_its_position(paged: Running) -> None:
    """Two downloads of one question are told apart by what they hold for."""
    headers = paged.http.get("/v1/usage.csv", params=BY_TENANT).headers
    name = f"usage-{paged.ledger.position()}.csv"
    assert headers["Content-Disposition"] == f'attachment; filename="{name}"'


def test_the_same_numbers_are_in_every_format(server: Running, tmp_path: Path) -> None:
    """From the real ledger, read by other programs."""
    server.post(EVENTS)

    def bytes_of(suffix: str) -> bytes:
        return server.http.get(f"/v1/usage.{suffix}", params=BY_TENANT).content

    document = json.loads(bytes_of("json"))
    expected = {row["tenant"]: row["value"] for row in document["data"]}
    lines = csv.DictReader(io.StringIO(bytes_of("csv").decode(), newline=""))
    assert {row["tenant"] or None: row["value"] for row in lines} == expected
    objects = [json.loads(line) for line in bytes_of("ndjson").splitlines()]
    assert {row["tenant"]: row["value"] for row in objects} == expected
    path = tmp_path / "usage.parquet"
    path.write_bytes(bytes_of("parquet"))
    with duckdb.connect(":memory:") as db:
        found = db.execute(f"SELECT tenant, value FROM '{path}'").fetchall()
    assert dict(found) == expected == {"acme": "3.5", "zeta": "4", None: "8"}


def test_an_explanation_says_what_was_read(server: Running) -> None:
    """In JSON; four events that are not sealed yet."""
    server.post(EVENTS)
    explanation = server.http.get("/v1/usage?dimension=calls&explain=true").json()["explanation"]
    assert (explanation["tail_rows"], explanation["segments"]) == (4, [])


def test_an_explanation_has_no_place_in_a_table(paged: Running) -> None:
    """There it would be passed over."""
    answer = paged.http.get("/v1/usage.csv?dimension=calls&explain=true")
    assert slug_of(answer) == (400, "parameters-conflict")


def test_a_question_as_json_keeps_nobody_waiting(start: Start) -> None:
    """It is worked on in a thread, as one in a URL."""
    server = start(queries_max=1)
    server.ledger.gate, server.ledger.asked = threading.Event(), threading.Event()
    slow = threading.Thread(target=ask, args=(server, {"dimension": "calls"}))
    slow.start()
    try:
        assert server.ledger.asked.wait(10)
        assert server.http.get("/healthz").status_code == 200
    finally:
        server.ledger.gate.set()
        slow.join()
