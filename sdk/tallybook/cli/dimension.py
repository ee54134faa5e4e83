"""``tallybook dimension``: the catalogue, read and declared."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Final, cast

from tallybook.cli.connection import Document, Reply, Server, add_endpoint
from tallybook.cli.output import Exit, print_line, say, table
from tallybook.cli.parser import Commands, add_command, add_group, moment

__all__ = ["AGGREGATIONS", "register"]

AGGREGATIONS: Final = (
    "sum",
    "count",
    "min",
    "max",
    "avg",
    "last",
    "unique",
    "percentile",
    "time_weighted",
)
"""The server's; a test compares."""


def register(commands: Commands) -> None:
    """Declare ``dimension`` and what follows it."""
    group = add_group(
        commands,
        "dimension",
        summary="what is measured, and how it is added up",
        examples=["tallybook dimension list", "tallybook dimension declare storage --unit GB"],
    )
    listing = add_command(
        group,
        "list",
        _list,
        summary="every dimension, and what holds for it now",
        examples=["tallybook dimension list"],
    )
    add_endpoint(listing)
    show = add_command(
        group,
        "show",
        _show,
        summary="everything that was ever declared of one dimension",
        examples=["tallybook dimension show storage"],
    )
    show.add_argument("dimension", metavar="DIMENSION", help="its name")
    add_endpoint(show)
    _register_declare(group)


def _register_declare(group: Commands) -> None:
    parser = add_command(
        group,
        "declare",
        _declare,
        summary="say what a dimension is",
        words="The declaration is an entry of the ledger: earlier answers keep their rule.",
        examples=[
            "tallybook dimension declare storage --unit GB --aggregation time_weighted",
            "tallybook dimension declare users --aggregation unique --unique-of tag:user",
            "tallybook dimension declare latency --aggregation percentile --percentile 99 "
            "--from 2026-12-01T00:00:00Z",
        ],
    )
    parser.add_argument("dimension", metavar="DIMENSION", help="its name")
    parser.add_argument("--unit", default="", help="what it is counted in: GB")
    parser.add_argument(
        "--aggregation", choices=AGGREGATIONS, default="sum", help="how it is added up; sum"
    )
    parser.add_argument(
        "--unique-of", metavar="WHAT", help="with unique: tag:KEY, or value: what is different"
    )
    parser.add_argument("--percentile", metavar="P", help="with percentile: 99.9")
    parser.add_argument("--description", default="", help="for people")
    parser.add_argument(
        "--from",
        dest="start",
        type=moment,
        metavar="TIME",
        help="for usage from then on: 2026-12-01T00:00:00Z; for all of it if it is left out",
    )
    add_endpoint(parser)


def _list(arguments: Namespace) -> int:
    return _print(arguments, Server.of(arguments.endpoint).get("/v1/dimensions"))


def _show(arguments: Namespace) -> int:
    path = f"/v1/dimensions/{_quoted(arguments.dimension)}"
    return _print(arguments, Server.of(arguments.endpoint).get(path))


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _declare(arguments: Namespace) -> int:
    document: Document = {
        "unit": arguments.unit,
        "aggregation": arguments.aggregation,
        "unique_of": arguments.unique_of,
        "percentile": arguments.percentile,
        "description": arguments.description,
        "from": None if arguments.start is None else arguments.start.isoformat(),
    }
    path = f"/v1/dimensions/{_quoted(arguments.dimension)}"
    reply = Server.of(arguments.endpoint).send("PUT", path, document)
    if arguments.json:
        print_line(reply.text)
    else:
        print_line(str(reply.document["position"]))
    say(f"{reply.document['dimension']} is declared, at position {reply.document['position']}")
    return Exit.OK


def _print(arguments: Namespace, reply: Reply) -> int:
    if arguments.json:
        print_line(reply.text)
        return Exit.OK
    names = ("dimension", "aggregation", "unit", "from", "position", "description")
    rows = [
        [_aggregation(row) if name == "aggregation" else row[name] or "-" for name in names]
        for row in cast(list[dict[str, Any]], reply.document["data"])
    ]
    for line in table(names, rows):
        print_line(line)
    return Exit.OK


def _aggregation(row: dict[str, Any]) -> str:
    """``percentile 99``, ``unique tag:user``."""
    of = row["percentile"] or row["unique_of"]
    return f"{row['aggregation']} {of}" if of else str(row["aggregation"])
