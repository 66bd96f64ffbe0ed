"""What acts: buttons, the questions before what cannot be taken back, and what came of it.

A page calls :func:`of_study`, :func:`of_trial` or :func:`retry_all` where its buttons are to be. What
they act on is fixed when a question opens: the names and numbers are arguments of the dialog, never
read from a selection or the address again. Streamlit knows a button by its key alone, so each key names
its target: a click that arrives after its page was left presses nothing of the next page. The writing
itself is in :mod:`dashboard.asking`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import asking, data, driver
from dashboard.access import auth
from dashboard.asking import Outcome
from dashboard.theme import ago, escape, shortened
from storage import commands
from storage.views import StudyDetail, TrialDetail

__all__ = ["of_study", "of_trial", "retry_all"]

_OUTCOME = "outcome of an action"
_NAMED = 30  # trials that a question names
_MOST = 100_000  # trials at once, as a question offers; a run may have been started with more


def of_study(study: StudyDetail) -> None:
    """Pause and resume, trials at once, stop; and what was asked before."""
    st.subheader("Steer")
    _show_outcome(f"study {study.name}")
    driven = driver.is_driven(study)
    phase = study.driving.phase if study.driving else ""
    _say_phase(study)
    can = driven and _may_act()
    running = study.states.get("RUNNING", 0)
    with st.container(horizontal=True, gap="small"):
        _pause_button(study, paused=phase == "paused", disabled=not can or phase in _ENDING)
        if st.button("Trials at once…", key=f"concurrency-{study.uid}", disabled=not can or phase in _ENDING):
            most = study.driving.most if study.driving else None
            _ask_concurrency(study.name, study.uid, most or max(1, running))
        if st.button("Stop…", key=f"stop-{study.uid}", disabled=not can or phase in _ENDING):
            _ask_stop(study.name, study.uid, running, now=False)
        if st.button("Stop now…", key=f"stop-now-{study.uid}", disabled=not can or phase == "interrupting"):
            _ask_stop(study.name, study.uid, running, now=True)
    if not driven:
        st.caption("No driver runs this study, so nothing can be steered; how it goes on is said above.")
    _show_asked(study.name)


def of_trial(study: StudyDetail, trial: TrialDetail) -> None:
    """Stop a running trial; retry or enqueue again one that has ended."""
    about, number = f"trial {trial.number} of {study.name}", trial.number
    seen = f"{study.study_id}-{study.uid}-{number}"  # a click on a page that was left means that one's trial
    _show_outcome(about)
    may = _may_act()
    if trial.state == "RUNNING" and trial.attempts:
        driven = driver.is_driven(study)
        if st.button("Stop this trial…", key=f"stop-trial-{seen}", disabled=not may or not driven):
            _ask_stop_trial(study.name, study.uid, number)
        if not driven:
            st.caption("No driver runs this trial now. The command that goes on with the study, and with it:")
            st.code(driver.resume_command(study), language="shell", wrap_lines=True)
    elif trial.state in ("COMPLETE", "PRUNED", "FAIL"):
        whole = [(part.attempt, part.step) for part in trial.checkpoint_parts if part.whole]
        start = (
            f"from the checkpoint of step {max(whole)[1]}" if whole else "from nothing: it left no checkpoint"
        )
        with st.container(horizontal=True, gap="small"):
            help_text = f"A new trial with the same parameters, {start}."
            if st.button("Retry", key=f"retry-{seen}", help=help_text, disabled=not may):
                _finish(about, asking.again(study.name, study.uid, [number], from_checkpoint=True))
            help_text = "A new trial with the same parameters, from nothing."
            if st.button("Enqueue again", key=f"again-{seen}", help=help_text, disabled=not may):
                _finish(about, asking.again(study.name, study.uid, [number], from_checkpoint=False))


def retry_all(study: StudyDetail, numbers: Sequence[int], key: str = "") -> None:
    """One button that retries these finished trials.

    Args:
        key: tells several of these buttons on one page apart.
    """
    about = f"group {key} of {study.name}"
    _show_outcome(about)
    count = len(numbers)
    label = "Retry this trial…" if count == 1 else f"Retry all {count}…"
    if st.button(label, key=f"retry-all-{study.uid}-{key}", disabled=not count or not _may_act()):
        _ask_retry(study.name, study.uid, tuple(numbers), study.finished, study.n_trials, about)


# ---------------------------------------------------------------------- questions


@st.dialog("Stop the study?")
def _ask_stop(name: str, uid: str, running: int, now: bool) -> None:
    st.text(f"Study {shortened(name, 200)}")
    trials = f"{running} running {'trial' if running == 1 else 'trials'}"
    if not running:
        st.text("Nothing new starts, and the driver ends. No trial runs now.")
    elif now:
        st.text(
            f"Nothing new starts. {trials} may save a checkpoint for some seconds and are then ended; "
            "they go on from there when the study is resumed."
        )
    else:
        st.text(f"Nothing new starts. {trials} will finish, then the driver ends.")
    if _confirmed("Stop now" if now else "Stop the study"):
        what = "running trials save a checkpoint and go" if now else "running trials finish"
        said = f"{shortened(name, 80)} stops: {what}, nothing new starts"
        _finish(f"study {name}", asking.command(name, uid, "stop", {"now": now}, said))


@st.dialog("Stop the trial?")
def _ask_stop_trial(name: str, uid: str, number: int) -> None:
    st.text(f"Trial {number} of study {shortened(name, 200)}")
    st.text(
        "It may save a checkpoint for some seconds and then ends as failed, by a person. The study goes on. "
        "A retry goes on from its checkpoint."
    )
    if _confirmed(f"Stop trial {number}"):
        said = f"trial {number} is asked to stop"
        outcome = asking.command(name, uid, "stop_trial", {"number": number}, said)
        _finish(f"trial {number} of {name}", outcome)


@st.dialog("How many trials at once?")
def _ask_concurrency(name: str, uid: str, most: int) -> None:
    st.text(f"Study {shortened(name, 200)}")
    chosen = int(st.number_input("Trials at once, at most", 1, _MOST, min(most, _MOST), key="most"))
    st.caption("Until this run ends. Trials that run go on; the cluster may hold fewer.")
    about = f"study {name}"
    with st.container(horizontal=True):
        if st.button("Set", key="confirm", type="primary"):
            said = f"at most {chosen} {'trial' if chosen == 1 else 'trials'} at once from now on"
            _finish(about, asking.command(name, uid, "concurrency", {"most": chosen}, said))
        if st.button("As the run was started", key="unset"):
            said = "as many trials at once as the run was started with"
            _finish(about, asking.command(name, uid, "concurrency", {"most": None}, said))


@st.dialog("Retry these trials?")
def _ask_retry(
    name: str, uid: str, numbers: tuple[int, ...], finished: int, budget: int | None, about: str
) -> None:
    st.text(f"Study {shortened(name, 200)}")
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    st.text(f"Trials {', '.join(map(str, numbers[:_NAMED]))}{more}")
    spent = f" {finished} of {budget} are spent." if budget else ""
    st.text(
        "Each runs once more as a new trial with the same parameters, from the newest checkpoint that is "
        f"left. The {len(numbers)} count against the budget.{spent}"
    )
    if _confirmed(f"Retry {len(numbers)}"):
        _finish(about, asking.again(name, uid, numbers, from_checkpoint=True))


def _confirmed(label: str) -> bool:
    """The two buttons of a question; True once the person says yes."""
    with st.container(horizontal=True):
        yes = st.button(label, key="confirm", type="primary")
        if st.button("Cancel", key="cancel"):
            st.rerun()
    return yes


# ---------------------------------------------------------------------- what is shown

_ENDING = ("draining", "interrupting")


def _may_act() -> bool:
    """Whether this viewer may press buttons; says so where not."""
    if auth.is_editor():
        return True
    st.caption("You may look at everything here; an editor may change it.")
    return False


def _say_phase(study: StudyDetail) -> None:
    """What the driver does now, and how many trials it runs at once."""
    driving = study.driving
    if driving is None or not driver.is_driven(study):
        return
    said = {
        "paused": ":orange-badge[paused] nothing new starts, running trials go on",
        "draining": f":orange-badge[stopping] {escape(driving.why)}: running trials finish",
        "interrupting": ":orange-badge[stopping] running trials save a checkpoint and go",
    }.get(driving.phase, ":blue-badge[running]")
    most = "as many trials at once as fit" if driving.most is None else f"at most {driving.most} at once"
    st.markdown(f"{said} · {most}")


def _pause_button(study: StudyDetail, *, paused: bool, disabled: bool) -> None:
    about = f"study {study.name}"
    if paused and st.button("Resume", key=f"resume-{study.uid}", type="primary", disabled=disabled):
        said = "resumed: trials start again"
        _finish(about, asking.command(study.name, study.uid, "resume", {}, said))
    if not paused and st.button("Pause", key=f"pause-{study.uid}", disabled=disabled):
        said = "paused: nothing new starts, running trials go on"
        _finish(about, asking.command(study.name, study.uid, "pause", {}, said))


def _finish(about: str, outcome: Outcome) -> None:
    """Show an outcome where its buttons are, on the page as it is now; closes a dialog."""
    st.session_state[_OUTCOME] = (about, outcome)
    st.rerun()


def _show_outcome(about: str) -> None:
    """The outcome of the last action, once, if it is about this."""
    found: tuple[str, Outcome] | None = st.session_state.get(_OUTCOME)
    if found is None or found[0] != about:
        return
    del st.session_state[_OUTCOME]
    outcome = found[1]
    (st.success if outcome.done else st.error)(escape(outcome.text))
    if outcome.trials:
        first = outcome.trials[0]
        target = {"study": outcome.study, "n": str(first)}
        st.page_link("views/trial.py", label=f"→ trial {first}", query_params=target)
    if outcome.next_command:
        st.code(outcome.next_command, language="shell", wrap_lines=True)


def _show_asked(name: str) -> None:
    """What people asked of this study, and what came of it."""
    rows = data.read(commands.recent, name, limit=20)
    if not rows:
        return
    with st.expander("What was asked"):
        shown = [
            {
                "when": ago(row.created_at),
                "who": row.author,
                "what": row.name,
                "of": ", ".join(f"{key}={value}" for key, value in row.arguments.items()),
                "outcome": row.result or "not answered yet",
            }
            for row in rows
        ]
        st.dataframe(pd.DataFrame(shown), hide_index=True, width="stretch")
