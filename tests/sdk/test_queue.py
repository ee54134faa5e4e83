"""The queue: each block once, in order, whatever the disk says in between."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tallybook.block import Columns, encode_block, read_header
from tallybook.errors import InvariantBroken
from tallybook.queue import Packed, Queue, QueueDamaged
from tests.sdk.conftest import PRODUCER, behind


def block(first: int = 1, count: int = 1, producer: bytes = PRODUCER, value: int = 1) -> bytes:
    """A block of so many events."""
    columns = Columns(
        version=1,
        source=None,
        series=[b"\xa1d\xa1t\xc0"],
        of=[0] * count,
        times=[1] * count,
        mantissas=[value] * count,
        scales=[],
        wides=[],
        keys=[],
        ids=[],
        given=[],
    )
    return encode_block(columns, producer=producer, first=first)


def fill(queue: Queue, blocks: int) -> None:
    """Queue so many blocks of one event."""
    for first in range(1, blocks + 1):
        queue.commit_block(block(first), behind(4096 + first, first + 1), first)


def firsts(queue: Queue) -> list[int]:
    """The first sequences of the blocks that wait."""
    return [read_header(waiting.data).first for waiting in queue.pending(1000, 1 << 30)]


class Failing:
    """
    A connection whose next ``commit`` fails: before it, or after it is durable.

    Attributes:
        durable: Whether the commit is carried out all the same.
    """

    def __init__(self, connection: sqlite3.Connection, *, durable: bool) -> None:
        self._connection = connection
        self.durable = durable

    def execute(self, statement: str, *parameters: object) -> object:
        if statement == "commit":
            if self.durable:
                self._connection.execute("commit")
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *parameters)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def fail_next_commit(queue: Queue, *, durable: bool) -> None:
    """Let the next commit fail; the connection that is opened after it is sound."""
    assert queue._connection is not None
    queue._connection = Failing(queue._connection, durable=durable)  # type: ignore[assignment]


def test_blocks_come_in_the_order_that_they_were_committed(queue: Queue) -> None:
    """The oldest first, as they were."""
    fill(queue, 3)
    assert [waiting.data for waiting in queue.pending(2, 1 << 20)] == [block(1), block(2)]


def test_the_position_is_of_the_last_block(queue: Queue) -> None:
    """What was committed with the block is what a restart finds."""
    queue.commit_block(block(1, 5), Packed(0, 5000, 6, 2, 1), 0)
    queue.close()
    again = Queue(queue.path)
    assert again.packed() == Packed(0, 5000, 6, 2, 1)
    again.close()


@pytest.mark.parametrize("durable", [False, True])
def test_a_commit_that_fails_is_in_the_queue_once(queue: Queue, durable: bool) -> None:
    """Durable or not, a commit that reported failure leads to one block under one sequence."""
    fill(queue, 1)
    fail_next_commit(queue, durable=durable)
    queue.commit_block(block(2), behind(4098, 3), 0)
    assert firsts(queue) == [1, 2]
    assert queue.packed() == behind(4098, 3)


@pytest.mark.parametrize("durable", [False, True])
def test_a_move_that_fails_is_made_once(queue: Queue, durable: bool) -> None:
    """The same for a position that moves over a stretch without events."""
    fill(queue, 1)
    fail_next_commit(queue, durable=durable)
    queue.move_packed(Packed(1, 4096, 2))
    assert queue.packed() == Packed(1, 4096, 2)


def test_what_was_seen_after_a_failed_commit_is_written_once_more(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync the log may be in the page cache only: it is folded before the look."""
    folded: list[bool] = []
    checkpoint = Queue.checkpoint

    def note(self: Queue) -> None:
        folded.append(True)
        checkpoint(self)

    monkeypatch.setattr(Queue, "checkpoint", note)
    fail_next_commit(queue, durable=True)
    queue.commit_block(block(1), behind(4097, 2), 0)
    assert folded == [True]


def test_a_settlement_that_fails_is_made_the_next_time(queue: Queue) -> None:
    """A transaction that was left behind would refuse every later one."""
    fill(queue, 2)
    fail_next_commit(queue, durable=False)
    with pytest.raises(sqlite3.OperationalError):
        queue.settle([(1, "acknowledged", None)])
    assert firsts(queue) == [1, 2]
    queue.settle([(1, "acknowledged", None)], meta={"ledger": "l"})
    assert firsts(queue) == [2]
    assert queue.note("ledger") == "l"


