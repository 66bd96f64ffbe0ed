"""A study at a glance: counters, the best so far, and how it is set up."""

from __future__ import annotations

import json
import shlex

import pandas as pd
import streamlit as st

from dashboard import charts, data, driver, live
from dashboard.page import asked_study
from dashboard.theme import ago, escape, number
from storage import reads
from storage.views import StudyDetail

__all__ = ["show"]

_COUNTERS = {"Complete": "COMPLETE", "Pruned": "PRUNED", "Failed": "FAIL", "Running": "RUNNING"}


def show() -> None:
    """The page."""
    study = asked_study("Overview")
    if study is None:
        return
    _counters(study.name)
    _results(study.name)
    _setup(study)


@live.refreshed
def _counters(name: str) -> None:
    study = data.study(name)
    if study is None:
        st.warning("This study was deleted meanwhile.")
        return
    done = driver.finished(study)
    shown = {
        "Finished": f"{done} of {study.n_trials}" if study.n_trials else str(done),
        **{label: str(study.states.get(state, 0)) for label, state in _COUNTERS.items()},
        "Best": number(study.best) if len(study.directions) == 1 else "-",
    }
    with st.container(horizontal=True, gap="medium"):
        for label, text in shown.items():
            st.metric(label, text, width="content")
    if study.n_trials:
        st.progress(min(1.0, done / study.n_trials))
    if study.n_trials and done >= study.n_trials and study.owner is None:
        st.caption(f"Ended: {escape(study.stop_reason or '')}. Last activity {ago(study.last_activity)}.")
    elif study.owner is None or driver.badge(study).startswith(":red"):
        reason = f"Ended: {escape(study.stop_reason)}. " if study.stop_reason else "No driver runs. "
        st.caption(f"{reason}Last activity {ago(study.last_activity)}. To go on:")
        st.code(driver.resume_command(study), language="shell")
    else:
        st.caption(f"Last activity {ago(study.last_activity)}.")


@live.refreshed
def _results(name: str) -> None:
    study = data.study(name)
    if study is None:
        return
    history, best = st.columns([3, 2])
    with history:
        _history(study)
    with best:
        _best(study)


def _history(study: StudyDetail) -> None:
    st.subheader("Best so far")
    points = data.read(reads.best_so_far, study.name)
    if len(study.directions) > 1:
        st.caption("Several objectives have no single best; see the values in the table below.")
    elif points:
        st.altair_chart(charts.best_chart(points, study.directions[0]), width="stretch")
    else:
        st.caption("No trial is complete yet.")


def _best(study: StudyDetail) -> None:
    st.subheader("Best trial")
    if study.best_number is None:
        st.caption("None yet.")
        return
    target = {"study": study.name, "n": str(study.best_number)}
    label = f"Trial {study.best_number}: {escape(number(study.best))} ({study.directions[0]})"
    st.page_link("views/trial.py", label=label, query_params=target)
    params, python, shell = st.tabs(["Parameters", "As Python", "As a command"])
    with params:
        rows = [{"parameter": name, "value": str(value)} for name, value in study.best_params.items()]
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
    with python:
        st.code(f"params = {dict(study.best_params)!r}", language="python", wrap_lines=True)
    with shell:
        params_of = shlex.quote(f"@{study.name}:best")
        known = study.objective or {}
        file = f"{known['file']}:{known['name']}" if known.get("file") else "FILE.py"
        text = f"tuner run {shlex.quote(file)} --params {params_of}{driver.storage_option()}"
        st.code(text, language="shell", wrap_lines=True)


def _setup(study: StudyDetail) -> None:
    with st.expander("How it is set up"):
        plain = {
            "sampler": study.sampler,
            "pruner": study.pruner,
            "seed": study.seed,
            "directions": list(study.directions),
            "objective": dict(study.objective) if study.objective else None,
            "settings": dict(study.settings),
            "provenance of the newest attempt": dict(study.provenance),
            "user attributes": dict(study.user_attrs),
        }
        st.code(json.dumps(plain, indent=2, default=str), language="json", wrap_lines=True)


if __name__ == "__main__":
    show()
