"""One study: counters, the best so far, its trials by page, and one trial in detail."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import charts, data, driver, links, trial_view
from dashboard.theme import STATES, ago, duration, escape, number, params_text
from storage import StorageError
from storage.views import StudyDetail, TrialPage, TrialRow

__all__ = ["show"]

_PAGE = 50
_COUNTERS = {"Complete": "COMPLETE", "Pruned": "PRUNED", "Failed": "FAIL", "Running": "RUNNING"}
_SORTS = ("number", "value", "duration", "state", "last_step")


def show() -> None:
    """The page."""
    st.page_link("views/studies.py", label="← all studies")
    name = links.asked("study")
    study = data.study(name) if name else None
    if study is None:
        st.title("No such study")
        st.text(f"There is no study {name[:200]!r} in {data.database_name()}.")
        return
    st.title(escape(name if len(name) <= 80 else f"{name[:77]}..."))
    _counters(name)
    number_asked = links.asked_number("n")
    if number_asked is not None:
        _trial(name, number_asked)
        return
    _overview(name)
    _trials(name)
    _setup(study)


@st.fragment(run_every="5s")
def _counters(name: str) -> None:
    study = data.study(name)
    if study is None:
        st.warning("This study was deleted meanwhile.")
        return
    st.markdown(driver.badge(study))
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
        st.caption(f"Last activity {ago(study.last_activity)}; refreshed every 5 s.")


@st.fragment(run_every="5s")
def _overview(name: str) -> None:
    study = data.study(name)
    if study is None:
        return
    history, best = st.columns([3, 2])
    with history:
        _history(study)
    with best:
        _best(study)
    _failures(name)


def _history(study: StudyDetail) -> None:
    st.subheader("Best so far")
    points = data.best_so_far(study.name)
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
    st.page_link("views/study.py", label=label, query_params=target)
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


def _failures(name: str) -> None:
    rows = data.failures(name)
    if not rows:
        return
    with st.expander(f"Failures: {sum(row.count for row in rows)}"):
        frame = pd.DataFrame(
            [
                {
                    "reason": row.reason,
                    "exception": row.exception,
                    "trials": row.count,
                    "newest": row.newest,
                    "message": row.message,
                }
                for row in rows
            ]
        )
        st.dataframe(frame, hide_index=True, width="stretch")


@st.fragment(run_every="5s")
def _trials(name: str) -> None:
    study = data.study(name)
    params = list(study.best_params) if study is not None else []
    st.subheader("Trials")
    asked = [state for state in links.asked("state").upper().split(",") if state in STATES]
    left, middle, right = st.columns([3, 2, 1], vertical_alignment="bottom")
    states = left.pills("State", list(STATES), selection_mode="multi", default=asked, format_func=str.lower)
    sort_asked = links.asked("sort", "number")
    options = [*_SORTS, *(f"param:{param}" for param in params)]
    if sort_asked not in options and sort_asked.startswith(("attr:", "param:", "value:")):
        options.append(sort_asked)
    at = options.index(sort_asked) if sort_asked in options else 0
    sort = middle.selectbox("Sort by", options, index=at)
    descending = right.toggle("descending", value=links.asked("order") != "asc")
    conditions = st.text_input(
        "Conditions", links.asked("where"), placeholder="lr<0.1 and optimizer=adam and value>0.9"
    ).strip()
    page_asked = max(1, links.asked_number("page", 1) or 1)
    try:
        found, page_asked = _found(name, page_asked, states, sort, descending, conditions)
    except StorageError as error:
        st.error(escape(str(error)))
        return
    pages = max(1, (found.total - 1) // _PAGE + 1)
    links.update(
        {
            "state": ",".join(states),
            "where": conditions,
            "sort": sort if sort != "number" else None,
            "order": None if descending else "asc",
            "page": page_asked if page_asked > 1 else None,
        }
    )
    if not found.rows:
        st.caption("No trial is like this." if states or conditions else "No trial yet.")
        return
    _table(name, found.rows)
    _pager(found.total, page_asked, pages)


def _found(
    name: str, page: int, states: Sequence[str], sort: str, descending: bool, conditions: str
) -> tuple[TrialPage, int]:
    """The page that was asked for, or the last one, and its number."""
    found = data.trials(name, page, states, sort, descending, conditions)
    pages = max(1, (found.total - 1) // _PAGE + 1)
    if page <= pages:
        return found, page
    return data.trials(name, pages, states, sort, descending, conditions), pages


def _table(name: str, rows: tuple[TrialRow, ...]) -> None:
    frame = pd.DataFrame(
        [
            {
                "Trial": row.number,
                "State": [row.state.lower()],
                "Value": ", ".join(number(value) for value in row.values),
                "Last report": ""
                if row.last_step is None
                else f"{number(row.last_value)} at {row.last_step}",
                "Duration": duration(row.duration),
                "Attempts": row.attempts,
                "Reason": _why(row),
                "Parameters": params_text(row.params),
                "Message": row.message,
            }
            for row in rows
        ]
    )
    shown = [row.number for row in rows]
    event = st.dataframe(
        frame,
        hide_index=True,
        width="stretch",
        height=min(36 * (len(rows) + 1), 560),
        column_config={
            "State": st.column_config.MultiselectColumn(
                "State",
                options=[state.lower() for state in STATES],
                color=[colour for colour, _ in STATES.values()],
            )
        },
        on_select="rerun",
        selection_mode="single-row",
        # the key holds the ids: a refresh that moves rows drops the selection instead of moving it
        key=f"trials-{hash((name, tuple(shown)))}",
    )
    chosen = event["selection"]["rows"]
    if chosen and chosen[0] < len(shown):
        st.switch_page("views/study.py", query_params={"study": name, "n": str(shown[chosen[0]])})
    st.caption("Select a row to see the trial.")


def _why(row: TrialRow) -> str:
    """What the state does not say: why it failed, or that it waits for its next attempt."""
    if row.live:
        return f"{row.live}, after {row.reason}" if row.reason else row.live
    return "" if row.reason == row.state.lower() else row.reason


def _pager(total: int, page: int, pages: int) -> None:
    if pages == 1:
        st.caption(f"{total} trials")
        return
    back, text, forth = st.columns([1, 3, 1], vertical_alignment="center")
    if back.button("← previous", disabled=page <= 1, width="stretch"):
        links.update({"page": page - 1 if page > 2 else None})
        st.rerun()
    text.caption(f"page {page} of {pages}, {total} trials")
    if forth.button("next →", disabled=page >= pages, width="stretch"):
        links.update({"page": page + 1})
        st.rerun()


def _trial(name: str, asked: int) -> None:
    st.page_link("views/study.py", label="← all trials of this study", query_params={"study": name})
    detail = data.trial(name, asked)
    if detail is None:
        st.subheader("No such trial")
        st.text(f"The study has no trial {asked}.")
        return
    trial_view.show(detail)


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
