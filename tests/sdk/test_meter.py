"""The Meter: what an application may call, when, and what reaches it."""

from __future__ import annotations

import asyncio
import enum
import errno
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, UserDict
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

import tallybook.meter
from tallybook import DurabilityUnknown, FlushResult, InvalidEvent, Meter, QueueFull, Stats, tenant
from tallybook.block import read_header, read_payload
from tallybook.directory import Lock
from tallybook.limits import BUFFER_EVENTS_MAX
from tallybook.producer import Producer
from tallybook.spool import Spool
from tallybook.testing import FakeIds
from tests.sdk.conftest import ENDPOINT, QUEUE_BYTES, Bench, frame, until

LIVE: dict[str, Any] = {"threads": True, "clock": None}
SMALL: dict[str, Any] = {"queue_bytes_max": 1 << 20}
LEVELS = ["buffered", "process", "power"]


class Text(str):
    """A text that says something else when it is shown."""

    def __str__(self) -> str:
        return "shown otherwise"


class Colour(str, enum.Enum):
    """A text with a name of its own."""

    RED = "red-value"


class Level(enum.IntEnum):
    """A number with a name of its own."""

    HIGH = 3


class Real(float):
    """A float that says its type when it is shown, as numpy's do."""

    def __repr__(self) -> str:
        return f"numpy.float64({float.__repr__(self)})"


def only(bench: Bench) -> Any:
    """The one event that was counted."""
    (event,) = bench.server.events.values()
    return event


# -- recording ---------------------------------------------------------------------------------


def test_a_meter_opens_nothing_before_the_first_event(bench: Bench) -> None:
    """No file, no thread: it may be made at import time and before a fork."""
    threads = threading.active_count()
    meter = bench.meter(threads=True)
    assert (bench.names("*"), threading.active_count()) == ([], threads)
    assert meter.stats() == Stats()
    assert meter.flush().ok


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_recorded_is_counted_once(bench: Bench, level: str) -> None:
    """At every level, with and without threads."""
    for options in ({}, LIVE):
        meter = bench.meter(durability=level, **options)
        for number in range(20):
            meter.record("d", number, tenant="acme", tags={"n": number})
        meter.close()
    assert bench.counted() == sorted([*range(20), *range(20)])


@pytest.mark.parametrize("level", LEVELS)
def test_an_event_arrives_as_it_was_recorded(bench: Bench, level: str) -> None:
    """Every field, through the whole way."""
    meter = bench.meter(durability=level)
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    meter.record("d", Decimal("1.25"), tenant="a", tags={"x": True}, time=moment, key="k")
    assert meter.flush().ok
    event = only(bench)
    assert (event.dimension, event.value, event.tenant) == ("d", (125, 2), "a")
    assert (event.tags, event.key, event.given) == ({"x": "true"}, "k", True)
    assert event.time == 1_767_323_045_000_678


