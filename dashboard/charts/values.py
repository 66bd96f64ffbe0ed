"""Charts of values: curves, fronts, distributions.

Names from the database are data or titles in them, never field names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from dashboard.charts.axes import FIVE, RAMP, Chart, linear, series_colour, titled
from dashboard.theme import COLOURS
from storage.views import CurvePoint

__all__ = ["KINDS", "curves_chart", "edf_chart", "pareto_chart"]


def curves_chart(
    best: Mapping[int, Sequence[CurvePoint]],
    values: Mapping[int, float],
    rest: Sequence[tuple[int, float, float, float]],
    value_name: str,
) -> Chart:
    """The reports of the best trials (best first), over the median and quartiles of others."""
    rows = [
        (number, values[number], rank, step, value)
        for rank, (number, curve) in enumerate(best.items(), start=1)
        for step, value in curve
        if math.isfinite(value)
    ]
    frame = pd.DataFrame(rows[::-1], columns=["trial", "final", "rank", "step", "report"])
    x = alt.X("step:Q", axis=alt.Axis(tickMinStep=1, grid=False), scale=alt.Scale(nice=False))
    y_options: dict[str, Any] = {"title": f"reported {titled(value_name)}", "scale": alt.Scale(zero=False)}
    layers: list[Chart] = []
    if rest:
        others = pd.DataFrame(rest, columns=["step", "low", "median", "high"])
        band = alt.Chart(others).encode(x=x)
        tips = [alt.Tooltip("step:Q")]
        tips += [alt.Tooltip(f"{part}:Q", format=FIVE) for part in ("low", "median", "high")]
        layers.append(
            band.mark_area(opacity=0.18, color=COLOURS["gray"]).encode(
                y=alt.Y("low:Q", **y_options), y2="high:Q", tooltip=tips
            )
        )
        layers.append(
            band.mark_line(strokeDash=[5, 4], color=COLOURS["gray"]).encode(
                y=alt.Y("median:Q", **y_options), tooltip=tips
            )
        )
    encoding: dict[str, Any] = {
        "x": x,
        "y": alt.Y("report:Q", **y_options),
        "color": alt.Color(
            "rank:Q",
            scale=alt.Scale(range=list(RAMP[::-1]), domain=[1, max(2, len(best))]),
            legend=None,
        ),
        "tooltip": [
            alt.Tooltip("trial:Q"),
            alt.Tooltip("rank:Q"),
            alt.Tooltip("final:Q", title=titled(value_name), format=FIVE),
            alt.Tooltip("step:Q"),
            alt.Tooltip("report:Q", format=FIVE),
        ],
    }
    chart = alt.Chart(frame)
    width = alt.condition(alt.datum.rank == 1, alt.value(3), alt.value(1.4))
    layers.append(chart.mark_line().encode(detail="trial:N", strokeWidth=width, **encoding))
    layers.append(chart.mark_circle(size=30, opacity=0.01).encode(**encoding))  # what the pointer finds
    layered: Chart = alt.layer(*layers)
    return layered.properties(height=380, description=f"Reports of the best {len(best)} trials by step")


KINDS = {
    "front": COLOURS["blue"],
    "dominated": COLOURS["gray"],
    "infeasible": COLOURS["red"],
}
"""What a trial is to the front, and its colour."""


def pareto_chart(
    names: tuple[str, str], rows: Sequence[tuple[int, float, float, str]], connected: bool
) -> Chart:
    """Two objectives of trials: (number, value, value, one of :data:`KINDS`)."""
    frame = pd.DataFrame(rows, columns=["trial", "x", "y", "kind"])
    kinds = [kind for kind in KINDS if kind in set(frame["kind"])]
    x, y = (
        kind(f"{axis}:Q", **linear(name, axis=alt.Axis(tickCount=6)))
        for kind, axis, name in ((alt.X, "x", names[0]), (alt.Y, "y", names[1]))
    )
    tips = [
        alt.Tooltip("trial:Q"),
        alt.Tooltip("x:Q", title=titled(names[0]), format=FIVE),
        alt.Tooltip("y:Q", title=titled(names[1]), format=FIVE),
        alt.Tooltip("kind:N"),
    ]
    shape = {"front": "circle", "dominated": "circle", "infeasible": "cross"}
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds]),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=[shape[kind] for kind in kinds])),
            size=alt.condition(alt.datum.kind == "front", alt.value(80), alt.value(34)),
            opacity=alt.condition(alt.datum.kind == "front", alt.value(1), alt.value(0.4)),
            tooltip=tips,
        )
    )
    layers: list[Chart] = [dots]
    if connected:
        front = alt.Chart(frame[frame["kind"] == "front"])
        layers.insert(
            0, front.mark_line(strokeWidth=2, opacity=0.6, color=KINDS["front"]).encode(x=x, y=y, order="x:Q")
        )
    layered: Chart = alt.layer(*layers)
    count = int((frame["kind"] == "front").sum())
    described = f"{titled(names[0])} against {titled(names[1])}: {count} of {len(frame)} trials on the front"
    return layered.properties(height=380, description=described)


def edf_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], value_name: str, colours: Mapping[str, str]
) -> Chart:
    """The share of trials with at most a value, a step line for each of the series."""
    rows = [
        (label, value, share)
        for label, steps in series.items()
        for value, share in ([(steps[0][0], 0.0), *steps] if steps else [])
    ]
    frame = pd.DataFrame(rows, columns=["series", "value", "share"])
    chart: Chart = (
        alt.Chart(frame)
        .mark_line(interpolate="step-after", strokeWidth=2.5)
        .encode(
            x=alt.X("value:Q", **linear(value_name)),
            y=alt.Y("share:Q", title="share of trials", axis=alt.Axis(format="%")),
            color=series_colour("series", colours),
            tooltip=[
                "series:N",
                alt.Tooltip("value", title=titled(value_name), format=FIVE),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    return chart.properties(height=340, description="Share of trials by value")
