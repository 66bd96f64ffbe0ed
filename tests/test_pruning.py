"""Verdicts from standings that are kept are Optuna's, with the same attributes written."""

from __future__ import annotations

import datetime as dt
import math
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import FrozenTrial, TrialState

from storage.memory import MemoryStudy
from storage.studies import StudyRecord
from tuner.pruning import plain
from tuner.standings import Values
from tuner.study import DrivenStudy

EXAMPLES = int(os.environ.get("TUNER_EXAMPLES", "1"))

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "halving": SuccessiveHalvingPruner,
    "halving by 2": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "late halving": lambda: SuccessiveHalvingPruner(min_resource=1, min_early_stopping_rate=1),
    "bootstrap": lambda: SuccessiveHalvingPruner(min_resource=2, reduction_factor=3, bootstrap_count=3),
    "hyperband": HyperbandPruner,
    "hyperband to 16": lambda: HyperbandPruner(1, 16, 2),
    "median": lambda: MedianPruner(n_startup_trials=1),
    "percentile": lambda: PercentilePruner(
        30.0, n_startup_trials=2, n_warmup_steps=3, interval_steps=4, n_min_trials=3
    ),
    "patient": lambda: PatientPruner(MedianPruner(n_startup_trials=0), patience=1),
    "patient hyperband": lambda: PatientPruner(HyperbandPruner(1, 16, 2), patience=0),
    "patient alone": lambda: PatientPruner(None, patience=2),
}


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's about NaN alone, Optuna's about experiments
        yield


def driven(pruner: BasePruner, direction: str) -> DrivenStudy:
    """A study in memory, as the driver holds one."""
    record = StudyRecord(name="twin", study_id=1, directions=(direction,), seed=1, uid="twin")
    return DrivenStudy(MemoryStudy(record), optuna.samplers.RandomSampler(seed=1), pruner)


def long_way(study: DrivenStudy, trial: FrozenTrial) -> dict[str, Any]:
    """What a True verdict compared, found by a walk over every trial."""
    maximize, pruner = study.direction.name == "MAXIMIZE", study.pruner
    found: dict[str, Any] = {"direction": study.direction.name.lower()}
    values = [value for value in trial.intermediate_values.values() if not math.isnan(value)]
    if isinstance(pruner, PercentilePruner) and values:
        percentile = float(vars(pruner)["_percentile"])
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        reports = [one.intermediate_values.get(trial.last_step or 0, math.nan) for one in complete]
        reports = [value for value in reports if not math.isnan(value)]
        found |= {"best": plain(max(values) if maximize else min(values)), "trials": len(reports)}
        if reports:
            cut = float(np.percentile(reports, 100 - percentile if maximize else percentile))
            found |= {"threshold": plain(cut), "percentile": percentile}
    elif isinstance(pruner, SuccessiveHalvingPruner | HyperbandPruner):
        rungs = [int(key.rpartition("_")[2]) for key in trial.system_attrs if "rung" in key]
        if rungs and not math.isnan(trial.intermediate_values[trial.last_step or 0]):
            key = f"completed_rung_{max(rungs)}"
            mine = trial.system_attrs[key]
            trials = optuna.pruners._filter_study(study, trial).get_trials(deepcopy=False)
            there = [one.system_attrs[key] for one in trials if key in one.system_attrs]
            numbers = [value for value in there if not math.isnan(value)]
            found |= {
                "rung": max(rungs),
                "at_rung": plain(mine),
                "place": sum(value > mine if maximize else value < mine for value in there) + 1,
                "trials": len(there),
                "leader": plain(max(numbers) if maximize else min(numbers)),
            }
    return found