def test_a_settlement_is_whole_or_not_at_all(queue: Queue) -> None:
    """Marks, blocks that come again and notes are one transaction."""
    fill(queue, 2)
    with pytest.raises(Exception, match="block's header"):
        queue.settle([(1, "acknowledged", None)], reissued=[b"no block"], meta={"ledger": "l"})
    assert firsts(queue) == [1, 2]
    assert queue.note("ledger") is None


def test_a_queue_that_could_not_be_opened_again_is_opened_later(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses the reopening refuses for now, and not for the process's life."""
    fill(queue, 1)
    connect = sqlite3.connect

    def refuse(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    fail_next_commit(queue, durable=False)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(sqlite3.OperationalError):
        queue.commit_block(block(2), behind(4098, 3), 0)
    monkeypatch.setattr(sqlite3, "connect", connect)
    queue.commit_block(block(2), behind(4098, 3), 0)
    assert firsts(queue) == [1, 2]


def test_a_block_out_of_its_place_is_refused(queue: Queue) -> None:
    """A block that does not follow on the last one would leave a gap, or give numbers twice."""
    fill(queue, 1)
    with pytest.raises(InvariantBroken):
        queue.commit_block(block(3), behind(4098, 4), 0)
    with pytest.raises(InvariantBroken):
        queue.move_packed(behind(5000, 7))
    assert queue.packed() == behind(4097, 2)


def test_the_same_commit_again_changes_nothing(queue: Queue) -> None:
    """The position tells that it is there already."""
    fill(queue, 1)
    queue.commit_block(block(1), behind(4097, 2), 0)
    assert firsts(queue) == [1]


def test_a_position_is_not_taken_from_the_rows(queue: Queue) -> None:
    """All rows pruned, the next sequence is still the one behind the last block."""
    fill(queue, 3)
    queue.settle([(id, "acknowledged", None) for id in (1, 2, 3)])
    queue.prune(0, 0)
    assert list(queue.acknowledged()) == []
    assert queue.packed().sequence == 4


def test_a_request_is_bounded_in_bytes(queue: Queue) -> None:
    """As many of the oldest as fit; one that is larger than the bound goes alone."""
    fill(queue, 4)
    size = len(block(1))
    assert len(queue.pending(64, 2 * size)) == 2
    assert len(queue.pending(64, 1)) == 1
    assert len(queue.pending(3, 1 << 20)) == 3


def test_counts_are_by_state(queue: Queue) -> None:
    """Blocks and events that wait, were set aside, and are kept."""
    for first in (1, 11, 21, 31):
        queue.commit_block(block(first, 10), behind(4096 + first, first + 10), first)
    queue.settle([(1, "acknowledged", None), (2, "aside", "refused")])
    counts = queue.counts()
    assert (counts.pending_blocks, counts.pending_events) == (2, 20)
    assert (counts.aside_blocks, counts.aside_events) == (1, 10)
    assert (counts.acknowledged_events, counts.oldest) == (10, 21)


def test_pruning_begins_with_the_oldest(queue: Queue) -> None:
    """By bytes and by age, and only what the server has."""
    fill(queue, 4)
    queue.settle([(id, "acknowledged", None) for id in (1, 2, 3)])
    queue.prune(2 * len(block(1)), 0)
    assert [read_header(kept).first for kept in queue.acknowledged()] == [2, 3]
    queue.prune(1 << 20, 3)
    assert [read_header(kept).first for kept in queue.acknowledged()] == [3]
    assert firsts(queue) == [4]


def test_what_was_set_aside_can_be_sent_again(queue: Queue) -> None:
    """Somebody has mended the server: they wait again, with their bytes."""
    fill(queue, 2)
    queue.settle([(1, "aside", "refused")])
    assert queue.retry_aside() == 1
    assert firsts(queue) == [1, 2]


def test_a_block_that_is_issued_again_twice_is_there_once(queue: Queue) -> None:
    """An answer that came twice brings its conflicts once."""
    fill(queue, 1)
    again = block(1, producer=b"D" * 16)
    queue.settle([], reissued=[again])
    queue.settle([], reissued=[again])
    assert [waiting.data for waiting in queue.pending(9, 1 << 20)] == [block(1), again]


def test_a_second_connection_is_refused(queue: Queue) -> None:
    """The file is taken exclusively: two connections can corrupt it."""
    fill(queue, 1)
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0);"
        "c.execute('select * from blocks')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(queue.path)], capture_output=True, text=True
    )
    assert "locked" in ran.stderr


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    """Garbage is said to be garbage, and is left as it is."""
    path = tmp_path / "q.db"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(QueueDamaged, match=r"q\.db"):
        Queue(path)
    assert path.read_bytes() == b"garbage" * 1000


