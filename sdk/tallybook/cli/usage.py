"""``tallybook usage``: who used how much of what, when, as the server answers it."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tallybook.cli.connection import Document, Server, add_endpoint
from tallybook.cli.output import Exit, Failure, print_line, say, table
from tallybook.cli.parser import Commands, add_command, pair, tags_of

__all__ = ["register"]

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ANSWER_SECONDS: Final = 300.0
"""A question over years of usage may take the server long."""


def register(commands: Commands) -> None:
    """Declare ``usage``."""
    parser = add_command(
        commands,
        "usage",
        _usage,
        summary="ask who used how much, and when",
        words="The answer is exact for one position of the ledger, which is named beside it.",
        examples=[
            "tallybook usage http.requests --group-by tenant",
            "tallybook usage tokens.output --tenant acme --filter model=small",
            "tallybook usage http.requests --from 2026-11-01 --to 2026-12-01 --window day "
            "--time-zone Europe/Berlin",
        ],
    )
    parser.add_argument("dimension", metavar="DIMENSION", help="what was used: http.requests")
    parser.add_argument("--tenant", help='only this tenant; "" for events without one')
    parser.add_argument(
        "--from",
        dest="start",
        metavar="TIME",
        help="the first moment: 2026-11-01T00:00:00Z, or 2026-11-01 in the time zone",
    )
    parser.add_argument(
        "--to", dest="end", metavar="TIME", help="the first moment that no longer counts"
    )
    parser.add_argument("--window", choices=["none", "hour", "day"], help="split the answer; none")
    parser.add_argument("--time-zone", metavar="NAME", help="whose hours and days; UTC")
    parser.add_argument(
        "--group-by",
        action="append",
        default=[],
        metavar="NAME",
        help="tenant, or tag:KEY; may be repeated, or several with commas between",
    )
    parser.add_argument(
        "--filter",
        type=pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only events with this tag; may be repeated",
    )
    parser.add_argument(
        "--aggregation",
        choices=["sum", "count"],
        help="sum of the values, or count of the events; sum",
    )
    add_endpoint(parser)


def _usage(arguments: Namespace) -> int:
    zone = arguments.time_zone or "UTC"
    parameters = [
        ("dimension", arguments.dimension),
        ("tenant", arguments.tenant),
        ("from", _moment(arguments.start, zone)),
        ("to", _moment(arguments.end, zone)),
        ("window", arguments.window),
        ("time_zone", arguments.time_zone),
        ("aggregation", arguments.aggregation),
        *(("group_by", name) for name in arguments.group_by),
        *((f"tag.{key}", value) for key, value in tags_of(arguments.filter, "--filter").items()),
    ]
    reply = Server.of(arguments.endpoint).get(
        "/v1/usage",
        [(name, value) for name, value in parameters if value is not None],
        timeout_seconds=_ANSWER_SECONDS,
    )
    if arguments.json:
        print_line(reply.text)
    else:
        names = list(dict.fromkeys(",".join(arguments.group_by).split(",")))
        for line in _table(reply.document, [name for name in names if name]):
            print_line(line)
    say(_basis(reply.document))
    return Exit.OK


def _moment(text: str | None, zone: str) -> str | None:
    """*text* as RFC 3339; a bare date is the beginning of that day in *zone*."""
    if text is None or not _DATE.fullmatch(text):
        return text  # The server reads it, and says what is wrong with it.
    try:
        midnight = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(
            f"there is no day {text}; expected one such as 2026-11-01", Exit.USAGE
        ) from None
    try:
        return midnight.replace(tzinfo=ZoneInfo(zone)).isoformat()
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # A name that is no zone may still be a path, or a directory of zones.
        raise Failure(
            f"--time-zone is {zone!r}; expected an IANA name such as Europe/Berlin", Exit.USAGE
        ) from None


def _table(document: Document, names: Sequence[str]) -> list[str]:
    """The lines of the answer; a column for whatever was asked for, and no other."""
    windowed = document["window"] != "none"
    zone = ZoneInfo(str(document["time_zone"]))
    keys = [name.removeprefix("tag:") for name in names if name != "tenant"]
    heads = [
        *(["from", "to"] if windowed else []),
        *(["tenant"] if "tenant" in names else []),
        *keys,
        "value",
        "events",
    ]
    rows = [
        [
            *([_local(row["from"], zone), _local(row["to"], zone)] if windowed else []),
            *([_or_dash(row["tenant"])] if "tenant" in names else []),
            *(_or_dash(row["tags"].get(key)) for key in keys),
            row["value"],
            str(row["events"]),
        ]
        for row in cast(list[dict[str, Any]], document["data"])
    ]
    return table(heads, rows, right=("value", "events"))


def _local(time: str, zone: ZoneInfo) -> str:
    return datetime.fromisoformat(time).astimezone(zone).isoformat()


def _or_dash(text: str | None) -> str:
    return "-" if text is None else text


def _basis(document: Document) -> str:
    """What the answer rests on."""
    producers = cast(dict[str, Any], document["producers"])
    known = [
        f"{producers[name]} {words}"
        for name, words in (
            ("silent", "producers silent"),
            ("missing", "events announced and missing"),
            ("dropped", "events dropped before they were kept"),
        )
        if producers.get(name)
    ]
    through = document["through"]
    return "; ".join(
        [
            f"position {document['position']}",
            "complete" if document["complete"] else f"NOT complete: {', '.join(known)}",
            *([f"everything recorded before {through} is in"] if through else []),
        ]
    )
