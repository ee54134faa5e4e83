"""The codecs against their golden files, and against every flipped and missing byte."""

from __future__ import annotations

import importlib.util
import struct
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tallybook.block import HEADER_BYTES, check_digest, read_header, read_payload
from tallybook.errors import BlockDamaged, FormatError, MessageDamaged
from tallybook.event import Event
from tallybook.frame import (
    DROPPED_OFFSET,
    Frame,
    Torn,
    body_event,
    encode_body,
    encode_frame,
    frame_seed,
    scan,
)
from tallybook.frame import read_header as read_spool_header
from tallybook.limits import SPOOL_HEADER_BYTES
from tallybook.wire import read_announcement, read_answer, read_request
from tallybook_server.backup_manifest import BackupDamaged, encode_manifest, read_manifest
from tallybook_server.entry import CHAIN_START, Entry, EntryDamaged, link, read_entry

GOLDEN = Path(__file__).parents[1] / "golden"


if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from tests.golden import make
else:
    # Tests do not import each other; this is the script that writes the golden files.
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)

SEED = frame_seed(make.PRODUCER)


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def frames(data: bytes) -> list[Event]:
    return [body_event(f.body) for f in scan(data, 0, SEED) if isinstance(f, Frame)]


@pytest.mark.parametrize("name", sorted(make.FILES))
def test_the_codecs_write_what_they_have_always_written(name: str) -> None:
    """The bytes of format 1 are the golden ones."""
    assert make.FILES[name]() == golden(name)


@pytest.mark.parametrize("name", ["block-1.bin", "block-1-zstd.bin"])
def test_a_golden_block_holds_its_events(name: str) -> None:
    """A block of format 1, compressed or not, is read to the events that it was made of."""
    block = golden(name)
    assert read_payload(block, read_header(block)).events() == make.EVENTS


def test_a_golden_spool_holds_its_events() -> None:
    """A spool of format 1 is read to the events that it was made of."""
    data = golden("spool-1.bin")
    assert read_spool_header(data[:SPOOL_HEADER_BYTES]) == make.IDENTITY
    assert frames(data[SPOOL_HEADER_BYTES:]) == make.EVENTS


def test_a_golden_request_and_answer_are_read() -> None:
    """A request and an answer of format 1 are read to what they were made of."""
    announcement, blocks = read_request(golden("request-1.bin"))
    assert announcement == make.ANNOUNCEMENT
    assert [bytes(block) for block in blocks] == [golden("block-1.bin")]
    answer = read_answer(golden("answer-1.json"), [golden("block-1.bin")])
    assert answer.receipts[0].exceptions[0].verdict == "conflict"


def test_a_golden_request_and_answer_of_a_restored_ledger_are_read() -> None:
    """Branches, and what is held of them."""
    announcement, _ = read_request(golden("request-1-restored.bin"))
    assert announcement == make.RESTORED
    assert read_announcement(golden("request-1-restored.bin")) == make.RESTORED
    answer = read_answer(golden("answer-1-restored.json"), [])
    assert (answer.branch_name, answer.held_of("0f" * 16)) == ("b1" * 16, 42)


def test_a_golden_backup_manifest_is_read() -> None:
    """What a backup of format 1 holds."""
    assert read_manifest(golden("backup-manifest-1.json")) == make.MANIFEST


def test_a_changed_backup_manifest_is_seen() -> None:
    """Every flipped byte and every cut of it, but for the blank line at its end."""
    data = golden("backup-manifest-1.json").rstrip()
    for changed in (*flips(data), *(data[:size] for size in range(len(data)))):
        with suppress(BackupDamaged):
            # A blank between the two members may become a tab: not one word of it has changed.
            assert read_manifest(changed) == make.MANIFEST


