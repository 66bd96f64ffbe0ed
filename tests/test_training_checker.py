"""The checker of trainings under attack: silent on a run that kept its word, and on no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import tuner
from tests.chaos import training
from tests.chaos.history import History, Record, read
from tests.chaos.observer import trainings
from tests.chaos.training_checker import check_run, steps_run_again

N, STEPS = 3, 12


@dataclasses.dataclass
class Run:
    """What a run left: histories and a database."""

    url: str
    trained: list[Record]
    told: list[Record]

    def errors(self) -> list[str]:
        return check_run(self.trained, self.told, self.url, n=N, steps=STEPS, max_failures=1)

    def execute(self, statement: str) -> None:
        engine = sa.create_engine(self.url)
        with engine.begin() as connection:
            assert connection.exec_driver_sql(statement).rowcount
        engine.dispose()

    def start(self) -> Record:
        """The start of the second attempt of trial 1."""
        return next(one for one in self.trained if one.name == "start" and one.given["attempt"] == 2)


@pytest.fixture
def run(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Three trials, of which one fails once."""
    for name, value in {"FOLDER": str(tmp_path), "STEPS": str(STEPS), "PACE": "0"}.items():
        monkeypatch.setenv(f"TUNER_CHAOS_{name}", value)
    history = History(tmp_path / "driver.history")

    def objective(trial: Any) -> float:
        if trial.number == 1 and trial.attempt == 1:
            monkeypatch.setenv("TUNER_CHAOS_STEPS", "7")
            training.objective(trial)
            monkeypatch.setenv("TUNER_CHAOS_STEPS", str(STEPS))
            raise OSError("once")
        return training.objective(trial)

    def told(study: Any, trial: Any) -> None:
        with history.operation("told", number=trial.number, state=trial.state.name, value=trial.values[0]):
            pass

    study = tuner.create_study("s", storage=sqlite_url, sampler="random", pruner="none", seed=1)
    tuner.optimize(
        study,
        objective,
        n_trials=N,
        executor="inline",
        retry=tuner.Retry(retry_on=("OSError",), backoff=0),
        checkpoints=str(tmp_path / "checkpoints"),
        callbacks=[told],
        progress=False,
    )
    return Run(sqlite_url, trainings(tmp_path), read([tmp_path / "driver.history"]))


def test_a_run_that_kept_its_word(run: Run) -> None:
    assert run.errors() == []
    assert steps_run_again(run.trained) == 2


def other_parameters(run: Run) -> None:
    run.start().given["x"] = 7.0


def began_too_early(run: Run) -> None:
    run.start().given["first"] = 0


def same_attempt_twice(run: Run) -> None:
    run.trained.append(dataclasses.replace(run.start()))


def two_at_once(run: Run) -> None:
    run.trained[0].given.update(run.start().given, attempt=1)
    run.trained[0].ended = run.start().began + 1e6


def told_otherwise(run: Run) -> None:
    run.told[0].given["value"] = 99.0


def told_and_gone(run: Run) -> None:
    run.told[0].given["number"] = 9


def a_lost_report(run: Run) -> None:
    run.execute("DELETE FROM trial_intermediate_values WHERE step = 4 AND trial_id = 1")


def another_value(run: Run) -> None:
    run.execute("UPDATE trial_values SET value = -5 WHERE trial_id = 2")


def no_reason(run: Run) -> None:
    run.execute("UPDATE tuner_attempts SET reason = NULL WHERE number = 0")


def too_many_failures(run: Run) -> None:
    run.execute("UPDATE tuner_attempts SET charged = 1")
    run.execute(
        "INSERT INTO tuner_attempts (study_uid, trial_id, number, attempt, state, epoch, reason, charged, "
        "created_at) SELECT study_uid, trial_id, number, 3, state, epoch, reason, 1, created_at "
        "FROM tuner_attempts WHERE number = 1 AND attempt = 2"
    )


def a_state_reversed(run: Run) -> None:
    run.execute("UPDATE trials SET state = 'FAIL' WHERE trial_id = 1")


def an_attempt_left_open(run: Run) -> None:
    run.execute("UPDATE tuner_attempts SET state = 'running' WHERE number = 2")


def a_trial_too_many(run: Run) -> None:
    run.execute(
        "INSERT INTO trials (number, study_id, state, datetime_start) SELECT 3, study_id, 'RUNNING', "
        "datetime_start FROM trials WHERE number = 0"
    )


@pytest.mark.parametrize(
    "breaks",
    [
        other_parameters,
        began_too_early,
        same_attempt_twice,
        two_at_once,
        told_otherwise,
        told_and_gone,
        a_lost_report,
        another_value,
        no_reason,
        too_many_failures,
        a_state_reversed,
        an_attempt_left_open,
        a_trial_too_many,
    ],
)
def test_a_broken_promise_is_named(run: Run, breaks: Callable[[Run], None]) -> None:
    breaks(run)
    assert run.errors() != []