def test_the_moment_is_that_of_recording(bench: Bench) -> None:
    """By the clock, at the call; and again where the clock has gone back meanwhile."""
    meter = bench.meter()
    moments = []
    for jump in (0, 10, -3600, -10 * 365 * 86_400):
        bench.clock.jump(jump)
        moments.append(bench.clock.time_ns() // 1000)
        meter.record("d")
    assert meter.flush().ok
    events = [bench.server.events[key] for key in sorted(bench.server.events)]
    assert [event.time for event in events] == moments


def test_a_clock_before_1970_records_too(bench: Bench) -> None:
    """A board without a clock of its own: by every way into the Meter."""
    meter = bench.meter()
    bench.clock.jump(-60 * 365 * 86_400)
    assert bench.clock.time_ns() < 0
    for _ in range(2):
        meter.record("d", 1, tags={"a": "b"})
        meter.bind("d").add()
    assert meter.flush().ok
    assert len(bench.counted()) == 4


def test_the_tenant_is_that_of_the_context(bench: Bench) -> None:
    """Unless one is given; without any, the event is unattributed and counted so."""
    meter = bench.meter()
    with tenant("acme"):
        meter.record("d", 1)
        meter.record("d", 2, tenant="globex")
        meter.bind("d").add(3)
    meter.record("d", 4)
    meter.bind("d").add(5)
    assert meter.stats().unattributed == 2
    meter.flush()
    tenants = {event.value[0]: event.tenant for event in bench.server.events.values()}
    assert tenants == {1: "acme", 2: "globex", 3: "acme", 4: None, 5: None}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"dimension": "Upper"}, "dimension"),
        ({"dimension": ""}, "dimension"),
        ({"dimension": None}, "dimension"),
        ({"dimension": ["unhashable"]}, "dimension"),
        ({"tenant": ["unhashable"]}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "x" * 256}, "tenant"),
        ({"tenant": "\ud800"}, "tenant"),
        ({"value": -1}, "value"),
        ({"value": -(10**5000)}, "value"),
        ({"value": 10**38}, "value"),
        ({"value": True}, "value"),
        ({"value": "5"}, None),
        ({"value": float("nan")}, "value"),
        ({"value": Decimal("NaN")}, "value"),
        ({"value": None}, "value"),
        ({"tags": 5}, "tags"),
        ({"tags": "text"}, "tags"),
        ({"tags": [("a", "b")]}, "tags"),
        ({"tags": {f"k{number}": "v" for number in range(33)}}, "tags"),
        ({"tags": {"a": ["unhashable"]}}, "tags"),
        ({"tags": {"a": "new\nline"}}, "tags"),
        ({"tags": {"a": "x" * 257}}, "tags"),
        ({"tags": {"": "v"}}, "tags"),
        ({"tags": {5: "v"}}, "tags"),
        ({"tags": {"a": 10**5000}}, "tags"),
        ({"time": datetime(2026, 1, 1)}, "time"),  # noqa: DTZ001
        ({"time": 10**18}, "time"),
        ({"time": 10**5000}, "time"),
        ({"time": "now"}, "time"),
        ({"key": ""}, "key"),
        ({"key": 5}, "key"),
    ],
)
def test_a_wrong_call_raises_invalid_event_and_records_nothing(
    bench: Bench, arguments: dict[str, Any], field: str | None
) -> None:
    """Whatever is passed: InvalidEvent with the field, and never another exception."""
    meter = bench.meter()
    for _ in range(2):  # What is known from before must not let it through.
        meter.record("d", tenant="t", tags={"a": "b"})
        call = {"dimension": "d", "tenant": "t", "tags": {"a": "b"}} | arguments
        if field is None:
            meter.record(**call)
            continue
        with pytest.raises(InvalidEvent) as raised:
            meter.record(**call)
        assert raised.value.field == field
    meter.flush()
    assert len(bench.counted()) == (4 if field is None else 2)


def test_a_key_needs_a_source(bench: Bench) -> None:
    """Keys are unique per source."""
    with pytest.raises(InvalidEvent, match="TALLYBOOK_SOURCE"):
        bench.meter(None).record("d", key="k")


def test_texts_and_numbers_of_subclasses_are_what_they_are_worth(bench: Bench) -> None:
    """Enums, numpy's floats, texts that show themselves otherwise: known before or not."""
    meter = bench.meter()
    for _ in range(2):
        meter.record(
            Text("d"),
            Level.HIGH,
            tenant=Text("acme"),
            tags={Text("k"): Text("v"), "c": Colour.RED, "i": Level.HIGH, "f": Real(1.5)},
        )
        meter.record("d", 3, tenant="acme", tags={"k": "v"})
        meter.record("d", Real(2.5), tenant=Colour.RED, tags={Colour.RED: "x"}, key=Text("key"))
    assert meter.flush().ok
    found = {(e.tenant, e.value, tuple(sorted(e.tags.items())), e.key) for e in events(bench)}
    assert found == {
        ("acme", (3, 0), (("c", "red-value"), ("f", "1.5"), ("i", "3"), ("k", "v")), None),
        ("acme", (3, 0), (("k", "v"),), None),
        ("red-value", (25, 1), (("red-value", "x"),), "key"),
    }


def events(bench: Bench) -> list[Any]:
    """What was counted."""
    return list(bench.server.events.values())


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_tags_are_taken_at_the_call(bench: Bench, kind: Any) -> None:
    """What the caller does to his mapping afterwards changes no event, at level `buffered` too."""
    meter = bench.meter(durability="buffered", **LIVE)
    tags = kind({"a": "before"})
    for _ in range(3):
        meter.record("d", tags=tags)
    handle = meter.bind("d", tags=tags)
    handle.add()
    tags["a"] = "after"
    handle.add()
    assert meter.flush().ok
    assert {event.tags["a"] for event in events(bench)} == {"before"}


