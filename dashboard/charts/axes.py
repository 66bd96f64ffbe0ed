"""What the charts of values and parameters have in common: titles, scales, a ramp of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dashboard.theme import COLOURS, shortened
from storage.columns import ParamColumn

__all__ = ["FIVE", "RAMP", "Chart", "linear", "ramp_of", "series_colour", "tip", "titled"]

Chart = Any
"""Altair types a layered chart as one of several classes."""

RAMP = ("#c3c8d1", "#8fb0ea", COLOURS["blue"])
"""From what matters less (worse, earlier) to what matters more; seen on white and on black."""

FIVE = ".5g"
"""The format of a value in a tooltip."""


def titled(name: str, most: int = 40) -> str:
    """A name from the database as a title in a chart, which shows it as it is: short, in one line."""
    return shortened("".join(char if char.isprintable() else " " for char in name), most)


def linear(name: str, **options: Any) -> dict[str, Any]:
    """The options of an axis without zero, with some room around the points."""
    return {"title": titled(name), "scale": alt.Scale(zero=False, nice=False, padding=8), **options}


def tip(field: str, name: str, column: ParamColumn | None = None) -> alt.Tooltip:
    """A line of a tooltip: a value, or a parameter's value or choice."""
    if column is not None and column.choices is not None:
        return alt.Tooltip(f"{field}:N", title=titled(name))
    return alt.Tooltip(f"{field}:Q", title=titled(name), format=FIVE)


def ramp_of(value_name: str, direction: str) -> alt.Color:
    """The colour of a value: the better, the stronger."""
    shades: Sequence[str] = RAMP if direction == "maximize" else RAMP[::-1]
    legend = alt.Legend(title=titled(value_name), orient="bottom", gradientLength=180, format="~g")
    return alt.Color("value:Q", scale=alt.Scale(range=list(shades)), legend=legend)


def series_colour(label: str, series: Mapping[str, str]) -> alt.Color:
    """The colour of a study, with its name where there are several."""
    legend = alt.Legend(title=None, orient="bottom", columns=1, labelLimit=340) if len(series) > 1 else None
    scale = alt.Scale(domain=list(series), range=list(series.values()))
    return alt.Color(f"{label}:N", scale=scale, legend=legend)
