"""The table of problems: every type can happen, and has a page."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest

from tallybook_server.ledger import LedgerFull, TooManyRows
from tallybook_server.problems import CONTENT_TYPE, PROBLEMS, Problem, nearest
from tests.ingest_server.conftest import BLOCKS, PRODUCER, Running, Start, block_of
from tests.ingest_server.test_ingest import BAD_EVENTS

Provoke = Callable[[Start], bytes]


def _post(body: bytes, *, fault: Exception | None = None, **headers: str) -> Provoke:
    def provoke(start: Start) -> bytes:
        server = start()
        server.ledger.fault = fault
        return server.post(body, **headers).content

    return provoke


def _get(path: str, *, fault: Exception | None = None, **headers: str) -> Provoke:
    def provoke(start: Start) -> bytes:
        server = start()
        server.ledger.fault = fault
        return server.http.get(path, headers=headers).content

    return provoke


def _raw(data: bytes, **settings: object) -> Provoke:
    def provoke(start: Start) -> bytes:
        with socket.create_connection(start(**settings).address, timeout=20) as line:
            line.sendall(data)
            return b"".join(iter(lambda: line.recv(65536), b""))

    return provoke


def _conflict(start: Start) -> bytes:
    server = start()
    event = b'{"dimension": "calls", "id": "1", "source": "api", "value": %d}'
    server.post(event % 1)
    return server.post(event % 2).content


def _wrong_ledger(start: Start) -> bytes:
    return start().post_blocks(ledger="0" * 32).content


def _too_large(start: Start) -> bytes:
    return start(body_bytes_max=1024).post(b" " * 2000).content


def _too_many(start: Start) -> bytes:
    return start(events_max=1).post(b"[{}, {}]").content


def _wrong_method(start: Start) -> bytes:
    return start().http.delete("/").content


def _busy(start: Start) -> bytes:
    return start(bodies_bytes_max=1024).post(b" " * 2000).content


def _correct(*documents: dict[str, object], aggregation: str = "sum") -> Provoke:
    """What the last of the corrections is answered with."""

    def provoke(start: Start) -> bytes:
        server = start()
        server.post_blocks(block_of(1)).raise_for_status()
        declared = {"aggregation": aggregation}
        server.http.put("/v1/dimensions/calls", json=declared).raise_for_status()
        answers = [server.http.post("/v1/adjustments", json=one) for one in documents]
        return answers[-1].content

    return provoke


def _usage(parameters: str, *declarations: dict[str, object]) -> Provoke:
    """What a question about ``calls`` is answered with, once it is declared."""

    def provoke(start: Start) -> bytes:
        server = start()
        server.post_blocks(block_of(1)).raise_for_status()
        for one in declarations:
            server.http.put("/v1/dimensions/calls", json=one).raise_for_status()
        return server.http.get(f"/v1/usage?dimension=calls&{parameters}").content

    return provoke


def _prove(*first: str) -> Provoke:
    """What the question for the proof of a later event is answered with."""

    def provoke(start: Start) -> bytes:
        server = start()
        for path in first:
            server.http.post(f"/{path}").raise_for_status()
        server.post_blocks(block_of(1)).raise_for_status()
        return server.http.get(f"/v1/events/{PRODUCER.hex()}-1/proof").content

    return provoke


def _back_up(directory: str) -> Provoke:
    def provoke(start: Start) -> bytes:
        return start().http.post("/v1/backup", json={"directory": directory}).content

    return provoke


def _scattered(start: Start) -> bytes:
    server = start()
    server.post_blocks(block_of(1)).raise_for_status()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallybook_server.corrector.VOID_RUNS_MAX", 0)
        document = {"id": "v", "void_where": {"dimension": "calls"}, "reason": "r"}
        return server.http.post("/v1/adjustments", json=document).content


CREDIT: dict[str, object] = {"id": "a", "dimension": "calls", "value": 1, "reason": "r"}
VOID: dict[str, object] = {"id": "v", "void": f"{PRODUCER.hex()}-1", "reason": "r"}


def _too_many_streams(start: Start) -> bytes:
    server = start(streams_max=1)
    with server.http.stream("GET", "/v1/events/stream"):
        return server.http.get("/v1/events/stream").content


SLOW_BODY = (
    b"POST /v1/events HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n["
)
EVENT = b'{"dimension": "calls", "id": "1", "source": "api"}'

PROVOKED: dict[str, Provoke] = {
    "not-json": _post(b"calls"),
    "nested-too-deeply": _post(b"[" * 100_000),
    "too-many-events": _too_many,
    "request-damaged": _post(b"TBQ1", Content_Type=BLOCKS["Content-Type"]),
    "wrong-ledger": _wrong_ledger,
    "busy": _busy,
    "disk-full": _post(EVENT, fault=LedgerFull("no space")),
    "body-too-large": _too_large,
    "body-too-slow": _raw(SLOW_BODY, body_seconds_max=0.05),
    "body-undecodable": _post(EVENT, Content_Encoding="gzip"),
    "encoding-unsupported": _post(EVENT, Content_Encoding="br"),
    "content-type-unsupported": _post(EVENT, Content_Type="text/plain"),
    "head-too-large": _raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, head_bytes_max=2048),
    "head-too-slow": _raw(b"GET / HT", head_seconds_max=0.05),
    "not-http": _raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "idempotency-key-invalid": _post(EVENT, Idempotency_Key=""),
    "parameter-unknown": _get("/v1/usage?dimension=calls&windw=day"),
    "parameter-missing": _get("/v1/usage"),
    "parameter-invalid": _get("/v1/events?limit=0"),
    "parameters-conflict": _get("/v1/usage?dimension=a&aggregation=sum&unique_of=value"),
    "cursor-invalid": _get("/v1/usage?dimension=calls&cursor=x"),
    "not-acceptable": _get("/v1/usage?dimension=calls", Accept="text/html"),
    "aggregation-unfit": _usage("aggregation=sum", {"aggregation": "last"}),
    "time-zone-unknown": _get("/v1/usage?dimension=calls&time_zone=Mars"),
    "too-many-rows": _get("/v1/usage?dimension=calls", fault=TooManyRows("100,001 rows")),
    "rule-changes": _usage("", {"aggregation": "max", "from": "2026-01-15T00:00:00Z"}),
    "position-unknown": _usage("as_of=1.999"),
    "document-invalid": _correct({"id": "a"}),
    "dimension-unknown": _get("/v1/dimensions/call"),
    "correction-conflict": _correct(CREDIT, CREDIT | {"value": 2}),
    "correction-unfit": _correct(CREDIT, aggregation="last"),
    "too-many-places": _scattered,
    "checkpoint-unknown": _prove(),
    "unproven": _prove("v1/checkpoints"),
    "already-voided": _correct(VOID, VOID | {"id": "w"}),
    "nothing-to-void": _correct(VOID | {"void": "1.1"}),
    "event-name-invalid": _get("/v1/events/17"),
    "event-unknown": _get("/v1/events/17.0"),
    "too-many-streams": _too_many_streams,
    "cursor-unknown": _get("/v1/events/stream?after=17.0"),
    "backup-refused": _back_up("a/relative/path"),
    "backup-failed": _back_up("/proc/nowhere"),
    "not-found": _get("/nowhere"),
    "method-not-allowed": _wrong_method,
    "internal": _get("/v1/usage?dimension=calls", fault=RuntimeError()),
    "identity-conflict": _conflict,
    "text-invalid": _post(b'{"dimension": "calls", "id": "\xff", "source": "api"}'),
}
for _bad, _slug in BAD_EVENTS.values():
    PROVOKED.setdefault(_slug, _post(f"[{_bad}]".encode()))


def test_every_problem_is_provoked_here() -> None:
    """A type that cannot happen is not in the table, and a new one needs a test."""
    assert set(PROVOKED) == set(PROBLEMS)


@pytest.mark.parametrize("slug", sorted(PROVOKED))
def test_a_problem_happens(start: Start, slug: str) -> None:
    """The answer of a real server names the type."""
    assert f'"/problems/{slug}"'.encode() in PROVOKED[slug](start)


@pytest.mark.parametrize("slug", sorted(PROBLEMS))
def test_a_problem_has_a_page(shared: Running, slug: str) -> None:
    """The type's address is one on the same server, and says what to do."""
    page = shared.http.get(PROBLEMS[slug].path)
    assert page.status_code == 200
    assert PROBLEMS[slug].advice in page.text


