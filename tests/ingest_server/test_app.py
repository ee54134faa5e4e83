"""The routes, and what holds for every answer."""

from __future__ import annotations

import logging
import threading

import pytest

from tests.ingest_server.conftest import Running, Start


def test_root_names_the_service_and_its_ledger(server: Running) -> None:
    """Whoever opens the address in a browser learns what answers there."""
    answer = server.http.get("/").json()
    assert (answer["service"], answer["ledger"]) == ("tallybook", server.ledger.id)


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/v1/usage?dimension=calls", "/nowhere", "/v1/events"]
)
def test_no_answer_is_stored_on_the_way(shared: Running, path: str) -> None:
    """A cached answer would be usage that a proxy remembers."""
    assert shared.http.get(path).headers["Cache-Control"] == "no-store"


def test_an_unknown_path_is_a_problem_document(server: Running) -> None:
    """Errors have one shape."""
    answer = server.http.get("/v1/event")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


def test_a_trailing_slash_is_not_redirected(server: Running) -> None:
    """A redirect would make a sender post its events to a page."""
    assert server.http.post("/v1/events/").status_code == 404


def test_a_wrong_method_names_the_right_ones(server: Running) -> None:
    """All methods of the path, not those of its first route."""
    answer = server.http.delete("/v1/events")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")


def test_health_does_not_ask_the_ledger(server: Running) -> None:
    """A process with a broken ledger lives: restarting it would not help."""
    server.ledger.fault = OSError("disk")
    assert server.http.get("/healthz").status_code == 200


def test_a_healthy_ledger_is_ready(server: Running) -> None:
    """The writer answers."""
    assert server.http.get("/readyz").status_code == 200


def test_a_broken_ledger_is_not_ready(server: Running) -> None:
    """A balancer stops sending here."""
    server.ledger.fault = OSError("disk")
    assert server.http.get("/readyz").status_code == 503


def test_an_unexpected_fault_shows_nothing_of_the_inside(server: Running) -> None:
    """The answer is a problem document without the message of the exception."""
    server.ledger.fault = RuntimeError("secret of the inside")
    answer = server.http.get("/v1/usage?dimension=calls")
    assert answer.status_code == 500
    assert answer.json()["type"] == "/problems/internal"
    assert "secret" not in answer.text


def test_an_unexpected_fault_is_logged_with_its_trace(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator finds in the log what the answer does not show."""
    server.ledger.fault = RuntimeError("secret of the inside")
    with caplog.at_level(logging.ERROR, "tallybook.server"):
        server.http.get("/v1/usage?dimension=calls")
    assert "secret of the inside" in caplog.text


def test_a_slow_question_does_not_keep_others_waiting(start: Start) -> None:
    """Questions run in threads, not on the loop."""
    server = start(queries_max=1)
    server.ledger.gate, server.ledger.asked = threading.Event(), threading.Event()
    slow = threading.Thread(target=server.http.get, args=("/v1/usage?dimension=calls",))
    slow.start()
    try:
        assert server.ledger.asked.wait(10)
        assert server.http.get("/healthz").status_code == 200
    finally:
        server.ledger.gate.set()
        slow.join()


def test_events_are_listed_in_the_order_of_the_ledger(server: Running) -> None:
    """Page by page, by cursor, each event once."""
    events = [f'{{"dimension": "calls", "id": "{n}", "source": "api"}}' for n in range(5)]
    server.post("[" + ",".join(events) + "]")
    ids: list[str] = []
    after: str | None = "0"
    while after is not None:
        page = server.http.get("/v1/events", params={"after": after, "limit": 2}).json()
        ids += [row["id"] for row in page["data"]]
        after = page["next"]
    assert ids == ["0", "1", "2", "3", "4"]


def test_a_listed_event_has_its_exact_value_and_place(server: Running) -> None:
    """What is shown can be compared with what was sent, digit by digit."""
    server.post(
        '{"dimension": "calls", "id": "a", "source": "api", "value": 12345678901234567890.123,'
        ' "time": "2026-01-01T00:00:00.000001+01:00", "tenant": "acme", "tags": {"n": 1.50}}'
    )
    (row,) = server.http.get("/v1/events").json()["data"]
    assert row["value"] == "12345678901234567890.123"
    assert row["time"] == "2025-12-31T23:00:00.000001Z"
    assert (row["tenant"], row["tags"], row["source"]) == ("acme", {"n": "1.50"}, "api")


@pytest.mark.parametrize("page", ["limit=0", "limit=1001", "limit=-1", "after=x", "after=1.x"])
def test_a_page_that_cannot_be_is_refused(shared: Running, page: str) -> None:
    """A limit that is cut in silence would look like the end of the list."""
    answer = shared.http.get(f"/v1/events?{page}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/parameter-invalid")


def test_producers_are_listed(server: Running) -> None:
    """With their counts and times."""
    server.post_blocks()
    (row,) = server.http.get("/v1/producers").json()["data"]
    assert (row["source"], row["recorded"], row["state"]) == ("api", 100, "open")
    assert row["last_seen"].endswith("Z")


def test_verify_runs_inside_the_server(server: Running) -> None:
    """It holds the ledger's lock, so nobody else can."""
    server.post('{"dimension": "calls", "id": "1", "source": "api"}')
    answer = server.http.get("/v1/verify").json()
    assert answer["findings"] == []
    assert answer["position"] == server.http.get("/").json()["position"]
