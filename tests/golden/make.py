"""
Writes the golden files of the formats, from fixed inputs. Run it only for a new version.

The tests compare what the codecs write today with these bytes, so that a change of a
format that nobody meant does not go unseen. Nothing here is compressed, because a
compressor's output may change with its version; a compressed block is read, not compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tallybook.block import RAW, REISSUED, ZSTD, derived_producer, encode_block, pack
from tallybook.event import Event
from tallybook.frame import (
    SpoolIdentity,
    encode_body,
    encode_frame,
    encode_header,
    frame_seed,
    split_body,
)
from tallybook.wire import Announcement, Answer, Exceptions, Receipt, encode_answer, encode_request
from tallybook_server.backup_manifest import BackupManifest, StoredFile, encode_manifest
from tallybook_server.entry import (
    CHAIN_START,
    Entry,
    Verdict,
    VerdictRun,
    encode_entry,
    link,
)

PRODUCER = bytes(range(16))
EVENTS = [
    Event(dimension="http.requests", value=(1, 0), tenant="acme", time=1_767_225_600_000_000,
          tags={"method": "GET", "route": "/v1/items/{id}"}),
    Event(dimension="http.requests", value=(1, 0), tenant="acme", time=1_767_225_600_000_250,
          tags={"method": "GET", "route": "/v1/items/{id}"}),
    Event(dimension="tokens.output", value=(1532, 0), tenant="zürich", time=1_767_225_600_100_000,
          tags={"model": "large"}, key="req-1:out"),
    Event(dimension="storage.gb_hours", value=(125, 1), tenant=None, time=-1, tags={}, given=True),
    Event(dimension="bytes.scanned", value=(10**37 + 1, 9), tenant="acme",
          time=1_767_225_600_100_001, tags={}),
]  # fmt: skip
IDENTITY = SpoolIdentity(
    producer=PRODUCER,
    number=3,
    boot="7e1b7b2e-1f4c-4b0e-9d70-0d5c4a1f6a11",
    source="api-gateway",
    endpoint="http://127.0.0.1:8255",
    level="process",
    created=1_767_225_600_000_000,
)
ANNOUNCEMENT = Announcement(
    producer=PRODUCER,
    sent_at=1_767_225_601_000_000,
    blocks=1,
    recorded=5,
    dropped=0,
    highest=5,
    through=1_767_225_600_900_000,
    closed=False,
    source="api-gateway",
    ledger="0f" * 16,
    receipt=(1, 41),
    sdk="0.1.0",
)
RESTORED = msgspec.structs.replace(ANNOUNCEMENT, branch="b1" * 16, chain="ab" * 32)
MANIFEST = BackupManifest(
    version=1,
    ledger="0f" * 16,
    incarnation=2,
    branch="b1" * 16,
    position=42,
    chain="ab" * 32,
    made_at=1_767_225_605_000_000,
    journal=StoredFile(
        name="journal.db", file="journal-cdcdcdcdcdcdcdcd.db", sha256="cd" * 32, bytes=4096
    ),
    segments=[
        StoredFile(
            name="0000000000000002-0000000000000003.parquet",
            file="0000000000000002-0000000000000003-efefefefefefefef.parquet",
            sha256="ef" * 32,
            bytes=1234,
        )
    ],
)
ENTRIES = [
    Entry(1, 1, 1_767_225_600_000_000, "genesis", ["0f" * 16, 1]),
    Entry(
        1,
        2,
        1_767_225_601_000_000,
        "block",
        [PRODUCER, 1, 5, bytes(32), "api-gateway"],
        [
            VerdictRun(0, 1, Verdict.DUPLICATE, "sequence", 1),
            VerdictRun(3, 3, Verdict.FLAGGED, "clock", 900_000_000),
        ],
    ),
    Entry(1, 3, 1_767_225_602_000_000, "rejection", [2, bytes(32)]),
    Entry(1, 4, 1_767_225_603_000_000, "seal", ["000000000004.parquet", bytes(32), 3, 2, 3]),
    Entry(1, 5, 1_767_225_604_000_000, "restore", [2, "b1" * 16, 4]),
]


def spool() -> bytes:
    """A spool file of a header and five frames."""
    seed = frame_seed(PRODUCER)
    return encode_header(IDENTITY) + b"".join(encode_frame(encode_body(e), seed) for e in EVENTS)


def block(codec: int = RAW) -> bytes:
    """A block of the five events."""
    columns = pack("api-gateway", [split_body(encode_body(event)) for event in EVENTS])
    return encode_block(columns, producer=PRODUCER, first=1, codec=codec)


def reissued() -> bytes:
    """The block that brings event 3 again, after a conflict."""
    from tallybook.block import read_header

    header = read_header(block())
    columns = pack("api-gateway", [split_body(encode_body(EVENTS[2]))])
    derived = derived_producer(PRODUCER, 1, header.sha256)
    return encode_block(columns, producer=derived, first=3, flags=REISSUED, codec=RAW)


def answer() -> bytes:
    """The answer to a request of that block."""
    from tallybook.block import read_header

    header = read_header(block())
    receipt = Receipt(
        producer=PRODUCER.hex(),
        first=1,
        count=5,
        sha256=header.sha256.hex(),
        status="stored",
        position=42,
        chain="ab" * 32,
        exceptions=[Exceptions(3, 3, "conflict", "key", 17)],
    )
    return encode_answer(
        Answer(ledger="0f" * 16, incarnation=1, position=42, archived=0, receipts=[receipt])
    )


def restored_answer() -> bytes:
    """The answer of a ledger that was restored, to an announcement without blocks."""
    return encode_answer(
        Answer(
            ledger="0f" * 16,
            incarnation=2,
            position=43,
            archived=42,
            receipts=[],
            branch="b1" * 16,
            holds=[("0f" * 16, 42)],
        )
    )


def journal() -> bytes:
    """Entries and the chain's heads behind them, in turn, each with its length before it."""
    head = CHAIN_START
    parts: list[bytes] = []
    for entry in ENTRIES:
        data = encode_entry(entry)
        head = link(head, data)
        parts.append(len(data).to_bytes(4, "little") + data + head)
    return b"".join(parts)


FILES = {
    "spool-1.bin": spool,
    "block-1.bin": block,
    "block-1-reissued.bin": reissued,
    "request-1.bin": lambda: encode_request(ANNOUNCEMENT, [block()]),
    "request-1-restored.bin": lambda: encode_request(RESTORED, [block()]),
    "answer-1.json": answer,
    "answer-1-restored.json": restored_answer,
    "backup-manifest-1.json": lambda: encode_manifest(MANIFEST),
    "journal-1.bin": journal,
}

if __name__ == "__main__":
    folder = Path(__file__).parent
    for name, make in FILES.items():
        (folder / name).write_bytes(make())
    if not (folder / "block-1-zstd.bin").exists() or "--zstd" in sys.argv:
        (folder / "block-1-zstd.bin").write_bytes(block(ZSTD))
