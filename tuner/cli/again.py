"""``tuner retry`` and ``tuner enqueue``: trials that a person asks for."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.completion import study_argument
from tuner.cli.options import json_option, params_of, storage_option
from tuner.cli.printing import print_json
from tuner.cli.source import command, driver_of, known_study, reading, suffix
from tuner.config import near
from tuner.errors import BadInput

if TYPE_CHECKING:
    from storage import Database
    from storage.enqueue import Enqueued
    from storage.views import ParamRange, StudyDetail

__all__ = ["check_params", "enqueue", "retry"]

_NAMED = 20  # names or choices that an error lists


@click.command(short_help="Run finished trials once more, from their checkpoints.")
@study_argument
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
@study_argument
@click.argument("params", metavar="PARAM=VALUE...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also a name or a value that no trial of the study had so far.")
@storage_option
@json_option
def enqueue(name: str, params: tuple[str, ...], force: bool, storage: str | None, as_json: bool) -> None:
    """Add a trial with these parameters to the study NAME; it runs before the sampler is asked.

    Parameters that are left out are sampled. It counts against the budget. A
    name that no earlier trial had, and a value that is none of its choices, are
    refused without --force; a number out of its range is used, with a warning.

    \b
    Examples:
      tuner enqueue digits lr=0.1
      tuner enqueue digits lr=0.01 optimizer=adam
    """
    from storage import enqueue as enqueueing

    chosen = params_of(params, said="")
    with reading(storage) as database:
        study = known_study(database, name)
        if not force:
            for warning in check_params(chosen, *_known(database, study)):
                click.echo(f"warning: {warning}", err=True)
        done = enqueueing.with_params(database, name, chosen, author=_author())
    if as_json:
        print_json(done)
        return
    click.echo(f"trial {done.numbers[0]} waits in {name}")
    click.echo(_next_step(study, done, storage))


def check_params(
    chosen: Mapping[str, Any], names: Collection[str], ranges: Mapping[str, ParamRange]
) -> list[str]:
    """What is doubtful about parameters, by those that a study has had.

    Args:
        names: of all its parameters; with none of them nothing is known, and nothing is said.
        ranges: what they are drawn from, as far as that is known.

    Raises:
        BadInput: an unknown name, a value that is none of the choices, a text for a number.
    """
    from storage.filters import same

    warnings = []
    for name, value in chosen.items():
        if names and name not in names:
            asked = near(name, dict.fromkeys(names))
            raise BadInput(
                f"no trial of the study has had a parameter {name!r}; {asked}it has: "
                f"{', '.join(sorted(names)[:_NAMED])}; --force takes it all the same"
            )
        known = ranges.get(name)
        if known is None or (known.low is None and not known.choices):
            continue
        if known.choices:
            if not any(same(value, choice) for choice in known.choices):
                shown = ", ".join(map(repr, known.choices[:_NAMED]))
                raise BadInput(
                    f"{name}={value!r} is none of its choices: {shown}; --force takes it all the same"
                )
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput(f"{name}={value!r}: it is a number from {known.low:g} to {known.high:g}")
        elif known.low is not None and known.high is not None and not known.low <= value <= known.high:
            warnings.append(f"{name}={value!r} is outside of its range, {known.low:g} to {known.high:g}")
    return warnings


def _known(database: Database, study: StudyDetail) -> tuple[set[str], dict[str, ParamRange]]:
    """Names of the study's parameters, and what they are drawn from: by its space, and by its trials."""
    from storage import ranges

    found = ranges.names(database.engine, study.name)
    known = {**ranges.of_space(study.settings.get("space") or {}), **dict(found.ranges)}
    return {*found.params, *known}, known


def _author() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _next_step(study: StudyDetail, done: Enqueued, storage: str | None) -> str:
    """What starts the new trials, in one line."""
    if not study.settings and driver_of(study) == "none":
        run = f"tuner run FILE.py --study {shlex.quote(study.name)} --load-if-exists --trials {done.needed}"
        return f"Tuner never ran {study.name}: its own program starts what waits, or '{run}{suffix(storage)}'"
    resume = command("resume", study.name, storage)
    if not study.objective:
        resume += " --objective FILE.py:NAME"
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
