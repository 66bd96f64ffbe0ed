"""``tuner trials`` and ``tuner show``: the trials of a study, and all that is known of one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tuner.cli.completion import study_argument
from tuner.cli.options import STATES, filter_options, json_option, states_of, storage_option
from tuner.cli.source import driver_text, known_study, plain, reading
from tuner.errors import StudyNotFound

if TYPE_CHECKING:
    from storage import Database
    from storage.views import StudyDetail, TrialDetail

__all__ = ["show", "trials"]


@click.command(short_help="List the trials of a study.")
@study_argument
@filter_options
@click.option(
    "--sort",
    metavar="KEY",
    default="number",
    help="number, state, value, value:K, param:NAME, attr:NAME, duration, started, completed, "
    "last_step or last_value.  [default: number]",
)
@click.option("--descending", is_flag=True, help="Largest first.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    metavar="N",
    help="Trials of a page.  [default: 50]",
)
@click.option("--page", type=click.IntRange(1), default=1, metavar="N", help="Which page.  [default: 1]")
@storage_option
@json_option
def trials(
    name: str,
    states: tuple[str, ...],
    conditions: tuple[str, ...],
    sort: str,
    descending: bool,
    limit: int,
    page: int,
    storage: str | None,
    as_json: bool,
) -> None:
    """List the trials of the study NAME, a page at a time.

    \b
    Examples:
      tuner trials digits --state FAIL
      tuner trials digits --sort value --descending --limit 10
      tuner trials digits --where "lr<0.1" --where optimizer=adam --sort param:lr
    """
    from storage import reads
    from storage.conditions import parse
    from tuner.cli.printing import print_json, print_table, values_text
    from tuner.progress import clock_text, number_text, params_text

    wanted = states_of(states)
    with reading(storage) as database:
        known_study(database, name)
        found = reads.trials(
            database.engine,
            name,
            page=page,
            size=limit,
            states=wanted,
            where=[parse(text) for text in conditions],
            sort=sort,
            descending=descending,
        )
    if as_json:
        print_json({"study": name, "total": found.total, "page": page, "trials": found.rows})
        return
    cells = [
        [
            str(row.number),
            row.state,
            values_text(row.values),
            f"{number_text(row.last_value)} @ {row.last_step}" if row.last_step is not None else "-",
            clock_text(row.duration) if row.duration is not None else "-",
            str(row.attempts or "-"),
            row.reason if row.state in ("FAIL", "RUNNING") else "",
            params_text(row.params),
        ]
        for row in found.rows
    ]
    columns = ["trial", "state", "value", "last report", "time", "attempts", "reason", "parameters"]
    if cells:
        print_table(columns, cells, right=("trial", "value", "time", "attempts"))
    pages = -(-found.total // limit)
    if not cells or pages > 1:
        click.echo(f"{len(cells)} of {found.total} trials (page {page} of {max(1, pages)})")


@click.command(short_help="Show a study's set-up, or one trial.")
@study_argument
@click.argument("trial", type=click.IntRange(0), required=False)
@storage_option
@json_option
def show(name: str, trial: int | None, storage: str | None, as_json: bool) -> None:
    """Show how the study NAME is set up; or TRIAL of it: curve, attempts, traceback, checkpoints.

    \b
    Examples:
      tuner show digits
      tuner show digits 17
    """
    from storage import reads
    from tuner.cli.printing import print_json

    with reading(storage) as database:
        study = known_study(database, name)
        if trial is None:
            if as_json:
                print_json(plain(study))
            else:
                _print_study(database, study)
            return
        found = reads.trial(database.engine, name, trial)
    if found is None:
        total = sum(study.states.values())
        has = f"its trials are 0 to {total - 1}" if total else "it has none yet"
        raise StudyNotFound(f"study {name!r} has no trial {trial}; {has}")
    if as_json:
        print_json(found)
    else:
        _print_trial(found)


def _print_study(database: Database, study: StudyDetail) -> None:
    from tuner.cli.printing import moment, print_fields
    from tuner.progress import number_text, params_text

    counts = ", ".join(
        f"{study.states[state]} {state.lower()}" for state in STATES if study.states.get(state)
    )
    best = ""
    if study.best is not None:
        best = f"{number_text(study.best)}  trial {study.best_number}  {params_text(study.best_params)}"
    settings = {key: value for key, value in study.settings.items() if value not in (None, False, {}, [])}
    resources, retry = settings.pop("resources", None), settings.pop("retry", None)
    print_fields(
        {
            "study": study.name,
            "database": str(database),
            "directions": ", ".join(study.directions),
            "trials": counts or "none",
            "best": best,
            "driver": driver_text(study),
            "ended": study.stop_reason or "",
            "created": moment(study.created_at),
            "sampler": study.sampler or ("an object; not stored" if study.uid else "unknown to Tuner"),
            "pruner": study.pruner or ("an object; not stored" if study.uid else "unknown to Tuner"),
            "seed": "" if study.seed is None else str(study.seed),
            "objective": _objective(study),
            "resources": params_text(resources) if resources else "",
            "retry": params_text(retry) if retry else "",
            "settings": params_text(settings),
            "git": _git(study.provenance.get("git")),
            "packages": params_text(study.provenance.get("packages") or {}),
        }
    )
    for key, value in study.user_attrs.items():
        click.echo(f"  user attribute {key} = {json.dumps(value)}")


def _objective(study: StudyDetail) -> str:
    if not study.objective:
        return "sent by value; not stored" if study.settings else ""
    of = study.objective
    made_of = f"  {json.dumps(of['arguments'])}" if of.get("arguments") else ""
    where = f"{of.get('file') or of.get('module')}:{of.get('name')}"
    return f"{where}  sha256 {str(of.get('digest'))[:12]}{made_of}"


def _git(found: object) -> str:
    if not isinstance(found, dict):
        return ""
    changed = found.get("uncommitted_digest")
    return f"{found.get('commit', '')}{f', uncommitted changes {changed[:12]}' if changed else ''}"


def _print_trial(trial: TrialDetail) -> None:
    from tuner.cli.printing import moment, print_fields, values_text
    from tuner.progress import clock_text, number_text, sparkline

    curve = [value for _, value in trial.curve]
    reports = ""
    if curve:
        step, value = trial.curve[-1]
        count = "1 report" if len(curve) == 1 else f"{len(curve)} reports"
        reports = f"{sparkline(curve, 40)}  {count}, {number_text(value)} at step {step}"
    print_fields(
        {
            "trial": str(trial.number),
            "state": trial.state + (f" ({trial.live})" if trial.live else ""),
            "values": values_text(trial.values),
            "started": moment(trial.started_at),
            "ended": moment(trial.completed_at),
            "time": clock_text(trial.duration) if trial.duration is not None else "",
            "curve": reports,
            "superseded": f"{len(trial.superseded)} reports of earlier attempts" if trial.superseded else "",
            "reason": f"{trial.reason}: {trial.message}" if trial.message else trial.reason,
        }
    )
    groups = (
        ("parameters", trial.params),
        ("user attributes", trial.user_attrs),
        ("constraints", trial.constraints),
    )
    for title, values in groups:
        if values:
            click.secho(title, bold=True)
            print_fields({f"  {key}": json.dumps(value, default=str) for key, value in values.items()})
    if trial.metrics:
        click.secho("metrics", bold=True)
        for name, points in trial.metrics.items():
            line = sparkline([value for _, value in points], 24)
            click.echo(f"  {name}  {line}  {number_text(points[-1][1])} at step {points[-1][0]}")
    _print_attempts(trial)
    whole = sorted({(part.attempt, part.step) for part in trial.checkpoint_parts if part.whole}, reverse=True)
    if whole:
        click.secho("checkpoints", bold=True)
        for attempt, step in whole:
            paths = [
                part.path for part in trial.checkpoint_parts if (part.attempt, part.step) == (attempt, step)
            ]
            click.echo(f"  attempt {attempt}, step {step}: {', '.join(paths)}")


def _print_attempts(trial: TrialDetail) -> None:
    from tuner.cli.printing import harmless, moment

    if trial.attempt_rows:
        click.secho("attempts", bold=True)
    for attempt in trial.attempt_rows:
        begun = f"started {moment(attempt.started_at)}" if attempt.started_at else "not started"
        came = (
            f", from the checkpoint of step {attempt.resumed_step}"
            if attempt.resumed_step is not None
            else ""
        )
        ended = f"  {attempt.reason}" if attempt.reason else ""
        if attempt.reason not in ("", "complete", "pruned"):
            ended += ", charged" if attempt.charged else ", uncharged"
        click.echo(f"  {attempt.attempt}  {attempt.state}{ended}  {begun}{came}")
        for rank in attempt.ranks:
            devices = f" on {', '.join(rank['devices'])}" if rank.get("devices") else ""
            click.echo(
                f"     rank {rank.get('rank')}: process {rank.get('pid')} on {rank.get('host')}{devices}"
            )
        for text in (
            attempt.message,
            attempt.traceback,
            attempt.log_tail and f"last output:\n{attempt.log_tail}",
        ):
            for row in text.rstrip().splitlines():
                click.echo(f"     {harmless(row)}")
