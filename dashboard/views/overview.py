"""A study at a glance: counters, the best so far, what runs now, what matters, and where it comes from."""

from __future__ import annotations

import streamlit as st

from dashboard import actions, data, driver, links, live
from dashboard.charts.history import By, history_chart
from dashboard.page import asked_study
from dashboard.parts import importance, marks
from dashboard.parts.setup import provenance, settings
from dashboard.rules.condition import is_failing, is_stale
from dashboard.rules.estimates import range_text, remaining
from dashboard.theme import duration, escape, number
from storage import progress
from storage.health import Health, health
from storage.progress import Progress, RunningRow
from storage.views import StudyDetail

__all__ = ["show"]

_DRAWN = "overview drawn at"


def show() -> None:
    """The page."""
    study = asked_study("Overview")
    if study is None:
        return
    st.session_state[_DRAWN] = (study.name, study.finished)
    _counters(study.name)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _history(study)
    with right:
        _best(study)
    _running(study.name)
    actions.of_study(study)
    left, right = st.columns([2, 3], gap="large")
    with left:
        _importance(study)
    with right:
        _setup(study)


@live.refreshed
def _counters(name: str) -> None:
    study = data.study(name)
    found = data.read(progress.progress, name)
    if study is None or found is None:
        st.warning("This study was deleted meanwhile.")
        return
    of_study = data.read(health, (study.study_id,))[study.study_id]
    _numbers(study, found)
    st.html(marks.state_bar(study.states, study.n_trials))
    _condition(study, of_study)
    drawn, finished = st.session_state.get(_DRAWN, (name, 0)), study.finished
    if drawn[0] == name and finished > drawn[1]:  # the charts below stay as they are until they are asked
        more = finished - drawn[1]
        if st.button(
            f"{more} more {'trial' if more == 1 else 'trials'} finished: draw again", type="tertiary"
        ):
            st.rerun()


def _numbers(study: StudyDetail, found: Progress) -> None:
    done, states = study.finished, study.states
    waiting = found.claimed + found.retrying
    is_driven = driver.condition(study) in ("running", "elsewhere")
    now = driver.now()
    left = (study.n_trials or 0) - done
    needed = remaining(found.finishes, left, now) if is_driven else None
    runs = f", in {len(found.runs)} runs" if len(found.runs) > 1 else ""
    took = progress.elapsed(found.worked, now if is_driven else None) if found.worked else None
    shown = {
        "Finished": (
            f"{done} of {study.n_trials}" if study.n_trials else str(done),
            "What the budget counts.",
        ),
        ":blue[■] Running": (str(states.get("RUNNING", 0) - waiting), "Trials that have begun."),
        ":gray[■] Waiting": (
            str(states.get("WAITING", 0) + waiting),
            f"For a slot: {states.get('WAITING', 0)} enqueued, {found.claimed} claimed by the driver, "
            f"{found.retrying} to be tried again.",
        ),
        ":green[■] Complete": (str(states.get("COMPLETE", 0)), None),
        ":orange[■] Pruned": (str(states.get("PRUNED", 0)), None),
        ":red[■] Failed": (str(states.get("FAIL", 0)), None),
        "Retried": (str(found.retried), "Trials with more than one attempt."),
        "Best": (number(study.best) if len(study.directions) == 1 else "-", None),
        "Elapsed": (duration(took), f"While a driver worked on it{runs}."),
        "Time left": (
            range_text(needed),
            f"For the {max(0, left)} trials that are left, at the pace of this run's last "
            f"{len(found.finishes)}; right four times of five while the pace stays. "
            "A dash: nothing is left, nobody works on it, or too few have ended.",
        ),
    }
    with st.container(horizontal=True, gap="medium", key="counters"):
        for label, (text, what) in shown.items():
            st.metric(label, text, help=what, width="content")


def _condition(study: StudyDetail, of_study: Health) -> None:
    """Who drives it, or how to go on; and what needs a person."""
    state = driver.condition(study)
    if is_failing(of_study.newest):
        failed, ended = of_study.newest["FAIL"], sum(of_study.newest.values())
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f":red-badge[failing] {failed} of the newest {ended} trials failed.")
            st.page_link("views/failures.py", label=":blue[See why]", query_params={"study": study.name})
    activity = f"last activity {marks.moment(study.last_activity)}" if study.last_activity else "no trial yet"
    if state in ("running", "elsewhere"):
        st.caption(driver.owner_text(study, of_study.arguments))
        st.html(f"<small>{activity}</small>")
        return
    said = f"Ended: {escape(study.stop_reason)}." if study.stop_reason else ""
    if state != "none":
        said = f"Its driver, {driver.owner_text(study, ())}, " + (
            "is gone." if state == "gone" else "has not renewed its lease: it hangs, or its host is gone."
        )
    if is_stale(state, of_study.running):
        said += f" :red-badge[stale] {of_study.running} attempts that it began are still recorded as running."
    st.markdown(said or "No driver works on it.")
    st.html(f"<small>{activity}</small>")
    how, command = driver.next_step(study)
    st.caption(how)
    st.code(command, language="shell", wrap_lines=True)


