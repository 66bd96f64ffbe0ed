"""The optimization history as a chart: each COMPLETE trial's value, and the best so far."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

import altair as alt
import pandas as pd

from dashboard.theme import STATES
from storage.progress import End, History

__all__ = ["By", "history_chart"]

By = Literal["trial", "time"]

_UNITS = (("days", 86400.0 * 2, 86400.0), ("hours", 3600.0 * 2, 3600.0), ("minutes", 120.0, 60.0))
"""Name of a unit of time, from how many seconds on it is used, and how many seconds it has."""


def history_chart(history: History, by: By, began: dt.datetime | None) -> Any:
    """The chart by the trials' numbers, or by the time since ``began``.

    Args:
        history: of at least one trial, in the order of ``by``.
        began: naive UTC; only needed by time, default the first trial's end.
    """
    rows = [*history.shown, *history.best, _end(history)]
    begin = began or min((row[1] for row in rows if row[1]), default=None)
    seconds = {row[0]: (row[1] - begin).total_seconds() if row[1] and begin else 0.0 for row in rows}
    unit, size = _unit(max(seconds.values()))

    def frame(chosen: list[End], name: str) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "trial": [row[0] for row in chosen],
                "time": [seconds[row[0]] / size for row in chosen],
                name: [row[2] for row in chosen],
            }
        )

    title = "trial" if by == "trial" else f"{unit} since the first start"
    axis = alt.Axis(grid=False, tickMinStep=1) if by == "trial" else alt.Axis(grid=False)
    x = alt.X(f"{by}:Q", title=title, axis=axis)
    scale = alt.Scale(zero=False)
    tips = [alt.Tooltip("trial:Q"), alt.Tooltip("time:Q", title=unit, format=".3g")]
    dots = (
        alt.Chart(frame(list(history.shown), "value"))
        .mark_circle(size=40, opacity=0.55, color=STATES["COMPLETE"][0])
        .encode(
            x=x,
            y=alt.Y("value:Q", title="value", scale=scale),
            tooltip=[*tips, alt.Tooltip("value:Q", format=".5g")],
        )
    )
    line = (
        alt.Chart(frame([*history.best, _end(history)], "best"))
        .mark_line(interpolate="step-after", strokeWidth=2.5, color=STATES["RUNNING"][0])
        .encode(
            x=x,
            y=alt.Y("best:Q", title="value", scale=scale),
            tooltip=[*tips, alt.Tooltip("best:Q", format=".5g")],
        )
    )
    return alt.layer(dots, line).properties(height=300)


def _end(history: History) -> End:
    """The best so far at the last trial: where its line ends."""
    number, when, _ = history.shown[-1]
    return number, when, history.best[-1][2]


def _unit(longest: float) -> tuple[str, float]:
    for name, above, size in _UNITS:
        if longest >= above:
            return name, size
    return "seconds", 1.0
