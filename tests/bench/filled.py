"""
A ledger with given events, as a server that is running has it: sealed, with a hot tail.

The events are appended in this process, through the door that a server's requests go
through, too. Whatever the ledger does on its own beside that, it does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Delivery, LedgerBusy
from tests.bench.columns import Dataset
from tests.bench.data import announce

__all__ = ["append", "fill"]

_TAIL_SHARE: Final = 50
"""The hot tail has one event in so many: 200,000 of 10 million."""
_BLOCKS_AT_ONCE: Final = 64
_PRODUCER: Final = bytes(range(16))


def fill(directory: Path, events: Dataset) -> EmbeddedLedger:
    """
    A ledger with *events*, sealed and merged but for the last ones.

    From then on nothing happens to it, so that every engine has its turns on the same files.
    """
    sealed = len(events) - len(events) // _TAIL_SHARE
    with closing(EmbeddedLedger(directory)) as running:
        append(running, _PRODUCER, events.part(0, sealed).blocks(_PRODUCER))
    ledger = EmbeddedLedger(directory, threads=False)
    ledger.sealer.step(force=True)
    while ledger.compactor.step():
        pass
    tail = events.part(sealed, len(events)).blocks(_PRODUCER, first=sealed + 1)
    append(ledger, _PRODUCER, tail)
    return ledger


def append(ledger: EmbeddedLedger, producer: bytes, blocks: Iterable[bytes]) -> None:
    """Store *blocks* of one producer, as fast as the ledger takes them."""
    waiting: list[bytes] = []
    for block in blocks:
        waiting.append(block)
        if len(waiting) == _BLOCKS_AT_ONCE:
            _deliver(ledger, Delivery(announce(producer, waiting), waiting))
            waiting = []
    if waiting:
        _deliver(ledger, Delivery(announce(producer, waiting), waiting))


def _deliver(ledger: EmbeddedLedger, delivery: Delivery) -> None:
    while True:
        try:
            done = ledger.append(delivery).result()
            break
        except LedgerBusy as busy:
            time.sleep(busy.retry_after_seconds)  # Appending is faster than sealing.
    if any(receipt.status != "stored" or receipt.exceptions for receipt in done.receipts):
        raise RuntimeError(f"not stored: {done.receipts}")