@pytest.mark.parametrize("name", ["../book", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_backup_manifest_cannot_name_a_file_elsewhere(name: str) -> None:
    """Whoever writes one does not choose where a restore writes."""
    stored = msgspec.structs.replace(make.MANIFEST.journal, name=name)
    with pytest.raises(BackupDamaged):
        read_manifest(encode_manifest(msgspec.structs.replace(make.MANIFEST, journal=stored)))


def test_a_backup_manifest_of_a_newer_version_is_refused_by_name() -> None:
    """And not read as if it were this one's."""
    newer = msgspec.structs.replace(make.MANIFEST, version=2)
    with pytest.raises(BackupDamaged, match="version 2"):
        read_manifest(encode_manifest(newer))


def journal_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    parts: list[tuple[bytes, bytes]] = []
    while data:
        size = int.from_bytes(data[:4], "little")
        parts.append((data[4 : 4 + size], data[4 + size : 36 + size]))
        data = data[36 + size :]
    return parts


def test_a_golden_journal_is_chained() -> None:
    """Entries of format 1 are read, and each head follows from the one before."""
    head = CHAIN_START
    entries: list[Entry] = []
    for data, expected in journal_parts(golden("journal-1.bin")):
        head = link(head, data)
        assert head == expected
        entries.append(read_entry(data))
    assert entries == make.ENTRIES


def flips(data: bytes) -> list[bytes]:
    """*data* with one bit of one byte flipped, for every byte; bits in turn."""
    found: list[bytes] = []
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1 << (index % 8)
        found.append(bytes(changed))
    return found


def test_a_spool_loses_only_the_frame_that_is_damaged() -> None:
    """Whatever byte of a frame is flipped, every other frame is read, and the damage is counted."""
    parts = [encode_frame(encode_body(event), SEED) for event in make.EVENTS]
    data = b"".join(parts)
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    for index, changed in enumerate(flips(data)):
        hit = next(i for i, end in enumerate(ends) if index < end)
        assert frames(changed) == make.EVENTS[:hit] + make.EVENTS[hit + 1 :], index
        assert sum(isinstance(f, Torn) for f in scan(changed, 0, SEED)) == 1


def test_a_spool_cut_anywhere_keeps_every_whole_frame() -> None:
    """A spool that ends in the middle of a frame holds every frame before it, and no other."""
    parts = [encode_frame(encode_body(event), SEED) for event in make.EVENTS]
    data = b"".join(parts)
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    for size in range(len(data)):
        whole = sum(end <= size for end in ends)
        assert frames(data[:size].ljust(len(data) + 64, b"\0")) == make.EVENTS[:whole]


def test_a_frame_inside_a_torn_frame_is_not_believed() -> None:
    """Bytes that a tenant put into a tag never pass for a frame, even where the frame is torn."""
    forged = encode_frame(encode_body(make.EVENTS[0]), frame_seed(bytes(16)))
    event = Event(
        dimension="d", value=(1, 0), tenant="t", time=0, tags={"x": forged.decode("latin-1")}
    )
    data = bytearray(encode_frame(encode_body(event), SEED))
    data[10] ^= 1
    assert frames(bytes(data)) == []


def test_another_producers_frames_are_not_believed() -> None:
    """A frame of another producer's spool is damage here."""
    foreign = encode_frame(encode_body(make.EVENTS[0]), frame_seed(bytes(16)))
    assert [type(found) for found in scan(foreign, 0, SEED)] == [Torn]


def test_a_hole_of_zeros_hides_no_frame_behind_it() -> None:
    """Pages that a power cut left empty are stepped over, and counted."""
    frame = encode_frame(encode_body(make.EVENTS[0]), SEED)
    data = frame + bytes(4096) + frame + bytes(100)
    assert [type(found) for found in scan(data, 0, SEED)] == [Frame, Torn, Frame]


def test_a_damaged_spool_header_is_refused() -> None:
    """Every flipped byte of the identity is seen."""
    page = golden("spool-1.bin")[:SPOOL_HEADER_BYTES]
    used = len(page[:DROPPED_OFFSET].rstrip(b"\0"))
    for changed in flips(page[:used]):
        with pytest.raises(FormatError):
            read_spool_header(changed + page[used:])


@pytest.mark.parametrize("name", ["block-1.bin", "block-1-zstd.bin"])
def test_a_flipped_byte_of_a_block_is_seen(name: str) -> None:
    """No flipped byte of a block goes unseen."""
    for changed in flips(golden(name)):
        with pytest.raises(BlockDamaged):
            check_digest(changed, read_header(changed))


@pytest.mark.parametrize("name", ["block-1.bin", "block-1-zstd.bin"])
def test_a_block_that_is_cut_off_is_seen(name: str) -> None:
    """A block that lacks its end, however much of it, is refused."""
    block = golden(name)
    for size in range(len(block)):
        with pytest.raises(BlockDamaged):
            check_digest(block[:size], read_header(block[:size]))


def test_a_payload_that_wants_much_memory_is_refused() -> None:
    """A window of 128 MiB for a few bytes: no decompressor is given that for a block."""
    whole = golden("block-1.bin")
    raw = whole[HEADER_BYTES:]
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    stored = compressor.compress(raw, zstd.ZstdCompressor.FLUSH_BLOCK) + compressor.flush()
    head = struct.pack(
        "<4sBBH16sQIII",
        b"TBK1",
        1,
        0,
        0,
        make.PRODUCER,
        1,
        read_header(whole).count,
        len(raw),
        len(stored),
    )
    block = head + sha256(head + stored).digest() + stored
    with pytest.raises(BlockDamaged, match="memory"):
        read_payload(block, read_header(block))


def test_a_flipped_byte_of_a_request_never_changes_what_is_read() -> None:
    """A flipped byte makes a request unreadable or one of its blocks damaged; never another."""

    def read_whole(request: bytes) -> None:
        for block in read_request(request)[1]:
            read_payload(block, read_header(block))

    for changed in flips(golden("request-1.bin")):
        with pytest.raises((MessageDamaged, BlockDamaged)):
            read_whole(changed)


def test_a_request_that_is_cut_off_is_refused_whole() -> None:
    """A request that lacks its end is refused, with everything in it."""
    request = golden("request-1.bin")
    for size in range(len(request)):
        with pytest.raises(MessageDamaged):
            read_request(request[:size])


def test_a_truncated_or_foreign_answer_is_no_answer() -> None:
    """An answer that is cut off anywhere, or answers another block, is not believed."""
    answer, block = golden("answer-1.json"), golden("block-1.bin")
    for size in range(len(answer)):
        with pytest.raises(MessageDamaged):
            read_answer(answer[:size], [block])
    with pytest.raises(MessageDamaged):
        read_answer(answer, [golden("block-1-reissued.bin")])
    with pytest.raises(MessageDamaged):
        read_answer(answer, [])


def test_a_flipped_byte_of_an_entry_breaks_the_chain() -> None:
    """Every flipped byte of an entry changes the head behind it, readable or not."""
    head = CHAIN_START
    for data, expected in journal_parts(golden("journal-1.bin")):
        for changed in flips(data):
            assert link(head, changed) != expected
            with suppress(EntryDamaged):
                read_entry(changed)
        head = expected
