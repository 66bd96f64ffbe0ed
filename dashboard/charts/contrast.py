"""How the parameters of failed trials differ from those of good ones: charts and sentences."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from dashboard import data
from dashboard.theme import STATES, escape, number, shortened
from storage import contrasts
from storage.contrasts import Contrast, Contrasts
from storage.failures import FailureGroup

__all__ = ["chart", "section", "sentence"]

_CHARTS = 6


def section(study: str, group: FailureGroup, *, choice: bool) -> None:
    """The trials of a group, or all that failed, against the good ones, by parameter.

    Args:
        choice: whether there are other groups.
    """
    st.subheader("Parameters of failed against good trials", anchor=False)
    everything = False
    if choice:
        chosen = st.segmented_control(
            "Failed trials to compare", ["this kind", "all that failed"], default="this kind", required=True
        )
        everything = chosen == "all that failed"
    numbers = None if everything else (group.numbers or group.retried)
    found = data.read(contrasts.contrasts, study, numbers)
    if not found.params:
        st.caption(_too_few(found))
        return
    _headline(found)
    overall = found.failed / (found.failed + found.good)
    for start in range(0, min(len(found.params), _CHARTS), 3):
        for column, one in zip(st.columns(3), found.params[start : start + 3], strict=False):
            with column:
                st.markdown(f"**{escape(shortened(one.name, 60))}** · difference {number(one.distance)}")
                st.altair_chart(chart(one, overall), width="stretch")
                st.caption(escape(shortened(sentence(one), 200)))
    if len(found.params) > _CHARTS:
        with st.expander(f"Further parameters: {len(found.params) - _CHARTS}"):
            _table(found.params[_CHARTS:])
    st.caption(
        "Bars: share of the trials there that failed; dashes: over all. Difference: from 0, the same, to 1, "
        "apart (Kolmogorov-Smirnov statistic; of choices, total variation distance)."
    )


def _too_few(found: Contrasts) -> str:
    if min(found.failed, found.good) < contrasts.FEWEST:
        return (
            f"{found.failed} failed and {found.good} complete or pruned: each side needs "
            f"{contrasts.FEWEST} trials for a comparison."
        )
    return (
        "The trials that failed have no parameter in common with the others: they failed before they asked."
    )


def _headline(found: Contrasts) -> None:
    first = found.params[0]
    many = f"{found.failed} failed against {found.good} complete or pruned"
    if contrasts.MOST in (found.failed, found.good):
        many += f" (the newest {contrasts.MOST} of each)"
    name = escape(shortened(first.name, 60))
    if first.distance <= first.chance:
        st.markdown(
            f"{many}: **no parameter separates them.** The largest difference, {number(first.distance)} of "
            f"{name}, is no more than chance makes ({number(first.chance)})."
        )
        return
    st.markdown(
        f"{many}: **{name} separates them most**, {escape(sentence(first))}. "
        f"Its difference is {number(first.distance)}, where chance makes at most {number(first.chance)}."
    )


def _table(params: tuple[Contrast, ...]) -> None:
    rows = [{"parameter": one.name, "difference": one.distance, "where": sentence(one)} for one in params]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        width="stretch",
        column_config={"difference": st.column_config.NumberColumn(format="%.5g")},
    )


def chart(contrast: Contrast, overall: float) -> Any:
    """The share of trials that failed, over the parameter's range or choices.

    Args:
        overall: the share over all of them, as a line to compare with.
    """
    bins = [one for one in contrast.bins if one.failed + one.good]
    frame = pd.DataFrame(
        {
            "at": [one.label for one in bins],
            "low": [one.low for one in bins],
            "high": [one.high for one in bins],
            "failed": [one.failed for one in bins],
            "of": [one.failed + one.good for one in bins],
            "share": [one.failed / (one.failed + one.good) for one in bins],
            "none": [0.0 for _ in bins],
        }
    )
    ranged = not contrast.categorical and any(one.high > one.low for one in bins)
    y = alt.Y(
        "share:Q",
        title=None,
        scale=alt.Scale(domain=[0, max(overall, *frame["share"])]),
        axis=alt.Axis(format=".2~p", tickCount=3),
    )
    tips = [
        alt.Tooltip("at:N", title=contrast.name),
        alt.Tooltip("share:Q", title="failed", format=".1%"),
        alt.Tooltip("failed:Q", title="failed trials"),
        alt.Tooltip("of:Q", title="of"),
    ]
    base = alt.Chart(frame)
    if ranged:
        axis = alt.Axis(format="~g", labelOverlap=True, tickCount=4, grid=False)
        scale = alt.Scale(type="log" if contrast.log else "linear", zero=False, nice=False)
        bars = base.mark_bar(color=STATES["FAIL"][0], opacity=0.85, strokeWidth=0).encode(
            x=alt.X("low:Q", title=None, scale=scale, axis=axis), x2="high:Q", y=y, y2="none:Q", tooltip=tips
        )
    else:
        labels = alt.Axis(labelAngle=0, labelLimit=80, labelOverlap=True)
        bars = base.mark_bar(color=STATES["FAIL"][0], opacity=0.85, size=24).encode(
            x=alt.X("at:N", title=None, sort=list(frame["at"]), axis=labels), y=y, tooltip=tips
        )
    line = (
        alt.Chart(pd.DataFrame({"share": [overall]}))
        .mark_rule(color=STATES["WAITING"][0], strokeDash=[4, 3])
        .encode(y="share:Q", tooltip=[alt.Tooltip("share:Q", title="failed overall", format=".1%")])
    )
    layered: Any = alt.layer(bars, line).properties(
        height=150, description=f"share of failed trials over {contrast.name}: {sentence(contrast)}"
    )
    return layered


def sentence(contrast: Contrast) -> str:
    """Where the failed ones are, and where the others, in plain text."""
    if contrast.categorical:
        worst = max(contrast.bins, key=lambda one: one.failed / contrast.failed - one.good / contrast.good)
        return (
            f"{worst.label} in {worst.failed / contrast.failed:.0%} of the failed, "
            f"{worst.good / contrast.good:.0%} of the good"
        )
    failed, good = contrast.failed_quartiles, contrast.good_quartiles
    return (
        f"middle half of the failed {number(failed[0])} to {number(failed[2])}, "
        f"of the good {number(good[0])} to {number(good[2])}"
    )
