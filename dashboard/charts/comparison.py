"""The charts of the page Compare: one colour for each study on all of them."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from dashboard.charts.axes import FIVE, Chart, series_colour, titled
from dashboard.rules.comparison import Best

__all__ = ["SERIES", "best_chart"]

SERIES = ("#3b6fd4", "#e08a1e", "#2e9e5b", "#a25bd1", "#d6457f", "#1fa3b5", "#8c6d46", "#8a8f98")
"""The colours of studies beside each other, in the order in which they were chosen."""


def best_chart(
    bests: Mapping[str, Best], colours: Mapping[str, str], axis_title: str, unit: float = 1.0
) -> Chart:
    """The best value so far of each study; places on the axis are divided by the unit."""
    rows = [
        (label, number, place / unit, best)
        for label, points in bests.items()
        for number, place, best in points
    ]
    frame = pd.DataFrame(rows, columns=["study", "trial", "place", "best"])
    encoded = {
        "x": alt.X("place:Q", title=titled(axis_title), axis=alt.Axis(grid=False)),
        "y": alt.Y("best:Q", title="best value", scale=alt.Scale(zero=False)),
        "color": series_colour("study", colours),
        "tooltip": [
            "study:N",
            alt.Tooltip("trial:Q"),
            alt.Tooltip("place:Q", title=titled(axis_title), format=".4g"),
            alt.Tooltip("best:Q", format=FIVE),
        ],
    }
    chart = alt.Chart(frame)
    line = chart.mark_line(interpolate="step-after", strokeWidth=2.5).encode(**encoded)
    dots = chart.mark_circle(size=40).encode(**encoded)
    layered: Chart = alt.layer(line, dots)
    return layered.properties(height=320, description=f"Best value so far by {axis_title}")
