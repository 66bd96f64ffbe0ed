"""A reader that follows a study by its changes knows what one knows who reads everything anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

import tuner
from storage import Database, reads, tables
from storage.changes import Changes, Cursor
from storage.clock import utcnow
from storage.tables import optuna_tables
from storage.views import EventRow, TrialRow

ALL = 10_000


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    database = Database(url)
    yield database.engine
    database.dispose()


def address(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


class Reader:
    """A page that is read once, and kept up to date by what changed."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.cursor: Cursor | None = None
        self.rows: dict[int, TrialRow] = {}
        self.curves: dict[int, dict[int, float]] = {}
        self.events: list[EventRow] = []
        self.anew = 0
        self.retried: set[int] = set()

    def look(self) -> Changes:
        changes = reads.changes(self.engine, self.name, self.cursor)
        self.cursor = changes.cursor
        if changes.anew:
            self.anew += 1
            self.rows, self.curves, self.events = self.everything()
        self.rows.update({row.number: row for row in changes.trials})
        self.retried |= changes.whole & self.curves.keys()
        for number, points in changes.reports.items():
            known = {} if number in changes.whole else self.curves.get(number, {})
            assert known.keys().isdisjoint(dict(points))  # nothing is given twice
            self.curves[number] = dict(sorted((known | dict(points)).items()))
        for number in changes.whole - changes.reports.keys():
            self.curves.pop(number, None)
        self.events += changes.events
        return changes

    def everything(self) -> tuple[dict[int, TrialRow], dict[int, dict[int, float]], list[EventRow]]:
        rows = {row.number: row for row in reads.trials(self.engine, self.name, size=ALL).rows}
        curves = reads.curves(self.engine, self.name, list(rows))
        events = reads.events(self.engine, self.name, limit=ALL)
        return rows, {number: dict(curve) for number, curve in curves.items() if curve}, events[::-1]

    def check(self) -> None:
        rows, curves, events = self.everything()
        assert shown(self.rows) == shown(rows)
        assert shown(self.curves) == shown(
            {number: dict(sorted(curves[number].items())) for number in curves}
        )
        assert self.events == events


def shown(by_number: dict[int, Any]) -> str:
    """Text, in which NaN equals NaN."""
    return repr(sorted(by_number.items()))


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_of_changes_misses_nothing_that_optuna_writes(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    study = optuna.create_study(study_name="s", storage=address(engine))
    reader = Reader(engine, "s")
    running: list[optuna.Trial] = []
    steps = rng.sample(range(50), 50)

    def ask() -> None:
        running.append(study.ask())

    def suggest() -> None:
        rng.choice(running).suggest_float(rng.choice("xyz"), 0, 1)

    def report() -> None:
        trial = rng.choice(running)
        trial.report(rng.choice((0.5, float("nan"), float("inf"))), steps.pop())

    def tell() -> None:
        state = rng.choice(("COMPLETE", "FAIL", "PRUNED"))
        values = 1.0 if state == "COMPLETE" else None
        study.tell(running.pop(rng.randrange(len(running))), values, optuna.trial.TrialState[state])

    def enqueue() -> None:
        study.enqueue_trial({"x": 0.5})

    reader.look()
    for _ in range(40):
        choices: list[Callable[[], Any]] = [ask, enqueue]
        rng.choice(choices + [suggest, report, report, report, tell] * bool(running))()
        if rng.random() < 0.4:
            reader.look()
            reader.check()
    reader.look()
    reader.check()
    assert reader.anew == 1
    quiet = reader.look()
    assert quiet == Changes(cursor=reader.cursor)


watched: list[Reader] = []


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def objective(trial: Any) -> float:
    """Trial 1 succeeds on its second attempt, from the checkpoint of step 1."""
    saved = trial.load_checkpoint()
    for step in range(saved.step + 1 if saved else 0, 4):
        trial.report(trial.attempt + step / 10, step)
        if step == 1:
            trial.save_checkpoint({"step": step}, step)  # durable, and with it what was said before
        if (
            trial.attempt == 1
        ):  # of the second attempt it sees the end: as many reports, on SQLite the same ids
            watched[0].look()
        if trial.number == 1 and step == 3 and trial.attempt == 1:
            wait_for(lambda: watched[0].look() and 3 in watched[0].curves[1])
            raise ConnectionError("again")
    return 1.0


def test_a_retry_gives_the_curve_whole_and_every_event_once(engine: Engine) -> None:
    tuner.create_study("s", storage=address(engine), seed=1, sampler="random")
    reader = Reader(engine, "s")
    reader.look()
    watched[:] = [reader]
    retry = tuner.Retry(retry_on=(ConnectionError,), backoff=0.0)
    study = tuner.load_study("s", storage=address(engine))
    try:
        tuner.optimize(study, objective, n_trials=3, executor="inline", progress=False, retry=retry)
    finally:
        watched.clear()
    reader.look()
    reader.check()
    assert reader.anew == 1
    assert reader.retried == {1}
    assert reader.curves[1] == {0: 1.0, 1: 1.1, 2: 2.2, 3: 2.3}
    assert {event.kind for event in reader.events} >= {"started", "retry", "finished", "stopped"}


def rows_of(connection: Connection, name: str) -> tuple[int, str]:
    """The study's id and uid."""
    studies = optuna_tables["studies"]
    study_id = connection.execute(
        sa.select(studies.c.study_id).where(studies.c.study_name == name)
    ).scalar_one()
    return study_id, reads.study(connection.engine, name).uid  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["report", "event", "trial"])
