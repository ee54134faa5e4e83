"""``tallybook usage``: who used how much of what, when, as the server answers it."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Final, cast

from tallybook.cli.connection import Answer, Document, Server, add_endpoint
from tallybook.cli.output import Exit, Failure, Sink, say
from tallybook.cli.parser import Commands, Parser, add_command, count
from tallybook.cli.tag_options import add_tag_options
from tallybook.cli.usage_question import Question, question_of
from tallybook.cli.usage_table import basis_of, basis_of_headers, explanation_of, table_of

__all__ = ["register"]

ANSWER_SECONDS: Final = 300.0
"""A question over years of usage may take the server long."""

PAGE_ROWS: Final = 100_000
"""Rows that are asked for at once: the most that the server gives."""

_PATH: Final = "/v1/usage/query"
_NEXT: Final = "tallybook-next"
_POSITION: Final = "tallybook-position"
_JSON: Final = "application/json"
_TYPES: Final = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}


def register(commands: Commands) -> None:
    """Declare ``usage``."""
    parser = add_command(
        commands,
        "usage",
        _usage,
        summary="ask who used how much, and when",
        words="The answer is exact for one position of the ledger, which is named beside it.\n"
        "All of its pages are fetched; --limit stops earlier. A KEY with an = in it is written\n"
        "with \\=, and one with a comma, behind --group-by, with \\,.",
        examples=[
            "tallybook usage http.requests --group-by tenant",
            "tallybook usage tokens.output --tenant acme --tag model=small --tag model=large",
            "tallybook usage http.requests --from 2026-11-01 --to 2026-12-01 --window day "
            "--time-zone Europe/Berlin --fill",
            "tallybook usage http.requests --group-by tenant --top 10",
            "tallybook usage http.requests --prefix-tag route=/v1/ --not-tag status=500",
            "tallybook usage latency.ms --aggregation percentile --percentile 99.9",
            "tallybook usage http.requests --aggregation unique --unique-of tag:user",
            "tallybook usage http.requests tokens.output --group-by tenant --csv --output nov.csv",
            "tallybook usage http.requests --group-by tenant --as-of 1.42",
        ],
    )
    parser.add_argument(
        "dimension", nargs="+", metavar="DIMENSION", help="what was used: http.requests"
    )
    _add_whose(parser)
    _add_when(parser)
    _add_how(parser)
    _add_formats(parser)
    add_endpoint(parser)


def _add_whose(parser: Parser) -> None:
    parser.add_argument(
        "--tenant",
        action="append",
        default=[],
        help='only this tenant, "" for events without one; may be repeated',
    )
    parser.add_argument(
        "--group-by",
        action="append",
        default=[],
        metavar="NAME",
        help="tenant, or tag:KEY; may be repeated, or several with commas between",
    )
    add_tag_options(parser)


def _add_when(parser: Parser) -> None:
    parser.add_argument(
        "--from",
        dest="start",
        metavar="TIME",
        help="the first moment: 2026-11-01T00:00:00Z, or 2026-11-01 in the time zone",
    )
    parser.add_argument(
        "--to", dest="end", metavar="TIME", help="the first moment that no longer counts"
    )
    parser.add_argument(
        "--window",
        metavar="NAME",
        help="split the answer by minute, hour, day, week, month, quarter or year; none",
    )
    parser.add_argument(
        "--month-day", type=count, metavar="N", help="the day on which a month begins; 1"
    )
    parser.add_argument("--time-zone", metavar="NAME", help="whose hours and days; UTC")
    parser.add_argument("--fill", action="store_true", help="show windows without usage, too")
    parser.add_argument(
        "--as-of",
        metavar="WHEN",
        help="as it was at a position of the ledger, 1.42, or at a time of recording",
    )


def _add_how(parser: Parser) -> None:
    parser.add_argument(
        "--aggregation",
        metavar="NAME",
        help="sum, count, min, max, avg, last, unique, percentile or time_weighted; "
        "what the dimension declares",
    )
    parser.add_argument(
        "--unique-of", metavar="WHAT", help="with unique: value, or the tag as tag:KEY"
    )
    parser.add_argument("--percentile", metavar="P", help="with percentile: 99.9")
    parser.add_argument(
        "--order",
        metavar="NAME",
        help="group; value, or --order=-value for the largest first; with --top: -value",
    )
    parser.add_argument(
        "--top", type=count, metavar="N", help="only so many rows of each window and dimension"
    )
    parser.add_argument("--limit", type=count, metavar="N", help="stop after so many rows")
    parser.add_argument("--cursor", help="go on where an answer with --limit stopped")
    parser.add_argument("--explain", action="store_true", help="say what was read")


def _add_formats(parser: Parser) -> None:
    parser.add_argument("--csv", action="store_true", help="print CSV, for a spreadsheet")
    parser.add_argument("--ndjson", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--parquet", action="store_true", help="a Parquet file; at most 100,000 rows"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write there; the file appears when it is complete"
    )


# -- running -------------------------------------------------------------------------------


def _usage(arguments: Namespace) -> int:
    form = _form(arguments)
    server, question = Server.of(arguments.endpoint), question_of(arguments)
    with Sink(arguments.output) as sink:
        if form in _TYPES:
            answer = _save(server, question, form, arguments.limit, sink)
            words = [basis_of_headers(answer.headers)]
        else:
            pages = list(_pages(server, question, _JSON, arguments.limit))
            answer, document = pages[-1], _whole(pages)
            lines = [json.dumps(document, indent=2)] if form == "json" else table_of(document)
            sink.write_lines(lines)
            words = [*explanation_of(document), basis_of(document)]
    if _NEXT in answer.headers:
        words.append(f"there is more: --cursor {answer.headers[_NEXT]}")
    for line in words:
        say(line)
    return Exit.OK


def _form(arguments: Namespace) -> str:
    asked = [name for name in ("json", *_TYPES) if getattr(arguments, name)]
    if len(asked) > 1:
        raise Failure(f"--{asked[0]} and --{asked[1]} are two formats; expected one", Exit.USAGE)
    form = asked[0] if asked else "text"
    if form == "parquet" and arguments.output is None and sys.stdout.isatty():
        raise Failure("a Parquet file is no text for a terminal; add --output FILE", Exit.USAGE)
    return form


def _save(server: Server, question: Question, form: str, limit: int | None, sink: Sink) -> Answer:
    """Write the answer as the server gives it; its last page is returned."""
    if form == "parquet":
        # A file is one page: without a limit the server gives all of it, or refuses.
        whole = question if limit is None else question | {"limit": limit}
        answer = _ask(server, whole, _TYPES[form])
        sink.write(answer.content)
        return answer
    pages = _pages(server, question, _TYPES[form], limit)
    answer = next(pages)
    sink.write(answer.content)
    for answer in pages:
        # Each page of a table begins with its heads, in which there is no line break.
        rows = answer.content.partition(b"\r\n")[2] if form == "csv" else answer.content
        sink.write(rows)
    return answer


def _pages(server: Server, question: Question, accept: str, limit: int | None) -> Iterator[Answer]:
    """The pages of the answer, up to *limit* rows."""
    left = limit
    while True:
        rows = PAGE_ROWS if left is None else min(left, PAGE_ROWS)
        answer = _ask(server, question | {"limit": rows}, accept)
        yield answer
        question = question | {"cursor": answer.headers.get(_NEXT)}
        left = None if left is None else left - rows
        if left == 0 or question["cursor"] is None:
            return


def _ask(server: Server, question: Question, accept: str) -> Answer:
    answer = server.ask(_PATH, question, accept=accept, timeout_seconds=ANSWER_SECONDS)
    if _POSITION not in answer.headers:
        raise answer.stranger("something that names no position")
    return answer


def _whole(pages: Sequence[Answer]) -> Document:
    """One document with the rows of all pages."""
    documents = [page.document() for page in pages]
    rows = [row for document in documents for row in cast(list[object], document["data"])]
    return documents[0] | {"next": documents[-1]["next"], "data": rows}
