"""
``tallybook tail``: counted events as they come, one a line, in the ledger's order.

The ledger is read forwards only. For the newest events, reading begins a few entries before
its head, and further before it each time, until there are enough.
"""

from __future__ import annotations

import threading
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, cast

from tallybook.cli.connection import Server, add_endpoint
from tallybook.cli.output import Exit, Failure, plain, print_json, print_line, say
from tallybook.cli.parser import Commands, add_command, count

__all__ = ["register"]

POLL_SECONDS: Final = 1.0
"""How often ``--follow`` asks: what is recorded is counted within a second anyway."""

_PAGE_EVENTS: Final = 1_000
_LIMIT: Final = 20
_STEP_FACTOR: Final = 8
"""Each try begins this many times as many entries before the head as the last one."""

_Event = dict[str, Any]


def register(commands: Commands) -> None:
    """Declare ``tail``."""
    parser = add_command(
        commands,
        "tail",
        _tail,
        summary="show the newest counted events, one a line",
        words="Without --after: the newest ones. With it: those behind the cursor, oldest first.\n"
        "--json prints one JSON object a line, with its cursor.",
        examples=["tallybook tail --follow", "tallybook tail --json --after 120.7 --limit 1000"],
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
    add_endpoint(parser)


def _tail(arguments: Namespace) -> int:
    server = Server.of(arguments.endpoint)
    after: str = arguments.after or _newest(server, arguments.limit)
    left: int = arguments.limit
    for event in _events(server, after, None if arguments.follow else left):
        _print(event, arguments.json)
        after = event["cursor"]
    if arguments.follow:
        _follow(server, after, arguments.json)
    return Exit.OK


def _newest(server: Server, limit: int) -> str:
    """The cursor behind which the newest *limit* events are."""
    head = int(str(server.get("/").document["position"]).partition(".")[2])
    back = 1
    while True:
        start = max(0, head - back)
        newest = deque(_events(server, str(start), None), maxlen=limit + 1)
        if len(newest) > limit:
            return str(newest[0]["cursor"])
        if start == 0:
            return "0"
        back *= _STEP_FACTOR


def _events(server: Server, after: str, limit: int | None) -> Iterator[_Event]:
    """Events behind *after*, oldest first, a page at a time."""
    while limit is None or limit > 0:
        size = _PAGE_EVENTS if limit is None else min(limit, _PAGE_EVENTS)
        page = server.get("/v1/events", [("after", after), ("limit", str(size))]).document
        yield from cast(list[_Event], page["data"])
        if page["next"] is None:
            return
        after = str(page["next"])
        limit = None if limit is None else limit - size


def _follow(server: Server, after: str, as_json: bool) -> None:
    away = False
    while True:
        try:
            for event in _events(server, after, None):
                _print(event, as_json)
                after = event["cursor"]
            away = False
        except Failure as failure:
            if failure.code is not Exit.UNREACHABLE:
                raise
            if not away:
                say(f"tallybook: {failure}; trying again")
            away = True
        threading.Event().wait(POLL_SECONDS)


def _print(event: _Event, as_json: bool) -> None:
    if as_json:
        print_json(event, indent=None)
        return
    tags = " ".join(f"{key}={value}" for key, value in event["tags"].items())
    tenant = "-" if event["tenant"] is None else event["tenant"]
    line = f"{event['time']}  {event['dimension']}  {tenant}  {event['value']}  {tags}"
    print_line(plain(line.rstrip()))
