"""Adoption: what a dead producer left arrives once, whatever state its files are in."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from tallybook.adoption import Adopter
from tallybook.block import read_header
from tallybook.directory import Lock
from tallybook.limits import ADOPTION_SECONDS, HELD_SECONDS
from tallybook.producer import Producer
from tallybook.queue import Queue
from tallybook.testing import MemoryServer
from tallybook.transport import Response
from tests.sdk.conftest import ENDPOINT, Bench, frame

SMALL = {"queue_bytes_max": 1 << 20}
SPOOLFUL = 12_000  # More events than fit into one such spool.


def died(bench: Bench, *numbers: int, cut: bool = False, **options: object) -> str:
    """A producer that recorded and died; its name."""
    producer = bench.producer(**options)
    bench.store(producer, *numbers)
    if cut:
        producer.step(cut=True)
    producer.release(finished=False)
    return producer.id.hex()


def test_what_was_stored_and_not_packed_is_sent(bench: Bench) -> None:
    """Under the dead producer's name, from sequence 1, and the files go."""
    name = died(bench, 1, 2, 3)
    bench.adopt_all()
    assert bench.counted() == [1, 2, 3]
    assert {producer for producer, _ in bench.server.events} == {bytes.fromhex(name)}
    assert bench.names("*") == sorted([f"{name}.kept", "ballast"])


def test_packing_goes_on_where_the_last_commit_was(bench: Bench) -> None:
    """Blocks that the owner cut are not cut again: what it had sent is known by its bytes."""
    producer = bench.producer()
    bench.store(producer, 1, 2)
    producer.step(cut=True)
    (before,) = producer.queue.pending(9, 1 << 20)
    bench.store(producer, 3)
    producer.release(finished=False)
    adopter = bench.adopter()
    adopter.look()
    (orphan,) = adopter.orphans
    first, second = (one.data for one in orphan.queue.pending(9, 1 << 20))
    assert first == before.data
    assert read_header(second).first == 3
    adopter.close()


def test_many_spools_are_packed_in_order(bench: Bench) -> None:
    """A disk that refused every commit: nothing was packed, over several files."""
    died(bench, *range(2 * SPOOLFUL), **SMALL)  # type: ignore[arg-type]
    assert len(bench.names("*.spool-*")) > 1
    bench.adopt_all()
    assert bench.counted() == list(range(2 * SPOOLFUL))


def test_a_packed_spool_that_was_not_removed_is_not_packed_again(bench: Bench) -> None:
    """The owner died between the commit that moved on and the removal of the file."""
    producer = bench.producer(**SMALL)
    bench.store(producer, *range(SPOOLFUL))
    first = bench.directory / f"{producer.id.hex()}.spool-0"
    kept = first.read_bytes()
    producer.step(cut=True)
    assert not first.exists()
    producer.release(finished=False)
    first.write_bytes(kept)
    bench.adopt_all()
    assert bench.counted() == list(range(SPOOLFUL))


def test_a_producer_that_had_sent_everything_is_announced_as_closed(bench: Bench) -> None:
    """Every row pruned, and the position is not taken from them: no sequence is given twice."""
    producer = bench.producer()
    bench.store(producer, 1)
    producer.step(cut=True)
    bench.flusher().step(producer)
    producer.queue.prune(0, 0)
    bench.store(producer, 2)
    producer.release(finished=False)
    bench.adopt_all()
    assert bench.counted() == [1, 2]
    said = bench.server.announcements[producer.id]
    assert (said.highest, said.recorded, said.closed) == (2, 2, True)


def test_drops_of_the_dead_are_announced(bench: Bench) -> None:
    """The counters of all its spools, each once."""
    producer = bench.producer(**SMALL)
    producer.count_drop(2)
    bench.store(producer, *range(SPOOLFUL))
    producer.count_drop(3)
    producer.release(finished=False)
    bench.adopt_all()
    assert bench.server.announcements[producer.id].dropped == 5


