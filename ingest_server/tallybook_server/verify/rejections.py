"""What was not counted is kept, unchanged, and as its entry judged it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from tallybook_server.entry import Verdict
from tallybook_server.journal import Journal, RejectionRow
from tallybook_server.judge import rejected_digest
from tallybook_server.ledger import Finding
from tallybook_server.verify.pages import BEFORE_ALL, Read, pages
from tallybook_server.verify.progress import Progress, Report
from tallybook_server.verify.record import Record, is_kept

__all__ = ["check_rejections"]


def check_rejections(record: Record, read: Read, report: Report) -> Iterator[Finding]:
    """One for each event that was not counted."""
    remaining = record.refused[:]
    done, total = 0, sum(remaining)
    data: dict[int, list[bytes]] = {at: [] for at in record.rejected}
    first = (BEFORE_ALL, BEFORE_ALL)
    for rows, head in pages(read, Journal.rejection_page, _key, first):
        for row in rows:
            where = f"entry {row.position}, event {row.place}"
            if row.seal != row.sealed():
                yield Finding("rejection", where, "its bytes have changed")
            if not 0 < row.position <= head:
                yield Finding("rejection", where, "there is no such entry")
            elif row.position <= record.position:
                remaining[row.position] -= 1
                done += 1
                if not _is_judged(record, row):
                    yield Finding("rejection", where, "its entry does not judge it so")
            if row.position in data:
                data[row.position].append(row.data)
        report(Progress("rejections", done, total, "events"))
    for entry, left in enumerate(remaining):
        if left:
            yield Finding("rejection", f"entry {entry}", f"{left} rejections are missing")
    for at, detail in record.rejected.items():
        if rejected_digest(data[at]) != detail[1]:
            yield Finding("rejection", f"entry {at}", "not the bytes that the entry names")


def _key(row: RejectionRow) -> tuple[int, int]:
    return row.position, row.place


def _is_judged(record: Record, row: RejectionRow) -> bool:
    """Whether a row is one of its entry's verdicts."""
    if row.position in record.rejected:
        count = record.rejected[row.position][0]
        return row.verdict == Verdict.REJECTED and 0 <= row.place < count
    entry = record.odd.get(row.position)
    if entry is None:
        return False
    at = bisect_right(entry.verdicts, row.place, key=lambda run: run.first) - 1
    if at < 0:
        return False
    run = entry.verdicts[at]
    judged = (int(run.verdict), run.reason)
    return (
        row.place <= run.last
        and judged == (row.verdict, row.reason)
        and is_kept(run.verdict, run.reason)
    )
