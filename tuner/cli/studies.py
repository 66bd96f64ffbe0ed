"""``tuner studies`` and ``tuner status``: what is in a database, and how a study stands."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import json_option, storage_option
from tuner.cli.source import driver_of, driver_text, known_study, plain, reading

if TYPE_CHECKING:
    from rich.text import Text

    from storage import Database
    from storage.views import StudyDetail, TrialRow

__all__ = ["status", "studies"]

WATCH_EVERY = 1.0  # seconds
_KINDS = 10  # of failures, each in a line
_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


@click.command(short_help="List the studies of a database.")
@click.argument("search", default="")
@storage_option
@json_option
def studies(search: str, storage: str | None, as_json: bool) -> None:
    """List the studies of a database, newest activity first; those whose name contains SEARCH.

    \b
    Examples:
      tuner studies
      tuner studies digits --storage sqlite:///other.db --json
    """
    from storage import reads
    from tuner.cli.printing import ago, print_json, print_table
    from tuner.progress import number_text

    with reading(storage) as database:
        rows = [] if reads.is_empty(database.engine) else reads.studies(database.engine, search)
        where = str(database)
    if as_json:
        print_json([plain(row) for row in rows])
        return
    if not rows:
        click.echo(f"no study{f' with {search!r} in its name' if search else ''} in {where}")
        return
    cells = []
    for row in rows:
        counts = [str(row.states.get(state, 0)) for state in _STATES[:4]]
        best = number_text(row.best) if len(row.directions) == 1 else f"{len(row.directions)} objectives"
        of = str(row.n_trials) if row.n_trials is not None else "-"
        driver = driver_of(row)
        cells.append(
            [row.name, *counts, of, best, driver if driver != "none" else "-", ago(row.last_activity)]
        )
    columns = ["study", "complete", "pruned", "failed", "running", "asked", "best", "driver", "last activity"]
    print_table(columns, cells, right=columns[1:6])


@click.command(short_help="Show how a study stands.")
@click.argument("name")
@click.option(
    "--watch", is_flag=True, help="Go on until the study's driver ends; Ctrl-C ends the watching only."
)
@storage_option
@json_option
def status(name: str, watch: bool, storage: str | None, as_json: bool) -> None:
    """Show how the study NAME stands: counts, best, driver, running trials, failures.

    \b
    Examples:
      tuner status digits
      tuner status digits --watch
      tuner status digits --json
    """
    with reading(storage) as database:
        if watch:
            _watch(database, name, as_json)
        elif as_json:
            _print_json(database, name, indent=2)
        else:
            for text in _lines(database, known_study(database, name)):
                click.echo(text.plain)


def _watch(database: Database, name: str, as_json: bool) -> None:
    """Redraw in place on a terminal; elsewhere print when something has changed."""
    from tuner.progress import Redraw

    redraw = Redraw(sys.stdout) if sys.stdout.isatty() and not as_json else None
    last: object = None
    try:
        while True:
            study = known_study(database, name)
            if redraw is not None:
                redraw.draw(_lines(database, study))
            elif (dict(study.states), study.best_number, study.stop_reason) != last:
                last = (dict(study.states), study.best_number, study.stop_reason)
                if as_json:
                    _print_json(database, name, indent=None)
                else:
                    click.echo(_line(study))
                sys.stdout.flush()
            if driver_of(study) in ("none", "gone"):
                return
            time.sleep(WATCH_EVERY)
    finally:
        if redraw is not None:
            redraw.finish()


def _running(database: Database, study: StudyDetail) -> tuple[TrialRow, ...]:
    from storage import reads

    return reads.trials(
        database.engine, study.name, states=("RUNNING",), size=50, sort="number", descending=False
    ).rows


def _print_json(database: Database, name: str, *, indent: int | None) -> None:
    from storage.failures import of_trials
    from tuner.cli.printing import print_json

    study = known_study(database, name)
    failures = of_trials(database.engine, name)
    value: dict[str, Any] = {**plain(study), "running": _running(database, study), "failures": failures}
    print_json(value, indent=indent)


def _line(study: StudyDetail) -> str:
    """The study in one plain line."""
    from tuner.progress import number_text

    counts = ", ".join(f"{study.states.get(state, 0)} {state.lower()}" for state in _STATES[:4])
    best = f"; best {number_text(study.best)} (trial {study.best_number})" if study.best is not None else ""
    return f"{study.name}: {counts}{best}; {study.stop_reason or driver_of(study)}"


def _lines(database: Database, study: StudyDetail) -> list[Text]:
    from rich.text import Text

    from storage import reads
    from storage.failures import of_trials
    from tuner.progress import number_text, params_text, sparkline

    states = study.states
    done = sum(states.get(state, 0) for state in _STATES[:3])
    of = f" of {study.n_trials}" if study.n_trials is not None else ""
    counts = ", ".join(f"{states.get(state, 0)} {state.lower()}" for state in _STATES)
    lines = [
        Text.assemble((study.name, "bold"), f"  {', '.join(study.directions)}"),
        Text(f"  trials   {done}{of} finished: {counts}"),
    ]
    if study.best is not None:
        best = f"{number_text(study.best)}  trial {study.best_number}  {params_text(study.best_params)}"
        lines.append(Text.assemble("  best     ", (best, "green")))
    lines.append(Text(f"  driver   {driver_text(study)}"))
    if study.stop_reason:
        lines.append(Text(f"  ended    {study.stop_reason.splitlines()[0]}"))
    rows = _running(database, study)
    curves = reads.curves(database.engine, study.name, [row.number for row in rows]) if rows else {}
    nobody = driver_of(study) in ("none", "gone")
    for row in rows:
        what = "to resume" if nobody and row.attempts else row.live or "running"
        curve = sparkline([value for _, value in curves.get(row.number, [])])
        said = (
            f"{number_text(row.last_value)} at step {row.last_step}"
            if row.last_step is not None
            else "no report"
        )
        again = f"  attempt {row.attempts}" if row.attempts > 1 else ""
        foreign = "" if row.attempts else "  (of another program)"
        lines.append(Text(f"  #{row.number:<6} {what:<9} {curve:<16} {said}{again}{foreign}"))
    failures = of_trials(database.engine, study.name)
    for failure in failures[:_KINDS]:
        named = failure.exception and not failure.message.startswith(failure.exception)
        head = f"{failure.count} x {failure.reason}{f' {failure.exception}' if named else ''}"
        lines.append(
            Text(f"  failed   {head}: {failure.message.splitlines()[0] if failure.message else ''}", "red")
        )
    if len(failures) > _KINDS:
        lines.append(Text(f"  failed   {len(failures) - _KINDS} further kinds", "red"))
    return lines
