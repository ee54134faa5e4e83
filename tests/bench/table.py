"""
What every benchmark hands back: rows of ratios, the goal beside each, and what was checked.

A figure of this machine alone says little: it is shared and noisy. So a row is a median of
repetitions that were interleaved with those of what it is compared with.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Final

__all__ = ["Goal", "Row", "Table", "at_least", "at_most", "interleave", "ratio", "spread"]

_COLUMNS: Final = ("what", "measured", "against", "goal", "met", "n", "checked")


@dataclass(frozen=True)
class Goal:
    """
    A bound on a figure, from docs: "Where the bar is".

    Attributes:
        bound: The figure that it is to reach.
        sign: ``"<="`` or ``">="``.
        unit: ``"x"`` for a ratio.
    """

    bound: float
    sign: str
    unit: str

    def met(self, figure: float) -> bool:
        """Whether *figure* reaches it."""
        compare = operator.le if self.sign == "<=" else operator.ge
        return bool(compare(figure, self.bound))

    def __str__(self) -> str:
        return f"{self.sign} {_figure(self.bound, self.unit)}"


def at_most(bound: float, unit: str = "x") -> Goal:
    """A goal that is met at or below *bound*."""
    return Goal(bound, "<=", unit)


def at_least(bound: float, unit: str = "x") -> Goal:
    """A goal that is met at or above *bound*."""
    return Goal(bound, ">=", unit)


@dataclass(frozen=True)
class Row:
    """
    One line of a table.

    Attributes:
        what: What was measured.
        figure: The figure, the median of the repetitions; None: it could not be measured.
        unit: ``"x"`` for a ratio.
        against: What it was measured beside.
        goal: The bar, if there is one.
        repetitions: How many there were.
        checked: What was checked for correctness, and found; or why there is no figure.
        correct: Whether it was found so. A table with a row that is not fails the run.
        more: Further figures, for the JSON.
    """

    what: str
    figure: float | None
    unit: str = "x"
    against: str = ""
    goal: Goal | None = None
    repetitions: int = 1
    checked: str = ""
    correct: bool = True
    more: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None without one."""
        if self.goal is None or self.figure is None:
            return None
        return self.goal.met(self.figure)

    def cells(self) -> tuple[str, ...]:
        """The line, as text."""
        return (
            self.what,
            "-" if self.figure is None else _figure(self.figure, self.unit),
            self.against,
            str(self.goal or ""),
            {True: "met", False: "NOT MET", None: ""}[self.met],
            str(self.repetitions),
            self.checked if self.correct else f"WRONG: {self.checked}",
        )


@dataclass(frozen=True)
class Table:
    """
    One benchmark's result.

    Attributes:
        name: As on the command line.
        title: What is compared, in one line.
        rows: The lines.
        notes: What a reader has to know.
    """

    name: str
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The table for a terminal."""
        lines = [_COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(_COLUMNS))]
        body = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([f"# {self.name}: {self.title}", *body, *(f"  {n}" for n in self.notes)])

    def document(self) -> dict[str, object]:
        """The table for a program."""
        return {
            "name": self.name,
            "title": self.title,
            "notes": list(self.notes),
            "rows": [asdict(row) | {"met": row.met} for row in self.rows],
        }


def interleave(
    repetitions: int, contestants: dict[str, Callable[[], float]]
) -> dict[str, list[float]]:
    """
    Each contestant's figures: one of each in turn, and the turn begins with another each time.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            figures[name].append(contestants[name]())
    return figures


def ratio(measured: Sequence[float], baseline: Sequence[float]) -> float:
    """The median of the ratios of what ran side by side."""
    return median(a / b for a, b in zip(measured, baseline, strict=True))


def spread(measured: Sequence[float], baseline: Sequence[float]) -> str:
    """The smallest and the largest of the ratios."""
    ratios = [a / b for a, b in zip(measured, baseline, strict=True)]
    return f"{min(ratios):.2g}-{max(ratios):.2g}"


def _figure(figure: float, unit: str) -> str:
    if unit == "x":
        return f"{figure:.2f}x"
    if figure >= 10_000:
        return f"{figure / 1000:.0f}k {unit}"
    return f"{figure:.4g} {unit}"