@st.fragment
def _history(study: StudyDetail) -> None:
    st.subheader("Best so far")
    if len(study.directions) > 1:
        st.caption(
            "Several objectives have no single best, but trials that no other one beats in all of them:"
        )
        st.page_link(
            "views/analyse.py",
            label=":blue[the Pareto front]",
            query_params={"study": study.name, "view": "pareto"},
        )
        return
    chosen = st.segmented_control(
        "Best so far by",
        ["trial", "time"],
        default="time" if links.asked("by") == "time" else "trial",
        format_func="by {}".format,
        required=True,
        label_visibility="collapsed",
    )
    by: By = "time" if chosen == "time" else "trial"
    links.update({"by": by if by == "time" else None})
    found = data.read(progress.history, study.name, by=by)
    if not found.total:
        st.caption("No trial is complete yet. The chart begins with the first one.")
        return
    shown = "" if len(found.shown) == found.total else f", {len(found.shown)} of them as dots"
    better = len(found.best) - 1
    said = (
        f"{found.total} complete {'trial' if found.total == 1 else 'trials'}{shown}; the line is the best so "
        f"far ({study.directions[0]}), "
        + ("not improved since the first." if not better else f"improved {better} time{'s'[: better - 1]}.")
    )
    of_study = data.read(progress.progress, study.name)
    began = of_study.first_start if of_study is not None else None
    st.altair_chart(history_chart(found, by, began), width="stretch", alt=said)
    st.caption(said)


def _best(study: StudyDetail) -> None:
    st.subheader("Best trial")
    if study.best_number is None:
        none = "None yet." if len(study.directions) == 1 else "Several objectives have no single best."
        st.caption(none)
        return
    target = {"study": study.name, "n": str(study.best_number)}
    label = f":blue[Trial {study.best_number}: {escape(number(study.best))}] ({study.directions[0]})"
    st.page_link("views/trial.py", label=label, query_params=target)
    params, python, shell = st.tabs(["Parameters", "As Python", "As a command"])
    with params:
        if study.best_params:
            st.markdown(marks.table(study.best_params, ("parameter", "value")))
        else:
            st.caption("It has no parameters.")
    with python:
        st.code(f"params = {dict(study.best_params)!r}", language="python", wrap_lines=True)
    with shell:
        st.code(driver.retrain_command(study), language="shell", wrap_lines=True)


@live.refreshed
def _running(name: str) -> None:
    found = data.read(progress.running, name)
    st.subheader("Running now")
    if not found.total:
        st.caption("No trial runs.")
        return
    for row in found.rows:
        _running_row(name, row)
    if found.total > len(found.rows):
        label = f":blue[all {found.total} running trials]"
        st.page_link("views/trials.py", label=label, query_params={"study": name, "state": "RUNNING"})


def _running_row(name: str, row: RunningRow) -> None:
    link, curve, where = st.columns([2, 3, 4], vertical_alignment="center")
    again = f", attempt {row.attempt}" if row.attempt and row.attempt > 1 else ""
    link.page_link(
        "views/trial.py",
        label=f":blue[Trial {row.number}{again}]",
        query_params={"study": name, "n": str(row.number)},
    )
    if row.curve:
        step, value = row.curve[-1]
        curve.html(f"{marks.sparkline(row.curve)} <b>{number(value)}</b> at step {step}")
    else:
        curve.caption("no report yet")
    place = ", ".join(row.hosts) or "run by another program"
    several = "s" if len(row.devices) > 1 else ""
    devices = f", device{several} {', '.join(row.devices)}" if row.devices else ""
    where.html(f"<small>{marks.text(place + devices)} · started {marks.moment(row.started_at)}</small>")


@st.fragment
def _importance(study: StudyDetail) -> None:
    st.subheader("What matters")
    found = importance.importance_of(study)
    if not found.shares:
        st.caption(
            f"The importance of parameters needs {importance.FEWEST} complete trials with finite values; "
            f"there are {found.looked_at}."
        )
        return
    st.html(marks.shares(found.shares[:15]))
    more = len(found.shares) - 15
    rest = f" {more} less important parameters are left out." if more > 0 else ""
    of = "reaching the Pareto front" if len(study.directions) > 1 else "reaching the best tenth"
    st.caption(
        f"Importance for {of}, by Optuna's PED-ANOVA, of {found.looked_at} of {found.total} complete trials."
        f"{rest}"
    )


def _setup(study: StudyDetail) -> None:
    st.subheader("How it is set up")
    where, how, attrs = st.tabs(["Where it comes from", "Settings", "Attributes"])
    with where:
        rows = provenance(study)
        if rows:
            st.markdown(marks.table(rows, ("newest attempt", "what it ran with")))
        else:
            st.caption("Nothing is recorded: no attempt of a driver has begun.")
    with how:
        st.markdown(marks.table(settings(study), ("setting", "value")))
    with attrs:
        if study.user_attrs:
            st.markdown(marks.table(study.user_attrs, ("attribute", "value")))
        else:
            st.caption("It has none: `study.set_user_attr(key, value)` sets one.")


if __name__ == "__main__":
    show()