def test_a_torn_end_is_counted_and_takes_no_sequence(bench: Bench) -> None:
    """Killed in the middle of a store: what was whole before it arrives."""
    producer = bench.producer()
    bench.store(producer, 1, 2)
    end = producer._spools[0].end()
    path = bench.directory / f"{producer.id.hex()}.spool-0"
    producer.release(finished=False)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(frame(3, producer.id)[:-7])
    bench.adopt_all()
    assert bench.counted() == [1, 2]


def test_a_living_producer_is_left_alone(bench: Bench) -> None:
    """Its lock is held."""
    producer = bench.producer()
    bench.store(producer, 1)
    adopter = bench.adopter()
    adopter.look()
    assert (adopter.orphans, adopter.held) == ([], {})


# -- whose it is -------------------------------------------------------------------------------


def test_what_is_for_another_endpoint_is_held_and_left_as_it_is(bench: Bench) -> None:
    """Not a byte of it is changed."""
    name = died(bench, 1, endpoint="http://127.0.0.1:2")
    before = {path.name: path.read_bytes() for path in bench.directory.iterdir()}
    adopter = bench.adopter()
    adopter.look()
    assert adopter.held == {name: f"{name} is meant for http://127.0.0.1:2, not {ENDPOINT}"}
    assert {path.name: path.read_bytes() for path in bench.directory.iterdir()} == before
    assert bench.server.requests == 0


def test_what_was_packed_for_another_endpoint_is_held(bench: Bench) -> None:
    """Without a spool, the queue itself says whose it is."""
    name = died(bench, 1, endpoint="http://127.0.0.1:2")
    there = bench.adopter("http://127.0.0.1:2")
    there.look()
    there.close()
    adopter = bench.adopter()
    adopter.look()
    assert "http://127.0.0.1:2" in adopter.held[name]


def test_what_named_no_endpoint_is_held(bench: Bench) -> None:
    """Unless a person says that it is for this one."""
    name = died(bench, 1, endpoint=None)
    adopter = bench.adopter()
    adopter.look()
    assert "no endpoint" in adopter.held[name]
    adopter = bench.adopter(unaddressed=True)
    while bench.names("*.lock"):
        adopter.step()
    assert bench.counted() == [1]


def test_a_queue_of_another_ledger_is_held(bench: Bench) -> None:
    """Its first answer named its ledger: another server under the same address gets nothing."""
    producer = bench.producer()
    bench.store(producer, 1)
    producer.step(cut=True)
    bench.flusher().step(producer)
    bench.store(producer, 2)
    producer.release(finished=False)
    bench.server.ledger = "ff" * 16
    adopter = bench.adopter()
    adopter.step()
    assert "another ledger" in adopter.held[producer.id.hex()]
    assert bench.counted() == [1]
    bench.server.ledger = "00" * 16
    bench.clock.advance(HELD_SECONDS)
    bench.adopt_all()
    assert bench.counted() == [1, 2]


def test_a_spool_under_another_producers_name_is_held(bench: Bench) -> None:
    """All of its frames would be damage under that name, and the file would go."""
    name = died(bench, 1)
    other = "f" * 32
    for path in list(bench.directory.glob(f"{name}*")):
        path.rename(path.with_name(path.name.replace(name, other)))
    adopter = bench.adopter()
    adopter.look()
    assert name in adopter.held[other]
    assert bench.names(f"{other}.spool-0")


# -- half-made and damaged ---------------------------------------------------------------------


def test_a_lock_without_files_goes(bench: Bench) -> None:
    """It died before it made anything, or after it removed everything."""
    name = "a" * 32
    (bench.directory / f"{name}.lock").touch()
    (bench.directory / f"{name}.db-wal").touch()
    (bench.directory / f"{name}.status").touch()
    bench.adopter().look()
    assert bench.names(f"{name}*") == []


@pytest.mark.parametrize("size", [0, 100, 4096, 1 << 16])
def test_a_spool_that_was_just_being_made_goes(bench: Bench, size: int) -> None:
    """No header, no queue: no event can have been stored."""
    name = "a" * 32
    (bench.directory / f"{name}.lock").touch()
    (bench.directory / f"{name}.spool-0").write_bytes(bytes(size))
    bench.adopter().look()
    assert bench.names(f"{name}*") == []


