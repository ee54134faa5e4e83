"""The committer: each frame into one block, once, whatever ends a step in its middle."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallybook.block import read_header, read_payload
from tallybook.committer import Committer
from tallybook.frame import encode_frame, frame_seed, split_body
from tallybook.limits import BLOCK_EVENTS_MAX, SPOOL_HEADER_BYTES
from tallybook.queue import Packed, Queue, QueueDamaged
from tests.sdk.conftest import PRODUCER, frame

START = SPOOL_HEADER_BYTES


def committed(queue: Queue) -> list[int]:
    """The values of all events that are in blocks, in the order of their sequences."""
    values: list[int] = []
    for waiting in queue.pending(1000, 1 << 30):
        header = read_header(waiting.data)
        assert header.first == len(values) + 1
        values += [event.value[0] for event in read_payload(waiting.data, header).events()]
    return values


def committed_any(queue: Queue) -> list[object]:
    """All events that are in blocks."""
    return [
        event
        for waiting in queue.pending(1000, 1 << 30)
        for event in read_payload(waiting.data, read_header(waiting.data)).events()
    ]


def take(committer: Committer, data: bytes, number: int = 0) -> None:
    """Take the rest of a spool that holds *data*, and cut."""
    _, offset = committer.read
    committer.take(number, data[offset - START :], offset, 0)
    committer.cut(0)


def test_an_events_sequence_is_its_place_in_the_spool(queue: Queue) -> None:
    """In order, from 1, over the ends of blocks."""
    data = b"".join(map(frame, range(2 * BLOCK_EVENTS_MAX + 5)))
    take(Committer(queue, PRODUCER, "app"), data)
    assert committed(queue) == list(range(2 * BLOCK_EVENTS_MAX + 5))
    counts = [read_header(waiting.data).count for waiting in queue.pending(9, 1 << 30)]
    assert counts == [BLOCK_EVENTS_MAX, BLOCK_EVENTS_MAX, 5]


def test_nothing_has_a_sequence_before_its_block_is_committed(queue: Queue) -> None:
    """What was taken and not cut is in no block, and a restart takes it again."""
    first = Committer(queue, PRODUCER, "app")
    first.take(0, frame(1) + frame(2), START, 0)
    assert (first.taken, first.packed) == (2, Packed())
    take(Committer(queue, PRODUCER, "app"), frame(1) + frame(2) + frame(3))
    assert committed(queue) == [1, 2, 3]


def test_a_torn_frame_takes_no_sequence(queue: Queue) -> None:
    """What is torn is stepped over and counted; the next event has the next sequence."""
    torn = bytearray(frame(2))
    torn[12] ^= 1
    take(Committer(queue, PRODUCER, "app"), frame(1) + bytes(torn) + frame(3))
    assert committed(queue) == [1, 3]
    assert queue.packed().torn == 1
    assert queue.packed().sequence == 3


def test_torn_bytes_alone_move_the_position(queue: Queue) -> None:
    """Damage without an event behind it is not looked at again and again."""
    take(Committer(queue, PRODUCER, "app"), b"\xa1\xb7garbage")
    assert queue.packed() == Packed(0, START + 9, 1, 1)


def test_a_body_that_we_never_wrote_is_torn(queue: Queue) -> None:
    """The checksum holds and the content does not: counted as damage, and never fatal."""
    forged = encode_frame(b"\x96nonsense", frame_seed(PRODUCER))
    take(Committer(queue, PRODUCER, "app"), frame(1) + forged + frame(3))
    assert committed(queue) == [1, 3]
    assert queue.packed().torn == 1


def test_every_kind_of_event_comes_out_as_it_went_in(queue: Queue) -> None:
    """Keys, given times, decimals, values beyond 63 bits, and no tenant."""
    kinds = [
        {"key": "k"},
        {"given": True, "time": -5},
        {"value": (125, 2)},
        {"value": (10**37 + 1, 9)},
        {"value": (200, 0)},
        {"tenant": None, "tags": {"a": "b"}},
        {},
    ]
    data = b"".join(frame(index, **cast(Any, kind)) for index, kind in enumerate(kinds))
    take(Committer(queue, PRODUCER, "app"), data)
    (waiting,) = queue.pending(9, 1 << 20)
    events = read_payload(waiting.data, read_header(waiting.data)).events()
    assert [(e.key, e.given, e.tenant, e.tags) for e in events] == [
        ("k", False, "t", {}),
        (None, True, "t", {}),
        (None, False, "t", {}),
        (None, False, "t", {}),
        (None, False, "t", {}),
        (None, False, None, {"a": "b"}),
        (None, False, "t", {}),
    ]
    assert [e.value for e in events] == [
        (0, 0), (1, 0), (125, 2), (10**37 + 1, 9), (200, 0), (5, 0), (6, 0),
    ]  # fmt: skip
    assert events[1].time == -5


def test_every_width_of_a_value_is_packed_as_it_was_recorded(queue: Queue) -> None:
    """At each border of msgpack's integers, as an integer and as a decimal."""
    borders = [2**bits + off for bits in (5, 7, 8, 15, 16, 31, 32, 62, 63, 64) for off in (-1, 0)]
    values = [(border, scale) for border in borders for scale in (0, 1, 9)]
    values = [(mantissa + (mantissa % 10 == 0), scale) for mantissa, scale in values]
    data = b"".join(frame(index, value=value) for index, value in enumerate(values))
    take(Committer(queue, PRODUCER, "app"), data)
    (waiting,) = queue.pending(9, 1 << 20)
    events = read_payload(waiting.data, read_header(waiting.data)).events()
    assert [event.value for event in events] == values
    assert len({event.time - index for index, event in enumerate(events)}) == 1


