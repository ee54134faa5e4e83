"""
``/v1/checkpoints``, and the proof of one event for whoever does not trust this server.
"""

from __future__ import annotations

import msgspec

from tallybook_server.event_filter import read_event_name
from tallybook_server.events import name_invalid
from tallybook_server.ledger import Ledger, LedgerFull
from tallybook_server.parameters import Parameters, invalid
from tallybook_server.problems import Problem, full
from tallybook_server.proof import CheckpointUnknown, Unproven
from tallybook_server.question import Position, read_position

__all__ = ["answer_checkpoint", "answer_checkpoints", "answer_proof"]


def answer_checkpoint(ledger: Ledger, query_string: bytes) -> bytes:
    """
    The JSON of a checkpoint that is made now. Blocks, for as long as it reads what is new.

    Raises:
        Problem: ``disk-full``.
    """
    Parameters(query_string, ())
    try:
        return msgspec.json.encode(ledger.checkpoint())
    except LedgerFull as error:
        raise full(error) from error


def answer_checkpoints(ledger: Ledger, query_string: bytes) -> bytes:
    """The JSON of every checkpoint. Blocks; raises Problem for a parameter: there are none."""
    Parameters(query_string, ())
    return msgspec.json.encode({"data": ledger.checkpoints()})


def answer_proof(ledger: Ledger, name: str, query_string: bytes) -> bytes:
    """
    The JSON of the proof of one event. Blocks, for some seconds.

    Raises:
        Problem: ``event-name-invalid``, ``checkpoint-unknown``, or ``unproven``.
    """
    parameters = Parameters(query_string, ("checkpoint",))
    wanted = read_event_name(name)
    if wanted is None:
        raise name_invalid(name)
    try:
        proof = ledger.prove(wanted, _checkpoint(parameters.one("checkpoint")))
    except CheckpointUnknown as error:
        raise Problem("checkpoint-unknown", str(error)) from None
    except Unproven as error:
        raise Problem("unproven", str(error)) from None
    return msgspec.json.encode(proof)


def _checkpoint(text: str | None) -> Position | None:
    if text is None:
        return None
    position = read_position(text)
    if position is None:
        raise invalid(
            "checkpoint", f"checkpoint is {text[:40]!r}; expected a position such as 1.42"
        )
    return position
