"""
Commits that fail, and what is visible when.
"""

from __future__ import annotations

import pytest

from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.intake import Intake
from tallybook_server.ledger import Delivery, LedgerBusy, LedgerFull, LedgerLocked, UsageQuery
from tallybook_server.query import aggregate
from tallybook_server.snapshot import Snapshot
from tests.ingest_server.ledger.conftest import TWO, Desk, block, event


def test_failed_commit_publishes_nothing(desk: Desk) -> None:
    """Commit comes before the tail: what is not on disk is in no answer."""
    desk.send(block(1, event(1)))
    desk.faults.commits = 2
    failed = desk.ledger.append(Delivery(blocks=[block(2, event(2, key="k"))]))

    assert isinstance(failed.exception(timeout=0), LedgerFull)
    assert desk.total() == "1"
    assert desk.findings() == []
    # Its key is free, its sequence is not held, and its coming again counts.
    desk.send(block(2, event(2, key="k")))
    assert desk.total() == "3"


def test_snapshot_stays_the_same_until_the_commit(desk: Desk) -> None:
    """Looked at before anything can put it right: a call to the writer builds the tail anew."""
    desk.send(block(1, event(1)))
    before = desk.ledger.snapshots.current
    desk.faults.commits = 2
    failed = desk.ledger.append(Delivery(blocks=[block(2, event(2))]))

    assert isinstance(failed.exception(timeout=0), LedgerFull)
    assert desk.ledger.snapshots.current is before


def test_commit_that_fails_once_is_tried_again(desk: Desk) -> None:
    """One error of the disk is no reason to bother the sender."""
    desk.faults.commits = 1
    (receipt,) = desk.send(block(1, event(5)))
    assert receipt.status == "stored"
    assert desk.total() == "5"


def test_commit_that_fails_but_is_durable_counts_once(desk: Desk) -> None:
    """The error of an fsync: what was stored all the same is found, not stored again."""
    desk.send(block(1, event(1)))
    desk.faults.commits, desk.faults.durable = 1, True
    (receipt,) = desk.send(block(2, event(5, key="k")))

    assert receipt.status == "duplicate"
    assert receipt.position == 3
    assert desk.total() == "6"
    assert desk.findings() == []


def test_json_whose_commit_fails_but_is_durable_counts_once(desk: Desk) -> None:
    """The same for events that the ledger itself made a block of."""
    desk.faults.commits, desk.faults.durable = 1, True
    done = desk.offer(event(5, id="a"), event(6, id="b"))
    assert done.verdicts == [None, None]
    assert done.position_of == [2, 2]
    assert desk.total() == "11"


def test_durable_after_giving_up_is_seen_later(desk: Desk) -> None:
    """Both tries fail, the second one durable: whoever sends again finds it."""
    desk.faults.commits, desk.faults.durable = 2, True
    failed = desk.ledger.append(Delivery(blocks=[block(1, event(5))]))
    assert isinstance(failed.exception(timeout=0), LedgerFull)

    (receipt,) = desk.send(block(1, event(5)))

    assert receipt.status == "duplicate"
    assert desk.total() == "5"


def test_journal_that_cannot_be_opened_again_takes_nothing(desk: Desk) -> None:
    """Until the disk is back; then everything goes on."""
    desk.send(block(1, event(1)))
    desk.faults.commits, desk.faults.opens = 1, 1
    failed = desk.ledger.append(Delivery(blocks=[block(2, event(2))]))
    assert isinstance(failed.exception(timeout=0), LedgerFull)
    desk.send(block(2, event(2)))
    assert desk.total() == "3"


def test_rows_of_the_whole_group_appear_at_once(desk: Desk) -> None:
    """A delivery of two blocks is one position further, not two answers."""
    with desk.ledger.snapshots.hold() as before:
        desk.send(block(1, event(1)), block(1, event(2), producer=TWO))
    with desk.ledger.snapshots.hold() as after:
        assert (before.position, after.position) == (1, 3)
        assert after.tail[-1].chunks == before.tail[-1].chunks + 1


def test_no_snapshot_has_a_part_of_a_group(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every snapshot that a query could meet: the position comes with its rows, all of them."""
    ledger, seen = desk.ledger, list[tuple[int, list[str | None]]]()
    swap = ledger.snapshots.swap

    def watched(snapshot: Snapshot) -> None:
        swap(snapshot)
        answer = aggregate(
            ledger.tables, desk.directory / "segments", snapshot, UsageQuery(("api.calls",))
        )
        seen.append((snapshot.position, [row.value for row in answer.rows]))

    monkeypatch.setattr(ledger.snapshots, "swap", watched)
    desk.send(block(1, event(1)), block(1, event(2), producer=TWO))
    assert seen == [(3, ["3"])]


def test_full_tail_takes_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Beyond the bound ingest says when to come back, and stores nothing."""
    ledger = EmbeddedLedger(tmp_path_factory.mktemp("book"), threads=False, tail_events_max=2)
    ledger.append(Delivery(blocks=[block(1, event(1), event(1))])).result(timeout=0)
    busy = ledger.append(Delivery(blocks=[block(3, event(1))])).exception(timeout=0)
    assert isinstance(busy, LedgerBusy)
    assert busy.retry_after_seconds > 0

    ledger.sealer.step(force=True)
    ledger.append(Delivery(blocks=[block(3, event(1))])).result(timeout=0)
    ledger.close()


def test_second_server_is_refused(desk: Desk) -> None:
    """One book, one server; the message says what to do."""
    with pytest.raises(LedgerLocked, match="held by a running server"):
        EmbeddedLedger(desk.directory, threads=False)


def test_restart_changes_nothing(desk: Desk) -> None:
    """Everything that can be asked is the same after a restart."""
    desk.send(
        block(1, event(1), event("0.5"), event(9, tenant="x" * 256)),
        announcement=desk.announce(highest=3),
    )
    desk.send(block(1, event(2), event(10**30), producer=TWO))
    desk.send(block(2, event(99), producer=TWO))

    def everything() -> object:
        ledger = desk.ledger
        return (
            ledger.id,
            ledger.position(),
            desk.total(),
            ledger.scan(after=(0, -1), limit=100),
            ledger.rejections(after=(0, -1), limit=100),
            ledger.producers(),
        )

    before = everything()
    desk.reopen()
    assert everything() == before
    assert desk.findings() == []


def test_kill_loses_nothing_that_was_answered(desk: Desk) -> None:
    """A new process on the files as they are, without a farewell."""
    desk.send(block(1, event(1)))
    after = desk.crash()
    assert after.total() == "1"
    assert after.ledger.id == desk.ledger.id
    after.ledger.close()


def test_threads_store_what_many_callers_bring(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With its threads on: every future resolves, and close waits for what has come."""
    ledger = EmbeddedLedger(tmp_path_factory.mktemp("book"), seal_events=50)
    futures = [ledger.append(Delivery(blocks=[block(at, event(1))])) for at in range(1, 201)]
    receipts = [future.result(timeout=30).receipts[0] for future in futures]
    assert {receipt.status for receipt in receipts} == {"stored"}
    assert list(ledger.verify()) == []
    ledger.close()


def test_caller_that_goes_away_harms_nobody(desk: Desk) -> None:
    """A cancelled request is stored all the same, and the writer lives."""
    future = desk.ledger.writer.append(Intake(None, desk.now, []))
    assert not future.cancel()
    desk.send(block(1, event(1)))
    assert desk.total() == "1"
