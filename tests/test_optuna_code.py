"""Optuna's own code around a study of ours, and inside its trials: on the inline executor, and over the
ranks of a Ray, where the study and the storage of a trial are messages.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState

import tuner
from storage import Database, studies
from tests import optuna_objectives as objectives
from tests.local_cluster import local_cluster

GRID = "grid({'x': [0.0, 0.5, 1.0], 'n': [1, 2]})"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


class Place:
    """Where the trials of a test run."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.url = f"sqlite:///{folder}/tuner.db"
        self.ranks = ranks

    def study(self, **options: Any) -> optuna.Study:
        plain = {"load_if_exists": True, "sampler": "random", "seed": 1}
        return tuner.create_study("s", storage=self.url, **{**plain, **options})

    def run(self, study: optuna.Study, objective: Any, n_trials: int | None = None, **options: Any) -> Any:
        if self.ranks:
            options.setdefault("resources", tuner.Resources(ranks=self.ranks, cpus=1))
        executor = "ray" if self.ranks else "inline"
        return tuner.optimize(study, objective, n_trials, executor=executor, progress=False, **options)


@pytest.fixture(params=[0, 2], ids=["inline", "2 ranks"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param:
        request.getfixturevalue("cluster")
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, request.param)


MORE_RANKS = pytest.mark.parametrize(
    "place", [0, pytest.param(2, marks=pytest.mark.chaos)], ids=["inline", "2 ranks"], indirect=True
)
"""What two ranks make no other messages of than the tests before it."""


@pytest.fixture
def inline(tmp_path: Path) -> Place:
    return Place(tmp_path, 0)


# ---------------------------------------------------------------------------- inside a trial


def test_attributes_constraints_artifacts_and_pruning(place: Place, tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    study = place.run(place.study(pruner="median(n_startup_trials=2)"), objectives.objective, 8)
    states = [trial.state for trial in study.trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    store = optuna.artifacts.FileSystemArtifactStore(base_path=str(tmp_path / "artifacts"))
    for trial in study.trials:
        x = trial.params["x"]
        assert trial.user_attrs["kind"] == {"is": trial.params["kind"]}
        assert trial.constraints == {"x": x - 4}
        (meta,) = optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage)
        assert meta.artifact_id == trial.user_attrs["artifact_id"]
        assert (meta.filename, meta.mimetype) == (f"model-{trial.number}.txt", "text/plain")
        target = tmp_path / f"back-{trial.number}"
        optuna.artifacts.download_artifact(
            artifact_store=store, artifact_id=meta.artifact_id, file_path=str(target)
        )
        assert target.read_text() == f"x = {x}"
        if trial.state is TrialState.PRUNED:
            assert trial.value == trial.intermediate_values[trial.last_step or 0]


def test_the_study_of_a_trial_answers_and_stops(place: Place) -> None:
    study = place.study(direction="maximize")
    study.set_user_attr("data", "digits")
    place.run(study, objectives.looks_back, max_concurrent=1)
    assert len(study.trials) == 3
    record = studies.find(Database(place.url), "s")
    assert record is not None
    assert record.stop_reason == "stopped by study.stop()"
    last = study.trials[2]
    best = max(trial.value or 0 for trial in study.trials[:2])
    assert last.user_attrs == {
        "done": [0, 1],
        "best": best,
        "name": "s",
        "directions": ["MAXIMIZE"],
        "data": "digits",
    }


def test_a_grid_is_tried_once_each_by_trials_side_by_side(place: Place) -> None:
    two = tuner.Resources(cpus=1)  # trials at once, where the executor has room
    study = place.run(place.study(sampler=GRID, pruner="hyperband"), objectives.slow_grid, resources=two)
    assert len(study.trials) == 6
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 6


@MORE_RANKS
def test_a_front_with_a_constraint(place: Place) -> None:
    options: dict[str, Any] = {"directions": ["minimize", "minimize"], "sampler": "nsgaii(population_size=4)"}
    study = place.run(place.study(**options), objectives.front, 9, max_concurrent=1)
    assert all(trial.constraints["c0"] <= 0 for trial in study.best_trials)
    assert {trial.system_attrs["NSGAIISampler:generation"] for trial in study.trials} == {0, 1, 2}
    assert optuna.visualization.matplotlib.plot_pareto_front(study) is not None


# ---------------------------------------------------------------------------- the forms of an objective


class Objective:
    """As Optuna's FAQ gives an objective its data."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, trial: Any) -> float:
        return float(trial.suggest_float("x", self.low, self.high))


def with_data(trial: Any, low: float, high: float) -> float:
    return float(trial.suggest_float("x", low, high))


@MORE_RANKS
def test_an_objective_brings_its_data(place: Place) -> None:
    forms = [Objective(2, 3), functools.partial(with_data, low=2, high=3), lambda one: with_data(one, 2, 3)]
    for objective in forms if not place.ranks else forms[:1]:  # all of them are sent by value
        study = place.run(place.study(), objective, len(place.study().trials) + 2)
    assert all(2 <= trial.value <= 3 for trial in study.trials)


# ---------------------------------------------------------------------------- around a study


def quadratic(trial: Any) -> float:
    x = trial.suggest_float("x", -5, 5)
    y = trial.suggest_float("y", -5, 5)
    trial.report(x**2, 0)
    return float(x**2 + 2 * y)


def test_max_trials_counts_states(inline: Place) -> None:
    def objective(trial: Any) -> float:
        if trial.number % 2:
            raise optuna.TrialPruned
        return quadratic(trial)

    callbacks = [MaxTrialsCallback(3, states=(TrialState.COMPLETE,))]
    study = inline.run(inline.study(), objective, callbacks=callbacks)
    assert [trial.number for trial in study.get_trials(states=(TrialState.COMPLETE,))] == [0, 2, 4]
    assert len(study.trials) == 5


def test_callbacks_enqueue_add_annotate_and_stop(inline: Place) -> None:
    added = optuna.create_trial(
        params={"x": 1.0, "y": -5.0},
        distributions={name: FloatDistribution(-5, 5) for name in ("x", "y")},
        value=-9.0,
        user_attrs={"from": "elsewhere"},
    )

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        study.set_user_attr("last", trial.number)
        if trial.number == 0:
            study.add_trial(added)
            study.enqueue_trial({"x": 0.5}, user_attrs={"why": "guess"})
        if study.best_trial.number == 1 and trial.params["x"] == 0.5:
            study.stop()

    study = inline.run(inline.study(), quadratic, callbacks=[callback])
    assert [trial.user_attrs for trial in study.trials] == [{}, {"from": "elsewhere"}, {"why": "guess"}]
    assert study.trials[2].params["x"] == 0.5
    assert study.best_value == -9.0
    assert study.user_attrs == {"last": 2}


def test_what_was_added_and_enqueued_before_counts_and_comes_first(inline: Place) -> None:
    study = inline.study()
    study.enqueue_trial({"x": 0.5, "y": 1.0})
    study.enqueue_trial({"x": 0.5, "y": 1.0}, skip_if_exists=True)
    study.add_trials(
        [
            optuna.create_trial(state=TrialState.FAIL),
            optuna.create_trial(
                state=TrialState.PRUNED,
                params={"x": 0.0},
                distributions={"x": FloatDistribution(-5, 5)},
                intermediate_values={0: 1.0, 1: 2.0},
            ),
        ]
    )
    inline.run(study, quadratic, 4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
    assert study.trials[0].params == {"x": 0.5, "y": 1.0}
    assert study.trials[2].intermediate_values == {0: 1.0, 1: 2.0}
    assert len(study.trials_dataframe()) == 4


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    place = Place(tmp_path_factory.mktemp("searched"), 0)
    return place.run(place.study(pruner="median(n_startup_trials=2)"), quadratic, 12)  # type: ignore[no-any-return]


PLOTS = [
    "plot_contour",
    "plot_edf",
    "plot_hypervolume_history",
    "plot_intermediate_values",
    "plot_optimization_history",
    "plot_parallel_coordinate",
    "plot_param_importances",
    "plot_pareto_front",
    "plot_rank",
    "plot_slice",
    "plot_terminator_improvement",
    "plot_timeline",
]


@pytest.mark.parametrize("library", ["plotly", "matplotlib"])
def test_optunas_plots(searched: optuna.Study, tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    if library == "matplotlib":
        import matplotlib as mpl

        mpl.use("Agg")
    module = optuna.visualization if library == "plotly" else optuna.visualization.matplotlib
    assert set(PLOTS) == {name for name in module.__all__ if name.startswith("plot_")}
    two = Place(tmp_path, 0)
    both = two.run(two.study(directions=["minimize", "minimize"]), objectives.front, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental plots
        for name in PLOTS:
            several = {
                "plot_pareto_front": {},
                "plot_hypervolume_history": {"reference_point": [200.0, 100.0]},
            }
            figure = getattr(module, name)(both if name in several else searched, **several.get(name, {}))
            assert figure is not None, name


@pytest.mark.parametrize(
    "name",
    ["FanovaImportanceEvaluator", "MeanDecreaseImpurityImportanceEvaluator", "PedAnovaImportanceEvaluator"],
)
def test_optunas_importances(searched: optuna.Study, name: str) -> None:
    assert name in optuna.importance.__all__
    evaluator = getattr(optuna.importance, name)()
    found = optuna.importance.get_param_importances(searched, evaluator=evaluator)
    assert set(found) == {"x", "y"}
    assert sum(found.values()) == pytest.approx(1)
