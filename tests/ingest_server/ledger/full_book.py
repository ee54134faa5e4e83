"""A closed book with something of everything that a ledger can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tallybook_server.catalogue import Declaration
from tallybook_server.compaction import Policy
from tallybook_server.correction import Adjustment
from tallybook_server.event_filter import EventFilter
from tallybook_server.ledger import Delivery, EventId, RejectedEvent, VoidRequest
from tallybook_server.limits import PROOF_GROUP_ENTRIES
from tallybook_server.restore import Restore
from tests.ingest_server.ledger.conftest import ONE, START, TWO, Desk, block, event, reissue

__all__ = ["FullBook", "build"]

DAY = 86_400_000_000
# Any two segments are merged, one row is enough for a month, and large is never reached.
POLICY = Policy(fan_in=2, rows_min=1)


@dataclass(frozen=True)
class FullBook:
    """
    What was built.

    Attributes:
        data: The server's directory.
        book: The book in it, closed.
        strange: Files that are segments, but none of the book: merged ones, another book's.
    """

    data: Path
    book: Path
    strange: tuple[bytes, ...]


def build(root: Path) -> FullBook:
    """
    Make a ledger, seal, merge, correct, state, back it up, restore it, and go on.

    Args:
        root: An empty directory.
    """
    first = Desk(root / "first" / "books" / "default", compaction=POLICY)
    _many(first)
    _every_kind(first)
    first.seal()
    before = _segments(first)
    _late_and_wide(first)
    first.seal()
    first.compact()
    _corrections(first)
    first.ledger.checkpoint()
    first.ledger.backup(str(root / "backup"))
    first.ledger.close()
    data = root / "data"
    book = data / "books" / "default"
    Restore(root / "backup", book, clock=first.clock, ids=first.ids).make()
    desk = Desk(book, first.clock, first.ids, POLICY)
    _behind_the_restore(desk)
    desk.ledger.backup(str(root / "second backup"))
    desk.ledger.close()
    other = Desk(root / "other", compaction=POLICY)
    other.send(block(1, event(1), event(2)))
    other.seal()
    strange = (*before, *_segments(other))
    other.ledger.close()
    return FullBook(data, book, strange)


def _segments(desk: Desk) -> list[bytes]:
    return [path.read_bytes() for path in sorted((desk.directory / "segments").iterdir())]


def _many(desk: Desk) -> None:
    """Enough entries for a group of proofs to be finished; more producers than a part has."""
    blocks = [
        block(1, event(number % 7, tenant=f"tenant-{number % 5}"), producer=_numbered(number % 300))
        for number in range(300)
    ]
    blocks += [
        block(2, event(1), event("0.125", tags={"n": str(number)}), producer=_numbered(number))
        for number in range(PROOF_GROUP_ENTRIES - 290)
    ]
    desk.deliver(Delivery(announcement=desk.announce(_numbered(0), highest=3), blocks=blocks))


def _numbered(number: int) -> bytes:
    return (1_000 + number).to_bytes(16, "big")


def _every_kind(desk: Desk) -> None:
    """Duplicates, conflicts, rejections, keys, ids, clocks that are wrong."""
    mine = block(1, event(1, key="k", tags={"a": "b"}), event(2, id="i"), event(3, given=True))
    desk.send(mine, announcement=desk.announce(highest=40, dropped=3))
    desk.send(mine)
    clone = block(2, event(2, id="i"), event(33), event(4, tags={"only": "here"}))
    desk.send(clone)
    desk.send(reissue(clone, event(33)))
    desk.send(
        block(
            10,
            event(1, key="k", tags={"a": "b"}),
            event(9, key="k", tags={"never": "counted"}),
            event(1, tenant="x" * 256),
            event(5, tenant=None, tags={"Route": "/a", "route": "/b"}),
            event(6, dimension="storage.gb", key="other", tags={"a": "c"}),
        )
    )
    ahead = desk.now + 3_600_000_000
    desk.send(
        block(20, event(1, time=ahead), event(2)),
        announcement=desk.announce(highest=40, sent_at=ahead),
    )
    desk.offer(
        event(7, id="json-1"),
        RejectedEvent(b'{"value": "many"}', "value", "no number"),
        event(8, id="json-1"),
        event(8, id="json-1"),
    )
    desk.offer(RejectedEvent(b"{}", "dimension", "is missing"), source=None)


def _late_and_wide(desk: Desk) -> None:
    """Months ago, in other dimensions, and beyond 63 bits."""
    desk.send(
        block(
            1,
            event(10**30, time=START - 40 * DAY, key="wide"),
            event("1" * 29 + ".5", dimension="tokens.output", time=START - 75 * DAY),
            event(5, time=START - 10 * DAY, tags={"region": "eu", "Region": "us"}),
            producer=TWO,
        ),
        announcement=desk.announce(TWO, highest=3, closed=True),
    )


def _corrections(desk: Desk) -> None:
    desk.ledger.declare(Declaration("api.calls", "calls", "sum")).result(timeout=0)
    desk.ledger.declare(Declaration("storage.gb", "GB", "last", start=START)).result(timeout=0)
    ledger = desk.ledger
    credit = Adjustment("credit", "api.calls", (-25, 1), "acme", START, {"why": "sla"}, "outage")
    ledger.correct(credit).result(timeout=0)
    one = VoidRequest("void", "a bug", event=EventId(ONE.hex(), 3))
    at = ledger.correct(one).result(timeout=0).position
    ledger.correct(VoidRequest("void-void", "no bug", corrects=at)).result(timeout=0)
    chosen = EventFilter(dimensions=("tokens.output",))
    ledger.correct(VoidRequest("chosen", "a leak", events=chosen)).result(timeout=0)


def _behind_the_restore(desk: Desk) -> None:
    """More of the same; another seal, and a tail."""
    desk.send(block(100, event(11, key="later", tags={"a": "z"}), event(12, id="later")))
    desk.seal()
    desk.send(block(110, event(13, time=START - 40 * DAY), event(14, key="more", tags={"b": "y"})))
    desk.seal()
    desk.ledger.checkpoint()
    desk.send(block(120, event(15), event(10**25, key="tail"), event(16, tenant="x" * 256)))
    desk.offer(event(17, id="tail"), event(18, id="i"))
    desk.send(block(200, event(19, tags={"c": "x"}), producer=TWO))
    credit = Adjustment("late", "api.calls", (3, 0), None, START, {}, "more", given=False)
    desk.ledger.correct(credit).result(timeout=0)