class Twins:
    """Two studies with the same life: one is decided by Optuna's pruner, the other by ours."""

    def __init__(self, make: Callable[[], BasePruner], direction: str, seed: int) -> None:
        self.theirs, self.ours = driven(make(), direction), driven(make(), direction)
        self.studies = (self.theirs, self.ours)
        self.random = random.Random(seed)
        self.running: list[int] = []
        self.verdicts: list[bool] = []

    def _trial(self, study: DrivenStudy, number: int) -> FrozenTrial:
        return study.held.image.numbered(number)

    def ask(self) -> None:
        numbers = [study.claim_trial().number for study in self.studies]
        assert numbers[0] == numbers[1]
        self.running.append(numbers[0])

    def report(self) -> None:
        """A report of any step, and a question: verdict and attributes must be the same."""
        number, draw = self.random.choice(self.running), self.random
        step = draw.randrange(20)
        value = draw.choice([math.nan, math.inf, 0.0, 1.0]) if draw.random() < 0.2 else draw.gauss(0, 1)
        trials = []
        for study in self.studies:
            trial = self._trial(study, number)
            study.held.storage.set_trial_intermediate_value(trial._trial_id, step, value)
            trials.append(self._trial(study, number))
        verdict = bool(self.theirs.pruner.prune(self.theirs, trials[0]))
        assert self.ours._pruning.prune(trials[1]) is verdict
        self.verdicts.append(verdict)
        after = [self._trial(study, number) for study in self.studies]
        assert after[0].system_attrs == after[1].system_attrs
        if verdict:
            found = self.ours._pruning.compared(after[1])
            assert found == long_way(self.ours, after[1])

    def tell(self) -> None:
        number = self.running.pop(self.random.randrange(len(self.running)))
        state = self.random.choice((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        value = self.random.gauss(0, 1) if state is TrialState.COMPLETE else None
        for study in self.studies:
            study.tell(number, value, state=state)

    def retry(self) -> None:
        """A trial goes back to a checkpoint: its later reports go, and the rungs it completed since."""
        number, after = self.random.choice(self.running), self.random.randrange(-1, 15)
        for study in self.studies:
            trial_id = self._trial(study, number)._trial_id
            study.held.supersede(trial_id, 1, after, '{"user": {}, "system": {}}')

    def other(self) -> None:
        """Another program adds a finished trial, or one is read again and has changed."""
        draw = self.random
        reports = {step: draw.gauss(0, 1) for step in range(draw.randrange(10))}
        rungs = {
            f"completed_rung_{at}": draw.choice([1, 0.5, draw.gauss(0, 1)]) for at in range(draw.randrange(3))
        }
        if draw.random() < 0.1:
            rungs["completed_rung_0"] = math.nan
        number = self.ours.held._created
        if draw.random() < 0.3 and number > len(self.running):
            chosen = draw.choice([one for one in range(number) if one not in self.running])
            for study in self.studies:
                self._replace(study, chosen, reports, rungs)
            return
        for study in self.studies:
            study.held._created += 1
            self._replace(study, number, reports, rungs)

    def _replace(self, study: DrivenStudy, number: int, reports: Any, rungs: Any) -> None:
        moment = dt.datetime(2026, 1, 1)
        trial = FrozenTrial(
            number=number,
            trial_id=number + 1,
            state=TrialState.COMPLETE,
            value=0.0,
            datetime_start=moment,
            datetime_complete=moment,
            params={},
            distributions={},
            user_attrs={},
            system_attrs=dict(rungs),
            intermediate_values=dict(reports),
        )
        study.held.image.put([trial])

    def go(self, steps: int) -> None:
        for _ in range(steps):
            chance = self.random.random()
            if chance < 0.15 or not self.running:
                self.ask()
            elif chance < 0.8:
                self.report()
            elif chance < 0.88:
                self.tell()
            else:
                self.random.choice((self.retry, self.other))()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_verdicts_and_rungs_are_optunas(pruner: str, direction: str) -> None:
    said: set[bool] = set()
    for seed in range(3 * EXAMPLES):
        twins = Twins(PRUNERS[pruner], direction, seed)
        twins.go(250)
        said.update(twins.verdicts)
    assert said == {False, True}


@settings(max_examples=40 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    percent=st.floats(0.0, 100.0),
    startup=st.integers(0, 4),
    warmup=st.integers(0, 8),
    interval=st.integers(1, 6),
    least=st.integers(1, 4),
    direction=st.sampled_from(["minimize", "maximize"]),
    seed=st.integers(0, 2**31),
)
def test_any_percentile_pruner_is_optunas(
    percent: float, startup: int, warmup: int, interval: int, least: int, direction: str, seed: int
) -> None:
    def make() -> BasePruner:
        return PercentilePruner(percent, startup, warmup, interval, n_min_trials=least)

    Twins(make, direction, seed).go(80)


@settings(max_examples=40 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    least=st.integers(1, 4) | st.just("auto"),
    factor=st.integers(2, 5),
    rate=st.integers(0, 2),
    direction=st.sampled_from(["minimize", "maximize"]),
    seed=st.integers(0, 2**31),
)
def test_any_successive_halving_is_optunas(
    least: Any, factor: int, rate: int, direction: str, seed: int
) -> None:
    Twins(lambda: SuccessiveHalvingPruner(least, factor, rate), direction, seed).go(80)


@given(
    st.lists(st.floats(allow_nan=False, width=64) | st.sampled_from([0.0, 1.0, math.inf]), min_size=1),
    st.floats(0.0, 100.0),
)
def test_a_percentile_is_numpys_to_the_bit(numbers: list[float], percent: float) -> None:
    values = Values()
    values.extend(numbers[::2])
    for one in numbers[1::2]:
        values.add(one)
    assert values.ordered == sorted(numbers)
    with np.errstate(all="ignore"):
        expected = float(np.percentile(numbers, percent))
    found = values.percentile(percent)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_what_was_compared_is_what_the_trials_say() -> None:
    study = driven(SuccessiveHalvingPruner(min_resource=1, reduction_factor=2), "maximize")
    for number, value in enumerate([0.1, 0.9, 0.5, 0.3]):
        trial = study.claim_trial()
        study.held.storage.set_trial_intermediate_value(trial._trial_id, 1, value)
        verdict = study.verdict(trial._trial_id, 1)
        assert verdict is (number >= 2)
    found = study._pruning.compared(study.held.image.numbered(3))
    assert found == {
        "direction": "maximize",
        "rung": 0,
        "at_rung": 0.3,
        "place": 3,
        "trials": 4,
        "leader": 0.9,
    }


def test_a_pruner_of_the_users_own_class_is_asked_itself() -> None:
    class Own(MedianPruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return True

    study = driven(Own(), "minimize")
    trial = study.claim_trial()
    study.held.storage.set_trial_intermediate_value(trial._trial_id, 1, 0.0)
    assert study.verdict(trial._trial_id, 1) is True
