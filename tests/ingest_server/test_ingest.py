"""``POST /v1/events``: what is counted, what is kept, and what is refused as a whole."""

from __future__ import annotations

import json
import time

import pytest

from tallybook.wire import read_answer
from tallybook_server.ledger import LedgerBusy, LedgerFull
from tests.ingest_server.conftest import BLOCKS, Running, Start, block_of, request_of

GOOD = '{"dimension": "calls", "id": "good", "source": "api", "value": 7}'


def good(name: str) -> str:
    """An event that is accepted, once for each name."""
    return json.dumps({"dimension": "calls", "id": name[:200], "source": "api", "value": 7})


def event(fields: str) -> str:
    """A JSON event whose only fault, if any, is in *fields*."""
    return '{"id": "bad", "source": "api", ' + fields + "}"


# Each is one element of an array, the slug of its problem, and nothing else is wrong with it.
BAD_EVENTS = {
    "a number": ("3", "event-invalid"),
    "an array": ("[]", "event-invalid"),
    "no dimension": (event('"value": 1'), "dimension-invalid"),
    "dimension of another type": (event('"dimension": 1'), "dimension-invalid"),
    "dimension in capitals": (event('"dimension": "Calls"'), "dimension-invalid"),
    "value null": (event('"dimension": "calls", "value": null'), "value-invalid"),
    "value a truth": (event('"dimension": "calls", "value": true'), "value-invalid"),
    "value an object": (event('"dimension": "calls", "value": {}'), "value-invalid"),
    "value the text NaN": (event('"dimension": "calls", "value": "NaN"'), "value-invalid"),
    "value empty": (event('"dimension": "calls", "value": ""'), "value-invalid"),
    "value with a comma": (event('"dimension": "calls", "value": "1,5"'), "value-invalid"),
    "value negative": (event('"dimension": "calls", "value": -1'), "value-invalid"),
    "value 10^400": (event('"dimension": "calls", "value": 1e400'), "value-invalid"),
    "value 10^400, text": (event('"dimension": "calls", "value": "1e400"'), "value-invalid"),
    "value of 39 digits": (event(f'"dimension": "calls", "value": {"9" * 39}'), "value-invalid"),
    "value of 10 decimals": (event('"dimension": "calls", "value": 1e-10'), "value-invalid"),
    "value of 100,000 digits": (
        event(f'"dimension": "c", "value": {"9" * 100_000}'),
        "value-invalid",
    ),
    "tenant empty": (event('"dimension": "calls", "tenant": ""'), "tenant-invalid"),
    "tenant of another type": (event('"dimension": "calls", "tenant": 1'), "tenant-invalid"),
    "tenant too long": (event(f'"dimension": "calls", "tenant": "{"x" * 256}"'), "tenant-invalid"),
    "time naive": (event('"dimension": "calls", "time": "2026-01-01T00:00:00"'), "time-invalid"),
    "time a date": (event('"dimension": "calls", "time": "2026-01-01"'), "time-invalid"),
    "time of no day": (
        event('"dimension": "calls", "time": "2026-02-30T00:00:00Z"'),
        "time-invalid",
    ),
    "time a fraction": (event('"dimension": "calls", "time": 1.5'), "time-invalid"),
    "time beyond 9999": (event(f'"dimension": "calls", "time": {10**30}'), "time-invalid"),
    "time in the future": (
        event('"dimension": "calls", "time": "2999-01-01T00:00:00Z"'),
        "time-in-future",
    ),
    "tags an array": (event('"dimension": "calls", "tags": []'), "tags-invalid"),
    "tag an object": (event('"dimension": "calls", "tags": {"a": {}}'), "tags-invalid"),
    "tag null": (event('"dimension": "calls", "tags": {"a": null}'), "tags-invalid"),
    "tag with a control character": (
        event('"dimension": "calls", "tags": {"a": "\\u0000"}'),
        "tags-invalid",
    ),
    "300 tags": (
        event('"dimension": "calls", "tags": {' + ",".join(f'"t{n}": 1' for n in range(300)) + "}"),
        "tags-invalid",
    ),
    "source empty": (
        event('"dimension": "calls", "source": ""').replace('"source": "api", ', ""),
        "source-invalid",
    ),
    "key empty": (event('"dimension": "calls", "key": ""'), "key-invalid"),
    "id too long": (
        f'{{"dimension": "calls", "source": "api", "id": "{"x" * 256}"}}',
        "id-invalid",
    ),
    "key without a source": ('{"dimension": "calls", "key": "k"}', "source-invalid"),
    "id without a source": ('{"dimension": "calls", "id": "1"}', "source-invalid"),
    "no identity": ('{"dimension": "calls", "source": "api"}', "identity-missing"),
    "an unknown field": (event('"dimension": "calls", "tenat": "acme"'), "field-unknown"),
    "a field twice": (event('"dimension": "calls", "value": 1, "value": 2'), "field-repeated"),
    "a tag twice": (event('"dimension": "calls", "tags": {"a": 1, "a": 2}'), "field-repeated"),
    "half a surrogate pair": (event('"dimension": "calls", "tenant": "\\ud800"'), "text-invalid"),
    "half a pair in a tag": (
        event('"dimension": "calls", "tags": {"a": "\\udfff"}'),
        "text-invalid",
    ),
    "too deep": (
        event('"dimension": "calls", "tags": ' + "[" * 40 + "]" * 40),
        "nested-too-deeply",
    ),
    "too large": (event(f'"dimension": "calls", "tenant": "{"x" * 200_000}"'), "event-too-large"),
}
bad_events = pytest.mark.parametrize(("bad", "slug"), BAD_EVENTS.values(), ids=BAD_EVENTS.keys())


