"""
``tallybook tail``: counted events as they come, one a line, in the ledger's order.

The ledger is read forwards only. For the newest events, reading begins a few entries before
its head, and further before it each time, until there are enough. What comes is read from
the server's stream, which goes on behind the last event after every interruption.
"""

from __future__ import annotations

import json
import threading
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn, cast

from tallybook.cli.connection import Server, add_endpoint
from tallybook.cli.output import Exit, Failure, plain, print_json, print_line, say
from tallybook.cli.parser import Commands, Parser, add_command, count, moment
from tallybook.cli.tag_options import add_tag_options, tag_parameters

__all__ = ["register"]

RETRY_SECONDS: Final = 1.0
"""How often ``--follow`` tries to come back to a server that is away."""

SILENCE_SECONDS: Final = 60.0
"""A server says every 15 seconds that it lives; a connection without a word is lost."""

_ANSWER_SECONDS: Final = 300.0
"""A search for what is rare, in years of usage, may take the server long."""

_PAGE_EVENTS: Final = 1_000
_LIMIT: Final = 20
_STEP_FACTOR: Final = 8
"""Each try begins this many times as many entries before the head as the last one."""

_REPEATED: Final = {
    "dimension": "only this dimension; may be repeated: one of these",
    "tenant": 'only this tenant, "" for none; may be repeated: one of these',
    "source": 'only from this application, "" for none; may be repeated: one of these',
}

_Event = dict[str, Any]
_Filters = Sequence[tuple[str, str]]


def register(commands: Commands) -> None:
    """Declare ``tail``."""
    parser = add_command(
        commands,
        "tail",
        _tail,
        summary="show the newest counted events, one a line",
        words="Without --after: the newest ones. With it: those behind the cursor, oldest first.\n"
        "--json prints one JSON object a line, with its cursor.",
        examples=[
            "tallybook tail --follow",
            "tallybook tail --follow --tenant acme --dimension tokens.output",
            "tallybook tail --json --after 120.7 --limit 1000",
        ],
    )
    parser.add_argument(
        "--after", metavar="CURSOR", help="begin behind this event, or behind this position"
    )
    parser.add_argument(
        "--limit", type=count, default=_LIMIT, metavar="N", help="events at most; %(default)s"
    )
    parser.add_argument(
        "--follow", action="store_true", help="go on with every event that comes, until Ctrl-C"
    )
    _add_filters(parser)
    add_endpoint(parser)


def _add_filters(parser: Parser) -> None:
    for name, words in _REPEATED.items():
        parser.add_argument(f"--{name}", action="append", default=[], help=words)
    add_tag_options(parser)
    parser.add_argument(
        "--from", dest="start", type=moment, metavar="TIME", help="the first moment of the events"
    )
    parser.add_argument(
        "--to", dest="end", type=moment, metavar="TIME", help="the first moment behind them"
    )
    parser.add_argument("--producer", help="only from this producer: 32 hex digits")
    parser.add_argument("--key", help="only with this idempotency key")
    parser.add_argument("--id", help="only with this id")


def _filters(arguments: Namespace) -> _Filters:
    moments = (("from", arguments.start), ("to", arguments.end))
    texts = (("producer", arguments.producer), ("key", arguments.key), ("id", arguments.id))
    return [
        *(
            (name, text)
            for name in ("dimension", "tenant", "source")
            for text in vars(arguments)[name]
        ),
        *tag_parameters(arguments),
        *((name, time.isoformat()) for name, time in moments if time is not None),
        *((name, text) for name, text in texts if text is not None),
    ]


def _tail(arguments: Namespace) -> int:
    server = Server.of(arguments.endpoint)
    filters = _filters(arguments)
    after: str = arguments.after or _newest(server, filters, arguments.limit)
    if arguments.follow:
        _follow(server, filters, after, arguments.json)
    for event in _events(server, filters, after, arguments.limit):
        _print(event, arguments.json)
    return Exit.OK


def _newest(server: Server, filters: _Filters, limit: int) -> str:
    """The cursor behind which the newest *limit* events are."""
    head = int(str(server.get("/").document["position"]).partition(".")[2])
    back = 1
    while True:
        start = max(0, head - back)
        newest = deque(_events(server, filters, str(start), None), maxlen=limit + 1)
        if len(newest) > limit:
            return str(newest[0]["cursor"])
        if start == 0:
            return "0"
        back *= _STEP_FACTOR


def _events(server: Server, filters: _Filters, after: str, limit: int | None) -> Iterator[_Event]:
    """Events behind *after*, oldest first, a page at a time."""
    while limit is None or limit > 0:
        size = _PAGE_EVENTS if limit is None else min(limit, _PAGE_EVENTS)
        page = server.get(
            "/v1/events",
            [*filters, ("after", after), ("limit", str(size))],
            timeout_seconds=_ANSWER_SECONDS,
        ).document
        yield from cast(list[_Event], page["data"])
        if page["next"] is None:
            return
        after = str(page["next"])
        limit = None if limit is None else limit - size


def _follow(server: Server, filters: _Filters, after: str, as_json: bool) -> NoReturn:
    """Show what is behind *after* and what comes, whatever happens to the server meanwhile."""
    reached, away = False, False
    while True:
        try:
            asked = [*filters, ("after", after)]
            for message in server.stream(
                "/v1/events/stream", asked, silence_seconds=SILENCE_SECONDS
            ):
                if message.data is not None:
                    _print(json.loads(message.data), as_json)
                after = message.id or after
                reached, away = True, False
        except Failure as failure:
            if failure.code is not Exit.UNREACHABLE or not reached:
                raise
            if not away:
                say(f"tallybook: {failure}; trying again")
            away = True
        threading.Event().wait(RETRY_SECONDS)


def _print(event: _Event, as_json: bool) -> None:
    if as_json:
        print_json(event, indent=None)
        return
    tags = " ".join(f"{key}={value}" for key, value in event["tags"].items())
    tenant = "-" if event["tenant"] is None else event["tenant"]
    line = f"{event['time']}  {event['dimension']}  {tenant}  {event['value']}  {tags}"
    print_line(plain(line.rstrip()) + ("  (voided)" if event["voided"] else ""))
