"""The attempts of a study over time, by host: a Gantt chart, and how busy the hosts were."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from dashboard import data, links
from dashboard.theme import STATES, ago, duration, said, shortened
from storage import timeline as timelines
from storage.timeline import Span, Timeline
from storage.views import StudyDetail

__all__ = ["PICKED", "chart", "section"]

PICKED = "picked"
"""The chart's selection: of the attempt that was clicked it holds the trial's number, as ``trial``."""

_LEGEND = {
    **{state: said(state) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")},
    "WAITING": "cut off",
}
_TALLEST = 700  # pixels of all lanes together

_WINDOWS: Mapping[str, float | None] = {
    "5m": 300.0,
    "15m": 900.0,
    "1h": 3600.0,
    "6h": 21600.0,
    "24h": 86400.0,
    "7d": 604800.0,
    "all": None,
}
_USUAL = "1h"


def section(study: StudyDetail) -> None:
    """The window, the share of it in which each host was busy, and the chart."""
    st.subheader("Utilisation", anchor=False)
    asked = links.asked("window", _USUAL)
    names = list(_WINDOWS)
    window = st.segmented_control(
        "Window",
        names,
        default=asked if asked in _WINDOWS else _USUAL,
        required=True,
        help="Of time before the newest sign of life of the study.",
    )
    links.update({"window": window if window != _USUAL else None})
    found = data.read(timelines.timeline, study.name, _WINDOWS[window or _USUAL])
    if not found.attempts:
        st.info("No attempt has begun yet. Where and when attempts ran will be drawn here.")
        return
    _use(found)
    if not found.spans:
        st.caption("It is not known where the attempts of this window ran, or when they ended.")
        return
    shown = len({(span.number, span.attempt) for span in found.spans})
    event = st.altair_chart(
        chart(found.spans),
        width="stretch",
        on_select="rerun",
        selection_mode=PICKED,
        key=f"gantt-{window}",
    )
    picked = event["selection"].get(PICKED)
    if picked:
        target = {"study": study.name, "n": str(int(picked[0]["trial"]))}
        st.switch_page("views/trial.py", query_params=target)
    first = "All" if shown == found.attempts else f"{shown}, the newest,"
    st.caption(
        f"{first} of {found.attempts} attempts, {_clock(found.begin)} to {_clock(found.end)} UTC, a "
        "lane for each that was on the host at once. Click one to see its trial. It stays as it is "
        "until the page is loaded again."
    )


def _clock(moment: dt.datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def _use(found: Timeline) -> None:
    seconds = 0.0
    if found.begin is not None and found.end is not None:
        seconds = (found.end - found.begin).total_seconds()
    st.caption(f"Share of {duration(seconds)} in which at least one attempt ran there:")
    rows = [
        {
            "Host": host.host,
            "Busy": 100 * host.busy,
            "At once": round(host.at_once, 2),
            "Attempts": host.attempts,
            "Devices": ", ".join(host.devices) or "CPU",
            "Node": ", ".join(node[:8] for node in host.nodes[:3]),
            "Last seen": ago(host.newest_at),
        }
        for host in found.hosts
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        width="stretch",
        height=min(35 * (len(rows) + 1) + 3, 400),
        column_config={
            "Busy": st.column_config.ProgressColumn("Busy", min_value=0, max_value=100, format="%.0f %%"),
            "At once": st.column_config.NumberColumn(
                "At once", help="Attempts there, as a mean over the window", format="%.5g"
            ),
        },
    )


def chart(spans: Sequence[Span]) -> Any:
    """A bar for each attempt on each host, coloured by how it ended; times are shown as UTC."""
    ordered = sorted(spans, key=lambda span: (span.host, span.lane, span.begin))
    frame = pd.DataFrame(
        {
            "place": [f"{shortened(span.host, 40)} #{span.lane + 1}" for span in ordered],
            "begin": [span.begin for span in ordered],
            "end": [span.end for span in ordered],
            "outcome": [_LEGEND[span.state] for span in ordered],
            "reason": [span.reason or "running" for span in ordered],
            "trial": [span.number for span in ordered],
            "attempt": [span.attempt for span in ordered],
            "lasted": [duration((span.end - span.begin).total_seconds()) for span in ordered],
            "ranks": [span.ranks for span in ordered],
            "devices": [", ".join(span.devices) or "CPU" for span in ordered],
        }
    )
    rows = list(dict.fromkeys(frame["place"]))
    present = [state for state in _LEGEND if _LEGEND[state] in set(frame["outcome"])]
    colours = alt.Scale(
        domain=[_LEGEND[state] for state in present], range=[STATES[state][0] for state in present]
    )
    only_first = "test(/ #1$/, datum.label) ? replace(datum.label, / #1$/, '') : ''"
    picked = alt.selection_point(name=PICKED, fields=["trial"], on="click", toggle=False)
    days = max(span.end for span in ordered) - min(span.begin for span in ordered)
    clock = (
        "%H:%M:%S"
        if days < dt.timedelta(hours=1)
        else "%H:%M"
        if days < dt.timedelta(days=1)
        else "%d %b %H:%M"
    )
    bars: Any = (
        alt.Chart(frame)
        .mark_bar(cornerRadius=2, strokeWidth=0.8, cursor="pointer")
        .encode(
            x=alt.X("begin:T", title=None, axis=alt.Axis(format=clock, labelOverlap=True, tickCount=8)),
            x2="end:T",
            y=alt.Y(
                "place:N",
                sort=rows,
                title=None,
                axis=alt.Axis(labelExpr=only_first, labelLimit=120, ticks=False, domain=False),
            ),
            color=alt.Color("outcome:N", scale=colours, legend=alt.Legend(orient="top", title=None)),
            stroke=alt.Stroke("outcome:N", scale=colours, legend=None),  # what is short stays visible
            tooltip=[
                alt.Tooltip("trial:Q"),
                alt.Tooltip("attempt:Q"),
                alt.Tooltip("reason:N"),
                alt.Tooltip("place:N"),
                alt.Tooltip("begin:T", title="began (UTC)", format="%Y-%m-%d %H:%M:%S"),
                alt.Tooltip("lasted:N"),
                alt.Tooltip("ranks:Q"),
                alt.Tooltip("devices:N"),
            ],
        )
        .properties(
            height=min(_TALLEST, 26 * len(rows) + 80),
            description=f"{len(ordered)} attempts over time in {len(rows)} lanes, coloured by outcome",
        )
        .add_params(picked)
    )
    return bars
