"""
The routes of usage: a question is read, the ledger is asked, the answer goes out whole.

All of it happens in a thread. The body is finished before the first byte of it is sent: a
table that breaks off in the middle looks like one that ends there.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.requests import Request
from starlette.responses import Response

from tallybook_server.body import BodyBudget, Bound, read_body
from tallybook_server.json_body import JSON as JSON_BODY
from tallybook_server.json_body import check_content_type
from tallybook_server.ledger import Ledger
from tallybook_server.limits import LINK_BYTES_MAX
from tallybook_server.problems import Problem
from tallybook_server.question import Usage
from tallybook_server.settings import Settings
from tallybook_server.usage.answer import answer_json, shown_time
from tallybook_server.usage.asked import UsageQuestion, read_question
from tallybook_server.usage.asking import ask_ledger
from tallybook_server.usage.checks import query_of
from tallybook_server.usage.flat import answer_csv, answer_ndjson
from tallybook_server.usage.formats import CSV, JSON, NDJSON, Format, accepted, by_suffix
from tallybook_server.usage.pages import Page, page_of
from tallybook_server.usage.parquet import answer_parquet
from tallybook_server.usage.written import written_question

__all__ = ["UsageRoutes", "page_asked"]


class UsageRoutes:
    """
    ``GET /v1/usage`` and ``POST /v1/usage/query``, and both with a format's suffix.

    Args:
        ledger: Who answers.
        settings: The limits of a question.
        budget: What all bodies together may take.
        threads: How many questions are worked on at one time.
    """

    def __init__(
        self, ledger: Ledger, settings: Settings, budget: BodyBudget, threads: CapacityLimiter
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._budget = budget
        self._threads = threads

    async def get(self, request: Request) -> Response:
        """Answer the question that the URL asks."""
        form = _format(request)
        query_string: bytes = request.scope["query_string"]

        def work() -> Response:
            return self._answer(written_question(query_string), form, query_string)

        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    async def post(self, request: Request) -> Response:
        """Answer the question that the body asks, as JSON."""
        form = _format(request)
        check_content_type(request.headers, JSON_BODY)
        bound = Bound("question_bytes_max", self._settings.question_bytes_max)
        async with read_body(
            request.receive, request.headers, self._settings, self._budget, bound=bound
        ) as body:

            def work() -> Response:
                return self._answer(read_question(body), form, None)

            return await anyio.to_thread.run_sync(work, limiter=self._threads)

    def _answer(self, asked: UsageQuestion, form: Format, url: bytes | None) -> Response:
        page = page_asked(asked)
        if page.query.explain and form is not JSON:
            raise Problem(
                "parameters-conflict",
                f"explain has its place in JSON, and the answer is to be {form.media_type}",
                more={"parameters": ["explain"]},
            )
        usage = ask_ledger(self._ledger, page)
        cursor = page.next_cursor(usage.position, len(usage.rows)) if usage.more else None
        body = _body(page, usage, cursor, form)
        return Response(body, headers=_headers(usage, cursor, form, url))


def page_asked(asked: UsageQuestion) -> Page:
    """
    What to ask the ledger.

    Raises:
        Problem: The question makes no sense, or its cursor is of another one.
    """
    return page_of(query_of(asked), cursor=asked.cursor, is_whole=asked.limit is None)


def _format(request: Request) -> Format:
    suffix: str | None = request.path_params.get("suffix")
    if suffix is not None:
        return by_suffix(suffix)
    # Several fields of one name are one list: RFC 9110 section 5.3.
    fields = request.headers.getlist("accept")
    return accepted(",".join(fields) if fields else None)


# -- the answer ----------------------------------------------------------------------------


def _body(page: Page, usage: Usage, cursor: str | None, form: Format) -> bytes:
    if form is JSON:
        return b"".join(answer_json(page.query, usage, cursor))
    if form is CSV:
        return b"".join(answer_csv(page.query, usage))
    if form is NDJSON:
        return b"".join(answer_ndjson(usage))
    return answer_parquet(page.query, usage, cursor)


def _headers(usage: Usage, cursor: str | None, form: Format, url: bytes | None) -> dict[str, str]:
    headers = {
        "Content-Type": form.content_type,
        "Tallybook-Position": str(usage.position),
        "Tallybook-Complete": "true" if usage.complete else "false",
        "Tallybook-Events": str(usage.events),
        "Tallybook-Tzdata": usage.tzdata,
    }
    through = shown_time(usage.through)
    if through is not None:
        headers["Tallybook-Through"] = through
    if form.is_file:
        name = f"usage-{usage.position}.{form.suffix}"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    if cursor is not None:
        headers["Tallybook-Next"] = cursor
        headers |= _link(cursor, url)
    return headers


def _link(cursor: str, url: bytes | None) -> dict[str, str]:
    """``Link`` to the next page, where it can be had by its address and the address is short."""
    if url is None:
        return {}
    asked = parse_qsl(url.decode("ascii"), keep_blank_values=True)
    kept = [(name, value) for name, value in asked if name != "cursor"]
    following = f"?{urlencode([*kept, ('cursor', cursor)])}"
    # A reference without a path: a proxy may have put the server below another one.
    return {"Link": f'<{following}>; rel="next"'} if len(following) <= LINK_BYTES_MAX else {}
