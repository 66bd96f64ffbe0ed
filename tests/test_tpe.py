"""Our TPE suggests what Optuna's does, for the same history and seed, whatever the history is."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.samplers._tpe._truncnorm import _log_gauss_mass
from optuna.trial import TrialState, create_trial

from storage.memory import MemoryStudy
from storage.studies import StudyRecord
from tuner import samplers, tpe
from tuner.study import DrivenStudy
from tuner.tpe import sampler as tpe_sampler
from tuner.tpe.masses import log_mass

EXAMPLES = int(os.environ.get("TUNER_EXAMPLES", "1"))

SPACES: dict[str, Mapping[str, BaseDistribution]] = {
    "floats": {"a": FloatDistribution(-2.0, 3.0), "b": FloatDistribution(1e-4, 10.0, log=True)},
    "steps": {
        "n": IntDistribution(1, 9),
        "wide": IntDistribution(1, 5_000),
        "log": IntDistribution(1, 400, log=True),
        "step": FloatDistribution(0.0, 2.0, step=0.25),
    },
    "fine": {"vast": IntDistribution(0, 10**7), "log": IntDistribution(1, 10**6, log=True)},
    "choices": {
        "kind": CategoricalDistribution(["a", "b", None]),
        "flag": CategoricalDistribution([True, False]),
    },
    "mixed": {
        "lr": FloatDistribution(1e-5, 1.0, log=True),
        "depth": IntDistribution(1, 6),
        "kind": CategoricalDistribution(["sgd", "adam", "lion"]),
        "only": IntDistribution(3, 3),
    },
}


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated and experimental arguments, which are tried too
        yield


class Twins:
    """Two studies with the same trials, one asked with Optuna's sampler and one with ours.

    Args:
        options: of the sampler.
        rough: a share of trials lacks a parameter, has another range, or repeats a value.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        seed: int,
        directions: tuple[str, ...] = ("minimize",),
        rough: float = 0.0,
        **options: Any,
    ) -> None:
        self.space, self.rough = space, rough
        self.options = options
        self.random = random.Random(seed)
        self.studies = [
            optuna.create_study(directions=directions, sampler=cls(seed=seed, **options))
            for cls in (TPESampler, tpe.TPESampler)
        ]
        self.running: list[list[optuna.Trial]] = []

    def add(self, count: int) -> None:
        """Trials of another program, finished: a few of them FAIL, some PRUNED."""
        for _ in range(count):
            for study, trial in zip(self.studies, [self._finished()] * 2, strict=True):
                study.add_trial(trial)

    def _finished(self) -> optuna.trial.FrozenTrial:
        draw = self.random
        state = draw.choices((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL), (7, 3, 1))[0]
        space = dict(self.space)
        if draw.random() < self.rough:
            del space[draw.choice(sorted(space))]
        several = len(self.studies[0].directions) > 1
        return create_trial(
            state=state,
            params={name: self._value(dist) for name, dist in space.items()},
            distributions=space,
            values=self._values() if state is TrialState.COMPLETE else None,
            intermediate_values={} if several else self._reports(),
            system_attrs=self._constraints(),
        )

    def _value(self, dist: BaseDistribution) -> Any:
        draw = self.random
        if isinstance(dist, CategoricalDistribution):
            return draw.choice(dist.choices)
        assert isinstance(dist, FloatDistribution | IntDistribution)
        at = 0.5 if draw.random() < self.rough else draw.random()  # the middle, again and again: ties
        low, high = dist.low, dist.high
        value = low * (high / low) ** at if dist.log else low + at * (high - low)
        if dist.step is not None and not dist.log:
            value = min(high, low + round((value - low) / dist.step) * dist.step)
        return round(value) if isinstance(dist, IntDistribution) else value

    def _values(self) -> list[float]:
        special = (math.inf, -math.inf, 0.0, 1.0)
        draw = self.random
        directions = self.studies[0].directions
        several = len(directions) > 1  # the hypervolume of an infinity is none of ours
        return [
            draw.choice(special[2:] if several else special) if draw.random() < 0.1 else draw.gauss(0, 1)
            for _ in directions
        ]

    def _reports(self) -> dict[int, float]:
        draw = self.random
        last = draw.randrange(5)
        return {step: math.nan if draw.random() < 0.1 else draw.gauss(0, 1) for step in range(last)}

    def _constraints(self) -> dict[str, Any]:
        draw = self.random
        return {"constraints:size": draw.gauss(-1.0, 1.0)} if draw.random() < 0.3 else {}

    def ask(self) -> None:
        """A new trial, or an enqueued one: both studies must draw the same, parameter by parameter."""
        trials = [study.ask() for study in self.studies]
        assert trials[0].relative_params == trials[1].relative_params
        names = sorted(self.space, key=lambda _: self.random.random())
        for name in names:
            if self.random.random() < self.rough:
                continue  # a conditional parameter
            mine, other = (trial._suggest(name, self.space[name]) for trial in trials)
            assert mine == other, (name, mine, other)
        self.running.append(trials)

    def tell(self) -> None:
        """Any of the running trials ends, in any order, in any way."""
        trials = self.running.pop(self.random.randrange(len(self.running)))
        state = self.random.choices((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL), (6, 2, 1))[0]
        values = self._values() if state is TrialState.COMPLETE else None
        reports, constraints = self._reports(), self._constraints()
        for study, trial in zip(self.studies, trials, strict=True):
            if len(study.directions) == 1:
                for step, value in reports.items():
                    trial.report(value, step)
            for key, value in constraints.items():
                study._storage.set_trial_system_attr(trial._trial_id, key, value)
            study.tell(trial, values, state=state)

    def enqueue(self) -> None:
        """A person's trial, with some parameters."""
        some = {name: self._value(dist) for name, dist in self.space.items() if self.random.random() < 0.6}
        for study in self.studies:
            study.enqueue_trial(some)

    def resume(self) -> None:
        """Samplers that know nothing yet, as after a restart."""
        seed = self.random.randrange(2**31)
        for study in self.studies:
            study.sampler = type(study.sampler)(seed=seed, **self.options)

    def move(self) -> None:
        """Our sampler goes through a pickle or a copy, as to another process."""
        study = self.studies[1]
        functions = any(callable(one) for one in self.options.values())
        study.sampler = (
            copy.deepcopy(study.sampler) if functions else pickle.loads(pickle.dumps(study.sampler))
        )

    def go(self, steps: int) -> None:
        """Some steps of a study's life: mostly questions."""
        other = (self.enqueue, self.resume, self.move, lambda: self.add(2))
        for _ in range(steps):
            self.ask()
            if self.random.random() < 0.1:
                self.random.choice(other)()
            while len(self.running) > 6 or (self.running and self.random.random() < 0.5):
                self.tell()


