"""
``tallybook adjust`` and ``tallybook void``: corrections, each stored exactly once.

A correction is repeated safely by its id. Where the user gives none, one is made here and
named when there was no answer: the correction may be stored, and only its id can tell.
"""

from __future__ import annotations

from argparse import Namespace

from tallybook.cli.connection import Document, Reply, Server, add_endpoint
from tallybook.cli.output import Exit, Failure, print_line, say
from tallybook.cli.parser import Commands, Parser, add_command, add_tags, moment, tags_of
from tallybook.clock import SystemIds

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Declare ``adjust`` and ``void``."""
    _register_adjust(commands)
    _register_void(commands)


def _register_adjust(commands: Commands) -> None:
    parser = add_command(
        commands,
        "adjust",
        _adjust,
        summary="add a signed quantity to a sum",
        words="Nothing is edited: the adjustment is an entry of the ledger, with its reason.",
        examples=[
            "tallybook adjust tokens.output -250 --tenant acme --reason 'outage on the 12th'",
            "tallybook adjust api.calls 10 --tenant acme --reason import --id import-7",
        ],
    )
    parser.add_argument("dimension", metavar="DIMENSION", help="whose sum: tokens.output")
    parser.add_argument("value", metavar="VALUE", help="by how much: -250, 0.75")
    parser.add_argument("--tenant", help="whose usage; nobody's if it is left out")
    add_tags(parser, "a tag, as of an event")
    parser.add_argument(
        "--time",
        type=moment,
        metavar="TIME",
        help="when, and so in which window: 2026-11-21T09:00:00Z; now if it is left out",
    )
    _add_common(parser)


def _register_void(commands: Commands) -> None:
    parser = add_command(
        commands,
        "void",
        _void,
        summary="take events back, or a correction",
        words="What is named is kept and does not count. Voiding the void lets it count again.\n"
        "Without WHAT, every event that passes all of the options is taken back.",
        examples=[
            "tallybook void 0f0e0d0c0b0a09080706050403020100-17 --reason 'sent twice by hand'",
            "tallybook void 1.42 --reason 'the adjustment was wrong'",
            "tallybook void --source billing-test --from 2026-11-01T00:00:00Z --reason 'a test'",
        ],
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help="an event, PRODUCER-SEQUENCE, or a correction by its position: 1.42",
    )
    parser.add_argument("--producer", metavar="ID", help="events of this producer, 32 hex digits")
    parser.add_argument("--source", help="events from this application")
    parser.add_argument("--key", help="the event with this idempotency key")
    parser.add_argument("--dimension", help="events of this dimension")
    parser.add_argument("--tenant", help='events of this tenant; "" for events without one')
    add_tags(parser, "events with this tag")
    parser.add_argument(
        "--from", dest="start", type=moment, metavar="TIME", help="events from this moment on"
    )
    parser.add_argument(
        "--to", dest="end", type=moment, metavar="TIME", help="events before this moment"
    )
    _add_common(parser)


def _add_common(parser: Parser) -> None:
    parser.add_argument("--reason", required=True, help="why, for whoever reads the invoice")
    parser.add_argument(
        "--id", help="what makes a repetition the same correction; made up if it is left out"
    )
    add_endpoint(parser)


def _adjust(arguments: Namespace) -> int:
    document: Document = {
        "dimension": arguments.dimension,
        "value": arguments.value,
        "tags": tags_of(arguments.tag, "--tag"),
    }
    if arguments.tenant is not None:
        document["tenant"] = arguments.tenant
    if arguments.time is not None:
        document["time"] = arguments.time.isoformat()
    reply = _send(arguments, document)
    return _say(arguments, reply, "adjusted")


def _void(arguments: Namespace) -> int:
    chosen = _chosen(arguments)
    if (arguments.what is None) == (not chosen):
        raise Failure(
            "expected either WHAT to take back, or options that choose events: --producer, "
            "--source, --key, --dimension, --tenant, --tag, --from, --to",
            Exit.USAGE,
        )
    document: Document = {"void_where": chosen} if chosen else {"void": arguments.what}
    reply = _send(arguments, document)
    return _say(arguments, reply, "taken back")


def _chosen(arguments: Namespace) -> Document:
    """The choice of events that the options make."""
    chosen: Document = {
        name: text
        for name in ("producer", "source", "key", "dimension")
        if (text := getattr(arguments, name)) is not None
    }
    if arguments.tenant is not None:
        chosen["tenant"] = arguments.tenant or None
    if arguments.tag:
        chosen["tags"] = tags_of(arguments.tag, "--tag")
    for name, time in (("from", arguments.start), ("to", arguments.end)):
        if time is not None:
            chosen[name] = time.isoformat()
    return chosen


def _send(arguments: Namespace, document: Document) -> Reply:
    correction_id = arguments.id if arguments.id is not None else SystemIds().producer().hex()
    document |= {"id": correction_id, "reason": arguments.reason}
    try:
        return Server.of(arguments.endpoint).send("POST", "/v1/adjustments", document)
    except Failure as failure:
        if failure.code != Exit.UNREACHABLE:
            raise
        raise Failure(
            f"{failure}. Whether it was stored is not known: repeat it with --id {correction_id}",
            Exit.UNREACHABLE,
        ) from None


def _say(arguments: Namespace, reply: Reply, words: str) -> int:
    if arguments.json:
        print_line(reply.text)
    else:
        print_line(str(reply.document["position"]))
    say(f"{words}, at position {reply.document['position']}, id {reply.document['id']}")
    return Exit.OK
