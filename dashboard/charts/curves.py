"""A trial's reports as a chart, held against the median of the study and against its best trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from dashboard.theme import COLOURS, STATES, number
from storage.listing import thinned
from storage.views import CurvePoint

__all__ = ["colour", "curve_chart", "not_finite"]

Chart = Any  # Altair types a layered chart as one of several classes
_POINTS = 500  # of a line; more cannot be seen
_DOTS = 60  # up to here each report has its dot


def curve_chart(
    lines: Mapping[str, Sequence[CurvePoint]],
    colours: Mapping[str, str],
    *,
    height: int = 280,
    title: str = "reported value",
) -> Chart:
    """Lines by name, the first one in front; finite values only.

    Args:
        colours: of the lines, by name. A line in grey is drawn thin and dashed.
        title: of the values.
    """
    rows = [
        (step, value, name)
        for name, points in lines.items()
        for step, value in thinned([point for point in points if math.isfinite(point[1])], _POINTS)
    ]
    frame = pd.DataFrame(rows, columns=["step", "value", "line"])
    names = [name for name in lines if name in set(frame["line"])]
    width = [1.5 if colours[name] == COLOURS["gray"] else 2.5 for name in names]
    dash = [[4, 3] if colours[name] == COLOURS["gray"] else [1, 0] for name in names]
    encoding = {
        "x": alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, grid=False)),
        "y": alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
        "color": alt.Color(
            "line:N",
            scale=alt.Scale(domain=names, range=[colours[name] for name in names]),
            legend=alt.Legend(orient="bottom", title=None, columns=2, labelLimit=260, symbolType="stroke")
            if len(names) > 1
            else None,
        ),
        "tooltip": ["line:N", "step:Q", alt.Tooltip("value:Q", format=".5g")],
    }
    line = (
        alt.Chart(frame)
        .mark_line()
        .encode(
            **encoding,
            strokeWidth=alt.StrokeWidth("line:N", scale=alt.Scale(domain=names, range=width), legend=None),
            strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=dash), legend=None),
        )
    )
    first = frame[frame["line"] == names[0]] if names else frame
    dots = alt.Chart(first if len(first) <= _DOTS else first[-1:]).mark_circle(size=45).encode(**encoding)
    layered: Chart = alt.layer(line, dots).properties(height=height)
    return layered


def colour(state: str) -> str:
    """Of a trial's own line."""
    return STATES.get(state, (COLOURS["blue"], ""))[0]


def not_finite(curve: Sequence[CurvePoint]) -> str:
    """What a chart cannot show, in words; "" for nothing.

    Example:
        >>> not_finite([(0, 1.0), (1, float("nan")), (2, float("inf"))])
        'Not drawn: nan at step 1, inf at step 2.'
    """
    odd = [(step, value) for step, value in curve if not math.isfinite(value)]
    shown = ", ".join(f"{number(value)} at step {step}" for step, value in odd[:5])
    more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
    return f"Not drawn: {shown}{more}." if odd else ""