def gamma(count: int) -> int:
    return max(1, count // 3)


def weights(count: int) -> np.ndarray:
    return np.arange(1, count + 1) % 7 + 0.5


OPTIONS: dict[str, Any] = {
    "as it is": {},
    "univariate": {"multivariate": False},
    "groups": {"multivariate": True, "group": True},
    "no liar": {"constant_liar": False},
    "own functions": {"gamma": gamma, "weights": weights},
    "endpoints": {"consider_endpoints": True, "prior_weight": 0.3},
    "no clip": {"consider_magic_clip": False},
    "no prior": {"prior_weight": 0.0},
    "few candidates": {"n_ei_candidates": 3, "n_startup_trials": 0},
    "hyperopt": {"n_startup_trials": 20, "gamma": lambda n: min(math.ceil(0.25 * n**0.5), 25)},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("space", SPACES)
def test_long_histories_give_optunas_draws(space: str, option: str) -> None:
    if option == "no prior" and set(SPACES[space]) & {"kind"}:
        pytest.skip("Optuna itself takes the log of nothing there")
    for seed in range(EXAMPLES):
        twins = Twins(SPACES[space], seed, **OPTIONS[option])
        twins.add(240)
        twins.go(10)


@settings(max_examples=15 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    space=st.sampled_from(sorted(SPACES)),
    option=st.sampled_from(["as it is", "univariate", "groups", "no liar"]),
    directions=st.sampled_from([("minimize",), ("maximize",), ("minimize", "maximize")]),
    before=st.sampled_from([0, 9, 120, 170]),
    rough=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_any_life_of_a_study_gives_optunas_draws(
    space: str, option: str, directions: tuple[str, ...], before: int, rough: float, seed: int
) -> None:
    twins = Twins(SPACES[space], seed, directions, rough, **OPTIONS[option])
    twins.add(before)
    twins.go(20)


def driven(sampler: Any, pruner: Any = None) -> DrivenStudy:
    """A study in memory, as the driver holds one."""
    record = StudyRecord(name="twin", study_id=1, directions=("minimize",), seed=5, uid="twin")
    return DrivenStudy(MemoryStudy(record), sampler, pruner or optuna.pruners.NopPruner())


@pytest.mark.parametrize("pruner", ["none", "hyperband(max_resource=9)"])
def test_the_driver_asks_ours_and_draws_what_optuna_would(pruner: str) -> None:
    studies = [driven(TPESampler(seed=1), samplers.pruner(pruner)) for _ in range(2)]
    assert type(studies[1].sampler) is tpe.TPESampler
    studies[0].sampler = TPESampler(seed=1)
    draw, space = random.Random(2), SPACES["mixed"]
    running: list[Any] = []
    for _ in range(190):
        trials = [study.claim_trial() for study in studies]
        drawn = [
            study.draw(trial._trial_id, trial.number, space)
            for study, trial in zip(studies, trials, strict=True)
        ]
        assert drawn[0] == drawn[1]
        late = FloatDistribution(0.0, 1.0)
        text = optuna.distributions.distribution_to_json(late)
        late_values = [
            study.sample(one._trial_id, "late", text) for study, one in zip(studies, trials, strict=True)
        ]
        assert late_values[0] == late_values[1]
        running.append(trials)
        if len(running) > 4:
            ended, value, is_again = running.pop(draw.randrange(5)), draw.gauss(0, 1), draw.random() < 0.2
            for study, one in zip(studies, ended, strict=True):
                if is_again:  # a retry takes the trial back to its first attributes; it stays RUNNING
                    study.held.supersede(one._trial_id, 1, -1, '{"user": {}, "system": {}}')
                else:
                    study.tell(one.number, value)
            if is_again:
                running.append(ended)
        if draw.random() < 0.1:  # another program's trials
            for study in studies:
                study.add_trial(
                    create_trial(value=0.5, params={"depth": 2}, distributions={"depth": space["depth"]})
                )


def test_most_questions_to_a_long_history_need_none_of_optunas_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told_apart = []
    clearest: Callable[..., Any] = tpe_sampler._clearest

    def counted(*arguments: Any) -> Any:
        told_apart.append(clearest(*arguments))
        return told_apart[-1]

    monkeypatch.setattr(tpe_sampler, "_clearest", counted)
    twins = Twins(SPACES["mixed"], 3)
    twins.add(300)
    twins.go(30)
    assert len(told_apart) >= 30
    assert sum(one is None for one in told_apart) <= 1


def test_candidates_too_close_to_tell_are_left_to_optunas_arithmetic() -> None:
    samples = {"x": np.array([0.1, 0.2, 0.2])}
    assert tpe_sampler._clearest(samples, np.array([1.0, 1.0 + 1e-9, 1.0])) is None
    assert tpe_sampler._clearest(samples, np.array([0.0, 1.0, 1.0 + 1e-9])) == {"x": 0.2}
    assert tpe_sampler._clearest(samples, np.array([0.0, np.nan, 1.0])) is None


def test_trials_that_go_away_are_forgotten() -> None:
    twins = Twins(SPACES["floats"], 4)
    twins.add(200)
    twins.go(3)
    for study in twins.studies:
        storage: Any = study._storage
        trials: list[Any] = storage._studies[study._study_id].trials
        for trial in trials[150:]:
            del storage._trial_id_to_study_id_and_number[trial._trial_id]
        del trials[150:]
    twins.running.clear()
    twins.go(3)


def test_a_sampler_of_the_users_own_class_is_asked_itself() -> None:
    class Own(TPESampler):
        pass

    own = Own(seed=1)
    assert samplers.kept(own) is own
    theirs = TPESampler(seed=1, n_startup_trials=3)
    ours: Any = samplers.kept(theirs)
    assert ours._n_startup_trials == 3
    assert ours._rng is theirs._rng
    assert samplers.text_of(samplers.kept(TPESampler())) == "tpe"


def _intervals() -> Iterator[tuple[float, float]]:
    draw = random.Random(1)
    for _ in range(3000):
        begin = draw.uniform(-30, 30)
        yield begin, begin + 10 ** draw.uniform(-4, 2)


def test_masses_of_intervals_are_right_to_ten_digits() -> None:
    a, b = np.array(list(_intervals())).T
    np.testing.assert_allclose(log_mass(a, b), _log_gauss_mass(a, b), rtol=1e-10, atol=1e-10)
    assert log_mass(np.array([40.0]), np.array([41.0]))[0] == -np.inf
