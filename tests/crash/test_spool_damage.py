"""The spool of a dead producer is damaged at every byte: each event that is whole counts once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tallybook.adoption import Orphan
from tallybook.block import columns_bodies, read_header, read_payload
from tallybook.clock import SystemClock
from tallybook.directory import Lock, lock_names
from tallybook.frame import Frame, frame_seed, scan
from tallybook.limits import SPOOL_HEADER_BYTES
from tests.crash.jobs import record_and_die
from tests.crash.processes import Zygote

EVENTS = 30
PACKED = 15
ENDPOINT = "http://127.0.0.1:1"

Damage = Callable[[bytes, int], bytes]


def flip(data: bytes, at: int) -> bytes:
    """One byte is another."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def flip_a_bit(data: bytes, at: int) -> bytes:
    """One bit is another."""
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def zero(data: bytes, at: int) -> bytes:
    """One byte was never stored; one that is zero anyway becomes another."""
    return data[:at] + (b"\0" if data[at] else b"\1") + data[at + 1 :]


def cut(data: bytes, at: int) -> bytes:
    """The file ends here."""
    return data[:at]


class DeadProducer:
    """
    What a process left that recorded thirty small events, and packed half of them.

    Attributes:
        spool: The bytes of its only spool, up to the last frame's end.
        ends: Where each frame ends.
    """

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self._original = folder / "original"
        self._copy = folder / "copy"
        job = zygote.run(
            record_and_die,
            directory=self._original,
            endpoint=ENDPOINT,
            report=folder / "returned",
            first=100,
            events=EVENTS,
        )
        assert job.wait() == -9
        (path,) = self._original.glob("*.spool-0")
        self._name = path.name
        data = path.read_bytes()
        seed = frame_seed(bytes.fromhex(path.stem))
        found = list(scan(data, SPOOL_HEADER_BYTES, seed))
        self.ends = [frame.end for frame in found if isinstance(frame, Frame)]
        assert len(found) == len(self.ends) == EVENTS
        # Some zeros behind the last frame, as in the real file.
        self.spool = data[: self.ends[-1] + 64]

    def adopt(self, spool: bytes) -> tuple[list[int], int]:
        """Give a copy this spool, and adopt it: the events of its blocks, and the torn."""
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._original, self._copy)
        (self._copy / self._name).write_bytes(spool)
        lock = Lock.take(lock_names(self._copy)[0])
        assert lock is not None
        orphan = Orphan(self._copy, lock, ENDPOINT, SystemClock())
        try:
            return list(_events(orphan)), orphan.queue.packed().torn
        finally:
            orphan.release(finished=False)

    def expected(self, damage: Damage, at: int) -> tuple[list[int], int]:
        """
        What has to be found when the byte at *at* is damaged.

        A frame that no block holds is lost when a byte of it is, and that is counted. A
        header, and frames that are in a block already, are not needed any more.
        """
        numbers = list(range(101, 101 + EVENTS))
        begin = [SPOOL_HEADER_BYTES, *self.ends]
        if damage is cut:
            whole = max(PACKED, sum(end <= at for end in self.ends))
            return numbers[:whole], int(begin[whole] < at < self.ends[-1])
        hit = [n for n in range(PACKED, EVENTS) if begin[n] <= at < begin[n + 1]]
        behind = int(at >= self.ends[-1])  # A byte among the zeros: torn, and nothing lost.
        return [n for n in numbers if n - 101 not in hit], len(hit) + behind


def _events(orphan: Orphan) -> Iterator[int]:
    sequence = 1
    for block in orphan.queue.pending(100, 1 << 20):
        header = read_header(block.data)
        assert header.first == sequence
        sequence = header.last + 1
        yield from (body.mantissa for body in columns_bodies(read_payload(block.data, header)))


@pytest.mark.parametrize("damage", [flip, flip_a_bit, zero, cut])
@pytest.mark.parametrize(
    "stride",
    [pytest.param(29, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.crash)],
)
def test_damage_at_any_byte_of_a_spool_costs_only_the_event_that_it_hits(
    stride: int, damage: Damage, zygote: Zygote, tmp_path: Path
) -> None:
    """Whatever byte is flipped, missing or the last: no error, no event twice, the torn counted."""
    dead = DeadProducer(zygote, tmp_path)
    wrong: list[str] = []
    places = range(0, len(dead.spool), stride)
    for at in places:
        found = dead.adopt(damage(dead.spool, at))
        if found != dead.expected(damage, at):
            wrong.append(f"{damage.__name__} at {at}: {found}, not {dead.expected(damage, at)}")
    print(f"spool, {damage.__name__}: {len(places)} places, {EVENTS} events, wrong {len(wrong)}")
    assert not wrong, wrong[:5]
