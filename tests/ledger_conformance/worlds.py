"""
A world: what happens to a ledger, step by step, and what it is asked. Values only.

A world is small and dense: few tenants, dimensions, tags and moments, so that everything
meets everything. What a step refers to (a correction, an earlier place) is a number that is
taken modulo what there is, so that each world is a possible one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tallybook.event import Event
from tallybook_server.catalogue import Declaration
from tallybook_server.event_filter import EventFilter
from tallybook_server.question import UsageQuery


@dataclass(frozen=True)
class Slice:
    """
    A block on its way: a piece of a producer's life.

    Attributes:
        life: Which of the world's lives.
        first: Its first event there.
        count: How many, as far as there are.
    """

    life: int
    first: int
    count: int


@dataclass(frozen=True)
class Blocks:
    """Blocks arrive: late ones, once more, cut otherwise."""

    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Json:
    """JSON events arrive."""

    events: tuple[Event, ...]


@dataclass(frozen=True)
class Adjust:
    """A signed quantity is added beside an event that is like it in all but the value."""

    like: Event
    value: tuple[int, int]


@dataclass(frozen=True)
class TakeBack:
    """Some of the events that count, by their places among them, are taken back."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class TakeBackAll:
    """Every event that passes is taken back, as for a bug or a leaked key."""

    chosen: EventFilter


@dataclass(frozen=True)
class Undo:
    """An adjustment or a void is taken back: the so-manieth last one."""

    back: int


@dataclass(frozen=True)
class Declare:
    """A dimension is declared."""

    declaration: Declaration


@dataclass(frozen=True)
class Maintain:
    """The engine does its housekeeping."""


@dataclass(frozen=True)
class Reopen:
    """The ledger is closed and opened again."""


@dataclass(frozen=True)
class BackUp:
    """The ledger is backed up."""


@dataclass(frozen=True)
class Restore:
    """
    The world's last backup is made a ledger again, and asked what was asked before.

    Attributes:
        goes_on: Whether the world goes on with that one, where what came behind the backup
            never was; else with the one that was backed up.
    """

    goes_on: bool


@dataclass(frozen=True)
class Ask:
    """
    A question, to the ledger as it is, or as it was.

    Attributes:
        query: Without `as_of`.
        back: None: now. Else as it was so many entries ago.
        by_time: Whether the past is named by its time, not by its position.
    """

    query: UsageQuery
    back: int | None = None
    by_time: bool = False


Told = Blocks | Json | Adjust | TakeBack | TakeBackAll | Undo | Declare
"""What a ledger is told: it becomes another one."""

Life = Maintain | Reopen | BackUp | Restore
"""What happens to a ledger as it is."""

Step = Told | Life | Ask


@dataclass(frozen=True)
class World:
    """
    What happens.

    Attributes:
        lives: Per producer's life, its events; lives of one producer are clones of a disk.
        steps: In order.
    """

    lives: tuple[tuple[Event, ...], ...]
    steps: tuple[Step, ...]