@pytest.mark.parametrize("slug", sorted(PROBLEMS))
def test_a_type_is_complete(slug: str) -> None:
    """A stable slug, a sentence for a title, an error's status, advice in sentences."""
    kind = PROBLEMS[slug]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", kind.slug)
    assert kind.title.endswith(".")
    assert 400 <= kind.status < 600


def test_reasons_are_unique() -> None:
    """A verdict's word leads to one page."""
    reasons = [kind.reason for kind in PROBLEMS.values() if kind.reason is not None]
    assert len(reasons) == len(set(reasons))


def test_a_document_is_what_the_rfc_says(shared: Running) -> None:
    """RFC 9457: its media type, and type, title, status and detail as members."""
    answer = shared.http.get("/nowhere")
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    assert answer.json()["status"] == answer.status_code
    assert {"type", "title", "detail"} <= set(answer.json())


def test_what_was_stored_twice_is_retryable() -> None:
    """A fault of the server, or of the way, is worth another try; a wrong call is not."""
    assert Problem("internal", "x").kind.retryable
    assert not Problem("not-json", "x").kind.retryable


def test_nearest_names_what_is_alike_or_nothing() -> None:
    """A guess that is far off would only confuse."""
    assert nearest("windw", ["window", "to"]) == " Did you mean 'window'?"
    assert nearest("xyz", ["window", "to"]) == ""