def test_a_time_that_is_no_year_of_the_ledger_is_refused_alone(bench: Bench) -> None:
    """
    The year 1 in a zone ahead of UTC is the year 0 in UTC: it was recorded, and the server
    refused its whole block, with two thousand neighbours.
    """
    meter = bench.meter()
    ahead = timezone(timedelta(hours=14))
    with pytest.raises(InvalidEvent):
        meter.record("d", time=datetime(1, 1, 1, tzinfo=ahead))
    with pytest.raises(InvalidEvent):
        meter.record("d", time=datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-1))))
    meter.record("d", time=datetime(1, 1, 2, tzinfo=ahead))
    assert meter.flush().ok
    assert len(bench.counted()) == 1


def test_an_event_without_tags_has_one_series(bench: Bench) -> None:
    """The first, which is checked, and those after it, which are known."""
    meter = bench.meter()
    for _ in range(3):
        meter.record("d", 1)
    meter.record("d", 1, tags={})
    producer = bench.worker(meter).producer
    producer.step(cut=True)
    (waiting,) = producer.queue.pending(9, 1 << 20)
    assert len(read_payload(waiting.data, read_header(waiting.data)).series) == 1


def test_what_is_remembered_of_tags_is_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tags that never repeat do not grow the process."""
    monkeypatch.setattr(tallybook.meter, "KNOWN_TAGS_MAX", 100)
    meter = bench.meter()
    for number in range(1000):
        meter.record("d", tenant=f"t{number}", tags={"id": number, "a": "b"})
    assert len(meter._known_texts) <= 100
    assert len(meter._known_keys) <= 100
    assert len(meter._known_users) <= 100


def test_a_handle_records_as_the_meter_does(bench: Bench) -> None:
    """Checked once, at `bind`; the value at each call."""
    meter = bench.meter()
    with pytest.raises(InvalidEvent):
        meter.bind("d", tags={"a": "\n"})
    handle = meter.bind("d", tenant="acme", tags={"a": 1})
    handle.add()
    handle.add(1000)
    handle.add(Decimal("0.5"))
    with pytest.raises(InvalidEvent):
        handle.add(-1)
    assert meter.flush().ok
    assert {(e.tenant, e.tags["a"], e.value) for e in events(bench)} == {
        ("acme", "1", (1, 0)),
        ("acme", "1", (1000, 0)),
        ("acme", "1", (5, 1)),
    }


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("on_full", ["drop", "raise", "block"])
def test_arecord_is_record(bench: Bench, level: str, on_full: str) -> None:
    """Any number at once, at every level."""
    meter = bench.meter(durability=level, on_full=on_full, **LIVE)

    async def run() -> None:
        await asyncio.gather(*(meter.arecord("d", number) for number in range(50)))

    asyncio.run(run())
    assert meter.close().ok
    assert bench.counted() == list(range(50))


def test_a_task_that_is_cancelled_while_it_waits_has_recorded(bench: Bench) -> None:
    """The event is kept; only the word of the disk is not waited for."""
    meter = bench.meter(durability="power", **LIVE)

    async def run() -> None:
        tasks = [asyncio.create_task(meter.arecord("d", number)) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert meter.close().ok
    assert bench.counted() == list(range(20))


# -- a queue that takes nothing ----------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_full_queue_drops_and_counts(bench: Bench, level: str) -> None:
    """Recorded or dropped, each event is one of them; both are announced."""
    meter = bench.meter(durability=level, on_full="drop", **SMALL)
    for number in range(50 if level == "power" else 60_000):
        meter.record("d", number, tags={"noise": os.urandom(60).hex()})
        if level == "power" and number == 10:
            _fill(bench, meter)
    stats = meter.stats()
    assert stats.dropped > 0
    assert meter.flush().ok
    total = 50 if level == "power" else 60_000
    said = bench.server.announcements[bench.worker(meter).producer.id]
    meter.flush()
    kept = len([event for event in events(bench) if event.dimension == "d"])
    assert kept + meter.stats().dropped == total
    assert said.dropped == meter.stats().dropped


def _fill(bench: Bench, meter: Meter) -> None:
    """Fill the spools behind the Meter's back, to the last place."""
    producer = bench.worker(meter).producer
    for size in (200, 0):
        filler = frame(0, producer.id, dimension="filler", tags={"n": "x" * size})
        with suppress(QueueFull):
            while True:
                try:
                    producer.slot[0](filler)
                except ValueError:
                    producer.store(filler)


def test_a_full_queue_raises_if_it_may(bench: Bench) -> None:
    """QueueFull, the event is not recorded, and everything before it is."""
    meter = bench.meter(on_full="raise", **SMALL)
    recorded = 0
    with pytest.raises(QueueFull, match="tallybook queue status"):
        while True:
            meter.record("d", recorded)
            recorded += 1
    assert meter.flush().ok
    assert bench.counted() == list(range(recorded))


