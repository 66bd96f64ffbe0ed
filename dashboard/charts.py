"""Charts as Altair specifications: small data, no request to anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from dashboard.theme import STATES
from storage.views import CurvePoint

__all__ = ["curve_chart"]

Chart = Any  # Altair types a layered chart as one of several classes


def curve_chart(
    curve: Sequence[CurvePoint], superseded: Sequence[tuple[int, int, float]], state: str
) -> Chart:
    """A trial's reports by step; those of earlier attempts that were superseded are grey."""
    rows = [(step, value, "reports") for step, value in curve]
    rows += [(step, value, f"attempt {attempt}, superseded") for attempt, step, value in superseded]
    finite = [row for row in rows if math.isfinite(row[1])]
    frame = pd.DataFrame(finite, columns=["step", "value", "series"])
    names = list(dict.fromkeys(frame["series"]))
    colours = [STATES[state][0] if name == "reports" else STATES["WAITING"][0] for name in names]
    encoding = {
        "x": alt.X("step:Q", axis=alt.Axis(tickMinStep=1, grid=False)),
        "y": alt.Y("value:Q", scale=alt.Scale(zero=False)),
        "color": alt.Color(
            "series:N",
            scale=alt.Scale(domain=names, range=colours),
            legend=alt.Legend(orient="bottom", title=None) if len(names) > 1 else None,
        ),
        "tooltip": ["series:N", "step:Q", alt.Tooltip("value:Q", format=".5g")],
    }
    chart = alt.Chart(frame)
    line = chart.mark_line(strokeWidth=2).encode(**encoding)
    points = chart.mark_circle(size=40).encode(**encoding)
    layered: Chart = alt.layer(line, points).properties(height=240)
    return layered