def test_a_row_that_commits_behind_a_higher_id_is_not_missed(engine: Engine, kind: str) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time: ids commit in their order")
    study = tuner.create_study("s", storage=address(engine), seed=1)
    trial = optuna.load_study(study_name="s", storage=address(engine)).ask()
    reader = Reader(engine, "s")
    reader.look()
    with engine.connect() as connection:
        study_id, uid = rows_of(connection, study.study_name)

    def write(connection: Connection, nth: int) -> None:
        row: dict[str, Any]
        if kind == "report":
            row = {"trial_id": trial._trial_id, "step": nth, "intermediate_value": 0.5}
            row |= {"intermediate_value_type": "FINITE"}
            connection.execute(optuna_tables["trial_intermediate_values"].insert().values(row))
        elif kind == "trial":
            row = {"study_id": study_id, "number": 1 + nth, "state": "RUNNING", "datetime_start": utcnow()}
            connection.execute(optuna_tables["trials"].insert().values(row))
        else:
            row = {"study_uid": uid, "epoch": 1, "kind": f"k{nth}", "detail": "{}", "created_at": utcnow()}
            connection.execute(tables.events.insert().values(row))

    with engine.connect() as slow, engine.connect() as fast:
        write(slow, 0)  # has the lower id, and commits last
        write(fast, 1)
        fast.commit()
        seen = reader.look()
        reader.check()
        slow.commit()
        late = reader.look()
        reader.check()
    assert not seen.anew
    assert late.anew or late.whole == {trial.number}


def test_another_study_of_the_same_name_is_read_anew(engine: Engine) -> None:
    for first_reports in (3, 0):
        study = optuna.create_study(study_name="s", storage=address(engine))
        trial = study.ask()
        for step in range(first_reports):
            trial.report(0.5, step)
        if first_reports:
            reader = Reader(engine, "s")
            reader.look()
            optuna.delete_study(study_name="s", storage=address(engine))
            assert reads.changes(engine, "s", reader.cursor) == Changes(cursor=None, anew=True)
    assert reader.look().anew
    reader.check()


def test_many_changes_are_answered_with_a_new_cursor_only(engine: Engine) -> None:
    study = optuna.create_study(study_name="s", storage=address(engine))
    cursor = reads.changes(engine, "s").cursor
    study.add_trials([optuna.trial.create_trial(value=1.0) for _ in range(4)])
    many = reads.changes(engine, "s", cursor, limit=3)
    assert many.anew
    assert not many.trials
    assert many.cursor is not None
    assert not many.cursor.marks
    assert len(reads.changes(engine, "s", cursor, limit=4).trials) == 4
    assert reads.changes(engine, "s", many.cursor) == Changes(cursor=many.cursor)


def test_a_look_costs_no_more_statements_with_more_finished_trials(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    study = optuna.create_study(study_name="s", storage=sqlite_url)
    statements: list[str] = []
    sa.event.listen(
        database.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *_: statements.append(statement),
    )

    def looks(trials: int) -> list[str]:
        finished = optuna.trial.create_trial(value=1.0, intermediate_values={0: 1.0, 1: 2.0})
        study.add_trials([finished] * trials)
        cursor = reads.changes(database.engine, "s").cursor
        study.ask().report(0.5, 0)
        statements.clear()
        changes = reads.changes(database.engine, "s", cursor)
        assert [len(points) for points in changes.reports.values()] == [1]
        assert cursor is not None
        return list(statements)

    study.ask()
    few = looks(1)
    assert len(looks(30)) == len(few)
    database.dispose()