def test_a_queue_that_was_just_being_made_is_finished(bench: Bench) -> None:
    """An empty file beside a spool: what the spool holds arrives."""
    name = died(bench, 1)
    for suffix in ("", "-wal"):
        (bench.directory / f"{name}.db{suffix}").unlink(missing_ok=True)
    (bench.directory / f"{name}.db").touch()
    bench.adopt_all()
    assert bench.counted() == [1]


def test_the_next_spool_that_was_just_being_made_is_nothing(bench: Bench) -> None:
    """Killed between two lines of going on to it: an empty file, or zeros."""
    name = died(bench, 1, 2, cut=True)
    (bench.directory / f"{name}.spool-1").write_bytes(bytes(1 << 16))
    (bench.directory / f"{name}.spool-2").write_bytes(b"")
    bench.adopt_all()
    assert bench.counted() == [1, 2]


def test_a_killed_adopter_is_followed_by_the_next(bench: Bench) -> None:
    """Killed at any of its writes, the next one goes on, and every event counts once."""
    numbers = list(range(4 * 3))
    template = bench.directory.with_name("template")
    producer = bench.producer(queue_bytes_max=1 << 21)
    for first in range(0, 12, 3):
        bench.store(producer, *range(first, first + 3))
        producer._alone(lambda: producer._go_on_in(producer._make_spool(), b""))
    producer.release(finished=False)
    shutil.copytree(bench.directory, template)
    sent = bench.directory.with_name("sent")
    for kill_at in itertools.count(1):
        shutil.rmtree(bench.directory)
        shutil.copytree(template, bench.directory)
        bench.server = MemoryServer()
        sent.write_bytes(b"")
        child = os.fork()
        if not child:
            adopt_and_die(bench, sent, kill_at)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for request in filter(None, sent.read_bytes().split(b"<end>")):
            bench.server.send(request, "")
        bench.adopt_all()
        assert bench.counted() == numbers, kill_at
        if code == 0:
            break
    assert kill_at > 15


def adopt_and_die(bench: Bench, sent: Path, kill_at: int) -> None:
    """In a child: adopt, and be killed at write number *kill_at*; what was sent is noted."""

    class Noting(MemoryServer):
        def send(
            self, body: bytes, content_type: str, timeout_seconds: float | None = None
        ) -> Response:
            with sent.open("ab") as file:
                file.write(body + b"<end>")
            return super().send(body, content_type, timeout_seconds)

    left = itertools.count(kill_at - 1, -1)

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(left) <= 0:
                os._exit(9)
            return function(*arguments, **options)

        return call

    for owner, name in ((Queue, "_change"), (Queue, "close"), (Path, "unlink"), (os, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))
    try:
        bench.server = Noting()
        bench.adopt_all()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("damage", ["garbage", "foreign", "page", "rows"])
def test_a_damaged_queue_is_packed_anew_from_its_spools(bench: Bench, damage: str) -> None:
    """With the first spool still there, every event and its sequence is in the spools."""
    producer = bench.producer()
    bench.store(producer, 1, 2)
    producer.step(cut=True)
    bench.flusher().step(producer)
    bench.store(producer, 3)
    producer.step(cut=True)
    producer.release(finished=False)
    path = bench.directory / f"{producer.id.hex()}.db"
    spoil(path, damage)
    bench.adopt_all()
    assert bench.counted() == [1, 2, 3]
    assert bench.names("*.damaged") == [f"{producer.id.hex()}.damaged"]


def spoil(path: Path, damage: str) -> None:
    """Damage a closed queue file."""
    if damage == "garbage":
        path.write_bytes(b"garbage" * 4096)
    elif damage == "foreign":
        path.unlink()
        foreign = sqlite3.connect(path)
        foreign.executescript("create table theirs (x); pragma user_version = 1;")
        foreign.close()
    elif damage == "page":
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        path.write_bytes(data)
    else:
        queue = sqlite3.connect(path)
        queue.execute("drop table blocks")
        queue.close()


def test_a_damaged_queue_without_its_first_spool_is_held(bench: Bench) -> None:
    """Nothing is guessed: a sequence that is given twice would be an event that is lost."""
    producer = bench.producer(**SMALL)
    bench.store(producer, *range(SPOOLFUL))
    producer.step(cut=True)
    producer.release(finished=False)
    name = producer.id.hex()
    spoil(bench.directory / f"{name}.db", "garbage")
    adopter = bench.adopter()
    adopter.look()
    assert "see tallybook doctor" in adopter.held[name]
    assert bench.names(f"{name}.spool-*")


