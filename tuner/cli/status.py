"""``tuner status``: how a study stands, once or as the view that its driver shows, from the database."""

from __future__ import annotations

import collections
import datetime as dt
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.completion import study_argument
from tuner.cli.options import json_option, storage_option
from tuner.cli.source import driver_of, driver_text, known_study, plain, reading
from tuner.errors import StudyNotFound
from tuner.plain import shortened

if TYPE_CHECKING:
    from rich.text import Text

    from storage import Database
    from storage.failures import FailureGroup
    from storage.progress import RunningRow
    from storage.views import StudyDetail
    from tuner.snapshot import RunningTrial, Snapshot

__all__ = ["status"]

WATCH_EVERY = 1.0  # seconds
SILENT = 60.0  # seconds without a change, after which nobody can say whether Optuna's program lives
GONE = 180.0  # seconds without a heartbeat: three of those of 60 s that Optuna's documentation has
_KINDS = 10  # of failures, each in a line
_MOST = 200  # running trials that are read


@click.command(short_help="Show how a study stands.")
@study_argument
@click.option(
    "--watch",
    is_flag=True,
    help="Go on until the study's driver ends, or Optuna runs no trial; Ctrl-C ends the watching only.",
)
@storage_option
@json_option
def status(name: str, watch: bool, storage: str | None, as_json: bool) -> None:
    """Show how the study NAME stands: counts, best, driver, running trials, failures.

    With --watch it is the view of 'tuner run', of a run in any process: redrawn in place on a
    terminal; elsewhere a line, or with --json an object, whenever something has changed. A study, or
    a database file, that is not there yet is waited for.

    \b
    Examples:
      tuner status digits
      tuner status digits --watch
      tuner status digits --json
    """
    is_waited_for = watch and _wait_for_file(storage, name)
    with reading(storage) as database:
        if watch:
            is_waited_for = _wait_for_study(database, name, is_waited_for)
            _watch(database, name, as_json, is_new=is_waited_for)
        elif as_json:
            _print_json(database, name, indent=2)
        else:
            _print(database, name)


def _wait_for_file(storage: str | None, name: str) -> bool:
    """Wait for a SQLite file that is not there, in a folder that is; whether it had to be waited for."""
    from tuner import store

    file = store.sqlite_file(storage or store.default_url())
    if file is None or file.exists() or not file.parent.is_dir():
        return False
    _say_waiting(f"there is no database {file} yet", name)
    while not file.exists():
        time.sleep(WATCH_EVERY)
    time.sleep(WATCH_EVERY)  # who has made it is making its tables
    return True


def _wait_for_study(database: Database, name: str, is_said: bool) -> bool:
    """Wait for a study that is not there; whether it, or already its database, had to be waited for."""
    while True:
        try:
            known_study(database, name)
            return is_said
        except StudyNotFound as error:
            if not is_said:
                _say_waiting(str(error), name)
            is_said = True
        time.sleep(WATCH_EVERY)


def _say_waiting(why: str, name: str) -> None:
    click.echo(f"{why}; waiting for study {shortened(name)}, Ctrl-C ends the waiting", err=True)


