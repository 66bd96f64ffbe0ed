"""``tuner stop``: ask the driver of a study to end, or to end one trial."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import click

from tuner.cli.completion import study_argument
from tuner.cli.options import json_option, storage_option
from tuner.cli.printing import print_json
from tuner.cli.source import command, driver_of, driver_text, known_study, reading
from tuner.errors import BadInput, StudyStopped

if TYPE_CHECKING:
    from storage import Database

__all__ = ["stop"]

ANSWER_WITHIN = 5.0  # seconds; the driver looks twice a second


@click.command(short_help="Ask a study's driver, or one trial, to stop.")
@study_argument
@click.option("--trial", type=click.IntRange(0), metavar="N", help="End this trial only; the study goes on.")
@click.option("--now", is_flag=True, help="Running trials save a checkpoint and go, instead of finishing.")
@storage_option
@json_option
def stop(name: str, trial: int | None, now: bool, storage: str | None, as_json: bool) -> None:
    """Ask the driver of the study NAME to start nothing new; running trials finish.

    A study that was stopped goes on with 'tuner resume NAME'.

    \b
    Examples:
      tuner stop digits
      tuner stop digits --now
      tuner stop digits --trial 17
    """
    if trial is not None and now:
        raise BadInput("--trial and --now do not go together: a single trial is asked to stop at once anyway")
    from storage import commands

    with reading(storage) as database:
        study = known_study(database, name)
        state = driver_of(study)
        if state in ("none", "gone"):
            why = "nobody drives it" if state == "none" else "its driver is gone"
            more = command("resume", name, storage)
            if study.n_trials and study.finished >= study.n_trials:
                why, more = f"{why}, and its {study.n_trials} trials are done", f"{more} --trials N"
            raise StudyStopped(f"study {name!r} is not running: {why}; {more!r} goes on")
        verb, arguments = ("stop", {"now": now}) if trial is None else ("stop_trial", {"number": trial})
        author = f"{socket.gethostname()}:{os.getpid()}"
        sent = commands.send(database, study.uid, verb, arguments, author)
        answer = _answer(database, sent, name)
        driver = driver_text(study)
    if as_json and answer in (None, "done"):
        print_json({"study": name, "trial": trial, "now": now, "answer": answer, "driver": study.owner})
        return
    if answer is None:
        click.echo(f"asked {driver}; it has not answered yet (an inline trial is not interrupted)")
        return
    if answer != "done":
        raise StudyStopped(f"study {name!r}: {answer}")
    if trial is not None:
        click.echo(f"trial {trial} of {name} is asked to stop")
    else:
        what = (
            "running trials save a checkpoint and go" if now else "running trials finish, nothing new starts"
        )
        click.echo(f"{name} stops: {what}")


def _answer(database: Database, command: int, name: str) -> str | None:
    """The driver's answer, for which we wait a little; None where it takes longer.

    Raises:
        StudyStopped: the driver ended before it answered, and the command was taken back.
    """
    from storage import commands

    deadline = time.monotonic() + ANSWER_WITHIN
    while True:
        answer = commands.result(database, command)
        if answer is not None:
            return answer
        if driver_of(known_study(database, name)) in ("none", "gone"):
            # the next driver must not obey what was meant for this one
            if commands.withdraw(database, command):
                raise StudyStopped(f"the driver of study {name!r} ended on its own meanwhile")
        elif time.monotonic() >= deadline:
            return None
        time.sleep(0.1)
