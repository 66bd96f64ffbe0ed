"""Rows of the catalogue that need a whole run: 20, 24, 30 and 36."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import tuner
from tests.chaos.observer import details, events, steps_done
from tests.chaos.programs import Program, until

BROKEN = """
import os
if "TUNER_TRIAL" in os.environ:  # on a worker
    import a_package_that_no_worker_has

def objective(trial):
    return 0.0
"""


@pytest.mark.chaos
@pytest.mark.fault("20: an import that fails on the worker")
def test_an_import_that_fails_on_the_worker_stops_the_study_with_one_clear_line(
    tmp_path: Path, sqlite_url: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    command = [
        sys.executable,
        "-m",
        "tuner",
        "run",
        "broken.py",
        "--study",
        "s",
        "--trials",
        "5",
        "--cpus",
        "1",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "TUNER_STORAGE": sqlite_url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "the objective cannot be imported on a worker" in done.stderr
    assert "No module named 'a_package_that_no_worker_has'" in done.stderr
    assert "retry" not in events(sqlite_url), "nothing is gained by trying again"
    assert len([trial for trial in details(sqlite_url, 5) if trial is not None]) <= 2


@pytest.mark.chaos
@pytest.mark.fault("24: a signal, and a second one")
@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_lets_trials_save_and_a_second_one_ends_them(
    train: Callable[..., Program], tmp_path: Path, sqlite_url: str, count: int
) -> None:
    first = train("one", n=2, steps=60)
    until(lambda: steps_done(tmp_path, 0) >= 8 or not first.alive)
    for _ in range(count):
        first.signal(signal.SIGINT)
    assert first.wait(30) == 130, first.errors()
    for trial in details(sqlite_url, 2):
        if trial is not None:
            assert [row.state for row in trial.attempt_rows] == ["ended", "claimed"]
            assert trial.attempt_rows[0].reason == "interrupted"
    second = train("two", n=2, steps=60)
    assert second.wait() == 0, second.errors()
    assert [trial.state for trial in details(sqlite_url, 2)] == ["COMPLETE", "COMPLETE"]


def curve(trial: Any) -> float:
    """Prunes as its pruner says."""
    x = float(trial.suggest_float("x", 0.0, 1.0))
    for step in range(9):
        trial.report(x + 1.0 / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x


@pytest.mark.fault("36: a resume in the middle of a study with a pruner")
@pytest.mark.parametrize("pruner", ["hyperband", "median(n_startup_trials=3)", "asha"])
def test_a_resume_decides_as_an_uninterrupted_run_does(tmp_path: Path, pruner: str) -> None:
    def run(name: str, *budgets: int) -> list[Any]:
        url = f"sqlite:///{tmp_path}/{name}.db"
        for n in budgets:
            study = tuner.create_study(
                "s",
                storage=url,
                sampler="tpe(n_startup_trials=4)",
                pruner=pruner,
                seed=3,
                load_if_exists=True,
            )
            tuner.optimize(study, curve, n_trials=n, executor="inline", progress=False)
        return [(one.state, one.params, one.intermediate_values) for one in study.get_trials(deepcopy=False)]

    whole = run("whole", 24)
    assert run("parts", 5, 9, 16, 24) == whole
    assert any(state is optuna.trial.TrialState.PRUNED for state, _, _ in whole)


@pytest.mark.fault("30: the same step reported twice")
def test_the_first_report_of_a_step_stands_within_an_attempt(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        for value in (1.0, 1.0, 2.0):
            trial.report(value, 0)
        return 0.0

    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    with pytest.warns(UserWarning, match="already reported"):
        tuner.optimize(study, objective, n_trials=1, executor="inline", progress=False)
    assert study.trials[0].intermediate_values == {0: 1.0}
