"""One trial in detail: parameters, curve, and its attempts one under the other."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import charts, data, links
from dashboard.page import asked_study
from dashboard.theme import ago, dot, duration, escape, number, value_text
from storage import reads
from storage.views import AttemptRow, TrialDetail

__all__ = ["show"]


def show() -> None:
    """The page."""
    study = asked_study("")
    if study is None:
        return
    number_asked = links.asked_number("n")
    found = None if number_asked is None else data.read(reads.trial, study.name, number_asked)
    if found is None:
        st.subheader("No such trial")
        st.text(f"The study has no trial {links.asked('n')[:200]!r}.")
        return
    _trial(found)


def _trial(trial: TrialDetail) -> None:
    st.subheader(f"Trial {trial.number}")
    values = ", ".join(number(value) for value in trial.values) or "no value"
    began = f"started {ago(trial.started_at)}" if trial.started_at else "not started"
    st.markdown(f"{dot(trial.state)} **{escape(values)}** · {began} · {duration(trial.duration)}")
    if trial.message and trial.state != "COMPLETE":
        st.text(trial.message)
    left, right = st.columns([3, 2])
    with left:
        _curve(trial)
    with right:
        _parameters(trial)
    _attempts(trial)
    _rest(trial)


def _curve(trial: TrialDetail) -> None:
    st.markdown("**Reports**")
    if trial.curve or trial.superseded:
        st.altair_chart(charts.curve_chart(trial.curve, trial.superseded, trial.state), width="stretch")
    else:
        st.caption("It has reported nothing.")
    if trial.metrics:
        with st.expander(f"Further metrics: {len(trial.metrics)}"):
            for name, points in trial.metrics.items():
                st.text(name)
                st.altair_chart(charts.curve_chart(points, (), trial.state), width="stretch")


def _parameters(trial: TrialDetail) -> None:
    st.markdown("**Parameters**")
    rows = [{"name": name, "value": value_text(value)} for name, value in trial.params.items()]
    rows += [
        {"name": f"constraint {name}", "value": number(value)} for name, value in trial.constraints.items()
    ]
    rows += [{"name": name, "value": value_text(value)} for name, value in trial.user_attrs.items()]
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
    else:
        st.caption("None.")


def _attempts(trial: TrialDetail) -> None:
    st.markdown("**Attempts**")
    if not trial.attempt_rows:
        st.caption("This trial was run by another program: Optuna keeps no attempts.")
    for attempt in reversed(trial.attempt_rows):
        _attempt(attempt)


def _attempt(attempt: AttemptRow) -> None:
    with st.container(border=True):
        colour = {"complete": "green", "pruned": "orange"}.get(
            attempt.reason, "red" if attempt.reason else "blue"
        )
        seconds = None
        if attempt.started_at and attempt.ended_at:
            seconds = (attempt.ended_at - attempt.started_at).total_seconds()
        start = (
            "from nothing"
            if attempt.resumed_step is None
            else f"from the checkpoint of step {attempt.resumed_step}"
        )
        charged = " · counted as a failure" if attempt.charged else ""
        st.markdown(
            f"**Attempt {attempt.attempt}** :{colour}-badge[{escape(attempt.reason or attempt.state)}] "
            f"{start} · {duration(seconds)}{charged}"
        )
        for rank in attempt.ranks:
            devices = ", ".join(map(str, rank.get("devices", ()))) or "CPU"
            st.caption(
                f"rank {rank['rank']}: {escape(str(rank['host']))}, process {rank['pid']}, {escape(devices)}"
            )
        if attempt.message:
            st.text(attempt.message)
        if attempt.traceback:
            st.code(attempt.traceback, language="python", wrap_lines=True)
        if attempt.log_tail:
            with st.expander("Last output"):
                st.code(attempt.log_tail, language=None, wrap_lines=True)


def _rest(trial: TrialDetail) -> None:
    if trial.checkpoint_parts:
        with st.expander(f"Checkpoints: {len({(p.attempt, p.step) for p in trial.checkpoint_parts})}"):
            rows = [
                {
                    "attempt": part.attempt,
                    "step": part.step,
                    "rank": part.rank,
                    "bytes": part.size,
                    "whole": part.whole,
                    "path": part.path,
                }
                for part in trial.checkpoint_parts
            ]
            st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
    if trial.event_rows:
        with st.expander("What happened"):
            rows = [
                {
                    "when (UTC)": f"{event.created_at:%H:%M:%S}",
                    "attempt": event.attempt,
                    "event": event.kind,
                    "detail": str(dict(event.detail)),
                }
                for event in trial.event_rows
            ]
            st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")


if __name__ == "__main__":
    show()
