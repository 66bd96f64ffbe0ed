"""What is drawn, claimed and sent ahead of its place changes no trial, and loses none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import tuner
from storage import Database
from storage import tables as our_tables
from storage.tables import optuna_tables
from tests.local_cluster import local_cluster
from tests.test_faults import wait_for
from tuner import blind, pace, samplers
from tuner.tpe import TPESampler

SPACE = """
import time

def objective(trial):
    time.sleep(0.004)  # a bound on how many end before a run that is to be interrupted is
    x = trial.suggest_float("x", -3, 3)
    y = trial.suggest_int("y", 1, 9) if trial.number % 3 else trial.suggest_float("z", 1e-3, 1, log=True)
    return x**2 + y + len(trial.suggest_categorical("kind", ["a", "bb"]))
"""

DRIVER = """
import sys
import tuner

if __name__ == "__main__":
    url, n_trials = sys.argv[1], int(sys.argv[2])
    study = tuner.create_study("s", storage=url, seed=1, sampler="random", load_if_exists=True)
    try:
        tuner.optimize(
            study, "objective.py", n_trials=n_trials, resources=tuner.Resources(cpus=1),
            isolation="shared", progress=False,
        )
    except KeyboardInterrupt:
        sys.exit(130)
"""


BUDGET = 1000  # trials: enough that a run has not ended before it is interrupted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "objective.py").write_text(SPACE)
    (tmp_path / "drive.py").write_text(DRIVER)
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


def optimize(study: optuna.Study, folder: Path, n_trials: int, **options: Any) -> None:
    """As :data:`DRIVER` does, in this process."""
    resources = tuner.Resources(cpus=1)
    file, shared = str(folder / "objective.py"), {"isolation": "shared", "progress": False, **options}
    tuner.optimize(study, file, n_trials=n_trials, resources=resources, **shared)


def drive(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "drive.py", f"sqlite:///{folder}/t.db", *map(str, arguments)]
    environment = {**os.environ, "RAY_OVERRIDE_RESOURCES": ""}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def states(folder: Path) -> dict[int, str]:
    database = Database(f"sqlite:///{folder}/t.db", create=False)
    trials = optuna_tables["trials"]
    with database.read() as connection:
        found = {row.number: row.state.name for row in connection.execute(trials.select())}
    database.dispose()
    return found


def attempts(folder: Path) -> dict[int, int]:
    """By number of a trial, its last attempt."""
    database = Database(f"sqlite:///{folder}/t.db", create=False)
    with database.read() as connection:
        rows = connection.execute(our_tables.attempts.select()).all()
    database.dispose()
    return {row.number: row.attempt for row in sorted(rows, key=lambda row: int(row.attempt))}


@pytest.mark.parametrize("sampler", ["random", "tpe(n_startup_trials=4)"])
def test_a_parameter_that_is_drawn_ahead_is_what_the_trial_would_have_got(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "objective.py").write_text(SPACE)
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> list[dict[str, object]]:
        study = tuner.create_study(name, storage="sqlite:///t.db", sampler=sampler, seed=3)
        tuner.optimize(study, "objective.py", n_trials=14, executor="inline", progress=False)
        return [trial.params for trial in study.trials]

    ahead = run("ahead")
    monkeypatch.setattr(samplers, "draws_alone", lambda given: False)
    monkeypatch.setattr(blind, "is_blind", lambda given: False)
    assert ahead == run("asked")
    assert {*ahead[1]} == {"x", "y", "kind"}, "a parameter that was not suggested is not the trial's"


def test_a_sampler_that_fails_ahead_fails_the_trial_that_asks_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "objective.py").write_text(SPACE)
    monkeypatch.chdir(tmp_path)

    draw = TPESampler.sample_independent

    def fails_later(self: TPESampler, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if trial.number >= 3:
            raise ArithmeticError("no draw today")
        return draw(self, study, trial, name, distribution)

    monkeypatch.setattr(TPESampler, "sample_independent", fails_later)
    study = tuner.create_study("s", storage="sqlite:///t.db", sampler="tpe", seed=3)
    retry = tuner.Retry(stop_after=0)
    tuner.optimize(study, "objective.py", n_trials=6, executor="inline", progress=False, retry=retry)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3 + ["FAIL"] * 3


@pytest.mark.parametrize(
    ("sampler", "alone"),
    [
        (optuna.samplers.RandomSampler(), True),
        (optuna.samplers.TPESampler(), True),
        (optuna.samplers.TPESampler(multivariate=True), False),  # it warns of what is not drawn jointly
        (optuna.samplers.BruteForceSampler(), False),  # it looks at what the trial has suggested
        (optuna.samplers.CmaEsSampler(), False),
        (type("Own", (optuna.samplers.RandomSampler,), {})(), False),
    ],
)
def test_only_samplers_that_look_at_nothing_of_the_trial_draw_ahead(
    sampler: optuna.samplers.BaseSampler, alone: bool
) -> None:
    assert samplers.draws_alone(samplers.kept(sampler)) is alone


@pytest.mark.usefixtures("cluster")
def test_trials_that_were_begun_ahead_of_a_stop_come_to_their_end(folder: Path) -> None:
    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number >= 30:
            study.stop()

    study = tuner.create_study("s", storage=f"sqlite:///{folder}/t.db", sampler="random", seed=1)
    optimize(study, folder, 10_000, callbacks=[stop])
    found = states(folder)
    assert set(found.values()) == {"COMPLETE"}
    places = os.cpu_count() or 1
    assert 30 <= len(found) <= 30 + places * (pace.MOST + pace.MOST)  # what had begun, and what was ahead


@pytest.mark.usefixtures("cluster")
def test_an_interrupted_and_a_killed_run_go_on_to_the_exact_budget(folder: Path) -> None:
    def over(number: int) -> Callable[[], bool]:
        return lambda: list(states(folder).values()).count("COMPLETE") >= number

    tuner.create_study("s", storage=f"sqlite:///{folder}/t.db", sampler="random", seed=1)
    driver = drive(folder, BUDGET)
    wait_for(over(40), 90, "40 trials")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    before = states(folder)
    driver = drive(folder, BUDGET)
    wait_for(over(len(before) + 40), 90, "40 more")
    driver.kill()
    driver.wait(timeout=30)
    killed, known = states(folder), attempts(folder)
    optimize(tuner.load_study("s", storage=f"sqlite:///{folder}/t.db"), folder, BUDGET)
    found = states(folder)
    assert found == dict.fromkeys(range(BUDGET), "COMPLETE")
    ended = {number: last for number, last in attempts(folder).items() if known.get(number) == last}
    assert set(ended) >= {number for number, state in killed.items() if state == "COMPLETE"}
    assert all(attempts(folder)[number] == 1 for number, state in before.items() if state == "COMPLETE")


@pytest.mark.usefixtures("cluster")
def test_another_programs_trials_count_and_no_trial_is_left_open(folder: Path) -> None:
    optuna_study = tuner.create_study("s", storage=f"sqlite:///{folder}/t.db", sampler="random", seed=1)
    optuna_study.add_trials([optuna.create_trial(value=1.0) for _ in range(5)])
    optimize(tuner.load_study("s", storage=f"sqlite:///{folder}/t.db"), folder, 40)
    assert len(states(folder)) == 40
    assert {trial.state for trial in optuna_study.trials} == {TrialState.COMPLETE}
