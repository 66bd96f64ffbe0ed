"""One trial: parameters, curve, why it ended as it did, and its attempts one under the other."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import actions, data, links, live
from dashboard.charts import curves
from dashboard.page import asked_study
from dashboard.parts import attempts, timeline
from dashboard.rules import pruning
from dashboard.theme import COLOURS, ago, dot, duration, escape, number, shortened, value_text
from storage import reads
from storage.references import references
from storage.views import ParamRange, StudyDetail, TrialDetail

__all__ = ["show"]

_METRICS = 30  # charts of further metrics at most
_TEXT = 2000  # characters of an attribute


def show() -> None:
    """The page."""
    study = asked_study("")
    if study is None:
        return
    asked = links.asked_number("n")
    trial = None if asked is None else data.read(reads.trial, study.name, asked)
    if trial is None:
        st.subheader("No such trial")
        given = links.asked("n")[:200]
        st.text(
            f"The study has no trial {given!r}." if given else "The address names no trial, as &n=0 does."
        )
        st.page_link("views/trials.py", label="See its trials", query_params={"study": study.name})
        return
    _head(study, trial)
    actions.of_trial(study, trial)  # outside of what refreshes
    if trial.state in ("RUNNING", "WAITING"):
        live.refreshed(_body)(study, trial.number)
    else:
        _body(study, trial.number)


def _head(study: StudyDetail, trial: TrialDetail) -> None:
    left = st.session_state.get("trials left", {})  # the list as it was left, with its filters
    back = left if left.get("study") == study.name else {"study": study.name}
    last = sum(study.states.values()) - 1
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.page_link("views/trials.py", label="↑ trials", query_params=back)
        st.space("stretch")
        for label, other in (("← previous", trial.number - 1), ("next →", trial.number + 1)):
            # buttons: a link to the page that is open leaves the browser's address as it was
            idle = not 0 <= other <= last
            st.button(label, type="tertiary", disabled=idle, on_click=links.update, args=({"n": other},))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(f"Trial {trial.number}", width="content")
        if trial.retry_of is not None:
            query = {"study": study.name, "n": str(trial.retry_of)}
            st.page_link("views/trial.py", label=f"a retry of trial {trial.retry_of}", query_params=query)


def _body(study: StudyDetail, n: int) -> None:
    trial = data.read(reads.trial, study.name, n)
    if trial is None:
        st.warning("This trial was deleted meanwhile.")
        return
    _state(study, trial)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        _curve(study, trial)
    with right:
        _parameters(trial)
    _metrics(trial)
    _attempts(trial)
    _checkpoints(trial)
    _timeline(trial)


def _state(study: StudyDetail, trial: TrialDetail) -> None:
    shown = [number(value) for value in trial.values]
    if len(shown) > 1:
        shown = [f"{text} ({way})" for text, way in zip(shown, study.directions, strict=False)]
    is_open = trial.state in ("RUNNING", "WAITING")
    values = ", ".join(shown) or ("no value yet" if is_open else "no value")
    live_text = " · waits for its next attempt" if trial.live == "claimed" else ""
    began = f"started {ago(trial.started_at)}" if trial.started_at else "not started"
    seconds = trial.duration
    if seconds is None and trial.started_at is not None and trial.state == "RUNNING":
        seconds = (dt.datetime.now(dt.UTC).replace(tzinfo=None) - trial.started_at).total_seconds()
    best = " · :green-badge[best]" if trial.number == study.best_number else ""
    lasted = "" if seconds is None else f" · {'for' if is_open else 'took'} {duration(seconds)}"
    st.markdown(
        f"{dot(trial.state)} **{escape(values)}**{best} · {began}{lasted}{live_text}",
        help=f"started {trial.started_at:%Y-%m-%d %H:%M:%S} UTC" if trial.started_at else None,
    )
    if trial.state == "FAIL" or trial.live:
        if trial.reason:
            why = "Why" if trial.state == "FAIL" else "The attempt before"
            st.markdown(f"**{why}:** {escape(trial.reason)}")
        if trial.message:
            st.text(shortened(trial.message, _TEXT))
    said = pruning.sentence(trial)
    if said:
        st.markdown(f"**{'Why it was pruned' if trial.state == 'PRUNED' else 'The pruner'}:** {escape(said)}")
        found = pruning.decision(trial)
        if found is not None:
            with st.expander("What the pruner compared"):
                st.dataframe(pd.DataFrame(pruning.inputs(found)), hide_index=True, width="stretch")


def _curve(study: StudyDetail, trial: TrialDetail) -> None:
    st.markdown("**Reports**")
    if not trial.curve and not trial.superseded:
        st.caption(
            "It has reported nothing." if len(study.directions) == 1 else "Several objectives: no reports."
        )
        return
    mine, grey = f"trial {trial.number}", COLOURS["gray"]
    lines: dict[str, Any] = {mine: trial.curve}
    colours = {mine: curves.colour(trial.state)}
    others = data.read(references, study.name)
    if others.best and others.best_number != trial.number:
        lines[f"best: trial {others.best_number}"] = others.best
        colours[f"best: trial {others.best_number}"] = "#b057c9"
    if others.median:
        of = f"{others.sampled} of {others.trials}" if others.sampled < others.trials else others.trials
        lines[f"median of {of} trials"] = others.median
        colours[f"median of {of} trials"] = grey
    for attempt in sorted({one for one, _, _ in trial.superseded}):
        name = f"attempt {attempt}, superseded"
        lines[name] = [(step, value) for one, step, value in trial.superseded if one == attempt]
        colours[name] = "#c98a6b"
    said = f"Reports of trial {trial.number} by step, beside {', '.join(list(lines)[1:]) or 'no other'}"
    st.altair_chart(curves.curve_chart(lines, colours), width="stretch", alt=said)
    newest = f"Newest report: {number(trial.last_value)} at step {trial.last_step}. " if trial.curve else ""
    st.caption(escape(f"{newest}{curves.not_finite(trial.curve)}"))


def _parameters(trial: TrialDetail) -> None:
    st.markdown("**Parameters**")
    rows = [
        {
            "name": name,
            "value": value_text(value),
            "drawn from": _range_text(trial.ranges.get(name)),
        }
        for name, value in trial.params.items()
    ]
    if trial.state in ("WAITING", "RUNNING"):
        asked = {name: value for name, value in trial.given.items() if name not in trial.params}
        rows += [
            {"name": name, "value": value_text(value), "drawn from": "given when it was enqueued"}
            for name, value in asked.items()
        ]
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")
    else:
        st.caption("They are drawn when it starts." if trial.state == "WAITING" else "None.")
    if trial.constraints:
        st.markdown("**Constraints** (feasible up to 0)")
        found = [{"name": name, "value": number(value)} for name, value in trial.constraints.items()]
        st.dataframe(pd.DataFrame(found), hide_index=True, width="stretch")
    if trial.user_attrs:
        st.markdown("**Attributes**")
        said = [
            {"name": name, "value": shortened(value_text(value), _TEXT)}
            for name, value in trial.user_attrs.items()
        ]
        st.dataframe(pd.DataFrame(said), hide_index=True, width="stretch")


def _range_text(drawn: ParamRange | None) -> str:
    if drawn is None:
        return ""
    if drawn.low is None:
        return shortened(" | ".join(map(value_text, drawn.choices)), 200)
    scale = ", log" if drawn.log else f", step {number(drawn.step)}" if drawn.step is not None else ""
    return f"{number(drawn.low)} to {number(drawn.high)}{scale}"


def _metrics(trial: TrialDetail) -> None:
    if not trial.metrics:
        return
    with st.expander(f"Further metrics: {len(trial.metrics)}"):
        columns = st.columns(2)
        for at, (name, points) in enumerate(list(trial.metrics.items())[:_METRICS]):
            with columns[at % 2]:
                st.text(shortened(name, 80))
                colours = {name: curves.colour(trial.state)}
                chart = curves.curve_chart({name: points}, colours, height=170, title="value")
                st.altair_chart(chart, width="stretch")
                st.caption(escape(f"newest {number(points[-1][1])} at step {points[-1][0]}"))
        if len(trial.metrics) > _METRICS:
            st.caption(f"The first {_METRICS} are shown.")


def _attempts(trial: TrialDetail) -> None:
    st.markdown("**Attempts**")
    if trial.attempt_rows:
        attempts.show(trial.attempt_rows)
    elif trial.state == "WAITING":
        st.caption("It waits in the queue and has not been tried.")
    else:
        st.caption("This trial was run by another program: Optuna keeps no attempts.")


def _checkpoints(trial: TrialDetail) -> None:
    groups: dict[tuple[int, int], list[Any]] = {}
    for part in trial.checkpoint_parts:
        groups.setdefault((part.step, part.attempt), []).append(part)
    if not groups:
        return
    with st.expander(f"Checkpoints: {len(groups)}"):
        rows = [
            {
                "step": step,
                "attempt": attempt,
                "ranks": f"{len(parts)} of {parts[0].world_size}",
                "whole": "yes" if parts[0].whole else "no: not used",
                "MB": sum(part.size for part in parts) / 1e6,
                "saved (UTC)": f"{max(part.created_at for part in parts):%Y-%m-%d %H:%M:%S}",
                "path": parts[0].path,
            }
            for (step, attempt), parts in sorted(groups.items(), reverse=True)
        ]
        megabytes = st.column_config.NumberColumn("MB", format="%.5g")
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch", column_config={"MB": megabytes})


def _timeline(trial: TrialDetail) -> None:
    if trial.event_rows:
        with st.expander(f"What happened: {len(trial.event_rows)}"):
            rows = timeline.lines(trial.event_rows)
            st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch")


if __name__ == "__main__":
    show()
