"""Every sampler and every pruner of Optuna drives a study of ours, by name and as an object.

On the inline executor, which answers as the driver does everywhere; over Ray's ranks in ``test_optuna_code``.
"""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

import tuner
from storage import Database, reads, studies, tables


class Coin(BaseSampler):
    """A sampler of the user's own: a joint draw of nothing, and then one parameter after the other."""

    def __init__(self) -> None:
        self._rng = np.random.RandomState(1)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        internal = self._rng.choice([param_distribution.low, param_distribution.high])
        return param_distribution.to_external_repr(float(internal))


class Parents(optuna.samplers.BaseGASampler):
    """A genetic sampler of the user's own: the middle of two parents."""

    def __init__(self) -> None:
        super().__init__(population_size=3)
        self._random = optuna.samplers.RandomSampler(seed=1)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def select_parent(self, study: optuna.Study, generation: int) -> list[Any]:
        return sorted(self.get_population(study, generation - 1), key=lambda one: float(one.value or 0))[:2]

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
        parents = self.get_parent_population(study, self.get_trial_generation(study, trial))
        return {name: parents[0].params[name] for name in search_space} if parents else {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class Second(BasePruner):
    """A pruner of the user's own: every second trial after its second report."""

    def prune(self, study: Any, trial: Any) -> bool:
        return bool(trial.number % 2 and trial.last_step == 1)


o, p = optuna.samplers, optuna.pruners
GRID = {"x": [0.0, 0.5, 1.0], "n": [1, 2]}
# By class: its text (None: a class of the user's has none), the object, and whether it draws jointly.
SAMPLERS: dict[str, tuple[str | None, Callable[[], BaseSampler], bool]] = {
    "BaseSampler": (None, Coin, False),
    "BaseGASampler": (None, Parents, True),
    "BruteForceSampler": ("bruteforce", o.BruteForceSampler, False),
    "CmaEsSampler": ("cmaes(popsize=4)", lambda: o.CmaEsSampler(popsize=4), True),
    "GPSampler": ("gp(n_startup_trials=3)", lambda: o.GPSampler(n_startup_trials=3), True),
    "GridSampler": (f"grid({GRID})", lambda: o.GridSampler(GRID, seed=1), False),
    "NSGAIISampler": ("nsgaii(population_size=3)", lambda: o.NSGAIISampler(population_size=3), True),
    "NSGAIIISampler": ("nsgaiii(population_size=3)", lambda: o.NSGAIIISampler(population_size=3), True),
    "PartialFixedSampler": (
        "partialfixed({'x': 0.5}, cmaes())",
        lambda: o.PartialFixedSampler({"x": 0.5}, o.CmaEsSampler()),
        True,
    ),
    "QMCSampler": ("qmc", o.QMCSampler, True),
    "RandomSampler": ("random", o.RandomSampler, False),
    "TPESampler": ("tpe(n_startup_trials=3)", lambda: o.TPESampler(n_startup_trials=3), True),
}
PRUNERS: dict[str, tuple[str | None, Callable[[], BasePruner]]] = {
    "BasePruner": (None, Second),
    "HyperbandPruner": ("hyperband", p.HyperbandPruner),
    "MedianPruner": ("median(n_startup_trials=2)", lambda: p.MedianPruner(n_startup_trials=2)),
    "NopPruner": ("nop", p.NopPruner),
    "PatientPruner": (
        "patient(threshold(upper=0.8), patience=1)",
        lambda: p.PatientPruner(p.ThresholdPruner(upper=0.8), patience=1),
    ),
    "PercentilePruner": (
        "percentile(25.0, n_startup_trials=2)",
        lambda: p.PercentilePruner(25.0, n_startup_trials=2),
    ),
    "SuccessiveHalvingPruner": (
        "asha(reduction_factor=2)",
        lambda: p.SuccessiveHalvingPruner(reduction_factor=2),
    ),
    "ThresholdPruner": ("threshold(upper=0.8)", lambda: p.ThresholdPruner(upper=0.8)),
    "WilcoxonPruner": ("wilcoxon(p_threshold=0.4)", lambda: p.WilcoxonPruner(p_threshold=0.4)),
}


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two for the whole file, since to make one costs more than a run; each test has studies of its own."""
    folder = tmp_path_factory.mktemp("databases")
    return f"sqlite:///{folder}/one.db", f"sqlite:///{folder}/two.db"


@dataclass(frozen=True)
class Twins:
    """Two studies of one name, to be compared."""

    urls: tuple[str, str]
    name: str

    def run(
        self, objective: Callable[[Any], Any], *budgets: int | None, second: bool = False, **options: Any
    ) -> Any:
        """Drive one of the two to each budget in turn.

        Args:
            options: of ``create_study``; what is a function makes a fresh object for each budget.
        """
        made = {"seed": 1, "load_if_exists": True}
        retry = options.pop("retry", None)
        for budget in budgets:
            fresh = {key: one() if callable(one) else one for key, one in options.items()}
            study = tuner.create_study(self.name, storage=self.urls[second], **{**made, **fresh})
            tuner.optimize(study, objective, budget, retry=retry, executor="inline", progress=False)
        return study

    def record(self, second: bool = False) -> Any:
        """Our row of the study."""
        return studies.find(Database(self.urls[second], create=False), self.name)

    def detail(self, number: int) -> Any:
        """A trial with its attempts."""
        return reads.trial(Database(self.urls[0], create=False).engine, self.name, number)


@pytest.fixture
def twins(databases: tuple[str, str], request: pytest.FixtureRequest) -> Twins:
    return Twins(databases, request.node.name)


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module="optuna"
        )  # of experimental classes, and of its own fallbacks
        warnings.filterwarnings("ignore", ".*WilcoxonPruner.*")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        yield
        optuna.logging.set_verbosity(optuna.logging.WARNING)


def by(ways: Sequence[Any], way: str) -> Any:
    """A sampler or pruner as its text, or as what makes a fresh object, as a new process has it."""
    return ways[0] if way == "text" else ways[1]


def cases(of: dict[str, Any]) -> list[Any]:
    ways = [(name, way) for name in of for way in ("text", "object") if way == "object" or of[name][0]]
    return [pytest.param(name, way, id=f"{name}-{way}") for name, way in ways]


def classes(module: Any, base: type) -> set[str]:
    found = {name: getattr(module, name) for name in module.__all__}
    return {name for name, one in found.items() if inspect.isclass(one) and issubclass(one, base)}


def test_none_of_optunas_is_left_out() -> None:
    assert set(SAMPLERS) == classes(optuna.samplers, BaseSampler)
    assert set(PRUNERS) == classes(optuna.pruners, BasePruner)
    assert len(SAMPLERS) == 12


# ---------------------------------------------------------------------------- samplers


def bowl(trial: Any) -> float:
    x = trial.suggest_float("x", 0, 1, step=0.125)
    n = trial.suggest_int("n", 1, 2)
    return float((x - 0.3) ** 2 + n)


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(("name", "way"), cases(SAMPLERS))
def test_a_sampler_draws_and_a_resume_goes_on_with_its_draws(twins: Twins, name: str, way: str) -> None:
    whole = twins.run(bowl, 6, sampler=by(SAMPLERS[name], "object"))
    assert [trial.state for trial in whole.trials] == [TrialState.COMPLETE] * 6
    assert all(set(trial.params) == {"x", "n"} for trial in whole.trials)

    parts = twins.run(bowl, 4, 6, second=True, sampler=by(SAMPLERS[name], way))
    assert params(parts) == params(whole)
    if SAMPLERS[name][0]:  # as Optuna's FAQ keeps a sampler
        assert type(pickle.loads(pickle.dumps(parts.sampler))) is type(parts.sampler)

    uid = twins.record().uid
    with Database(twins.urls[0], create=False).read() as connection:
        mine = sa.select(tables.attempts.c.relative).where(tables.attempts.c.study_uid == uid)
        drawn = list(connection.execute(mine).scalars())
    assert len(drawn) == 6
    assert any(text != "{}" for text in drawn) is SAMPLERS[name][2]


def test_the_seed_of_an_object_seeds_the_study(databases: tuple[str, str]) -> None:
    def drawn(name: str, seed: int | None) -> list[dict[str, Any]]:
        study = optuna.create_study(study_name=name, storage=databases[0], sampler=o.TPESampler(seed=seed))
        return params(tuner.optimize(study, bowl, 3, executor="inline", progress=False))

    assert drawn("one", 7) == drawn("two", 7)
    assert len({str(drawn(f"other {seed}", seed)) for seed in (7, 8, None)}) == 3

    def seed_of(name: str) -> int | None:
        tuner.create_study(name, storage=databases[0], sampler=o.NSGAIISampler(seed=7))
        record = studies.find(Database(databases[0], create=False), name)
        return record and record.seed

    assert seed_of("three") == seed_of("four") is not None


def branches(trial: Any) -> float:
    kind = trial.suggest_categorical("kind", ["float", "int"])
    if kind == "float":
        return float(trial.suggest_float("x", 1, 2, step=0.5))
    a = trial.suggest_int("a", 1, 2)
    return float(a + trial.suggest_int("b", a, 2))


def grid(trial: Any) -> float:
    if trial.number == 1:
        raise ValueError("a point that fails is through too")
    return float(trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 1, 2))


@pytest.mark.parametrize("way", ["text", "object"])
@pytest.mark.parametrize(("name", "objective"), [("GridSampler", grid), ("BruteForceSampler", branches)])
def test_a_sampler_that_is_through_stops_the_study(
    twins: Twins, name: str, objective: Callable[[Any], Any], way: str
) -> None:
    study = twins.run(objective, None, sampler=by(SAMPLERS[name], way))
    assert len(study.trials) == 6
    points = {str(sorted(trial.params.items())) for trial in study.trials if trial.params}
    assert len(points) == 6 - (name == "GridSampler")
    assert twins.record().stop_reason == "stopped by study.stop()"
    again = twins.run(objective, None, 20, sampler=by(SAMPLERS[name], way))
    assert len(again.trials) == 6  # Optuna would try a point a second time


def test_an_enqueued_trial_beside_a_grid_ends_nothing(twins: Twins) -> None:
    study = tuner.create_study(twins.name, storage=twins.urls[0], sampler="grid({'x': [0.0, 1.0]})")
    study.enqueue_trial({"x": 0.25})
    done = {"grid_id": 1, "search_space": {"x": [0.0, 1.0]}}
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study.add_trial(optuna.create_trial(value=1.0, params={"x": 1.0}, distributions=space, system_attrs=done))
    # after the enqueued one GridSampler raises a KeyError
    tuner.optimize(study, lambda one: one.suggest_float("x", 0, 1), executor="inline", progress=False)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert [trial.params["x"] for trial in study.trials][:2] == [0.25, 1.0]
    kinds = Counter(event.kind for event in reads.events(Database(twins.urls[0]).engine, twins.name))
    assert kinds["sampler_failed"] == 1


def valley(trial: Any) -> float:
    x, y = trial.suggest_float("x", -5, 5), trial.suggest_float("y", -5, 5)
    return float((x - 1) ** 2 + (y + 2) ** 2)


def search(url: str, name: str, budget: int) -> list[FrozenTrial]:
    """A script of Optuna's that is run, and run again."""
    sampler = o.CmaEsSampler(seed=3)
    study = optuna.create_study(study_name=name, storage=url, load_if_exists=True, sampler=sampler)
    return tuner.optimize(study, valley, budget, executor="inline", progress=False).trials


def test_cmaes_goes_on_with_its_state_in_another_process(databases: tuple[str, str]) -> None:
    whole = search(databases[1], "valley", 40)
    search(databases[0], "valley", 20)
    program = f"from tests import test_optuna_samplers as t; t.search({databases[0]!r}, 'valley', 40)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, os.getcwd()])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
    parts = optuna.load_study(study_name="valley", storage=databases[0]).trials
    assert [trial.params for trial in parts] == [trial.params for trial in whole]
    generations = [trial.system_attrs.get("cma:generation", 0) for trial in parts]
    assert generations == sorted(generations)
    assert generations[-1] > generations[19] > 0


def test_what_is_no_optimizer_is_not_run(twins: Twins, tmp_path: Path) -> None:
    twins.run(bowl, 6, sampler="cmaes(popsize=4)")
    evil = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode().hex()
    with sa.create_engine(twins.urls[0]).begin() as connection:
        changed = connection.execute(
            sa.text("UPDATE trial_system_attributes SET value_json = :text WHERE key LIKE 'cma:optimizer:%'"),
            {"text": f'"{evil}"'},
        )
        assert changed.rowcount
    twins.run(bowl, 7, sampler="cmaes(popsize=4)")
    assert not (tmp_path / "ran").exists()
    detail = twins.detail(6)
    assert detail.state == "FAIL"
    assert "os.system is no part of one" in detail.attempt_rows[0].message


@pytest.mark.parametrize("spec", ["cmaes(popsize=4)", f"grid({GRID})", "nsgaii(population_size=3)", "qmc"])
def test_a_retry_keeps_what_the_sampler_noted(twins: Twins, spec: str) -> None:
    def flaky(trial: Any) -> float:
        value = bowl(trial)
        if trial.attempt == 1:
            raise ConnectionError
        return value

    again = tuner.Retry(retry_on=(ConnectionError,), backoff=0.0)
    study = twins.run(flaky, 6, sampler=spec, retry=again)
    whole = twins.run(bowl, 6, second=True, sampler=spec)
    assert params(study) == params(whole)
    assert [trial.system_attrs for trial in study.trials] == [trial.system_attrs for trial in whole.trials]
    assert [trial.value for trial in study.trials] == [trial.value for trial in whole.trials]


def test_a_partly_fixed_search_fixes(twins: Twins) -> None:
    study = twins.run(bowl, 8, sampler="partialfixed({'x': 0.5}, tpe(n_startup_trials=2))")
    assert {trial.params["x"] for trial in study.trials} == {0.5}
    assert {trial.params["n"] for trial in study.trials} == {1, 2}


def front(trial: Any) -> tuple[float, float]:
    x = trial.suggest_float("x", 0, 1)
    trial.set_constraint("x at least", 0.3 - x)
    trial.set_constraint("x at most", x - 0.9)
    return x, (1 - x) ** 2


FRONTS = ["nsgaii(population_size=4)", "nsgaiii(population_size=4)", "tpe(n_startup_trials=4)"]


@pytest.mark.parametrize("spec", FRONTS)
def test_several_objectives_with_constraints(twins: Twins, spec: str) -> None:
    options: dict[str, Any] = {"sampler": spec, "directions": ["minimize", "minimize"]}
    study = twins.run(front, 10, 16, **options)
    whole = twins.run(front, 16, second=True, **options)
    assert params(study) == params(whole)
    assert all(trial.values == [trial.params["x"], (1 - trial.params["x"]) ** 2] for trial in study.trials)
    for trial in study.trials:
        x = trial.params["x"]
        assert trial.constraints == {"x at least": 0.3 - x, "x at most": x - 0.9}
    feasible = {one.number for one in study.trials if 0.3 <= one.params["x"] <= 0.9}
    assert 0 < len(feasible) < len(study.trials)
    assert {trial.number for trial in study.best_trials} <= feasible
    if "nsga" in spec:
        (key,) = {key for one in study.trials for key in one.system_attrs if key.endswith(":generation")}
        assert {one.system_attrs[key] for one in study.trials} == {0, 1, 2, 3}


def test_a_samplers_own_constraints_function_is_called(twins: Twins) -> None:
    def objective(trial: Any) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        trial.set_user_attr("slack", 0.5 - x)
        return x, 1 - x

    def made() -> BaseSampler:
        return o.NSGAIISampler(population_size=4, constraints_func=lambda trial: [trial.user_attrs["slack"]])

    study = twins.run(objective, 8, sampler=made, directions=["minimize", "maximize"])
    assert all(one.system_attrs["constraints"] == [one.user_attrs["slack"]] for one in study.trials)
    assert all(one.params["x"] >= 0.5 for one in study.best_trials)


# ---------------------------------------------------------------------------- pruners


def curve(trial: Any) -> float:
    x = trial.suggest_float("x", 0, 1)
    bend = trial.suggest_float("bend", 0.5, 2)
    for step in range(9):
        trial.report(x + bend / (step + 2) + max(0, step - 5) / 4, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(x)


@pytest.mark.parametrize(("name", "way"), cases(PRUNERS))
def test_a_pruner_prunes_what_it_prunes_in_optuna(twins: Twins, name: str, way: str) -> None:
    study = twins.run(curve, 20, sampler="random", pruner=by(PRUNERS[name], way))
    again = optuna.create_study(study_name=twins.name, pruner=PRUNERS[name][1]())
    for trial in study.trials:
        again.enqueue_trial(trial.params)
    again.optimize(curve, n_trials=20)
    told = [(trial.state, trial.value, trial.intermediate_values) for trial in study.trials]
    assert told == [(trial.state, trial.value, trial.intermediate_values) for trial in again.trials]
    assert (TrialState.PRUNED in {trial.state for trial in study.trials}) is (name != "NopPruner")


def growing(trial: Any) -> float:
    """The first trial to be complete says nothing of how long the later ones are."""
    x = trial.suggest_float("x", 0, 1)
    for step in range(9 if trial.number < 5 else 81):
        trial.report(x + step / 1000, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(x)


CHOOSE = {
    "hyperband": ("hyperband", p.HyperbandPruner),
    "patient": ("patient(hyperband, patience=2)", lambda: p.PatientPruner(p.HyperbandPruner(), patience=2)),
}


@pytest.mark.parametrize("way", ["text", "object"])
@pytest.mark.parametrize("name", CHOOSE)
def test_the_brackets_that_a_pruner_chose_stay_over_a_resume(twins: Twins, name: str, way: str) -> None:
    options = {"sampler": "tpe(n_startup_trials=4)", "pruner": by(CHOOSE[name], way)}
    whole = twins.run(growing, 20, second=True, **options)
    parts = twins.run(growing, 6, 13, 20, **options)
    assert params(parts) == params(whole)
    assert [trial.state for trial in parts.trials] == [trial.state for trial in whole.trials]
    assert [trial.system_attrs for trial in parts.trials] == [trial.system_attrs for trial in whole.trials]
    assert "max_resource=9" in twins.record().pruner
    if way == "text":
        assert (
            len(tuner.resume(twins.name, storage=twins.urls[0], objective=growing, n_trials=21).trials) == 21
        )


def test_a_pruner_with_other_arguments_is_taken_as_it_is(twins: Twins) -> None:
    twins.run(growing, 6, pruner="hyperband")
    other = "hyperband(reduction_factor=2, max_resource=81)"
    twins.run(growing, 8, pruner=other)
    assert twins.record().pruner == other