def test_a_full_queue_blocks_until_there_is_room(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """No lock is held meanwhile: others flush, look, and close."""
    meter = bench.meter(on_full="block", **SMALL)
    meter.record("d")
    _fill(bench, meter)
    waiting = threading.Thread(target=meter.record, args=("last",), daemon=True)
    waiting.start()
    until(lambda: "record waits" in caplog.text)
    assert waiting.is_alive()
    assert meter.flush().ok
    waiting.join(20)
    assert not waiting.is_alive()
    assert meter.flush().ok
    assert sum(event.dimension == "last" for event in events(bench)) == 1


def test_a_call_that_waits_for_room_is_let_go_by_closing(bench: Bench) -> None:
    """A new producer has room of its own."""
    bench.server.faults = ["refuse"] * 99
    meter = bench.meter(on_full="block", **SMALL)
    meter.record("d")
    _fill(bench, meter)
    waiting = threading.Thread(target=meter.record, args=("last",), daemon=True)
    waiting.start()
    meter.close()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_full_buffer_raises_if_it_may(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    At level `buffered` the error was raised into the packing thread, which had taken the
    event off the buffer: it was gone, and counted nowhere.
    """
    monkeypatch.setattr(tallybook.meter, "BUFFER_EVENTS_MAX", 500)
    meter = bench.meter(durability="buffered", on_full="raise", **SMALL)
    recorded = 0
    with pytest.raises(QueueFull):
        while True:
            meter.record("d", recorded, tags={"noise": "x" * 200})
            recorded += 1
    assert meter.flush().ok
    assert bench.counted() == list(range(recorded))
    assert meter.stats().dropped == 0


def test_a_full_buffer_blocks_the_caller_and_nobody_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packing thread itself waited for room, which it alone could make: for ever."""
    monkeypatch.setattr(tallybook.meter, "BUFFER_EVENTS_MAX", 500)
    bench.server.faults = ["refuse"] * 4
    meter = bench.meter(durability="buffered", on_full="block", **(LIVE | SMALL))
    for number in range(20_000):
        meter.record("d", number, tags={"noise": "x" * 200})
    assert meter.flush(60).ok
    assert bench.counted() == list(range(20_000))


@pytest.mark.parametrize("level", LEVELS)
def test_a_directory_that_cannot_be_made_drops_and_counts(bench: Bench, level: str) -> None:
    """`record` returns; once the directory can be made, the drops are announced."""
    (bench.directory / "file").write_text("in the way")
    directory = bench.directory / "file" / "queue"
    meter = bench.meter(durability=level, directory=directory)
    for number in range(5):
        meter.record("d", number)
    stats = meter.stats()
    assert stats.dropped == (0 if level == "buffered" else 5)
    assert meter.flush().ok is (level != "buffered")
    (bench.directory / "file").unlink()
    bench.clock.advance(2)
    meter.record("d", 5)
    assert meter.flush().ok
    assert bench.counted() == ([0, 1, 2, 3, 4, 5] if level == "buffered" else [5])
    assert meter.stats().dropped == stats.dropped
    (said,) = bench.server.announcements.values()
    assert said.dropped == stats.dropped


def test_opening_is_tried_once_a_second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that refuses costs a call no disk access; its error does not grow."""
    tries: list[int] = []

    def refuse(self: Producer, *_: object) -> None:
        tries.append(1)
        raise OSError(errno.EACCES, "permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Producer, "__init__", refuse)
        meter = bench.meter()
        for _ in range(100):
            meter.record("d")
        bench.clock.advance(2)
        meter.record("d")
    assert len(tries) == 2
    error = meter._open_error
    assert error is not None
    depth, traceback = 0, error.__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    assert depth < 10


def test_a_dropped_event_at_level_power_is_not_said_to_be_kept(bench: Bench) -> None:
    """With ``on_full="drop"`` a call returns; DurabilityUnknown would say that it will be sent."""
    meter = bench.meter(durability="power", **SMALL)
    meter.record("d", 1)
    _fill(bench, meter)
    meter.record("d", 2)
    assert meter.stats().dropped == 1


# -- interrupted -------------------------------------------------------------------------------


def test_a_signal_handler_may_record_at_any_moment(bench: Bench) -> None:
    """Every 100 microseconds of a long loop over changes of spool, flushes and closings."""
    meter = bench.meter(queue_bytes_max=1 << 21)
    beats = [0]

    def beat(*_: object) -> None:
        beats[0] += 1
        meter.record("beat", beats[0])

    before = signal.signal(signal.SIGALRM, beat)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        for number in range(30_000):
            meter.record("d", number, tags={"noise": "x" * 100})
            if number % 2000 == 0:
                meter.flush()
            if number % 9000 == 0:
                meter.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    while not meter.close().ok:
        pass
    assert beats[0] > 100
    assert _values(bench, "beat") == list(range(1, beats[0] + 1))
    assert _values(bench, "d") == list(range(30_000))
    assert meter.stats().dropped == 0


def _values(bench: Bench, dimension: str) -> list[int]:
    return sorted(event.value[0] for event in events(bench) if event.dimension == dimension)


@pytest.mark.parametrize("level", LEVELS)
def test_a_signal_handler_may_do_anything_at_any_moment(bench: Bench, level: str) -> None:
    """Flush, close, look and record, in the middle of the same: nothing hangs or counts twice."""
    meter = bench.meter(durability=level, queue_bytes_max=1 << 21)
    beats = [0]

    def beat(*_: object) -> None:
        beats[0] += 1
        try:
            meter.record("beat", beats[0])
        except DurabilityUnknown:
            pass
        (meter.stats, meter.flush, meter.close, lambda: None)[beats[0] % 4]()
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, beat)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        for number in range(500 if level == "power" else 10_000):
            try:
                meter.record("d", number, tags={"noise": "x" * 100})
            except DurabilityUnknown:
                pass
            if number % 1000 == 0:
                meter.flush()
            if number % 3000 == 0:
                meter.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    while not meter.close().ok:
        pass
    bench.adopt_all()
    assert beats[0] > 10
    assert _values(bench, "beat") == list(range(1, beats[0] + 1))
    assert _values(bench, "d") == list(range(500 if level == "power" else 10_000))


# A file of somebody else that was just being opened is closed by the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("level", LEVELS)
def test_ctrl_c_at_any_moment_counts_nothing_twice(bench: Bench, level: str) -> None:
    """
    A KeyboardInterrupt in a flush left frames half taken, and the next flush took them again.
    What `record` returned from is counted once; what it was interrupted in, at most once.
    """
    meter = bench.meter(durability=level)
    returned: list[int] = []
    begun = 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for round in range(150):
            signal.setitimer(signal.ITIMER_REAL, 0.0003 + round * 0.00002)
            try:
                for _ in range(30):
                    begun += 1
                    meter.record("d", begun, tags={"n": begun % 7})
                    returned.append(begun)
                meter.flush()
                meter.close()
            except KeyboardInterrupt:
                pass
            finally:
                while signal.getitimer(signal.ITIMER_REAL)[0]:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except KeyboardInterrupt:
                        pass
    finally:
        signal.signal(signal.SIGALRM, before)
    while not meter.close().ok:
        pass
    _close_what_was_interrupted(bench)
    bench.adopt_all()
    counted = bench.counted()
    assert len(counted) == len(set(counted))
    assert set(returned) <= set(counted) <= set(range(1, begun + 1))


def _close_what_was_interrupted(bench: Bench) -> None:
    """A closing that was interrupted is finished by the exit; here by hand."""
    for fd in list(Lock.descriptors):
        os.close(fd)
        Lock.descriptors.pop(fd)
    gc.collect()


def test_a_finaliser_may_record(bench: Bench) -> None:
    """On whatever thread it runs, in the middle of whatever."""
    meter = bench.meter(queue_bytes_max=1 << 21)
    made = [0]

    class Leaver:
        def __init__(self) -> None:
            self.circle = self
            made[0] += 1

        def __del__(self) -> None:
            meter.record("left")

    before = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for number in range(3000):
            Leaver()
            meter.record("d", number, tags={"noise": "x" * 200})
            if number % 300 == 0:
                meter.flush()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert meter.close().ok
    assert len(_values(bench, "left")) == made[0]
    assert _values(bench, "d") == list(range(3000))


# -- closing and going on ----------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_recording_while_it_is_closed_loses_nothing(bench: Bench, level: str) -> None:
    """
    Threads record while another one closes, again and again. At level `buffered` an event
    that was appended in between stayed in memory, and no one came for it.
    """
    meter = bench.meter(durability=level, **LIVE)
    numbers = range(0, 200 if level == "power" else 4000)
    faults: list[BaseException] = []
    done = threading.Event()

    def record(first: int) -> None:
        try:
            for number in numbers[first::3]:
                try:
                    meter.record("d", number)
                except DurabilityUnknown:
                    pass
        except BaseException as error:
            faults.append(error)

    def close() -> None:
        while not done.is_set():
            meter.close()

    threads = [threading.Thread(target=record, args=(first,)) for first in range(3)]
    closing = threading.Thread(target=close)
    for thread in [closing, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    closing.join()
    assert faults == []
    while not meter.close().ok:
        pass
    until(lambda: not Lock.descriptors)
    if bench.names("*.lock"):
        bench.adopt_all()
    assert bench.counted() == list(numbers)


def test_an_event_behind_close_opens_a_new_producer(bench: Bench) -> None:
    """Nothing is lost by closing too early."""
    meter = bench.meter()
    meter.record("d", 1)
    first = meter.stats().producer
    meter.close()
    meter.record("d", 2)
    assert meter.stats().producer not in (None, first)
    assert meter.close().ok
    assert bench.counted() == [1, 2]


def test_with_closes(bench: Bench) -> None:
    """At the end of the block, also when it ends in an exception."""
    with pytest.raises(ZeroDivisionError), bench.meter() as meter:
        meter.record("d", 1)
        raise ZeroDivisionError
    assert bench.counted() == [1]
    assert not bench.names("*.lock")


def test_a_meter_that_nobody_keeps_lives_until_its_events_are_safe(bench: Bench) -> None:
    """It is not collected with an open producer; unopened it is."""
    meter = Meter("app", directory=bench.directory, transport=bench.server, threads=False)
    meter.record("d", 1)
    kept = weakref.ref(meter)
    del meter
    gc.collect()
    found = kept()
    assert found is not None
    assert found.close().ok
    assert bench.counted() == [1]
    unopened = weakref.ref(Meter("app", directory=bench.directory))
    gc.collect()
    assert unopened() is None


def test_two_meters_share_a_directory(bench: Bench) -> None:
    """Each is a producer of its own; neither takes the other for dead."""
    first, second = bench.meter("one", **LIVE), bench.meter("two", **LIVE)
    for number in range(100):
        (first, second)[number % 2].record("d", number)
    assert first.flush().ok
    assert second.flush().ok
    assert first.stats().adopted == second.stats().adopted == 0
    assert first.close().ok
    second.record("d", 100)
    assert second.close().ok
    assert bench.counted() == list(range(101))


def test_meters_of_two_endpoints_share_a_directory(bench: Bench) -> None:
    """What the one left is reported by the other, and left alone."""
    there = bench.meter("there", endpoint="http://127.0.0.1:2", transport=bench.server)
    there.record("there", 1)
    name = bench.crash(there)
    here = bench.meter("here")
    here.record("here", 1)
    bench.worker(here).flush_step()
    assert name in here.stats().held
    assert here.close().ok
    assert [event.dimension for event in events(bench)] == ["here"]
    bench.clock.advance(60)
    again = bench.meter("there", endpoint="http://127.0.0.1:2", transport=bench.server)
    again.record("there", 2)
    while len(bench.names("*.lock")) > 1:
        bench.worker(again).flush_step()
        bench.clock.advance(60)
    again.close()
    assert _values(bench, "there") == [1, 2]


# -- flushing and looking ----------------------------------------------------------------------


def test_flush_says_what_it_has_achieved(bench: Bench) -> None:
    """Everything, how many, and nothing that waits."""
    meter = bench.meter()
    for number in range(5):
        meter.record("d", number)
    assert meter.flush() == FlushResult(ok=True, sent=5, pending=0, error=None)
    assert meter.flush() == FlushResult(ok=True, sent=0, pending=0, error=None)


def test_flush_never_raises_for_a_server_that_is_down(bench: Bench) -> None:
    """It says what waits, and why."""
    bench.server.faults = [503] * 99
    meter = bench.meter(**LIVE)
    meter.record("d", 1)
    result = meter.flush(timeout=0.05)
    assert (result.ok, result.pending) == (False, 1)
    assert "503" in str(result.error)
    bench.server.faults = []


def test_flush_without_an_endpoint_says_so(bench: Bench) -> None:
    """The event is on disk, and not sent."""
    meter = bench.meter(endpoint=None, transport=None)
    meter.record("d", 1)
    result = meter.flush()
    assert (result.ok, result.pending) == (False, 1)
    assert "no endpoint" in str(result.error)


def test_flush_is_not_ok_while_events_are_set_aside(bench: Bench) -> None:
    """They are not at the server, so it is not said that everything is."""
    bench.server.faults = [422] * 3
    meter = bench.meter(ids=FakeIds(0.0))
    meter.record("d", 1)
    result = meter.flush()
    assert (result.ok, result.pending) == (False, 0)
    assert "set aside" in str(result.error)


def test_flush_does_not_wait_for_what_others_record_meanwhile(bench: Bench) -> None:
    """Everything before the call is at the server: that is what it says, and then returns."""
    meter = bench.meter(**LIVE)
    meter.record("d", 0)
    recorded, stop = [0], threading.Event()

    def record() -> None:
        while not stop.is_set():
            recorded[0] += 1
            meter.record("d", recorded[0])
            if recorded[0] % 100 == 0:
                stop.wait(0.001)

    recording = threading.Thread(target=record)
    recording.start()
    try:
        until(lambda: recorded[0] > 1000)
        for _ in range(5):
            before = recorded[0]
            result = meter.flush(30)
            assert result.ok, result
            assert len(bench.server.events) >= before
    finally:
        stop.set()
        recording.join()
    meter.close()


def test_flush_never_raises_for_a_disk_that_refuses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of the queue fails."""
    meter = bench.meter()
    meter.record("d", 1)
    queue = bench.worker(meter).producer.queue

    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    names = ("commit_block", "pending", "counts", "settle", "last_id", "waits", "note")
    for name in names:
        meter.record("d", 1)
        with monkeypatch.context() as patch:
            patch.setattr(queue, name, refuse)
            result = meter.flush()
            assert (result.ok, result.error) == (False, "disk I/O error"), name
            meter.stats()
        bench.clock.advance(60)
    assert meter.flush().ok
    assert bench.counted() == [1] * (len(names) + 1)


def test_stats_are_right_while_others_record_and_pack(bench: Bench) -> None:
    """Never less than what a thread has recorded, and nothing is packed twice by looking."""
    meter = bench.meter(**LIVE)
    recorded = [0]

    def record() -> None:
        for number in range(5000):
            meter.record("d", number)
            recorded[0] = number + 1

    recording = threading.Thread(target=record)
    meter.record("first", 1)
    recording.start()
    while recording.is_alive():
        before = recorded[0]
        stats = meter.stats()
        assert stats.recorded >= before + 1
    assert meter.stats().recorded == 5001
    assert meter.close().ok
    assert _values(bench, "d") == list(range(5000))


def test_stats_count_everything_once(bench: Bench) -> None:
    """Recorded, pending, acknowledged, dropped, unattributed."""
    meter = bench.meter()
    for number in range(5):
        meter.record("d", number)
    bench.worker(meter).producer.count_drop()
    stats = meter.stats()
    assert (stats.recorded, stats.pending, stats.acknowledged) == (5, 5, 0)
    assert (stats.dropped, stats.unattributed, stats.torn) == (1, 5, 0)
    assert stats.bytes >= QUEUE_BYTES // 4
    meter.flush()
    stats = meter.stats()
    assert (stats.recorded, stats.pending, stats.acknowledged) == (5, 0, 5)


def test_through_never_claims_what_is_in_memory(bench: Bench) -> None:
    """
    At level `buffered` the announcement every 30 s said that everything was packed, while
    events lay in memory that had no sequence yet.
    """
    meter = bench.meter(durability="buffered", **SMALL)
    meter.record("d", 1)
    meter.flush()
    worker = bench.worker(meter)
    bench.clock.advance(31)
    first = bench.clock.time_ns() // 1000
    _fill(bench, meter)
    meter._settings = type(meter._settings)(
        **{name: getattr(meter._settings, name) for name in meter._settings.__struct_fields__}
        | {"on_full": "raise"}
    )
    for number in range(2, 50):
        meter.record("d", number, tags={"noise": "x" * 200})
    bench.clock.advance(31)
    worker._send()
    said = bench.server.announcements[worker.producer.id]
    assert len(meter._buffer) > 0
    assert said.through < first


def test_closed_is_said_with_the_time_through_which_all_is_in(bench: Bench) -> None:
    """The last announcement of a producer reaches to its end."""
    meter = bench.meter(durability="buffered")
    meter.record("d", 1)
    bench.clock.advance(5)
    producer = meter.stats().producer
    meter.close()
    said = bench.server.announcements[bytes.fromhex(str(producer))]
    assert (said.closed, said.through) == (True, bench.clock.time_ns() // 1000)


def test_a_failed_sync_is_unknown_and_never_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is kept: recording it again would count it twice, and the message says so."""

    def fail(self: Spool) -> None:
        raise OSError(errno.EIO, "Input/output error")

    meter = bench.meter(durability="power")
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "sync", fail)
        with pytest.raises(DurabilityUnknown, match="do not record it again"):
            meter.record("d", 1)
    meter.record("d", 2)
    assert meter.flush().ok
    assert bench.counted() == [1, 2]


def test_no_key_in_a_repr(bench: Bench) -> None:
    """Neither the Meter's nor its settings'."""
    meter = bench.meter(api_key="tb_secret")
    assert "tb_secret" not in repr(meter) + repr(meter._settings)


# -- exits -------------------------------------------------------------------------------------

PROGRAM = """
import atexit, os, sys, threading
{before}
from tallybook import Meter
meter = Meter("app", directory=sys.argv[1], endpoint="{endpoint}", durability=sys.argv[2],
              close_seconds=0.2)
{after}
"""


def run(bench: Bench, level: str, after: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program that records and exits; what it left is adopted."""
    program = PROGRAM.format(before=before, after=after, endpoint=ENDPOINT)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(bench.directory), level],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if bench.names("*.lock"):
        bench.adopt_all()
    return ran


@pytest.mark.parametrize("level", LEVELS)
def test_an_exit_without_close_loses_nothing(bench: Bench, level: str) -> None:
    """The server is away: the exit takes no longer than it may, and everything is on disk."""
    ran = run(bench, level, "for n in range(100): meter.record('d', n)")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert bench.counted() == list(range(100))


@pytest.mark.parametrize("level", LEVELS)
def test_an_exit_by_an_exception_loses_nothing(bench: Bench, level: str) -> None:
    """Whatever ends the main thread."""
    ran = run(bench, level, "meter.record('d', 1)\nraise SystemExit(3)")
    assert ran.returncode == 3
    assert bench.counted() == [1]


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_recorded_at_exit_behind_our_own_end_is_kept(bench: Bench, level: str) -> None:
    """An atexit function that was there before us runs after us, when no thread can start."""
    ran = run(
        bench,
        level,
        before="atexit.register(lambda: [meter.record('d', n) for n in (2, 3)])",
        after="meter.record('d', 1)",
    )
    assert ran.returncode == 0, ran.stderr
    assert bench.counted() == [1, 2, 3]


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_daemon_thread_records_at_exit_is_kept_or_not_begun(
    bench: Bench, level: str
) -> None:
    """It is cut off anywhere: each event once at most, and none that `record` returned from
    before the exit began is missing."""
    after = """
started = threading.Event()
def work():
    number = 0
    while True:
        meter.record("d", number)
        number += 1
        if number == 50:
            started.set()
        if number > 500:
            threading.Event().wait(0.001)
threading.Thread(target=work, daemon=True).start()
started.wait(20)
"""
    ran = run(bench, level, after)
    assert ran.returncode == 0, ran.stderr
    counted = bench.counted()
    assert counted[:50] == list(range(50))
    assert len(set(counted)) == len(counted)


def test_a_child_of_multiprocessing_ends_cleanly_at_level_buffered(bench: Bench) -> None:
    """It ends by `os._exit`, which runs no atexit: what was in memory was lost."""
    after = """
import multiprocessing
def work(first):
    for n in range(first, first + 10):
        meter.record("d", n)
context = multiprocessing.get_context("fork")
children = [context.Process(target=work, args=(first,)) for first in (0, 10)]
for child in children: child.start()
for child in children: child.join()
"""
    ran = run(bench, "buffered", after)
    assert ran.returncode == 0, ran.stderr
    assert bench.counted() == list(range(20))


def test_what_could_not_be_kept_at_exit_is_said(bench: Bench) -> None:
    """At level `buffered`, with a directory that refuses: lost, and not in silence."""
    (bench.directory / "file").write_text("in the way")
    program = PROGRAM.format(before="", after="meter.record('d')", endpoint=ENDPOINT)
    ran = subprocess.run(
        [sys.executable, "-c", program, str(bench.directory / "file" / "q"), "buffered"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0
    assert "lost at exit" in ran.stderr


def test_the_default_meter_is_that_of_the_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made at the first call, and the same afterwards."""
    monkeypatch.setattr(tallybook.meter, "_default", None)
    monkeypatch.setenv("TALLYBOOK_SOURCE", "from-outside")
    monkeypatch.setenv("TALLYBOOK_DIRECTORY", str(bench.directory))
    meter = tallybook.meter.default_meter()
    assert meter is tallybook.meter.default_meter()
    assert "from-outside" in repr(meter)


def test_the_buffer_has_a_bound() -> None:
    """Events in memory are bounded by a named limit."""
    assert BUFFER_EVENTS_MAX == 100_000
