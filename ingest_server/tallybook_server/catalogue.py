"""
The catalogue: what each dimension is measured in, and how it is added up. Pure.

A dimension needs no declaration: until it has one it is a sum without a unit. A declaration
is an entry of the ledger. It holds for usage from a moment on, so what was invoiced under
the rule before it is answered by the rule before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tallybook.errors import TallybookError
from tallybook.event import format_time
from tallybook_server.question import Aggregation

__all__ = [
    "OVERRIDES",
    "Catalogue",
    "Declaration",
    "RuleChanges",
    "UnfitAggregation",
    "UnknownDimension",
]


class UnknownDimension(TallybookError):
    """
    Nothing was ever recorded of this dimension, and nobody has declared it.

    Attributes:
        dimension: The name.
        known: Those that there are.
    """

    def __init__(self, dimension: str, known: Iterable[str]) -> None:
        super().__init__(f"there is no dimension {dimension!r}")
        self.dimension = dimension
        self.known = tuple(sorted(known))


class UnfitAggregation(TallybookError):
    """
    An aggregation that says nothing about this dimension: the average of a level.

    Attributes:
        dimension: The name.
        declared: What it is.
        asked: What was asked for.
    """

    def __init__(self, message: str, dimension: str, declared: str, asked: str) -> None:
        super().__init__(message)
        self.dimension = dimension
        self.declared = declared
        self.asked = asked


class RuleChanges(TallybookError):
    """
    A dimension's declaration changes within what would be one row: no rule fits all of it.

    Attributes:
        dimension: The name.
        moment: From when on the later rule holds, in microseconds since 1970 UTC.
    """

    def __init__(self, dimension: str, moment: int, before: str, after: str) -> None:
        super().__init__(
            f"{dimension!r} is declared as {before} until {format_time(moment)}, and as {after} "
            "from then on, within one row; ask for windows of which one begins then, or for "
            "the time before and from then on separately, or name an aggregation"
        )
        self.dimension = dimension
        self.moment = moment


_QUANTITIES: Final[tuple[Aggregation, ...]] = (
    "sum",
    "count",
    "min",
    "max",
    "avg",
    "unique",
    "percentile",
)
_LEVELS: Final[tuple[Aggregation, ...]] = ("last", "min", "max", "time_weighted", "count")

OVERRIDES: Final[Mapping[Aggregation, tuple[Aggregation, ...]]] = MappingProxyType(
    {
        "sum": _QUANTITIES,
        "count": _QUANTITIES,
        "avg": _QUANTITIES,
        "percentile": _QUANTITIES,
        "unique": _QUANTITIES,
        "min": (*_QUANTITIES, "last"),
        "max": (*_QUANTITIES, "last"),
        "last": _LEVELS,
        "time_weighted": _LEVELS,
    }
)
"""
By what a dimension is declared as, what may be asked of it.

Quantities add up: a request, a token, a byte. A level holds until the next one is reported:
seats, gigabytes stored. The sum or the average of the reports of a level depends on how
often it is reported, which is nothing that anybody uses; its average is `time_weighted`.
Of a quantity, the last one is no more than the order of arrival.
"""


@dataclass(frozen=True, slots=True)
class Declaration:
    """
    What a dimension is, from a moment on.

    Attributes:
        name: The dimension.
        unit: What it is counted in: ``"request"``, ``"GB"``; "" for none.
        aggregation: How it is added up.
        unique_of: With ``unique``: the tag whose values are counted; None: the value.
        percentile: With ``percentile``: which, in decimal text.
        description: For people.
        start: For usage from this moment on, in microseconds; None: for all of it.
        position: The entry that says so; 0 where nothing was declared.
    """

    name: str
    unit: str = ""
    aggregation: Aggregation = "sum"
    unique_of: str | None = None
    percentile: str | None = None
    description: str = ""
    start: int | None = None
    position: int = 0


class Catalogue:
    """Every declaration, in the ledger's order. Never changes; `with_` makes another one."""

    def __init__(self, declarations: Iterable[Declaration] = ()) -> None:
        self._by_name: dict[str, tuple[Declaration, ...]] = {}
        for declaration in declarations:
            before = self._by_name.get(declaration.name, ())
            self._by_name[declaration.name] = (*before, declaration)

    def with_(self, declaration: Declaration) -> Catalogue:
        """This catalogue and one declaration more."""
        new = Catalogue()
        new._by_name = {
            **self._by_name,
            declaration.name: (*self._by_name.get(declaration.name, ()), declaration),
        }
        return new

    @property
    def names(self) -> list[str]:
        """Every dimension that was declared, sorted."""
        return sorted(self._by_name)

    def history(self, name: str, position: int | None = None) -> tuple[Declaration, ...]:
        """The declarations of *name* up to *position*, in the ledger's order."""
        return tuple(
            one
            for one in self._by_name.get(name, ())
            if position is None or one.position <= position
        )

    def rules(self, name: str, position: int | None = None) -> list[Declaration]:
        """
        What holds when, as known at *position*: by rising `start`, the first one from always.

        A later entry overrules every earlier one from its own start on.
        """
        rules = [Declaration(name)]
        for one in self.history(name, position):
            start = one.start
            rules = [] if start is None else [rule for rule in rules if _before(rule, start)]
            rules.append(one)
        return rules

    def rule(self, name: str, time: int | None, position: int | None = None) -> Declaration:
        """What holds for usage at *time*; None: the newest that holds."""
        rules = self.rules(name, position)
        if time is not None:
            rules = [rule for rule in rules if rule.start is None or rule.start <= time]
        return rules[-1]


def _before(rule: Declaration, start: int) -> bool:
    return rule.start is None or rule.start < start