def test_a_queue_that_is_gone_without_its_first_spool_is_held(bench: Bench) -> None:
    """A new one would begin at sequence 1 again."""
    producer = bench.producer(**SMALL)
    bench.store(producer, *range(SPOOLFUL))
    producer.step(cut=True)
    producer.release(finished=False)
    name = producer.id.hex()
    (bench.directory / f"{name}.db").unlink()
    adopter = bench.adopter()
    adopter.look()
    assert "is gone" in adopter.held[name]
    assert not bench.names(f"{name}.db")


def test_a_damaged_header_costs_no_event(bench: Bench) -> None:
    """The queue says whose it is; the frames have checksums of their own."""
    name = died(bench, 1, 2)
    with (bench.directory / f"{name}.spool-0").open("r+b") as file:
        file.write(b"garbage!")
    bench.adopt_all()
    assert bench.counted() == [1, 2]


def test_one_that_is_damaged_holds_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    An adopted queue whose pages turned out damaged ended the round before the others had
    their turn, every time.
    """
    names = sorted(died(bench, number) for number in (1, 2))
    adopter = bench.adopter()
    adopter.look()
    for orphan in adopter.orphans:
        if orphan.id.hex() == names[0]:
            monkeypatch.setattr(orphan.queue, "pending", damaged)
    for _ in range(3):
        adopter.step()
    assert "malformed" in adopter.held[names[0]]
    assert len(bench.counted()) == 1


def damaged(*_: object) -> None:
    """What SQLite says."""
    raise sqlite3.DatabaseError("database disk image is malformed")


# -- foreign files -----------------------------------------------------------------------------


def test_foreign_files_disturb_nobody(bench: Bench) -> None:
    """Directories, links and garbage under our names: reported, and everything else arrives."""
    died(bench, 1)
    (bench.directory / f"{'b' * 32}.lock").mkdir()
    (bench.directory / "x.lock").mkdir()
    (bench.directory / f"{'G' * 32}.lock").touch()
    (bench.directory / f"{'c' * 32}.lock").touch()
    (bench.directory / f"{'c' * 32}.spool-0").mkdir()
    (bench.directory / f"{'d' * 32}.lock").symlink_to("/nowhere")
    (bench.directory / f"{'e' * 32}.lock").touch()
    (bench.directory / f"{'e' * 32}.spool-0").write_bytes(b"garbage" * 4096)
    (bench.directory / "note.txt").write_text("mine")
    adopter = bench.adopter()
    for _ in range(4):
        adopter.step()
    assert bench.counted() == [1]
    assert sorted(adopter.held) == ["b" * 32, "c" * 32, "e" * 32]
    assert (bench.directory / "note.txt").read_text() == "mine"
    assert Lock.descriptors == {}


def test_whatever_ails_an_orphan_its_lock_is_let_go_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any error at all: else every look would leave a file open, until there is none left."""
    name = died(bench, 1)

    def fail(self: Path) -> bytes:
        raise MemoryError

    adopter = bench.adopter()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        adopter.look()
    assert adopter.held == {name: "MemoryError"}
    assert Lock.descriptors == {}
    bench.adopt_all()
    assert bench.counted() == [1]


def test_what_is_held_is_looked_at_again_only_now_and_then(bench: Bench) -> None:
    """And when its files are gone, it is no longer reported."""
    name = died(bench, 1, endpoint="http://127.0.0.1:2")
    adopter = bench.adopter()
    adopter.look()
    there = bench.adopter("http://127.0.0.1:2")
    while bench.names("*.lock"):
        there.step()
    assert name in adopter.held
    bench.clock.advance(ADOPTION_SECONDS)
    adopter.step()
    assert adopter.held == {}