def _watch(database: Database, name: str, as_json: bool, *, is_new: bool) -> None:
    """Redraw in place on a terminal; elsewhere print when something has changed.

    Args:
        is_new: the study has only just been made: its driver is about to come.
    """
    from tuner.progress import line
    from tuner.redraw import Redraw, can_redraw
    from tuner.snapshot import pause

    redraw = Redraw(sys.stdout) if can_redraw(sys.stdout) and not as_json else None
    last: object = None
    gone = ""
    was_driven = is_told = False
    silence = _Silence()
    try:
        while True:
            began = time.monotonic()
            study = _still_known(database, name) if last else known_study(database, name)
            driver = driver_of(study)
            seen = dict(study.states), study.best_number, study.driving, study.stop_reason, driver
            doubt = silence.doubt(database, study)
            if redraw is not None:
                redraw.draw(_lines(database, study, *redraw.size, unicode=redraw.unicode, doubt=doubt))
            elif doubt and not is_told:
                click.echo(f"{doubt}; Ctrl-C ends the watching", err=True)
                is_told = True
            elif seen != last:
                if as_json:
                    _print_json(database, name, indent=None)
                else:
                    click.echo(
                        f"{line(snapshot_of(database, study))}; {study.stop_reason or driver_of(study)}"
                    )
                sys.stdout.flush()
            before, last = last, seen
            is_driven = driver not in ("none", "gone")
            was_driven = was_driven or is_driven
            is_new = is_new and not was_driven and not study.stop_reason
            gone = "" if is_driven or study.settings else _gone(database, study)
            if gone or not (is_driven or _may_go_on(study, was_driven, is_new, seen == before)):
                break
            time.sleep(max(WATCH_EVERY, pause(time.monotonic() - began)))
    finally:
        if redraw is not None:
            redraw.finish()
    if gone:
        click.echo(gone, err=True)


def _gone(database: Database, study: StudyDetail) -> str:
    """That the program whose trials run has ended, by Optuna's heartbeats; "" where there are none."""
    from storage.heartbeats import silence
    from tuner.progress import clock_text

    silent = silence(database.engine, study.name)
    if silent is None or silent < GONE:
        return ""
    return (
        f"no heartbeat for {clock_text(silent)} of what Optuna has as RUNNING: its program is gone, and its "
        "next study.optimize fails these trials"
    )


class _Silence:
    """How long a study that only Optuna runs has stood still. Of a program that was killed Optuna knows
    nothing: its trials stay RUNNING.
    """

    def __init__(self) -> None:
        self._last: object = None
        self._since = time.monotonic()

    def doubt(self, database: Database, study: StudyDetail) -> str:
        """That nobody can say whether its trials still run; "" as long as there is no reason to ask."""
        from storage.progress import running
        from tuner.progress import clock_text

        if study.settings or not study.states.get("RUNNING"):
            return ""
        rows = running(database.engine, study.name, limit=_MOST).rows
        now = dict(study.states), [(row.number, row.curve[-1:]) for row in rows]
        if now != self._last:
            self._last, self._since = now, time.monotonic()
        silent = time.monotonic() - self._since
        if silent < SILENT:
            return ""
        named = ", ".join(str(row.number) for row in reversed(rows[:_KINDS]))
        trials = f"trial{'s' if len(rows) > 1 else ''} {named}"
        return (
            f"no word for {clock_text(silent)} of what Optuna has as RUNNING ({trials}): "
            "its program may be gone, and nobody else runs it"
        )


def _may_go_on(study: StudyDetail, was_driven: bool, is_new: bool, is_as_before: bool) -> bool:
    """Whether to look again at a study without a driver: one that is about to come, or that only Optuna
    runs. Between two trials of Optuna's none may be running: it has ended when the next look finds the same.
    """
    if was_driven or study.settings:
        return is_new
    if study.states.get("RUNNING"):
        return True
    return not is_as_before or (is_new and not study.states)


def _still_known(database: Database, name: str) -> StudyDetail:
    try:
        return known_study(database, name)
    except StudyNotFound as error:
        raise StudyNotFound(f"study {name!r} was deleted or renamed by another program meanwhile") from error


def _print(database: Database, name: str) -> None:
    from rich.console import Console

    from tuner.redraw import has_unicode

    console = Console(file=sys.stdout, highlight=False)
    width = console.width if console.is_terminal else 120
    study = known_study(database, name)
    for text in _lines(database, study, width, 10 * _MOST, unicode=has_unicode(sys.stdout)):
        console.print(text, soft_wrap=True)


