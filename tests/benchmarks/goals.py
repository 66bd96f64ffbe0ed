"""Figures to reach, what was measured against them, and the table of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from tests.benchmarks.ratios import Spread, spread

__all__ = ["Figure", "Result", "goal", "judge", "reached", "table"]

DIGITS = {"ms": 1, "us": 1, "MB": 0, "s": 2, "%": 3}
"""Digits behind the point, by unit; 3 for a ratio below 1, else 1, where a unit is not here."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of a table.

    Attributes:
        goal: in ``unit``: at least where ``is_floor``, else at most; None where something is just measured.
    """

    key: str
    work: str
    goal: float | None
    unit: str
    is_floor: bool = False

    def reached(self, value: float) -> bool:
        """Whether a measured value is as good as the figure, or better."""
        if self.goal is None:
            return True
        return value >= self.goal if self.is_floor else value <= self.goal


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one row reached; ``passed`` is None where there was too little work to judge by, or no goal.

    Attributes:
        sides: what each side did, in words, by its name.
        load: of the machine before it, averaged over a minute.
    """

    figure: Figure
    reached: Spread
    details: str
    passed: bool | None
    sides: Mapping[str, str] = field(default_factory=dict)
    load: float | None = None


def judge(
    figure: Figure,
    values: Sequence[float],
    details: str,
    *,
    judged: bool,
    sides: Mapping[str, str] | None = None,
) -> Result:
    """The median of the values against the figure.

    Args:
        judged: there was enough work to judge by.
    """
    middle = spread(values)
    passed = figure.reached(middle.median) if judged and figure.goal is not None else None
    return Result(figure=figure, reached=middle, details=details, passed=passed, sides=sides or {})


def goal(figure: Figure) -> str:
    """A figure to reach, in words.

    Example:
        >>> goal(Figure(key="start", work="a start", goal=50, unit="ms"))
        '≤ 50 ms'
    """
    return (
        f"{'≥' if figure.is_floor else '≤'} {figure.goal:g} {figure.unit}" if figure.goal is not None else "-"
    )


def reached(result: Result) -> str:
    """The median and the range, in the digits of the unit."""
    small = 3 if result.figure.goal is not None and result.figure.goal < 1 else 1
    digits = DIGITS.get(result.figure.unit, small)
    median, low, high = (f"{part:,.{digits}f}" for part in dataclasses.astuple(result.reached))
    return median if low == high else f"{median} ({low} to {high})"


def table(title: str, results: Sequence[Result]) -> Table:
    """Figure and measurement of each row."""
    made = Table(title=f"{title}: median (lowest to highest)")
    for name in ("work", "to reach", "reached", "", "measured"):
        made.add_column(name, justify="right" if name in ("to reach", "reached") else "left")
    for result in results:
        sides = ", ".join(f"{side} {said}" for side, said in result.sides.items())
        made.add_row(
            result.figure.work,
            goal(result.figure),
            reached(result),
            {True: "[green]✓[/green]", False: "[red]✗ missed[/red]", None: "-"}[result.passed],
            "; ".join(part for part in (sides, result.details) if part),
        )
    return made