@pytest.mark.parametrize("version", [0, 7])
def test_a_foreign_database_is_left_as_it_is(tmp_path: Path, version: int) -> None:
    """Another program's SQLite file is not even switched to a write-ahead log."""
    path = tmp_path / "q.db"
    other = sqlite3.connect(path)
    other.executescript(f"create table theirs (x); pragma user_version = {version};")
    other.close()
    before = path.read_bytes()
    with pytest.raises(QueueDamaged):
        Queue(path)
    assert path.read_bytes() == before


def test_a_foreign_database_of_our_version_is_damaged(tmp_path: Path) -> None:
    """Version 1 is many programs' version: without our tables it is no queue."""
    path = tmp_path / "q.db"
    other = sqlite3.connect(path)
    other.executescript("create table theirs (x); pragma user_version = 1;")
    other.close()
    queue = Queue(path)
    with pytest.raises(QueueDamaged):
        queue.packed()
    queue.close()


def test_a_queue_that_rots_while_it_is_open_is_damaged(queue: Queue) -> None:
    """Pages that no longer hold are told from a disk that refuses."""
    fill(queue, 50)
    queue.checkpoint()
    queue._disconnect()
    data = bytearray(queue.path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    queue.path.write_bytes(data)
    with pytest.raises(QueueDamaged):
        queue.pending(64, 1 << 20)


def test_a_queue_that_is_gone_is_not_made_anew(queue: Queue) -> None:
    """A new file would begin at sequence 1 again, under the same producer."""
    fill(queue, 1)
    queue._disconnect()
    queue.path.unlink()
    with pytest.raises(QueueDamaged, match="gone"):
        queue.packed()
    assert not queue.path.exists()


def test_closing_twice_is_closing_once(queue: Queue) -> None:
    """And nothing can be asked of a closed one."""
    queue.close()
    queue.close()
    with pytest.raises(sqlite3.ProgrammingError):
        queue.counts()


def test_threads_share_the_one_connection(queue: Queue) -> None:
    """Committing, settling and counting at once: no block is lost and none is doubled."""
    faults: list[BaseException] = []

    def guarded(run: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                faults.append(error)

        return guarded

    def settle() -> None:
        seen = 0
        while seen < 100:
            waiting = queue.pending(7, 1 << 20)
            queue.settle([(one.id, "acknowledged", None) for one in waiting])
            seen += len(waiting)

    def count() -> None:
        while queue.packed().sequence < 101:
            queue.counts()

    threads = [
        threading.Thread(target=guarded(run)) for run in (lambda: fill(queue, 100), settle, count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [read_header(kept).first for kept in queue.acknowledged()] == list(range(1, 101))


def test_a_child_that_exits_leaves_its_parents_log(tmp_path: Path) -> None:
    """
    A connection that a child of fork has inherited is never freed, even at its exit.

    Freed, it was closed, and closing removed the parent's write-ahead log: every block in it
    was gone after the parent's next crash.
    """
    program = """
import os, sys
from pathlib import Path
from tallybook.queue import Queue
queue = Queue(Path(sys.argv[1]))
queue.remember(source="app")
child = os.fork()
if not child:
    queue.forget()
    del queue
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert os.path.getsize(sys.argv[1] + "-wal") > 0
os.kill(os.getpid(), 9)
"""
    path = tmp_path / "q.db"
    ran = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert ran.returncode == -9, ran.stderr
    again = Queue(path)
    assert again.note("source") == "app"
    again.close()
