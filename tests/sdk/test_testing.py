"""What we ship for our users' tests behaves as the real thing where it counts."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from tallybook import InvalidEvent, tenant
from tallybook.block import encode_block, pack
from tallybook.errors import ServerUnreachable
from tallybook.frame import split_body
from tallybook.testing import FakeClock, FakeIds, MemoryMeter, MemoryServer
from tallybook.wire import Announcement, encode_request, read_answer
from tests.sdk.conftest import Bench, body


def test_a_memory_meter_keeps_what_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a list, with totals, and nothing on disk."""
    monkeypatch.chdir(tmp_path)
    meter = MemoryMeter()
    meter.record("d", 2, tenant="acme", tags={"model": "large"})
    meter.record("d", Decimal("0.5"), tenant="acme")
    meter.bind("d", tenant="globex").add(7)
    assert meter.total("d") == Decimal("9.5")
    assert meter.total("d", tenant="acme", model="large") == 2
    assert meter.flush().ok
    assert meter.close().ok
    assert list(tmp_path.iterdir()) == []
    meter.clear()
    assert meter.total("d") == 0


def test_a_memory_meter_checks_as_the_real_one() -> None:
    """A call that is wrong raises in the tests of our users too."""
    with pytest.raises(InvalidEvent):
        MemoryMeter().record("d", -1)


@pytest.mark.parametrize("level", ["power", "buffered"])
def test_a_memory_meter_keeps_its_list_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """At level `power` it opened a directory, to sync what was in its list."""
    monkeypatch.setenv("TALLYBOOK_DURABILITY", level)
    monkeypatch.setenv("TALLYBOOK_ON_FULL", "raise")
    meter = MemoryMeter()
    meter.record("d")
    asyncio.run(meter.arecord("d"))
    meter.bind("d").add()
    assert meter.total("d") == 3


def test_a_memory_meter_knows_keys_and_tenants() -> None:
    """A key counts once; the tenant is that of the context."""
    meter = MemoryMeter()
    with tenant("acme"):
        meter.record("d", key="k")
        meter.record("d", key="k")
    assert meter.total("d", tenant="acme") == 1


def request(value: int, producer: bytes = b"p" * 16) -> tuple[bytes, bytes]:
    """A request with one block of one event; and the block."""
    block = encode_block(pack(None, [split_body(body(value))]), producer=producer, first=1)
    said = Announcement(
        producer=producer,
        sent_at=0,
        blocks=1,
        recorded=1,
        dropped=0,
        highest=1,
        through=0,
        closed=False,
    )
    return encode_request(said, [block]), block


def test_a_memory_server_counts_each_event_once() -> None:
    """The same again is a duplicate, another one a conflict; both as the real server says."""
    server = MemoryServer()
    first, block = request(1)
    assert read_answer(server.send(first, "").body, [block]).receipts[0].status == "stored"
    assert read_answer(server.send(first, "").body, [block]).receipts[0].status == "duplicate"
    second, other = request(2)
    receipt = read_answer(server.send(second, "").body, [other]).receipts[0]
    assert [run.verdict for run in receipt.exceptions] == ["conflict"]
    assert server.total("d") == 1
    assert [event.value for event in server.conflicts] == [(2, 0)]


def test_a_memory_server_fails_to_order() -> None:
    """Refused is not stored, lost is; then it goes on."""
    server = MemoryServer()
    sent, _ = request(1)
    server.faults = ["refuse", "portal", 503]
    with pytest.raises(ServerUnreachable):
        server.send(sent, "")
    assert server.send(sent, "").status == 200
    assert server.send(sent, "").status == 503
    assert server.events == {}
    server.faults = ["lose"]
    with pytest.raises(ServerUnreachable):
        server.send(sent, "")
    assert server.total("d") == 1
    server.close()


def test_a_fake_clock_moves_when_it_is_told_to() -> None:
    """Both clocks at once, or the wall clock alone."""
    clock = FakeClock(0)
    time_ns = clock.time_ns
    clock.advance(1.5)
    clock.jump(-3600)
    assert (time_ns(), clock.monotonic()) == (-3_598_500_000_000, 1.5)


def test_fake_ids_count(bench: Bench) -> None:
    """Producers 1, 2, 3, and chance that is always the same."""
    ids = FakeIds(0.25)
    assert [ids.producer()[-1], ids.producer()[-1], ids.fraction()] == [1, 2, 0.25]
    meter = bench.meter(ids=FakeIds())
    meter.record("d")
    assert meter.stats().producer == "0" * 31 + "1"