def test_a_clock_that_goes_back_is_packed(queue: Queue) -> None:
    """Times are what the host's clock said, in the order of recording."""
    times = [1_700_000_000_000_000, 1_600_000_000_000_000, 1_800_000_000_000_000, 5]
    take(Committer(queue, PRODUCER, "app"), b"".join(frame(1, time=time) for time in times))
    (waiting,) = queue.pending(9, 1 << 20)
    columns = read_payload(waiting.data, read_header(waiting.data))
    assert columns.absolute_times() == times


def test_a_block_of_the_largest_events_stays_within_the_bound(queue: Queue) -> None:
    """Blocks are cut by their bytes too, long before the bound that readers refuse."""
    data = b"".join(
        frame(index, tags={f"k{tag:02}{'x' * 60}": f"{index}" * 50 for tag in range(32)})
        for index in range(600)
    )
    take(Committer(queue, PRODUCER, "app"), data)
    assert committed(queue) == list(range(600))
    assert len(queue.pending(1000, 1 << 30)) > 1


@pytest.mark.parametrize("durable", [False, True])
def test_a_commit_that_fails_twice_is_looked_at_before_the_next(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Nothing is taken behind a commit of which nobody knows whether it holds."""
    committer = Committer(queue, PRODUCER, "app")
    commit = Queue.commit_block

    def fail(self: Queue, block: bytes, packed: Packed, now: int) -> None:
        if durable:
            commit(self, block, packed, now)
        raise OSError("the disk refuses")

    monkeypatch.setattr(Queue, "commit_block", fail)
    data = frame(1) + frame(2)
    with pytest.raises(OSError, match="refuses"):
        take(committer, data)
    monkeypatch.setattr(Queue, "commit_block", commit)
    committer.recover()
    take(committer, data + frame(3))
    assert committed(queue) == [1, 2, 3]


def interrupting(function: Callable[..., object], calls: int) -> Callable[..., object]:
    """*function*, with a KeyboardInterrupt in place of its call number *calls*."""
    left = [calls]

    def call(*arguments: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


@pytest.mark.parametrize("calls", range(1, 8))
def test_an_interrupt_in_the_middle_counts_nothing_twice(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """
    Ctrl-C in a `flush` left frames taken and the place in the spool not moved: the next step
    took them once more, into the same block, under new sequences.
    """
    data = b"".join(frame(index, value=(index, 1)) for index in range(10))
    committer = Committer(queue, PRODUCER, "app")
    monkeypatch.setattr("tallybook.committer.split_body", interrupting(split_body, calls))
    with pytest.raises(KeyboardInterrupt):
        take(committer, data)
    monkeypatch.undo()
    committer.recover()
    take(committer, data)
    assert committed(queue) == list(range(10))


def test_on_a_full_disk_a_block_waits_for_the_one_before_it(queue: Queue) -> None:
    """Packing must not take the room that marking what was sent needs."""
    committer = Committer(queue, PRODUCER, "app")
    committer.short = True
    take(committer, frame(0))
    with pytest.raises(OSError, match="sent first"):
        take(committer, frame(0) + frame(1))
    committer.recover()
    queue.settle([(1, "acknowledged", None)])
    take(committer, frame(0) + frame(1))
    assert [waiting.id for waiting in queue.pending(9, 1 << 20)] == [2]


def test_a_queue_that_has_forgotten_is_damaged(queue: Queue) -> None:
    """Going on from an older position would give sequences a second time."""
    committer = Committer(queue, PRODUCER, "app")
    take(committer, frame(1))
    queue._change(lambda connection: connection.execute("delete from meta"))
    committer._uncertain = True
    with pytest.raises(QueueDamaged, match="sequence 1; it has said 2"):
        committer.recover()


def test_the_next_spool_begins_behind_its_header(queue: Queue) -> None:
    """The drops of the file before it are kept, and the sequence goes on."""
    committer = Committer(queue, PRODUCER, "app")
    take(committer, frame(1))
    committer.next_spool(1, 5, 0)
    assert queue.packed() == Packed(1, START, 2, 0, 5)
    take(committer, frame(2), number=1)
    assert committed(queue) == [1, 2]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.lists(st.sampled_from(["common", "key", "wide", "torn"]), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_however_the_bytes_are_cut_the_events_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], cuts: list[int]
) -> None:
    """Taken in any portions, with or without cuts between, the sequences are the same."""
    shapes: dict[str, Any] = {"common": {}, "key": {"key": "k"}, "wide": {"value": (10**30, 0)}}
    parts: list[bytes] = []
    for index, kind in enumerate(kinds):
        whole = frame(index, **({"value": (index, 3)} | shapes.get(kind, {})))
        parts.append(whole if kind != "torn" else whole[:-1] + b"\0")
    expected = sum(kind != "torn" for kind in kinds)
    ends = [START, *accumulate(map(len, parts), initial=START)]
    data = b"".join(parts)
    queue = Queue(tmp_path_factory.mktemp("q") / "q.db")
    committer = Committer(queue, PRODUCER, "app")
    for cut in sorted({min(cut, len(parts)) for cut in cuts}):
        _, offset = committer.read
        committer.take(0, data[offset - START : ends[cut + 1] - START], offset, 0)
        if cut % 2:
            committer.cut(0)
    take(committer, data)
    assert len(committed_any(queue)) == expected
    assert queue.packed().offset == START + len(data)
    queue.close()
