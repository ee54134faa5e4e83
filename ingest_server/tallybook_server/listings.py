"""
The lists: rejections, producers, and what `verify` finds.

Each is read from the ledger in a thread and answered as JSON. Rejections come a page at a
time, in the ledger's order, which never changes: a page that was read once is the same for
ever.
"""

from __future__ import annotations

from itertools import islice
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tallybook.event import format_time
from tallybook_server.ledger import Ledger, Place, Position, ProducerReport, Rejection
from tallybook_server.limits import FINDINGS_MAX
from tallybook_server.parameters import Parameters
from tallybook_server.problems import PROBLEMS, slug_of
from tallybook_server.readable import readable

__all__ = [
    "ProducersAnswer",
    "RejectionsAnswer",
    "VerifyAnswer",
    "answer_producers",
    "answer_rejections",
    "answer_verify",
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class ListedRejection(_Model):
    """
    An event that was not counted.

    Attributes:
        position: The entry that recorded it.
        index: Its place there.
        cursor: What to pass as ``after`` for what follows.
        verdict: ``rejected``, or ``conflict``.
        reason: A stable word.
        type: The address of the problem's page.
        detail: What is wrong, in words.
        data: The event as it came: text, or base64 where it is not UTF-8.
        encoding: Which of the two.
        recorded_at: RFC 3339.
    """

    position: str
    index: int
    cursor: str
    verdict: Literal["rejected", "conflict"]
    reason: str
    type: str
    detail: str
    data: str
    encoding: Literal["utf-8", "base64"]
    recorded_at: str


class RejectionsAnswer(_Model):
    """A page of rejections; `next` is what to pass as ``after``, null on the last page."""

    data: list[ListedRejection]
    next: str | None


class ListedProducer(_Model):
    """A producer as the ledger knows it; times are RFC 3339."""

    producer: str
    source: str | None
    state: Literal["open", "closed", "silent", "written_off"]
    recorded: int
    received: int
    highest: int
    dropped: int
    missing: int
    gaps: list[tuple[int, int]]
    through: str | None
    first_seen: str
    last_seen: str
    reissue_of: str | None


class ProducersAnswer(_Model):
    """Every producer, the last seen first."""

    data: list[ListedProducer]


class ListedFinding(_Model):
    """Something that is wrong with the ledger."""

    what: str
    where: str
    detail: str


class VerifyAnswer(_Model):
    """What `verify` found up to `position`; `more` says that the list was cut."""

    findings: list[ListedFinding]
    more: bool
    position: str


_PAGE = ("after", "limit")


def answer_rejections(ledger: Ledger, query_string: bytes) -> bytes:
    """The JSON of a page of rejections. Blocks; raises Problem for a wrong parameter."""
    after, limit = Parameters(query_string, _PAGE).page()
    incarnation = ledger.position().incarnation
    rows = [_rejection(row, incarnation) for row in ledger.rejections(after=after, limit=limit)]
    following = rows[-1].cursor if len(rows) == limit else None
    return RejectionsAnswer(data=rows, next=following).model_dump_json().encode()


def _rejection(row: Rejection, incarnation: int) -> ListedRejection:
    data, encoding = readable(row.data)
    return ListedRejection(
        position=str(Position(incarnation, row.position)),
        index=row.index,
        cursor=str(Place(row.position, row.index)),
        verdict=row.verdict,
        reason=row.reason,
        type=PROBLEMS[slug_of(row.verdict, row.reason)].path,
        detail=row.detail,
        data=data,
        encoding=encoding,
        recorded_at=format_time(row.recorded_at),
    )


def answer_producers(ledger: Ledger, query_string: bytes) -> bytes:
    """The JSON of every producer. Blocks; raises Problem for a parameter: there are none."""
    Parameters(query_string, ())
    rows = [_producer(row) for row in ledger.producers()]
    return ProducersAnswer(data=rows).model_dump_json().encode()


def _producer(row: ProducerReport) -> ListedProducer:
    return ListedProducer(
        producer=row.producer,
        source=row.source,
        state=row.state,
        recorded=row.recorded,
        received=row.received,
        highest=row.highest,
        dropped=row.dropped,
        missing=row.missing,
        gaps=row.gaps,
        through=None if row.through is None else format_time(row.through),
        first_seen=format_time(row.first_seen),
        last_seen=format_time(row.last_seen),
        reissue_of=row.reissue_of,
    )


def answer_verify(ledger: Ledger, query_string: bytes) -> bytes:
    """The JSON of what is wrong with the ledger. Blocks, for minutes on a large one."""
    Parameters(query_string, ())
    position = ledger.position()
    found = list(islice(ledger.verify(), FINDINGS_MAX + 1))
    findings = [ListedFinding(what=f.what, where=f.where, detail=f.detail) for f in found]
    answer = VerifyAnswer(
        findings=findings[:FINDINGS_MAX], more=len(findings) > FINDINGS_MAX, position=str(position)
    )
    return answer.model_dump_json().encode()