@bad_events
def test_a_bad_event_is_named_and_its_neighbours_count(
    shared: Running, bad: str, slug: str, request: pytest.FixtureRequest
) -> None:
    """One bad event never fails its neighbours."""
    before, after = (good(f"{side} {request.node.name}") for side in ("before", "after"))
    answer = shared.post(f"[{before},{bad},{after}]")
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["status"] for result in results] == ["accepted", "rejected", "accepted"]
    assert results[1]["type"] == f"/problems/{slug}"


@bad_events
def test_a_bad_event_is_kept_with_its_own_bytes(shared: Running, bad: str, slug: str) -> None:
    """What was rejected can be looked at, corrected and replayed; sent again, it is kept once."""
    for _ in range(2):
        shared.post(f"[ {GOOD} , {bad} ]")
    (kept,) = [row for row in shared.rejections() if row["data"] == bad]
    assert kept["verdict"] == "rejected"
    assert kept["type"] == f"/problems/{slug}"


def test_a_bad_event_posted_alone_answers_with_its_problem(server: Running) -> None:
    """Whoever tries it by hand sees what is wrong; the event is kept all the same."""
    answer = server.post('{"dimension": "calls", "id": "1", "source": "api", "value": "x"}')
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/value-invalid")
    assert "'x'" in answer.json()["detail"]
    assert len(server.rejections()) == 1


def test_bytes_that_are_not_utf8_are_kept_as_base64(server: Running) -> None:
    """A rejection shows its bytes even where they are no text."""
    answer = server.post(b'[{"dimension": "calls", "id": "\xff", "source": "api"}]')
    assert answer.json()["results"][0]["type"] == "/problems/text-invalid"
    assert server.rejections()[0]["encoding"] == "base64"


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "calls",
        "3",
        '"text"',
        "null",
        "[",
        "[1,]",
        f"[{GOOD}",
        f"[{GOOD}] x",
        f"[{GOOD},]",
        f"[{GOOD}, NaN]",
        '{"dimension": "calls", "value": NaN}',
        '{"dimension": "calls", "value": -Infinity}',
        '{"dimension": "calls", "value": 01}',
        '[{"dimension": "a\x01"}]',
        "\ufeff[]",
        "{'dimension': 'calls'}",
    ],
)
def test_a_body_that_is_not_json_stores_nothing(shared: Running, body: str) -> None:
    """There are no events to tell apart, so nothing is taken and nothing is kept."""
    before = shared.ledger.position()
    answer = shared.post(body)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/not-json")
    assert shared.ledger.position() == before


def test_a_body_nested_a_hundred_thousand_deep_is_refused(server: Running) -> None:
    """The parser's recursion ends in a problem, not in a dead process."""
    answer = server.post("[" * 100_000 + "]" * 100_000)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/nested-too-deeply")


def test_more_events_than_the_limit_store_nothing(start: Start) -> None:
    """The answer names the limit."""
    server = start(events_max=2)
    answer = server.post(f"[{GOOD},{GOOD},{GOOD}]")
    assert (answer.status_code, answer.json()["events_max"]) == (413, 2)
    assert server.usage() == "0"