def test_what_was_set_aside_stays_and_is_not_sent_for_again_and_again(bench: Bench) -> None:
    """It is held, once announced; when somebody lets it go again, it arrives."""
    name = died(bench, 1, cut=True)
    queue = Queue(bench.directory / f"{name}.db")
    queue.settle([(1, "aside", "refused")])
    queue.close()
    adopter = bench.adopter()
    for _ in range(5):
        adopter.step()
        bench.clock.advance(HELD_SECONDS)
    assert adopter.held == {name: "1 blocks are set aside"}
    assert bench.server.requests == 1
    queue = Queue(bench.directory / f"{name}.db")
    queue.retry_aside()
    queue.close()
    bench.clock.advance(HELD_SECONDS)
    while bench.names("*.lock"):
        adopter.step()
    assert bench.counted() == [1]


def test_what_an_adopter_could_not_send_says_whose_it_is(bench: Bench) -> None:
    """
    Its spools are packed and gone, and a queue is never opened to look: beside it lies what
    `tallybook queue status` shows, and where `tallybook queue flush` sends it.
    """
    name = died(bench, 1, 2)
    bench.server.faults = ["refuse"]
    adopter = bench.adopter()
    adopter.step()
    adopter.close()
    status = (bench.directory / f"{name}.status").read_text()
    assert f'"endpoint": "{ENDPOINT}"' in status
    assert '"pending": 2' in status


# -- locks -------------------------------------------------------------------------------------


def test_of_two_adopters_one_adopts(bench: Bench) -> None:
    """Both look at the same moment, again and again: no event is sent under two owners."""
    for round in range(10):
        died(bench, round)
        adopters = [bench.adopter(), bench.adopter()]
        begin = threading.Barrier(2)

        def look(adopter: Adopter, begin: threading.Barrier = begin) -> None:
            begin.wait()
            adopter.look()

        threads = [threading.Thread(target=look, args=(adopter,)) for adopter in adopters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(adopter.orphans) for adopter in adopters) == 1
        for adopter in adopters:
            adopter.step()
    assert bench.counted() == list(range(10))


def test_a_lock_that_was_removed_before_it_was_taken_is_no_lock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, its adopter finished: what is locked is gone."""
    path = bench.directory / f"{'a' * 32}.lock"
    path.touch()
    flock = fcntl.flock

    def finish_first(fd: int, how: int) -> None:
        path.unlink()
        flock(fd, how)

    monkeypatch.setattr("tallybook.directory.fcntl.flock", finish_first)
    assert Lock.take(path) is None
    assert Lock.descriptors == {}


def test_a_lock_that_was_made_anew_before_it_was_taken_is_no_lock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path leads to another file by now: the inode tells."""
    path = bench.directory / f"{'a' * 32}.lock"
    path.touch()
    flock = fcntl.flock

    def replace_first(fd: int, how: int) -> None:
        path.unlink()
        path.touch()
        flock(fd, how)

    monkeypatch.setattr("tallybook.directory.fcntl.flock", replace_first)
    assert Lock.take(path) is None


def test_a_new_producer_whose_lock_was_adopted_takes_another_name(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adopter found the file between its making and its locking, and removed it."""
    adopter = bench.adopter()
    flock = fcntl.flock
    looked: list[int] = []

    def look_first(fd: int, how: int) -> None:
        if not looked:
            looked.append(fd)
            adopter.look()
        flock(fd, how)

    monkeypatch.setattr("tallybook.directory.fcntl.flock", look_first)
    producer = bench.producer()
    assert producer.in_place()
    assert len(bench.names("*.lock")) == 1


def test_an_adopter_that_is_closed_leaves_the_rest_to_the_next(bench: Bench) -> None:
    """Packed or not, sent or not: the files stay, and the lock is free."""
    died(bench, 1, 2)
    bench.server.faults = ["refuse"]
    adopter = bench.adopter()
    adopter.step()
    adopter.close()
    adopter.close()
    bench.adopt_all()
    assert bench.counted() == [1, 2]


def test_an_orphan_is_no_producer(bench: Bench) -> None:
    """Nothing is ever recorded under a dead producer's name."""
    died(bench, 1)
    adopter = bench.adopter()
    adopter.look()
    (orphan,) = adopter.orphans
    assert not isinstance(orphan, Producer)
    assert not hasattr(orphan, "store")
    adopter.close()
