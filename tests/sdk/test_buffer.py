"""The buffer: what is in memory gets into the spool once, whatever ends the move."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from tallybook.block import read_header, read_payload
from tallybook.buffer import Buffer
from tallybook.errors import QueueFull
from tallybook.producer import Producer, ProducerClosed
from tallybook.queue import Reentered
from tests.sdk.conftest import Bench, body

SMALL = {"queue_bytes_max": 1 << 20}


def packed(producer: Producer) -> list[int]:
    """The values of all events that were stored."""
    producer.step(cut=True)
    return [
        event.value[0]
        for waiting in producer.queue.pending(10_000, 1 << 30)
        for event in read_payload(waiting.data, read_header(waiting.data)).events()
    ]


def fill(buffer: Buffer, *numbers: int) -> None:
    """Record into memory."""
    for number in numbers:
        buffer.waiting.append(body(number))


def test_what_waits_is_stored_in_order(bench: Bench) -> None:
    """And nothing is left in memory."""
    buffer, producer = Buffer(), bench.producer()
    fill(buffer, *range(2500))
    assert buffer.drain(producer) == 2500
    assert len(buffer) == 0
    assert packed(producer) == list(range(2500))


def test_a_full_spool_in_the_middle_is_gone_on_from(bench: Bench) -> None:
    """Over as many files as it takes."""
    buffer, producer = Buffer(), bench.producer(**SMALL)
    fill(buffer, *range(25_000))
    buffer.drain(producer)
    assert packed(producer) == list(range(25_000))


def test_what_finds_no_room_waits_on(bench: Bench) -> None:
    """What was stored before is not stored again."""
    buffer, producer = Buffer(), bench.producer(**SMALL)
    fill(buffer, *range(50_000))
    with pytest.raises(QueueFull):
        buffer.drain(producer)
    left = len(buffer)
    assert 0 < left < 50_000
    other = bench.producer(**SMALL)
    buffer.drain(other)
    assert packed(producer) + packed(other) == list(range(50_000))


def test_a_producer_that_closes_in_the_middle_is_followed_by_another(bench: Bench) -> None:
    """The rest is stored under the other's name, with its checksums."""
    buffer, producer, other = Buffer(), bench.producer(), bench.producer()
    fill(buffer, 1, 2, 3)
    producer.shut()
    with pytest.raises(ProducerClosed):
        buffer.drain(producer)
    buffer.drain(other)
    assert packed(other) == [1, 2, 3]


def test_what_is_discarded_is_counted_once(bench: Bench) -> None:
    """All that waits, and nothing of it is stored later."""
    buffer, producer = Buffer(), bench.producer(**SMALL)
    fill(buffer, *range(50_000))
    with pytest.raises(QueueFull):
        buffer.drain(producer)
    stored = packed(producer)
    assert buffer.discard() == 50_000 - len(stored)
    assert (buffer.discard(), len(buffer)) == (0, 0)
    assert buffer.drain(bench.producer()) == 0


def test_emptying_within_emptying_is_refused(bench: Bench) -> None:
    """A signal handler in the middle of it is told so."""
    buffer, producer = Buffer(), bench.producer()
    refused: list[bool] = []

    class Interrupting(Producer):
        @property
        def slot(self) -> Any:  # type: ignore[override]
            with pytest.raises(Reentered):
                buffer.drain(producer)
            refused.append(buffer.entered)
            return vars(producer)["slot"]

    interrupting = Interrupting.__new__(Interrupting)
    fill(buffer, 1)
    buffer.drain(interrupting)
    assert refused == [True]
    assert packed(producer) == [1]


def test_two_who_empty_it_store_everything_once(bench: Bench) -> None:
    """While others record."""
    buffer, producer = Buffer(), bench.producer(**SMALL)
    recording = threading.Event()

    def record(first: int) -> None:
        fill(buffer, *range(first, 8_000, 2))

    def drain() -> None:
        while not recording.is_set() or len(buffer):
            buffer.drain(producer)

    recorders = [threading.Thread(target=record, args=(first,)) for first in (0, 1)]
    drainers = [threading.Thread(target=drain) for _ in range(2)]
    for thread in (*recorders, *drainers):
        thread.start()
    for thread in recorders:
        thread.join()
    recording.set()
    for thread in drainers:
        thread.join()
    assert sorted(packed(producer)) == list(range(8_000))


@pytest.fixture
def interrupt_at() -> Iterator[Any]:
    """Raise KeyboardInterrupt before a chosen line of the move, as Ctrl-C does."""

    def begin(line: int) -> list[bool]:
        left, raised = [line], [False]

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code not in (Buffer._drain.__code__, Buffer._store.__code__):
                return trace
            if event == "line":
                left[0] -= 1
                if left[0] == 0:
                    raised[0] = True
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        return raised

    before = sys.gettrace()
    yield begin
    sys.settrace(before)


def test_an_interrupt_at_any_line_loses_and_doubles_nothing(
    bench: Bench, interrupt_at: Any
) -> None:
    """Ctrl-C between any two lines of the move, and the next move goes on where it was."""
    producer = bench.producer()
    expected: list[int] = []
    for line in range(1, 1000):
        buffer = Buffer()
        fill(buffer, line * 10, line * 10 + 1, line * 10 + 2)
        expected += [line * 10, line * 10 + 1, line * 10 + 2]
        raised = interrupt_at(line)
        try:
            buffer.drain(producer)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        buffer.drain(producer)
        assert len(buffer) == 0
        if not raised[0]:
            break
    assert line > 10
    assert packed(producer) == expected
