"""The dashboard's only writes: commands to a driver, whose answer is awaited, and trials to enqueue.

The role of the viewer is checked here, at each write, whatever the page has shown.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard import data, driver
from dashboard.access import auth
from storage import Database, StorageError, commands, enqueue, reads
from storage.views import StudyDetail

__all__ = ["ANSWER_WITHIN", "DOUBLE_CLICK", "Outcome", "again", "command"]

ANSWER_WITHIN = 5.0
"""Seconds for a driver to answer, which looks twice a second; then the command is taken back."""

DOUBLE_CLICK = 1.0
"""Seconds after the outcome in which the same wish of the same window is the second click of a double one."""

_LAST = "last asked again"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an action, for a person.

    Attributes:
        done: False: it was not, and ``text`` says why.
        trials: numbers of the trials that it made, of ``study``.
        next_command: for a shell: what has to follow, or "".
    """

    done: bool
    text: str
    study: str = ""
    trials: tuple[int, ...] = ()
    next_command: str = ""


_NOT_ALLOWED = Outcome(done=False, text="You may look at everything here; only an editor may change it.")


def command(name: str, uid: str, verb: str, arguments: Mapping[str, Any], said: str) -> Outcome:
    """Ask the driver of a study for something, and wait a little for its answer.

    Other viewers are not held up: each has a thread of its own.

    Args:
        uid: of the study that was seen: another one of the same name is not meant.
        said: what to say when it is done.
    """
    if not auth.is_editor():
        return _NOT_ALLOWED
    try:
        database = data.database()
        study = _fresh(database, name)
        if study is None or study.uid != uid:
            return Outcome(done=False, text=f"The study {name} was deleted meanwhile.")
        if not driver.is_driven(study):
            text = (
                "No driver runs this study any more, so nothing was sent. The command that goes on with it:"
            )
            return Outcome(done=False, text=text, next_command=driver.resume_command(study))
        sent = commands.send(database, uid, verb, arguments, auth.name())
        with st.spinner("Waiting for the driver, which looks twice a second…"):
            answer = _answer(database, sent)
    except _Unknown as error:
        text = f"{error}. It was sent, and may be carried out: the study's page says so once it can be read."
        return Outcome(done=False, text=text)
    except StorageError as error:
        return Outcome(done=False, text=str(error))
    finally:
        data.forget()
    if answer is None:
        text = f"The driver did not answer within {ANSWER_WITHIN:g} s, and the command was taken back."
        return Outcome(done=False, text=text)
    return Outcome(done=answer == "done", text=said if answer == "done" else f"The driver refused: {answer}")


def again(name: str, uid: str, numbers: Sequence[int], *, from_checkpoint: bool) -> Outcome:
    """Make new trials of finished ones; whether a driver runs or not.

    The second click of a double one, which the browser sends as well, has the outcome of the first.

    Args:
        uid: of the study that was seen: another one of the same name is not meant.
    """
    if not auth.is_editor():
        return _NOT_ALLOWED
    asked = (uid, tuple(numbers), from_checkpoint)
    before, moment, outcome = st.session_state.get(_LAST, (None, 0.0, None))
    if outcome is None or before != asked or time.monotonic() - moment > DOUBLE_CLICK:
        outcome = _again(name, uid, numbers, from_checkpoint)
        st.session_state[_LAST] = (asked, time.monotonic(), outcome)
    found: Outcome = outcome
    return found


def _again(name: str, uid: str, numbers: Sequence[int], from_checkpoint: bool) -> Outcome:
    try:
        database = data.database()
        made = enqueue.again(
            database, name, numbers, from_checkpoint=from_checkpoint, author=auth.name(), uid=uid
        )
        study = _fresh(database, name)
    except StorageError as error:
        return Outcome(done=False, text=str(error))
    finally:
        data.forget()
    if study is None:
        return Outcome(done=False, text=f"The study {name} was deleted meanwhile.")
    if len(made.numbers) == 1:
        kind = "is a retry of" if from_checkpoint else "has the parameters of"
        text = f"Trial {made.numbers[0]} {kind} trial {numbers[0]}"
    else:
        text = f"Trials {made.numbers[0]} to {made.numbers[-1]} wait"
    resume = driver.resume_command(study)
    if made.over_budget:
        text += f". The budget of {made.n_trials} does not reach so far; this runs all that wait:"
        resume += f" --trials {made.needed}" if driver.is_kept(study) else ""
    elif not driver.is_driven(study):
        text += ". No driver runs; this goes on:"
    elif study.driving is not None and study.driving.phase in ("draining", "interrupting"):
        text += ". The driver is ending; this goes on after it:"
    else:
        paused = study.driving is not None and study.driving.phase == "paused"
        when = "once it is resumed" if paused else "as soon as a slot is free"
        text, resume = f"{text}. The driver starts what waits {when}.", ""
    return Outcome(done=True, text=text, study=name, trials=made.numbers, next_command=resume)


def _fresh(database: Database, name: str) -> StudyDetail | None:
    """The study as it is now, past the pages' cache."""
    with database.errors():
        return reads.study(database.engine, name)


class _Unknown(Exception):
    """Whether a command that was sent is carried out: the database went away."""


def _answer(database: Database, sent: int) -> str | None:
    """The driver's answer; None: there was none in time, and the command was taken back.

    Raises:
        _Unknown: the database was away until the end.
    """
    deadline = time.monotonic() + ANSWER_WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(StorageError):
            answer = commands.result(database, sent)
            if answer is not None:
                return answer
        time.sleep(0.1)
    try:
        return None if commands.withdraw(database, sent) else commands.result(database, sent)
    except StorageError as error:
        raise _Unknown(error) from error