def _print_json(database: Database, name: str, *, indent: int | None) -> None:
    from storage import reads
    from storage.failures import of_trials
    from tuner.cli.printing import print_json

    study = known_study(database, name)
    page = reads.trials(
        database.engine, name, states=("RUNNING",), size=_MOST, sort="number", descending=False
    )
    failures = of_trials(database.engine, name)
    value: dict[str, Any] = {**plain(study), "running": page.rows, "failures": failures}
    print_json(value, indent=indent)


def _lines(
    database: Database, study: StudyDetail, width: int, height: int, *, unicode: bool, doubt: str = ""
) -> list[Text]:
    """The view of a run, and below it the driver, how it ended, and the failures in their own words."""
    from rich.text import Text

    from storage.failures import of_trials
    from tuner.progress import frame

    failures = of_trials(database.engine, study.name)
    below = [Text(f"  driver  {driver_text(study)}")]
    if doubt:
        below.append(Text(f"  doubt   {doubt}"))
    if study.stop_reason:
        below.append(Text(f"  ended   {study.stop_reason.splitlines()[0]}"))
    below += [Text(f"  failed  {_said(failure)}", "red") for failure in failures[:_KINDS]]
    if len(failures) > _KINDS:
        below.append(Text(f"  failed  {len(failures) - _KINDS} further kinds", "red"))
    below = below[: max(1, height // 2)]
    snapshot = snapshot_of(database, study, failures)
    return frame(snapshot, width=width, height=height - len(below), unicode=unicode) + below


def _said(failure: FailureGroup) -> str:
    named = failure.exception and not failure.message.startswith(failure.exception)
    head = f"{failure.count} x {failure.reason}{f' {failure.exception}' if named else ''}"
    return f"{head}: {failure.message.splitlines()[0] if failure.message else ''}"


def snapshot_of(
    database: Database, study: StudyDetail, failures: list[FailureGroup] | None = None
) -> Snapshot:
    """What a driver would show now, from the database; of a study that only Optuna runs, too."""
    from storage import progress as reading_progress
    from storage.failures import of_trials
    from tuner.snapshot import Snapshot

    engine, name = database.engine, study.name
    found = reading_progress.progress(engine, name)
    if found is None:
        raise StudyNotFound(f"study {name!r} was deleted by another program meanwhile")
    driven = driver_of(study) not in ("none", "gone")
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    worked, goes_on = found.worked, now if driven else None
    seen = now if driven or not found.runs else found.runs[-1].last  # what another program runs goes on
    reasons: collections.Counter[str] = collections.Counter()
    for failure in failures if failures is not None else of_trials(engine, name):
        reasons[failure.reason] += failure.count
    running = reading_progress.running(engine, name, limit=_MOST).rows
    return Snapshot(
        study=name,
        directions=study.directions,
        states=study.states,
        n_trials=study.n_trials,
        seconds=reading_progress.elapsed(worked[-1:], goes_on),
        elapsed=reading_progress.elapsed(worked, goes_on),
        finished_here=found.finished,
        running=tuple(_running(row, driven, seen) for row in reversed(running)),
        best=study.best,
        best_number=study.best_number,
        best_params=study.best_params,
        leaders=reading_progress.leaders(engine, name),
        reasons=reasons,
        retrying=found.retrying,
        slots=study.driving.most if study.driving else None,
        cluster="",
        phase=_phase(study, driven or not found.runs),
    )


def _phase(study: StudyDetail, driven: bool) -> str:
    if driven:
        return study.driving.phase if study.driving else "running"
    return "ended" if study.stop_reason else ""


def _running(row: RunningRow, driven: bool, now: dt.datetime) -> RunningTrial:
    from tuner.snapshot import RunningTrial

    note = "of another program" if row.attempt is None else "" if driven else "to resume"
    began = row.started_at or now
    return RunningTrial(
        number=row.number,
        attempt=row.attempt or 1,
        seconds=max(0.0, (now - began).total_seconds()),
        step=row.curve[-1][0] if row.curve else None,
        values=tuple(value for _, value in row.curve),
        params=row.params,
        note=note,
    )
