"""
Cursors: where the next page of an answer begins. Pure.

A cursor carries the position of the first page, so that all pages are parts of one answer
while events arrive; how many rows they had; and a digest of the question, so that it is
never continued with another one. To whoever passes it on it is a word without meaning.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from tallybook_server.problems import Problem
from tallybook_server.question import Position, UsageQuery

__all__ = ["Page", "page_of"]

_VERSION: Final = 1
_BODY: Final = struct.Struct(">BIQQ8s")  # Version, incarnation, n, skip, digest of the question.
_CHECK_BYTES: Final = 4


class Page(NamedTuple):
    """
    One page of an answer.

    Attributes:
        query: What to ask the ledger for it.
        question: The digest of the question, the same for all of its pages.
        is_whole: Nobody asked for pages: an answer that does not fit is to be refused.
    """

    query: UsageQuery
    question: bytes
    is_whole: bool

    def next_cursor(self, position: Position, rows: int) -> str:
        """The cursor behind this page, which has *rows* rows and holds for *position*."""
        body = _BODY.pack(
            _VERSION, position.incarnation, position.n, self.query.skip + rows, self.question
        )
        return base64.urlsafe_b64encode(body + _check(body)).decode()


def page_of(query: UsageQuery, *, cursor: str | None, is_whole: bool) -> Page:
    """
    The page of *query* that begins at *cursor*, or its first one.

    Raises:
        Problem: ``cursor-invalid``: it is damaged, or of another question.
    """
    question = _digest(query)
    if cursor is None:
        return Page(query, question, is_whole)
    position, skip, digest = _read(cursor)
    if digest != question:
        raise _invalid("the cursor is of another question; expected the same one on each page")
    query = replace(query, as_of=position, as_of_time=None, skip=skip)
    return Page(query, question, is_whole=False)


def _read(cursor: str) -> tuple[Position, int, bytes]:
    try:
        raw = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _damaged(cursor) from None
    body = raw[: _BODY.size]
    if len(raw) != _BODY.size + _CHECK_BYTES or raw[_BODY.size :] != _check(body):
        raise _damaged(cursor)
    version, incarnation, n, skip, digest = _BODY.unpack(body)
    if version != _VERSION:
        raise _invalid(f"the cursor has version {version}; this server writes {_VERSION}")
    return Position(incarnation, n), skip, digest


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]


def _digest(query: UsageQuery) -> bytes:
    # What does not change the rows may change from page to page.
    question = replace(query, skip=0, limit=1, explain=False)
    return hashlib.sha256(msgspec.json.encode(question)).digest()[:8]


def _damaged(cursor: str) -> Problem:
    return _invalid(f"the cursor {cursor[:60]!r} is damaged; expected one as an answer gave it")


def _invalid(detail: str) -> Problem:
    return Problem("cursor-invalid", detail, more={"parameter": "cursor"})
