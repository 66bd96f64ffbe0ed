"""Charts of values over parameters: slices, parallel coordinates, contours.

Names from the database are data or titles in them, never field names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from dashboard.charts.axes import RAMP, Chart, linear, ramp_of, tip, titled
from dashboard.rules import analysis
from dashboard.theme import COLOURS, shortened, value_text
from storage.columns import ParamColumn

__all__ = ["contour_chart", "parallel_chart", "slice_chart"]

_GRID = 40  # cells along each axis of a contour plot
_INKS = {False: ("#31333f", "#ffffff"), True: ("#e8e8e4", "#181816")}  # a text over lines, and its ground


def slice_chart(
    param: str, column: ParamColumn, numbers: Sequence[int], values: Sequence[float], value_name: str
) -> Chart:
    """Values against one parameter, later trials in a stronger colour; choices as bands."""
    rows = [row for row in zip(numbers, column.values, values, strict=True) if row[1] is not None]
    frame = pd.DataFrame(rows, columns=["trial", "x", "value"])
    encoding: dict[str, Any] = {
        "y": alt.Y("value:Q", **linear(value_name)),
        "color": alt.Color("trial:Q", scale=alt.Scale(range=list(RAMP)), legend=None),
        "tooltip": [alt.Tooltip("trial:Q"), tip("value", value_name), tip("x", param, column)],
    }
    if column.choices is not None:
        # beside each other inside their band, by a fixed spread of the numbers
        frame["aside"] = [number * 0.618034 % 1 for number in frame["trial"]]
        axis = alt.Axis(labelAngle=0 if len(column.choices) < 6 else -40, labelLimit=90)
        encoding["x"] = alt.X("x:N", title=titled(param), sort=list(column.choices), axis=axis)
        encoding["xOffset"] = alt.XOffset("aside:Q", scale=alt.Scale(domain=[-0.25, 1.25]))
    elif column.log:
        scale = alt.Scale(type="log", nice=False, padding=8)
        axis = alt.Axis(format="~e", tickCount=4, grid=False)
        encoding["x"] = alt.X("x:Q", title=titled(param), scale=scale, axis=axis)
    else:
        encoding["x"] = alt.X("x:Q", **linear(param, axis=alt.Axis(grid=False, tickCount=5)))
    described = f"{titled(value_name)} against {titled(param)}, {len(frame)} trials"
    chart: Chart = alt.Chart(frame).mark_circle(size=32, opacity=0.75).encode(**encoding)
    return chart.properties(height=220, description=described)


def parallel_chart(
    columns: Mapping[str, ParamColumn],
    numbers: Sequence[int],
    values: Sequence[float],
    value_name: str,
    direction: str,
    *,
    dark: bool = False,
) -> Chart:
    """A line for each trial over the value and the parameters; the trials come best first."""
    named = [(value_name, ParamColumn(values=tuple(values), choices=None, log=False)), *columns.items()]
    labels = analysis.apart([titled(name, 18) for name, _ in named])
    lines: list[tuple[int, float, str, int, float, str]] = []
    marks: list[tuple[str, float, str]] = []
    for index, (label, (_, column)) in enumerate(zip(labels, named, strict=True)):
        places, texts = analysis.positions(column)
        marks += [(label, place, shortened(text, 12)) for place, text in texts]
        for number, value, place, there in zip(numbers, values, places, column.values, strict=True):
            shown = "not there" if there is None else value_text(there)
            lines.append((number, value, label, index, place, shown))
    frame = pd.DataFrame(lines, columns=["trial", "value", "axis", "index", "place", "shown"])
    frame = frame.iloc[::-1]  # the best is drawn last, on top
    ticks = pd.DataFrame(marks, columns=["axis", "place", "shown"])
    axis = alt.Axis(
        orient="top", labelAngle=-25, labelLimit=130, domain=False, ticks=False, labelPadding=8, title=None
    )
    x = alt.X("axis:N", sort=labels, axis=axis, scale=alt.Scale(type="point", padding=0.4))
    y = alt.Y("place:Q", axis=None, scale=alt.Scale(domain=[0, 1], nice=False))
    hovered = alt.selection_point(on="pointerover", fields=["trial"], empty=False, clear="pointerout")
    drawn = (
        alt.Chart(frame)
        .mark_line(strokeJoin="round")
        .encode(
            x=x,
            y=y,
            detail="trial:N",
            order="index:Q",
            color=ramp_of(value_name, direction),
            opacity=alt.condition(hovered, alt.value(1), alt.value(0.5 if len(numbers) > 60 else 0.75)),
            strokeWidth=alt.condition(hovered, alt.value(4), alt.value(1.5)),
            tooltip=[
                alt.Tooltip("trial:Q"),
                tip("value", value_name),
                alt.Tooltip("axis:N"),
                alt.Tooltip("shown:N", title="there"),
            ],
        )
        .add_params(hovered)
    )
    posts = alt.Chart(ticks).mark_rule(color=COLOURS["gray"]).encode(x=x)
    ink, ground = _INKS[dark]
    texts_at = alt.Chart(ticks).encode(x=x, y=y, text="shown:N")
    halo = texts_at.mark_text(align="left", dx=5, fontSize=12, stroke=ground, strokeWidth=5, opacity=0.85)
    words = texts_at.mark_text(align="left", dx=5, fontSize=12, color=ink)
    described = f"Parallel coordinates of {len(numbers)} trials over {', '.join(labels)}"
    layered: Chart = alt.layer(posts, drawn, halo, words)
    return layered.properties(height=420, description=described)


def contour_chart(
    across: tuple[str, ParamColumn],
    along: tuple[str, ParamColumn],
    numbers: Sequence[int],
    values: Sequence[float],
    value_name: str,
    direction: str,
) -> Chart:
    """What the values between the trials may be, over two parameters, and the trials themselves."""
    places = analysis.positions(across[1])[0], analysis.positions(along[1])[0]
    rows = [
        row
        for row in zip(*places, numbers, values, across[1].values, along[1].values, strict=True)
        if not math.isnan(row[0] + row[1])
    ]
    points = pd.DataFrame(rows, columns=["place_x", "place_y", "trial", "value", "x", "y"])
    columns, lines = _cells(across[1], list(points["x"])), _cells(along[1], list(points["y"]))
    between = analysis.surface(
        list(points["place_x"]),
        list(points["place_y"]),
        list(points["value"]),
        _shares(columns),
        _shares(lines),
    )
    cells = pd.DataFrame(
        [
            (*column, *line, between[at_y, at_x])
            for at_y, line in enumerate(lines)
            for at_x, column in enumerate(columns)
        ],
        columns=["x", "x2", "y", "y2", "value"],
    )
    x, y = _axis(alt.X, "x", *across), _axis(alt.Y, "y", *along)
    far = {f"{end}:Q" for end, (_, column) in (("x2", across), ("y2", along)) if column.choices is None}
    ends = {name.removesuffix(":Q"): name for name in far}
    shade = ramp_of(value_name, direction)
    ground = alt.Chart(cells).mark_rect(strokeWidth=0).encode(x=x, y=y, color=shade, **ends)
    tips = [alt.Tooltip("trial:Q"), tip("value", value_name), tip("x", *across), tip("y", *along)]
    dots = alt.Chart(points[["trial", "value", "x", "y"]])
    dots = dots.mark_circle(size=28, stroke="white", strokeWidth=1, opacity=0.9)
    layered: Chart = alt.layer(ground, dots.encode(x=x, y=y, color=shade, tooltip=tips))
    described = f"{titled(value_name)} over {titled(across[0])} and {titled(along[0])}"
    return layered.properties(height=420, description=described)


def _cells(column: ParamColumn, values: Sequence[float | str]) -> list[tuple[Any, Any]]:
    """Both sides of each cell along an axis; a choice is a cell of its own."""
    if column.choices is not None:
        return [(choice, choice) for choice in column.choices]
    plain = np.asarray(values, dtype=np.float64)
    if column.log:
        edges = np.geomspace(plain.min(), plain.max(), _GRID + 1)
    else:
        edges = np.linspace(plain.min(), plain.max(), _GRID + 1)
    # each reaches over the next one, which covers it: between two that only touch the ground shows
    return list(zip(edges[:-1].tolist(), [*edges[2:].tolist(), float(edges[-1])], strict=True))


def _shares(cells: Sequence[tuple[Any, Any]]) -> analysis.Floats:
    """The middles of the cells on the axis from 0 to 1, as :func:`analysis.positions` has it."""
    if isinstance(cells[0][0], str):
        return np.arange(len(cells)) / max(1, len(cells) - 1)
    return (np.arange(len(cells)) + 0.5) / len(cells)


def _axis(kind: Any, field: str, name: str, column: ParamColumn) -> Any:
    if column.choices is not None:
        return kind(field, type="nominal", title=titled(name), sort=list(column.choices))
    options = linear(name, axis=alt.Axis(grid=False, tickCount=5))
    options["scale"] = alt.Scale(zero=False, nice=False)  # cells to the edge
    if column.log:
        options["scale"] = alt.Scale(type="log", nice=False)
        options["axis"] = alt.Axis(grid=False, tickCount=5, format="~e")
    return kind(field, type="quantitative", **options)
