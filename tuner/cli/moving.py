"""``tuner export``, ``copy``, ``fork`` and ``delete``: studies on their way elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.completion import study_argument
from tuner.cli.options import filter_options, json_option, states_of, storage_option
from tuner.cli.printing import print_json
from tuner.cli.source import command, driver_of, driver_text, known_study, reading
from tuner.errors import BadInput, StudyExists, StudyHeld, StudyNotFound

if TYPE_CHECKING:
    from storage import Database
    from storage.views import StudyRow

__all__ = ["copy", "delete", "export", "fork"]

SHOWN = 20  # trials that a fork left out are named up to here


@click.command(short_help="Write a study to a file, TensorBoard, MLflow or W&B.")
@study_argument
@click.option(
    "--format", "form", metavar="NAME", default="csv", help="csv, json, parquet, ...  [default: csv]"
)
@click.option("--output", metavar="TO", help="File, folder or address.  [default of csv, json: the terminal]")
@filter_options
@storage_option
def export(
    name: str,
    form: str,
    output: str | None,
    states: tuple[str, ...],
    conditions: tuple[str, ...],
    storage: str | None,
) -> None:
    """Write the trials of the study NAME. Done again, it updates what is there.

    \b
    --format     --output
    csv          a row a trial; a file
    json         everything; a file. Infinities and NaN are text, so that every parser reads it
    parquet      everything, a row a trial; a file
    tensorboard  curves and the HParams page; a folder for tensorboard --logdir
    mlflow       a run a trial; a tracking URI  [default: $MLFLOW_TRACKING_URI]
    wandb        a run a trial; a folder  [default: this one]. $WANDB_MODE=offline sends nothing

    Packages can add others. Times are UTC. 'tuner run --export tensorboard=runs' does it as it runs.

    \b
    Examples:
      tuner export digits > digits.csv
      tuner export digits --state COMPLETE --where "lr<0.1" > good.csv
      tuner export digits --format parquet --output digits.parquet
      tuner export digits --format tensorboard --output runs
      tuner export digits --format mlflow --output sqlite:///mlflow.db
    """
    from storage.conditions import parse
    from tuner.exporters import make, once

    exporter = make(form, output)
    wanted = states_of(states)
    with reading(storage) as database, once.closed_after(exporter):
        known_study(database, name)
        once.run(database, name, exporter, states=wanted, where=[parse(text) for text in conditions])
    if exporter.where:
        click.echo(f"wrote {exporter.where}")


@click.command(short_help="Copy studies from one database to another.")
@click.argument("source", metavar="FROM_URL")
@click.argument("target", metavar="TO_URL")
@click.option("--study", "names", multiple=True, metavar="NAME", help="Only this one; can be repeated.")
@click.option("--name", "new_name", metavar="NEW", help="The name of the copy, of one study.")
@json_option
def copy(source: str, target: str, names: tuple[str, ...], new_name: str | None, as_json: bool) -> None:
    """Copy studies with everything of theirs, also between SQLite and PostgreSQL.

    Each study is copied whole or not at all, and a new SQLite file is there once all are. Files of
    checkpoints stay where they are; their paths are copied.

    \b
    Examples:
      tuner copy sqlite:///tuner.db postgresql://ann@db/tuner
      tuner copy sqlite:///tuner.db sqlite:///backup.db --study digits
    """
    from storage import copies, reads, studies
    from tuner import store

    if new_name is not None and len(names) != 1:
        raise BadInput("--name names the copy of one study; say which with --study")
    with reading(source) as old:
        known = [] if reads.is_empty(old.engine) else studies.names(old)
        for name in names:
            known_study(old, name)
        done = []
        if names or known:
            store.check_place(target)
            with _as_public("name the copy with --study NAME --name NEW"), copies.arriving(target) as new:
                done = [copies.copy(old, new, name, new_name) for name in names or known]
    if as_json:
        print_json(done)
        return
    for one in done:
        click.echo(f"copied {one.name}: {one.trials} trials, {one.reports} reports")
    if not done:
        click.echo("there is no study to copy")


@click.command(short_help="Take a study's trials into a new study, with a changed space.")
@study_argument
@click.argument("new")
@click.option(
    "--space",
    metavar="FILE.py:NAME",
    help="A dict of Optuna distributions, or a function of the trial.  [default: all finished trials]",
)
@storage_option
@json_option
def fork(name: str, new: str, space: str | None, storage: str | None, as_json: bool) -> None:
    """Make the study NEW of the finished trials of NAME that fit a space.

    Those that do not fit are counted and named; running and enqueued trials stay behind. NAME is
    not changed.

    \b
    Examples:
      tuner fork digits digits-2
      tuner fork digits wider --space train.py:wider_space
    """
    from storage import forks

    wanted = None if space is None else _space(space)
    with reading(storage) as database:
        known_study(database, name)
        with _as_public():
            made = forks.fork(database, name, new, wanted)
    if as_json:
        print_json(made)
        return
    click.echo(f"{new} has {made.trials} trials of {name}; {len(made.left)} left out")
    for number, why in list(made.left.items())[:SHOWN]:
        click.echo(f"  trial {number}: {why}")
    if len(made.left) > SHOWN:
        click.echo(f"  and {len(made.left) - SHOWN} more; --json names all")


@click.command(short_help="Delete a study from the database.")
@study_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--checkpoints", is_flag=True, help="Delete the files of its checkpoints, too.")
@storage_option
@json_option
def delete(name: str, yes: bool, checkpoints: bool, storage: str | None, as_json: bool) -> None:
    """Delete the study NAME with everything that the database has of it. There is no way back.

    \b
    Examples:
      tuner delete digits
      tuner delete digits --yes --checkpoints
    """
    from storage import copies, studies

    with reading(storage) as database:
        study = known_study(database, name)
        if driver_of(study) == "live":
            raise StudyHeld(
                f"study {name!r} is held by a live driver, {driver_text(study)}; "
                f"end it with {command('stop', name, storage)!r} first"
            )
        _refuse_orphans(database, study, name)
        trials = sum(study.states.values())
        if not yes:
            if not sys.stdin.isatty():
                raise BadInput(f"nobody is there to ask whether to delete {name!r}; give --yes")
            click.confirm(f"Delete study {name!r} with its {trials} trials from {database}?", abort=True)
        record = studies.find(database, name)
        if record is None:
            raise StudyNotFound(f"study {name!r} was deleted by another program meanwhile")
        paths = studies.checkpoint_paths(database, record.uid)
        with _as_public(), copies.undriven(database, record):
            is_ours = studies.delete(database, name)
        if not is_ours:
            raise StudyNotFound(f"study {name!r} was deleted by another program meanwhile")
    if checkpoints:
        from tuner import checkpoint

        checkpoint.delete(paths)
    if as_json:
        print_json({"deleted": name, "trials": trials, "checkpoints": paths, "files_deleted": checkpoints})
        return
    click.echo(f"deleted {name} with its {trials} trials")
    if paths and checkpoints:
        click.echo(f"deleted {len(paths)} files of checkpoints")
    elif paths:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        click.echo(f"its {len(paths)} checkpoint files are still in {folder}")


def _refuse_orphans(database: Database, study: StudyRow, name: str) -> None:
    """Of a driver that was killed, trials may still run on a cluster that outlives it.

    Raises:
        StudyHeld: says when they will have ended themselves.
    """
    from storage import reads
    from storage.clock import utcnow
    from tuner.takeover import OUT_OF_REACH

    if driver_of(study) == "none" or study.renewed_at is None:
        return
    left = OUT_OF_REACH - (utcnow() - study.renewed_at).total_seconds()
    if left > 0 and reads.running_on(database.engine, name, "standing"):
        raise StudyHeld(
            f"trials of study {name!r} may still run on a cluster that outlives its driver, and end within "
            f"a minute: try again in {left:.0f} s, or go on with {command('resume', name)!r}"
        )


@contextlib.contextmanager
def _as_public(step: str = "give another name") -> Iterator[None]:
    """A name that is taken has an error of its own, with the next ``step``."""
    import storage

    try:
        yield
    except storage.Refused as error:
        if "already" in str(error):
            raise StudyExists(str(error).replace("give another name", step)) from error
        raise


def _space(text: str) -> Any:
    """The object that ``FILE.py:NAME`` names.

    Raises:
        BadInput: it is neither a dict of distributions nor a function.
        BadObjective: it is not there.
    """
    from tuner import objective
    from tuner.study import check_space

    return check_space(objective.member(text))
