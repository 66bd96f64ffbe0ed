"""Which parameters matter, by Optuna's PED-ANOVA on a sample of a study's COMPLETE trials."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import streamlit as st
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from dashboard import data
from storage import samples
from storage.samples import Sample
from storage.views import StudyRow

__all__ = ["FEWEST", "Importance", "importance_of", "of_sample", "prepare"]

MOST = 2000
"""Trials that are looked at: the order of the parameters is stable long before, and it takes 0.1 s."""

FEWEST = 20
"""Trials with a finite value below which nothing is said: PED-ANOVA compares the best tenth with all."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importances by parameter, largest first, which add up to 1; none where there are too few trials.

    Attributes:
        looked_at: trials with finite values in the sample.
        total: COMPLETE trials of the study.
    """

    shares: tuple[tuple[str, float], ...]
    looked_at: int
    total: int


@functools.cache
def _empty(directions: tuple[StudyDirection, ...]) -> tuple[str, optuna.storages.InMemoryStorage]:
    """A study in memory with these directions, which stays empty; Optuna logs each that is made."""
    storage = optuna.storages.InMemoryStorage()
    return storage.get_study_name_from_id(storage.create_new_study(directions)), storage


class _Loaded(optuna.Study):
    """A study in memory that answers with given trials: adding them one by one takes seconds."""

    def __init__(self, directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]) -> None:
        name, storage = _empty(tuple(directions))
        super().__init__(study_name=name, storage=storage)
        self._given = list(trials)

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        return [trial for trial in self._given if states is None or trial.state in states]


def importance_of(study: StudyRow) -> Importance:
    """The importances of a study's parameters; computed once for each number of COMPLETE trials."""
    complete = study.states.get("COMPLETE", 0)
    # the best one too: a study that was deleted and made again may have the same id and count
    return _importance(data.database_name(), study.study_id, study.name, complete, study.best)


@st.cache_data(max_entries=100, show_spinner=False)
def _importance(database: str, study_id: int, name: str, complete: int, best: float | None) -> Importance:
    return of_sample(data.read(samples.complete, name, most=MOST))


def of_sample(sample: Sample) -> Importance:
    """The importances in a sample; for several objectives those of reaching the Pareto front."""
    finite = [trial for trial in sample.trials if trial.values and all(map(math.isfinite, trial.values))]
    nothing = Importance(shares=(), looked_at=len(finite), total=sample.total)
    if len(finite) < FEWEST:
        return nothing
    study = _Loaded([StudyDirection[way.upper()] for way in sample.directions], finite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters in few trials: the page says how many there are
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    shares = tuple((name, share) for name, share in found.items() if math.isfinite(share))
    return Importance(shares=shares, looked_at=len(finite), total=sample.total)


def prepare() -> None:
    """Load what the first importances would wait for: Optuna imports SciPy's parts only then, which takes a
    second.
    """
    drawn: dict[str, optuna.distributions.BaseDistribution] = {
        "x": optuna.distributions.FloatDistribution(0, 1)
    }
    trials = [
        optuna.trial.create_trial(params={"x": at / FEWEST}, distributions=drawn, value=float(at))
        for at in range(FEWEST)
    ]
    of_sample(Sample(directions=("minimize",), trials=tuple(trials), total=FEWEST))
