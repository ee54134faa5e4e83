"""
Refusals as problem documents. RFC 9457.

Every refusal of the server, and every verdict on a single event, has a type in the table
of `problem_types`: a slug, a title, a status and what to do. The type's address is a page
on the same server, ``/problems/<slug>``, so that a message in a log is one click away from
its remedy.

A `Problem` is raised where the fault is found and becomes a document at the edge. What is
wrong with one event is not raised: it becomes a rejection, and its neighbours are accepted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

import msgspec
from starlette.responses import Response

from tallybook_server.catalogue import UnknownDimension
from tallybook_server.ledger import LedgerBusy, LedgerFull
from tallybook_server.limits import FULL_RETRY_SECONDS
from tallybook_server.problem_types import EVENT_PROBLEMS, REQUEST_PROBLEMS, ProblemType

__all__ = [
    "CONTENT_TYPE",
    "PROBLEMS",
    "Problem",
    "ProblemType",
    "busy",
    "full",
    "nearest",
    "problem_page",
    "slug_of",
    "unknown_dimension",
]

CONTENT_TYPE: Final = "application/problem+json"


PROBLEMS: Final[Mapping[str, ProblemType]] = {
    problem.slug: problem for problem in (*REQUEST_PROBLEMS, *EVENT_PROBLEMS)
}
"""Every type, by its slug."""

_SLUG_OF_REASON: Final[Mapping[str, str]] = {
    problem.reason: problem.slug for problem in PROBLEMS.values() if problem.reason is not None
}


def slug_of(verdict: str, reason: str) -> str:
    """
    The problem type of an event's verdict.

    Two reasons mean different things by verdict: a ``key`` in conflict is held by another
    event, a rejected ``key`` is out of its bounds.
    """
    if verdict == "conflict":
        return "identity-conflict"
    # A ledger that is newer than this table still gets an answer that can be looked up.
    return _SLUG_OF_REASON.get(reason, "event-invalid")


class Problem(Exception):
    """
    A request that is refused, on its way to becoming a document.

    Attributes:
        kind: The type.
        detail: The value seen, what was expected, what to do.
        headers: Header fields of the answer: ``Retry-After``, ``Allow``.
        more: Members of the document beside the standard ones; never a secret.
    """

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = PROBLEMS[slug]
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def document(self) -> bytes:
        """The document's JSON."""
        return msgspec.json.encode(
            {
                "type": self.kind.path,
                "title": self.kind.title,
                "status": self.kind.status,
                "detail": self.detail,
                "advice": self.kind.advice,
                "retryable": self.kind.retryable,
                **self.more,
            }
        )

    def response(self) -> Response:
        """The answer."""
        return Response(self.document(), self.kind.status, self.headers, CONTENT_TYPE)


def busy(error: LedgerBusy) -> Problem:
    """The ledger takes nothing just now."""
    seconds = max(1, math.ceil(error.retry_after_seconds))
    return Problem("busy", str(error), headers={"Retry-After": str(seconds)})


def full(error: LedgerFull) -> Problem:
    """The ledger's disk refused."""
    return Problem("disk-full", str(error), headers={"Retry-After": str(FULL_RETRY_SECONDS)})


def unknown_dimension(error: UnknownDimension) -> Problem:
    """There is no such dimension; perhaps the nearest one was meant."""
    return Problem(
        "dimension-unknown",
        f"{error}.{nearest(error.dimension, error.known)}",
        more={"parameter": "dimension", "dimension": error.dimension},
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x' or 'y'?"``, or nothing when nothing is near."""
    # The cut keeps the comparison, which is quadratic, away from long input.
    near = get_close_matches(word[:100], known, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def problem_page(kind: ProblemType) -> str:
    """The text at the type's address."""
    lines = [
        kind.title,
        "",
        kind.advice,
        "",
        f"slug: {kind.slug}",
        f"status: {kind.status}",
        f"retryable: {'yes' if kind.retryable else 'no'}",
    ]
    if kind.reason is not None:
        lines.append(f"reason in verdicts and rejections: {kind.reason}")
    return "\n".join(lines) + "\n"
