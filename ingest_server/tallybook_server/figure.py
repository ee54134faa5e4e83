"""
A figure: what one group of events comes to, exactly. Pure.

A figure is a scaled integer, ``mantissa / 10**scale``. What has to be divided is rounded
once, to `QUOTIENT_DECIMALS` digits behind the point, half to even; no float and no context
of `decimal` has a part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tallybook.limits import VALUE_DECIMALS_MAX
from tallybook_server.ledger import TooManyRows
from tallybook_server.limits import QUERY_GROUPS_MAX

__all__ = ["QUOTIENT_DECIMALS", "Figure", "Figures", "Group", "billionths", "quotient"]

QUOTIENT_DECIMALS: Final = 18
"""
Digits behind the point of what was divided: averages, and levels weighted by time.

Twice as many as a value may have. Digits before the point are never rounded, so however
large a figure is, it is right to its last billionth of a billionth.
"""

_POWERS: Final[tuple[int, ...]] = tuple(10**at for at in range(QUOTIENT_DECIMALS + 1))

Group = tuple[int, str, str | None, tuple[str | None, ...]]
"""Whose figure it is: window, dimension, tenant, and the values of the tags grouped by."""


@dataclass(slots=True)
class Figure:
    """
    What one group comes to. It grows while it is computed.

    Attributes:
        mantissa: Of the value; None where there is nothing to say.
        scale: Digits behind the point.
        events: How many events it rests on.
        adjustments: How many adjustments it contains.
    """

    mantissa: int | None
    scale: int = 0
    events: int = 0
    adjustments: int = 0

    @property
    def rank(self) -> int:
        """A number by which values can be compared; 0 where there is none."""
        return (self.mantissa or 0) * _POWERS[QUOTIENT_DECIMALS - self.scale]


class Figures(dict[Group, Figure]):
    """The figures of groups, not more than `QUERY_GROUPS_MAX` of them."""

    def of(self, group: Group, scale: int = 0) -> Figure:
        """
        The figure of *group*; a new one, without a value, if it has none.

        Raises:
            TooManyRows: It would be one too many.
        """
        figure = self.get(group)
        if figure is None:
            if len(self) >= QUERY_GROUPS_MAX:
                self.check_room(1)
            figure = self[group] = Figure(None, scale)
        return figure

    def check_room(self, more: int) -> None:
        """Raise TooManyRows if *more* groups would be too many."""
        if len(self) + more > QUERY_GROUPS_MAX:
            raise TooManyRows(
                f"more than {QUERY_GROUPS_MAX} groups, one per row and empty window; ask for "
                "less time or longer windows, or slice by fewer tags"
            )


def billionths(mantissa: int, scale: int) -> int:
    """A value in the smallest unit that values have."""
    return mantissa * _POWERS[VALUE_DECIMALS_MAX - scale]


def quotient(dividend: int, divisor: int) -> int:
    """``dividend / divisor`` times 10**QUOTIENT_DECIMALS, rounded half to even."""
    whole, rest = divmod(dividend * 10**QUOTIENT_DECIMALS, divisor)
    odd = whole % 2
    return whole + (2 * rest + odd > divisor)
