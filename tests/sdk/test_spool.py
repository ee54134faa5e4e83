"""The spool: what is stored is there, and nothing goes in behind the end."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from tallybook.errors import FrameDamaged
from tallybook.frame import Frame, SpoolIdentity, frame_seed, read_header, scan
from tallybook.limits import SPOOL_HEADER_BYTES
from tallybook.spool import Spool
from tests.sdk.conftest import PRODUCER, Bench, frame

SEED = frame_seed(PRODUCER)


def frames(data: bytes) -> list[bytes]:
    """The bodies in *data*, which has to hold nothing else."""
    found = list(scan(data, 0, SEED))
    assert all(isinstance(one, Frame) for one in found)
    return [one.body for one in found if isinstance(one, Frame)]


def test_a_store_is_in_the_file_at_once(bench: Bench) -> None:
    """What `write` has returned from is read from the file by anybody else."""
    spool = bench.spool()
    spool.write(frame(1))
    data = spool.path.read_bytes()
    assert frames(data[SPOOL_HEADER_BYTES:].rstrip(b"\0")) == [frame(1)[8:-1]]
    spool.close(unlink=True)


def test_the_file_is_really_allocated(bench: Bench) -> None:
    """Every byte has its place on the disk: a full disk is never met in a store."""
    spool = bench.spool(size=1 << 20)
    assert os.stat(spool.path).st_blocks * 512 >= 1 << 20
    spool.close(unlink=True)


def test_the_header_says_whose_it_is(bench: Bench) -> None:
    """The first page names the producer, the number and where the events are to go."""
    spool = bench.spool(number=3)
    identity = read_header(spool.path.read_bytes()[:SPOOL_HEADER_BYTES])
    assert (identity.producer, identity.number) == (PRODUCER, 3)
    spool.close(unlink=True)


def test_a_store_that_does_not_fit_stores_nothing(bench: Bench) -> None:
    """A frame goes in whole or not at all, to the last byte of the file."""
    spool = bench.spool()
    one = frame(1)
    for _ in range((spool.size - SPOOL_HEADER_BYTES) // len(one)):
        spool.write(one)
    end = spool.end()
    with pytest.raises(ValueError, match="out of range"):
        spool.write(one)
    assert spool.end() == end
    assert len(frames(spool.read(SPOOL_HEADER_BYTES, end))) > 1000
    spool.close(unlink=True)


def test_a_sealed_spool_takes_nothing(bench: Bench) -> None:
    """After `seal` every store fails, and the end stays where the last frame ended."""
    spool = bench.spool()
    spool.write(frame(1))
    end = spool.end()
    spool.seal()
    with pytest.raises(ValueError, match="out of range"):
        spool.write(frame(2))
    assert spool.end() == end
    spool.close(unlink=True)


def test_stores_during_a_seal_are_before_the_end(bench: Bench) -> None:
    """Threads that store while others seal: what was stored is before the end, for everybody."""
    for _ in range(20):
        spool = bench.spool(size=1 << 18)
        stored: list[int] = []
        ends: list[int] = []
        begin = threading.Barrier(4)

        def store(spool: Spool = spool, stored: list[int] = stored) -> None:
            begin.wait()
            with pytest.raises(ValueError, match="out of range"):
                while True:
                    spool.write(frame(1))
                    stored.append(1)

        def seal(spool: Spool = spool, ends: list[int] = ends) -> None:
            begin.wait()
            spool.seal()
            ends.append(spool.end())

        threads = [threading.Thread(target=run) for run in (store, store, seal, seal)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(frames(spool.read(SPOOL_HEADER_BYTES, spool.end()))) == len(stored)
        assert set(ends) == {spool.end()}
        spool.close(unlink=True)


def test_whoever_looks_in_the_middle_of_a_seal_finds_the_same_end(bench: Bench) -> None:
    """Between the last store and the note of its end somebody else may seal: one end for both."""
    spool = bench.spool()
    spool.write(frame(1))
    before = spool.end()
    spool.write(frame(2))
    spool._map.seek(spool.size)  # The other one is just here.
    spool.seal()
    assert spool.end() == before + len(frame(2))
    spool.close(unlink=True)


def test_drops_are_counted_in_the_file(bench: Bench) -> None:
    """The drop counter lies in the mapped page, where a kill does not reach it."""
    spool = bench.spool()
    spool.count_drop()
    spool.count_drop(41)
    assert int.from_bytes(spool.path.read_bytes()[3072:3080], "little") == 42
    spool.close(unlink=True)


def test_a_disk_that_refuses_leaves_no_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the whole file: an error now, and nothing lies there."""

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="no space"):
        bench.spool()
    assert bench.names("*") == []


def test_an_identity_that_is_too_long_leaves_no_file(bench: Bench) -> None:
    """What cannot be written into the header is refused before a file is made."""
    identity = SpoolIdentity(
        producer=PRODUCER,
        number=0,
        boot="boot",
        source="app",
        endpoint="http://" + "x" * 4000,
        level="process",
        created=0,
    )
    with pytest.raises(FrameDamaged):
        Spool(bench.directory, identity, 1 << 16)
    assert bench.names("*") == []


def test_the_first_sync_confirms_the_name_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync of a new file does not promise its directory entry, so that is synced once."""
    synced: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    spool = bench.spool()
    spool.sync()
    spool.sync()
    assert synced == [str(bench.directory)]
    spool.close(unlink=True)


def test_a_copy_after_fork_does_not_reach_the_file(bench: Bench) -> None:
    """In a child, a store that was under way fails, and the parent's file is as it was."""
    spool = bench.spool()
    spool.write(frame(1))
    child = os.fork()
    if not child:
        spool.forget()
        try:
            spool.write(frame(2))
        except ValueError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    spool.write(frame(3))
    assert frames(spool.read(SPOOL_HEADER_BYTES, spool.end())) == [
        frame(1)[8:-1],
        frame(3)[8:-1],
    ]
    spool.close(unlink=True)


def test_closing_twice_is_closing_once(bench: Bench) -> None:
    """Nothing of another file is closed, and nothing is raised."""
    spool = bench.spool()
    spool.close(unlink=False)
    opened = os.open(bench.directory / "another", os.O_CREAT | os.O_RDWR)
    spool.close(unlink=True)
    os.fstat(opened)
    os.close(opened)
    assert not spool.path.exists()


def test_the_map_is_the_file(bench: Bench, tmp_path: Path) -> None:
    """The spool never grows and never shrinks: its size is the one that it was made with."""
    spool = bench.spool()
    spool.write(frame(1))
    spool.seal()
    assert spool.path.stat().st_size == spool.size == 1 << 16
    assert spool.size % mmap.PAGESIZE == 0
    spool.close(unlink=True)
