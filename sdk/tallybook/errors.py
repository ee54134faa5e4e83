"""
Every error that tallybook raises, split by whose move is next.

    TallybookError
    ├── InvalidEvent (ValueError)      fix the call: the event is outside its bounds
    ├── InvalidSetting (ValueError)    fix the set-up: an option or a TALLYBOOK_* variable
    ├── QueueFull                      make room, or send: only with on_full="raise"
    ├── DurabilityUnknown              do nothing: the event is kept, power loss may still take it
    ├── FormatError (ValueError)       bytes that are not what they claim to be
    │   ├── FrameDamaged
    │   ├── BlockDamaged
    │   └── MessageDamaged             a request or an answer
    ├── ServerRefused                  fix the account or the address
    ├── ServerUnreachable              nothing: we try again
    └── InvariantBroken                ours: please report it

A message names the value seen, what was expected, and what to do next. No
message and no repr ever holds an API key.
"""

from __future__ import annotations

__all__ = [
    "BlockDamaged",
    "DurabilityUnknown",
    "FormatError",
    "FrameDamaged",
    "InvalidEvent",
    "InvalidSetting",
    "InvariantBroken",
    "MessageDamaged",
    "QueueFull",
    "ServerRefused",
    "ServerUnreachable",
    "TallybookError",
]


class TallybookError(Exception):
    """The base of every error that tallybook raises on purpose."""


class InvalidEvent(TallybookError, ValueError):
    """
    An event is outside its bounds; nothing was recorded.

    Attributes:
        field: The field that is wrong: ``"tenant"``, ``"value"`` ...
        reason: A stable word for the bound that was crossed: ``"too_long"`` ...
    """

    def __init__(self, field: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason


class InvalidSetting(TallybookError, ValueError):
    """
    An option of a Meter, or its TALLYBOOK_* variable, has a value that it cannot have.

    Attributes:
        name: The option's name.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class QueueFull(TallybookError):
    """The event was not recorded: the local queue can take no more (``on_full="raise"``)."""


class DurabilityUnknown(TallybookError):
    """
    The event is in the spool, but the disk did not confirm a sync of it.

    It is going to be sent like any other. Do not record it again: that would
    count it twice.
    """


class FormatError(TallybookError, ValueError):
    """Bytes that are not what they claim to be."""


class FrameDamaged(FormatError):
    """A spool frame, or a spool header, that cannot be read."""


class BlockDamaged(FormatError):
    """A block whose digest, header or payload does not hold."""


class MessageDamaged(FormatError):
    """A request or an answer that cannot be read."""


class ServerRefused(TallybookError):
    """
    The server answered, and the answer is no.

    Attributes:
        status: The HTTP status.
        retry_after_seconds: What ``Retry-After`` asked for, or None.
    """

    def __init__(
        self, status: int, message: str, *, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class ServerUnreachable(TallybookError):
    """No answer: refused, timed out, cut off, or not an answer of a tallybook server."""


class InvariantBroken(TallybookError):
    """Something that cannot be, is. The data is left as it was; please report it."""
