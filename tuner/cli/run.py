"""``tuner run`` and ``tuner resume``: drive a study from the command line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli import defaults
from tuner.cli.completion import file_argument, study_argument
from tuner.cli.external import command_options, target_of
from tuner.cli.options import (
    UNSTORED,
    as_options,
    checked_directions,
    json_option,
    setting,
    setting_options,
    settings_of,
    storage_option,
)
from tuner.cli.source import command, existing, known_study, plain, reading, suffix, taken
from tuner.errors import BadInput, StudyExists, StudyStopped, TunerError

if TYPE_CHECKING:
    from storage.failures import FailureGroup
    from storage.views import StudyDetail
    from tuner.progress import TerminalProgress
    from tuner.recipe import Recipe
    from tuner.settings import Settings
    from tuner.snapshot import Progress

__all__ = ["resume", "run"]

log = logging.getLogger(__name__)


@click.command(short_help="Tune an objective, or run one trial of it here.")
@file_argument
@command_options
@click.option("--study", metavar="NAME", help="Name of the study; it is created.")
@storage_option
@setting(
    "--direction",
    multiple=True,
    metavar="minimize|maximize",
    help="Once for each objective.  [default: what FILE.py says, else minimize]",
)
@setting("--sampler", metavar="NAME", help="Such as tpe, random, 'tpe(n_startup_trials=20)'.  [default: tpe]")
@setting("--pruner", metavar="NAME", help="Such as median, hyperband, none.  [default: median]")
@setting("--seed", type=int, metavar="N", help="Of the study.  [default: drawn once and kept]")
@click.option("--load-if-exists", is_flag=True, help="Go on with the study if it is there already.")
@setting_options
@click.option(
    "--params",
    multiple=True,
    metavar="NAME=VALUE,...|@STUDY:best",
    help="Run one trial with these; nothing is stored.",
)
@click.option(
    "--final/--no-final",
    default=None,
    help="Whether trial.final tells it to train on all data.  [default: with @STUDY:best]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, run one trial to its first reports, predict time and memory; write nothing.",
)
@json_option
@click.pass_context
def run(
    ctx: click.Context, /, target: str | None, study: str | None, storage: str | None, **given: Any
) -> None:
    """Tune the objective NAME of FILE.py (default: objective), or of package.module:NAME.

    \b
    Examples:
      tuner run train.py --study digits --trials 100 --direction maximize
      tuner run train.py:fit --study big --trials 200 --ranks 2 --gpus 1 --pruner hyperband
      tuner run train.py --study digits --trials 100 --dry-run

    With --params it runs one trial and stores nothing: for debugging, in this process, or on Ray
    where it has several --ranks or an --address; and for a final training. @STUDY:17 takes the
    parameters of trial 17, @STUDY:best those of the best one, with trial.final True.

    \b
      tuner run train.py --params lr=0.1,width=64
      tuner run train.py --params @digits:best --ranks 2 --checkpoints final/
      tuner run train.py --params @digits:best,epochs=90

    With --command it tunes a program in any language, which prints its metrics.

    \b
      tuner run --command './solver --lr {lr} --kind {kind}' --param 'lr=log(1e-5,1e-1)' \\
                --param 'kind=sgd|adam' --metric loss --study solver --trials 50
      tuner run --command 'mpirun -n 4 ./solver {steps}' --param 'steps=int(10,100)' \\
                --metrics 'regex:time (\\S+) s' --cpus 4 --study mpi --trials 20
    """
    from tuner.studies import check_seed

    objective = target_of(target, given)
    _import_from_here(target or "")
    if given["params"]:
        from tuner.cli.single import run_one

        given = defaults.filled(ctx, defaults.spoken(ctx, given), only=("direction",))
        _refuse_with_params(study, given)
        ctx.exit(run_one(objective, storage, given))
    if given["final"] is not None:
        raise BadInput("--final belongs to one trial that is not stored; give --params too, or leave it out")
    given = defaults.filled(ctx, given)
    defaults.check(ctx, given)
    if study is None:
        raise click.UsageError("--study NAME is missing (or --params, for one trial that is not stored)", ctx)
    with as_options():
        check_seed(given["seed"])
        settings = settings_of(given)
        if "n_trials" not in settings and "timeout" not in settings:
            raise click.UsageError("say when to end: --trials N or --timeout SECONDS", ctx)
        _check(ctx, objective, settings, is_run=not given["dry_run"])
        _listen(ctx, settings, given["log_format"])
    if given["dry_run"]:
        from tuner.cli.plan import print_plan

        ctx.exit(print_plan(objective, study, storage, given, settings))
    from storage import Displaced
    from tuner import create_study, optimize, store

    file = store.sqlite_file(storage or store.default_url())
    is_new_file = file is not None and not file.exists()
    before = existing(study, storage, given["load_if_exists"])
    try:
        with as_options():
            created = create_study(
                study,
                storage=storage,
                directions=checked_directions(given["direction"], objective),
                sampler=given["sampler"],
                pruner=given["pruner"],
                seed=given["seed"],
                load_if_exists=given["load_if_exists"],
            )
    except StudyExists:  # another program was first, since we looked
        raise taken(study, storage) from None
    with _driving(ctx, study, storage, given) as display, as_options():
        try:
            optimize(created, objective, progress=display, **settings)
        except TunerError as error:
            if before is None and not isinstance(error.__cause__, Displaced):
                _forget_unused(study, storage, file if is_new_file else None)
            raise


@click.command(short_help="Go on with a study.")
@study_argument
@storage_option
@click.option("--objective", metavar="FILE.py:NAME", help="Instead of the stored one.")
@click.option("--sampler", metavar="NAME", help="Instead of the stored one.")
@click.option("--pruner", metavar="NAME", help="Instead of the stored one.")
@setting_options
@json_option
@click.pass_context
def resume(ctx: click.Context, /, name: str, storage: str | None, **given: Any) -> None:
    """Go on with the study NAME: unfinished trials from their checkpoints, then new ones.

    Settings come from the database. An option that is given here, or in the
    environment, replaces its own; tuner.toml does not, and the defaults below
    are those of a new study.

    \b
    Examples:
      tuner resume digits
      tuner resume digits --trials 200 --max-concurrent 2
    """
    import tuner
    from tuner.settings import Settings

    given = defaults.filled(ctx, given, only=("alerts", "progress"))  # what the database does not keep
    defaults.check(ctx, given)
    with reading(storage) as database:
        stored = known_study(database, name).settings
    with as_options():
        changes = settings_of(given, stored)
        _listen(ctx, changes, given["log_format"])
        if stored:
            kept = {key: value for key, value in stored.items() if key not in changes}
            scalars = {key: value for key, value in changes.items() if key in _SCALARS}
            Settings.from_mapping({**kept, **scalars})
    objective = given["objective"]
    _import_from_here(objective or "")
    with _driving(ctx, name, storage, given) as display, as_options():
        tuner.resume(
            name,
            storage=storage,
            objective=objective,
            sampler=given["sampler"],
            pruner=given["pruner"],
            progress=display,
            **changes,
        )


_COMMANDED = ("stopped by command", "stopped by 'tuner stop'")
_SCALARS = (
    "n_trials",
    "timeout",
    "max_concurrent",
    "trial_timeout",
    "stall_timeout",
    "executor",
    "isolation",
    "env",
    "runtime_env",
)


@contextmanager
def _driving(
    ctx: click.Context, name: str, storage: str | None, given: Mapping[str, Any]
) -> Iterator[Progress | bool]:
    """The display for the length of a run, and what is said before and after it."""
    if given["log_format"] == "json":
        with _logging_json(ctx, name, storage):
            yield False
            _conclude(name, storage, given["as_json"])
        return
    progress = given["progress"]
    display: TerminalProgress | None = None
    if progress or (progress is None and sys.stderr.isatty()):
        from tuner.progress import TerminalProgress

        display = TerminalProgress(says_why=False)  # _conclude does
    try:
        yield display if display is not None else False
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            if display is not None:
                display.close(None, "")
            click.echo(_interrupted(name, storage), err=True)
        ctx.exit(130)
    except StudyStopped as error:
        again = command("resume", name, storage)
        raise StudyStopped(f"{error}\n{again!r} goes on, once that is repaired") from error
    finally:
        if display is not None:
            display.close(None, "")
    is_best_seen = display is not None and display.shows_best and sys.stdout.isatty()
    _conclude(name, storage, given["as_json"], is_best_seen=is_best_seen)


@contextmanager
def _logging_json(ctx: click.Context, name: str, storage: str | None) -> Iterator[None]:
    """Everything on standard error is a line of JSON: how the run ends, too."""
    from tuner import logs

    with logs.as_json(name):
        try:
            yield
        except KeyboardInterrupt:
            log.warning("%s", _interrupted(name, storage), extra={"event": "interrupted"})
            ctx.exit(130)
        except TunerError as error:
            log.error("%s", error, extra={"event": "error", "detail": {"exit_code": error.exit_code}})
            ctx.exit(error.exit_code)


def _interrupted(name: str, storage: str | None) -> str:
    return f"interrupted; go on with {command('resume', name, storage)!r}"


def _conclude(name: str, storage: str | None, as_json: bool, *, is_best_seen: bool = False) -> None:
    """Say what came out.

    Args:
        is_best_seen: the line of the best trial stands in the last view, just above.

    Raises:
        StudyStopped: the run did not reach what was asked.
    """
    from storage.failures import of_trials

    with reading(storage) as database:
        study = known_study(database, name)
        failures = of_trials(database.engine, name)
    with contextlib.suppress(BrokenPipeError):  # whoever read on, the exit code says how the run ended
        if as_json:
            from tuner.cli.printing import print_json

            print_json({**plain(study), "failures": failures})
        else:
            _print_end(study, storage, is_best_seen=is_best_seen)
    reason = study.stop_reason or ""
    if reason.startswith(_COMMANDED):
        raise StudyStopped(f"study {name!r} was {reason}; {command('resume', name, storage)!r} goes on")
    if not study.states.get("COMPLETE") and not study.states.get("PRUNED"):
        raise StudyStopped(f"no trial of study {name!r} completed{_newest(failures)}")


def _print_end(study: StudyDetail, storage: str | None, *, is_best_seen: bool) -> None:
    from tuner.cli.printing import harmless
    from tuner.progress import heading, number_text, params_text

    name, states = study.name, study.states
    named = {"FAIL": "failed", "RUNNING": "unfinished"}
    counts = ", ".join(f"{states[state]} {named.get(state, state.lower())}" for state in sorted(states))
    click.echo(f"{heading(name)}: {counts or 'no trials'}; {harmless(study.stop_reason or 'ended')}")
    if study.best is not None and not is_best_seen:
        best = (
            f"best {number_text(study.best)} of trial {study.best_number}: {params_text(study.best_params)}"
        )
        click.echo(harmless(best))
    first = command("best" if states.get("COMPLETE") else "show", name, storage)
    click.echo(f"look further: {first}, tuner dashboard{suffix(storage)}")


def _newest(failures: Sequence[FailureGroup]) -> str:
    """The commonest failure, in its own words."""
    if not failures:
        return ""
    first = failures[0]
    return f"; {first.count} failed with {first.reason}: {first.message} (trial {first.newest})"


def _check(ctx: click.Context, target: str | Recipe, settings: dict[str, Any], *, is_run: bool) -> None:
    """Refuse a bad objective or setting before anything is written, and before Ray is started.

    Args:
        is_run: what the objective imports is imported for its ranks meanwhile.
    """
    from tuner import objective, runtime_env
    from tuner.alerts import webhook
    from tuner.settings import Settings

    known = Settings(**{name: value for name, value in settings.items() if name not in UNSTORED})
    runtime_env.importable(known.runtime_env)
    for url in settings.get("alerts", ()):
        webhook(url)
    if is_run:
        _begin_ahead(ctx, target, known)
    objective.refer(target)


def _begin_ahead(ctx: click.Context, target: str | Recipe, settings: Settings) -> None:
    file = target.partition(":")[0] if isinstance(target, str) else ""
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    if settings.executor != "ray" or address != "local" or settings.runtime_env or not os.path.isfile(file):
        return
    from tuner.dispatch import ahead
    from tuner.imports import imports
    from tuner.resources import alternatives

    wanted = alternatives(settings.resources)
    if wanted:
        ctx.call_on_close(ahead.end)
        ahead.begin(wanted[0], imports(file), settings.at_once)


def _listen(ctx: click.Context, settings: dict[str, Any], log_format: str) -> None:
    """Take the port for metrics until the command ends, or refuse it; say where it is (a log says it too)."""
    if "metrics_port" not in settings:
        return
    from tuner.metrics import LOOPBACK, Endpoint

    endpoint = Endpoint(settings.get("metrics_host", LOOPBACK), settings["metrics_port"])
    ctx.call_on_close(endpoint.close)
    settings["metrics_port"] = endpoint
    if log_format == "text":
        click.echo(f"metrics at {endpoint.url}", err=True)


def _import_from_here(target: str) -> None:
    """A module of the current folder can be named, as with ``python -m``."""
    from tuner.shadow import check_folder

    if target and not target.partition(":")[0].endswith(".py") and os.getcwd() not in sys.path:
        check_folder(Path.cwd())
        sys.path.insert(0, os.getcwd())


def _forget_unused(name: str, storage: str | None, file: Path | None) -> None:
    """Take back a study that this command created and for which nothing could be started.

    Args:
        file: of the SQLite database, where this command created that too.
    """
    from storage import sqlite_file, studies

    with reading(storage) as database:
        if known_study(database, name).states:
            return
        studies.delete(database, name)
        database.dispose()
    if file is not None:
        sqlite_file.remove(file)


def _refuse_with_params(study: str | None, given: dict[str, Any]) -> None:
    wrong = {
        "--study": study,
        "--trials": given["trials"],
        "--max-concurrent": given["max_concurrent"],
        "--dry-run": given["dry_run"],
        "--json": given["as_json"],
    }
    for option, value in wrong.items():
        if value:
            raise BadInput(f"--params runs one trial and stores nothing; leave {option} out")
