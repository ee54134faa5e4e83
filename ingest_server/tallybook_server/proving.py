"""
``tallybook checkpoint`` and ``tallybook prove``: statements about a ledger, and their proofs.

A proof is checked without the server, and without its libraries.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tallybook.cli.connection import Parameters, Server, add_endpoint
from tallybook.cli.output import Exit, Failure, number_of, print_json, print_line, say
from tallybook.cli.parser import Commands, add_command

__all__ = ["register"]

_T = TypeVar("_T")


def register(commands: Commands) -> None:
    """Declare ``checkpoint`` and ``prove``."""
    checkpoint = add_command(
        commands,
        "checkpoint",
        _checkpoint,
        summary="state what the ledger is now, for others to keep",
        words="Give the document away: a proof is checked against the copy that somebody kept.",
        examples=["tallybook checkpoint > checkpoint.json"],
    )
    add_endpoint(checkpoint)
    prove = add_command(
        commands,
        "prove",
        _prove,
        summary="prove that an event is in the ledger, or check such a proof",
        words="A proof shows one event and nothing of any other. With --check no server is asked.",
        examples=[
            "tallybook prove 0f0e0d0c0b0a09080706050403020100-17 > proof.json",
            "tallybook prove --check proof.json --against checkpoint.json",
        ],
    )
    prove.add_argument("event", nargs="?", metavar="EVENT", help="PRODUCER-SEQUENCE, or its cursor")
    prove.add_argument(
        "--checkpoint", metavar="POSITION", help="for the checkpoint at 1.42; the newest"
    )
    prove.add_argument("--check", type=Path, metavar="FILE", help="check this proof")
    prove.add_argument(
        "--against", type=Path, metavar="FILE", help="the checkpoint that was published"
    )
    add_endpoint(prove)


def _checkpoint(arguments: Namespace) -> int:
    reply = Server.of(arguments.endpoint).send("POST", "/v1/checkpoints", {})
    print_line(reply.text)
    events = number_of(int(str(reply.document["events"])), "event")
    say(f"position {reply.document['position']}: {events}")
    return Exit.OK


def _prove(arguments: Namespace) -> int:
    if arguments.check is not None:
        return _check(arguments)
    if arguments.event is None or arguments.against is not None:
        raise Failure(
            "expected an EVENT to prove, or --check with --against to check a proof", Exit.USAGE
        )
    parameters: Parameters = (
        [("checkpoint", arguments.checkpoint)] if arguments.checkpoint is not None else []
    )
    reply = Server.of(arguments.endpoint).get(
        f"/v1/events/{arguments.event}/proof", parameters, timeout_seconds=None
    )
    print_line(reply.text)
    return Exit.OK


def _check(arguments: Namespace) -> int:
    from tallybook_server.proof import Checkpoint, EventProof, ProofWrong, check

    if arguments.against is None or arguments.event is not None:
        raise Failure(
            "--check needs --against: the checkpoint that was published, and no EVENT", Exit.USAGE
        )
    proof = _read(arguments.check, EventProof)
    checkpoint = _read(arguments.against, Checkpoint)
    try:
        event = check(proof, checkpoint)
    except ProofWrong as error:
        raise Failure(str(error), Exit.FINDING) from None
    document: dict[str, Any] = msgspec.to_builtins(event)
    print_json(document, indent=None if arguments.json else 2)
    say(f"in the ledger {checkpoint.ledger} at position {checkpoint.position}, exactly so")
    return Exit.OK


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}", Exit.USAGE) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failure(f"{path} is no {kind.__name__} document: {error}", Exit.USAGE) from None
