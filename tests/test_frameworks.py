"""Objectives as users of scikit-learn, PyTorch, LightGBM, XGBoost, CatBoost and Keras write them for Optuna,
with Optuna's own callbacks, run as they are: nothing of ours is in ``tests/frameworks``.

``make test-integrations`` installs what these need beyond our own dependencies.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import tuner
from storage import Database, reads
from tests.local_cluster import local_cluster

pytestmark = pytest.mark.integration

# By file: what it imports, beside Optuna and scikit-learn, and where its number of reports is.
FRAMEWORKS: dict[str, tuple[tuple[str, ...], str]] = {
    "with_sklearn": ((), ""),
    "with_sklearn_pruning": ((), "EPOCHS"),
    "with_pytorch": (("torch",), "EPOCHS"),
    "with_lightgbm": (("lightgbm", "optuna_integration"), "ROUNDS"),
    "with_xgboost": (("xgboost", "optuna_integration"), "ROUNDS"),
    "with_catboost": (("catboost", "optuna_integration"), "ROUNDS"),
    "with_keras": (("keras", "optuna_integration"), "EPOCHS"),
}


class Odd(optuna.pruners.BasePruner):
    """Prunes every second trial at its third report."""

    def prune(self, study: Any, trial: Any) -> bool:
        return bool(trial.number % 2 and len(trial.intermediate_values) == 3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


def imported(name: str) -> ModuleType:
    packages, _ = FRAMEWORKS[name]
    for package in packages:
        # one that is imported may have no spec: optuna_integration takes its own module's place
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; 'make test-integrations' installs it")
    return importlib.import_module(f"tests.frameworks.{name}")


@pytest.mark.filterwarnings("ignore")  # the frameworks' own
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_objective_runs_as_it_is(
    cluster: None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(name)
    monkeypatch.chdir(tmp_path)  # where the libraries leave their files
    url = f"sqlite:///{tmp_path}/tuner.db"
    study = tuner.create_study("s", storage=url, direction="maximize", sampler="random", seed=1, pruner=Odd())
    resources = tuner.Resources(cpus=1)
    tuner.optimize(study, module.objective, n_trials=4, resources=resources, trial_timeout=90, progress=False)

    engine = Database(url, create=False).engine
    details = [reads.trial(engine, "s", number) for number in range(4)]
    ends = [(one.state, one.attempt_rows[-1].reason, one.attempt_rows[-1].message) for one in details if one]
    prunes = bool(FRAMEWORKS[name][1])
    states = [TrialState.COMPLETE, TrialState.PRUNED if prunes else TrialState.COMPLETE] * 2
    assert [trial.state for trial in study.trials] == states, ends
    steps = getattr(module, FRAMEWORKS[name][1]) if prunes else 0
    for trial in study.trials:
        assert trial.params
        assert trial.value is not None
        assert 0 <= trial.value <= 1
        expected = min(steps, 3) if trial.state is TrialState.PRUNED else steps
        assert len(trial.intermediate_values) == expected
    assert all(one is not None and len(one.attempt_rows) == 1 for one in details)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_same_objective_runs_in_plain_optuna(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(name)
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(direction="maximize", pruner=Odd())
    study.optimize(module.objective, n_trials=2)
    assert study.trials[0].state is TrialState.COMPLETE