def test_a_list_of_a_million_numbers_is_refused_before_it_is_one(server: Running) -> None:
    """8 MB of commas are counted, not parsed into 360 MB."""
    answer = server.post("[" + "1," * 1_000_000 + "1]")
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-many-events")


def test_an_empty_array_is_an_answer(server: Running) -> None:
    """Nothing to do is no fault."""
    answer = server.post("[]")
    assert (answer.status_code, answer.json()["results"]) == (200, [])


@pytest.mark.parametrize(
    ("value", "total"),
    [
        ("0.1", "0.1"),
        ('"0.1"', "0.1"),
        ("1.50", "1.5"),
        ("1e-7", "0.0000001"),
        ("1E+2", "100"),
        ("-0", "0"),
        ("12345678901234567890.123", "12345678901234567890.123"),
        ("9" * 38, "9" * 38),
        ("9007199254740993", "9007199254740993"),
    ],
)
def test_a_number_is_counted_exactly_as_it_is_written(
    server: Running, value: str, total: str
) -> None:
    """No float touches it, on any path."""
    server.post(f'{{"dimension": "calls", "id": "1", "source": "api", "value": {value}}}')
    assert server.usage() == total


def test_a_million_digits_are_refused_from_their_text(server: Running) -> None:
    """Reading them as a number would take seconds to minutes; 10 ms were measured as enough."""
    body = f'{{"dimension": "calls", "id": "1", "source": "api", "value": {"9" * 1_000_000}}}'
    began = time.perf_counter()
    answer = server.post(body)
    assert answer.status_code == 422
    assert time.perf_counter() - began < 0.5


def test_an_event_without_a_value_counts_one(server: Running) -> None:
    """The commonest event is a call."""
    server.post('{"dimension": "calls", "id": "1", "source": "api"}')
    assert server.usage() == "1"


def test_null_is_absent(server: Running) -> None:
    """Many serialisers write every field."""
    fields = ", ".join(f'"{name}": null' for name in ("tenant", "time", "tags", "key"))
    server.post(f'{{"dimension": "calls", "id": "1", "source": "api", {fields}}}')
    assert server.usage(tenant="") == "1"


def test_the_request_key_is_the_identity_of_events_that_have_none(server: Running) -> None:
    """The same request twice counts once, event by event."""
    body = '[{"dimension": "calls", "source": "api"}, {"dimension": "calls", "source": "api"}]'
    first = server.post(body, Idempotency_Key="order-1").json()
    again = server.post(body, Idempotency_Key="order-1").json()
    assert (first["accepted"], again["duplicates"], server.usage()) == (2, 2, "2")


def test_the_longest_request_key_leaves_room_for_the_index(server: Running) -> None:
    """255 bytes and an index are within an id's bound."""
    answer = server.post('{"dimension": "calls", "source": "api"}', Idempotency_Key="k" * 255)
    assert answer.json()["accepted"] == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb"])
def test_a_request_key_out_of_bounds_is_refused(shared: Running, key: str) -> None:
    """Before the body is read; nothing is stored."""
    answer = shared.post(GOOD, Idempotency_Key=key)
    assert answer.json()["type"] == "/problems/idempotency-key-invalid"


def test_the_same_event_twice_is_a_duplicate(server: Running) -> None:
    """A repetition is success and counts once."""
    server.post(GOOD)
    answer = server.post(GOOD)
    assert (answer.status_code, answer.json()["duplicates"], server.usage()) == (200, 1, "7")


def test_the_same_key_with_other_content_is_a_conflict(server: Running) -> None:
    """The first counts, the second is kept as evidence, its neighbour counts."""
    first = '{"dimension": "calls", "key": "k", "source": "api", "value": 1}'
    server.post(first)
    answer = server.post(f"[{first.replace('1}', '2}')},{GOOD}]").json()
    assert [result["status"] for result in answer["results"]] == ["conflict", "accepted"]
    assert answer["results"][0]["type"] == "/problems/identity-conflict"
    assert server.usage() == "8"
    assert server.rejections()[0]["verdict"] == "conflict"


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(shared: Running, content_type: str) -> None:
    """The answer names the two; and a page in a browser cannot post events in secret."""
    answer = shared.http.post("/v1/events", content=GOOD, headers={"Content-Type": content_type})
    assert answer.status_code == 415
    assert "application/json or application/vnd.tallybook.blocks" in answer.json()["detail"]


