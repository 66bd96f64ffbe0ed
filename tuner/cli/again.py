"""``tuner retry`` and ``tuner enqueue``: trials that a person asks for."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import click

from tuner.cli.options import json_option, params_of, storage_option
from tuner.cli.printing import print_json
from tuner.cli.source import command, driver_of, known_study, reading

if TYPE_CHECKING:
    from storage.enqueue import Enqueued
    from storage.views import StudyRow

__all__ = ["enqueue", "retry"]


@click.command(short_help="Run finished trials once more, from their checkpoints.")
@click.argument("name")
@click.argument("numbers", metavar="TRIAL...", nargs=-1, required=True, type=click.IntRange(0))
@storage_option
@json_option
def retry(name: str, numbers: tuple[int, ...], storage: str | None, as_json: bool) -> None:
    """Make a new trial of each finished TRIAL of the study NAME, with the same parameters.

    It starts from the newest valid checkpoint of the old one, from nothing where none is left, and
    names the old one in its attribute 'retry_of'. It counts against the budget.

    \b
    Examples:
      tuner retry digits 17
      tuner retry digits 3 8 11
    """
    from storage import enqueue as enqueueing

    with reading(storage) as database:
        study = known_study(database, name)
        done = enqueueing.again(database, name, numbers, from_checkpoint=True, author=_author())
    if as_json:
        print_json(done)
        return
    for old, new in zip(dict.fromkeys(numbers), done.numbers, strict=True):
        click.echo(f"trial {new} is a retry of trial {old}")
    click.echo(_next_step(study, done, storage))


@click.command(short_help="Add a trial with given parameters, to run next.")
@click.argument("name")
@click.argument("params", metavar="PARAM=VALUE...", nargs=-1, required=True)
@storage_option
@json_option
def enqueue(name: str, params: tuple[str, ...], storage: str | None, as_json: bool) -> None:
    """Add a trial with these parameters to the study NAME; it runs before the sampler is asked.

    Parameters that are left out are sampled. It counts against the budget.

    \b
    Examples:
      tuner enqueue digits lr=0.1
      tuner enqueue digits lr=0.01 optimizer=adam
    """
    from storage import enqueue as enqueueing

    chosen = params_of(params, said="")
    with reading(storage) as database:
        study = known_study(database, name)
        done = enqueueing.with_params(database, name, chosen, author=_author())
    if as_json:
        print_json(done)
        return
    click.echo(f"trial {done.numbers[0]} waits in {name}")
    click.echo(_next_step(study, done, storage))


def _author() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _next_step(study: StudyRow, done: Enqueued, storage: str | None) -> str:
    """What starts the new trials, in one line."""
    resume = command("resume", study.name, storage)
    if done.over_budget:
        return (
            f"the budget of {done.n_trials} trials does not reach so far: "
            f"'{resume} --trials {done.needed}' runs all that wait, once no driver runs"
        )
    if driver_of(study) in ("none", "gone"):
        return f"nobody drives {study.name}: {resume!r} goes on"
    phase = study.driving.phase if study.driving else "running"
    if phase in ("draining", "interrupting"):
        return f"its driver is ending: {resume!r} goes on after it"
    when = "once it is resumed" if phase == "paused" else "as soon as a slot is free"
    return f"its driver starts what waits {when}"