def test_a_charset_beside_the_content_type_is_taken(server: Running) -> None:
    """Many clients add one."""
    assert server.post(GOOD, Content_Type="application/json; charset=utf-8").status_code == 200


# -- blocks --------------------------------------------------------------------------------


def test_a_block_is_stored_and_echoed(server: Running) -> None:
    """The answer is one that the SDK believes."""
    block = block_of(1, 2, 3)
    answer = read_answer(server.post_blocks(block).content, [block])
    assert (answer.receipts[0].status, answer.ledger) == ("stored", server.ledger.id)
    assert server.usage() == "6"


def test_an_announcement_without_blocks_counts(server: Running) -> None:
    """A producer that has nothing to send says that it lives."""
    answer = read_answer(server.post_blocks().content, [])
    assert answer.receipts == []
    assert server.http.get("/v1/producers").json()["data"][0]["recorded"] == 100


def test_the_same_block_twice_counts_once(server: Running) -> None:
    """Its second receipt says so, and is success."""
    block = block_of(1, 2, 3)
    server.post_blocks(block)
    answer = read_answer(server.post_blocks(block).content, [block])
    assert (answer.receipts[0].status, server.usage()) == ("duplicate", "6")


def test_an_overlapping_block_adds_what_is_new(server: Running) -> None:
    """Held events are duplicates, new ones count."""
    server.post_blocks(block_of(1, 2, 3))
    block = block_of(1, 2, 3, 4)
    (receipt,) = read_answer(server.post_blocks(block).content, [block]).receipts
    assert receipt.status == "stored"
    assert [(run.first, run.last, run.verdict) for run in receipt.exceptions] == [
        (1, 3, "duplicate")
    ]
    assert server.usage() == "10"


def test_a_truncated_block_stores_nothing(server: Running) -> None:
    """The request is damaged; sending the same again is right, and the answer says so."""
    body = request_of(block_of(1), block_of(2, first=2))[:-1]
    answer = server.http.post("/v1/events", content=body, headers=BLOCKS)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/request-damaged")
    assert answer.json()["retryable"] is True
    assert server.usage() == "0"


def test_a_flipped_byte_costs_one_block_and_no_neighbour(server: Running) -> None:
    """The receipt says damaged, which means: send it again."""
    damaged = bytearray(block_of(1))
    damaged[-1] ^= 1
    whole = block_of(2, first=2)
    answer = server.post_blocks(bytes(damaged), whole).json()
    assert [receipt["status"] for receipt in answer["receipts"]] == ["damaged", "stored"]
    assert server.usage() == "2"


def test_an_event_of_a_block_out_of_bounds_is_kept(server: Running) -> None:
    """The block is stored, the event is an exception and a rejection."""
    block = block_of(1, dimension="CALLS")
    (receipt,) = read_answer(server.post_blocks(block).content, [block]).receipts
    assert [run.verdict for run in receipt.exceptions] == ["rejected"]
    assert server.rejections()[0]["type"] == "/problems/dimension-invalid"


def test_a_queue_of_another_ledger_is_refused(server: Running) -> None:
    """Nothing is stored: its usage belongs to another book."""
    answer = server.post_blocks(block_of(1), ledger="0" * 32)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/wrong-ledger")
    assert server.usage() == "0"


def test_a_queue_of_this_ledger_is_taken(server: Running) -> None:
    """From the second request on, the announcement names it."""
    assert server.post_blocks(block_of(1), ledger=server.ledger.id).status_code == 200


# -- a ledger that takes nothing -----------------------------------------------------------


def test_a_busy_ledger_answers_when_to_come_back(server: Running) -> None:
    """Whole seconds, rounded up."""
    server.ledger.fault = LedgerBusy("the tail is full", 2.5)
    answer = server.post_blocks(block_of(1))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
    assert answer.json()["type"] == "/problems/busy"


def test_a_full_disk_is_named(server: Running) -> None:
    """Senders keep what they have; the operator reads what to do."""
    server.ledger.fault = LedgerFull("no space left")
    answer = server.post(GOOD)
    assert (answer.status_code, answer.json()["type"]) == (507, "/problems/disk-full")
    assert "Retry-After" in answer.headers


def test_an_append_that_breaks_is_retryable(server: Running) -> None:
    """It may have been stored or not; the same identity makes a repetition safe."""
    server.ledger.fault = OSError("gone")
    answer = server.post_blocks(block_of(1))
    assert (answer.status_code, answer.json()["retryable"]) == (500, True)
