"""Ray Tune's function trainables as objectives, unchanged: their space, functions and checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import tuner
from storage import Database, reads
from tests.ranks import RankTrial
from tuner import objective as objectives
from tuner.compat.param_space import config_of, distributions
from tuner.compat.ray_session import Ended, Session, in_place

tune = pytest.importorskip("ray.tune")

DOMAINS: dict[str, tuple[Callable[[], Any], Any]] = {
    "uniform": (lambda: tune.uniform(-1, 2), FloatDistribution(-1, 2)),
    "quniform": (lambda: tune.quniform(0.1, 0.5, 0.1), FloatDistribution(0.1, 0.5, step=0.1)),
    "loguniform": (lambda: tune.loguniform(1e-4, 1e-1), FloatDistribution(1e-4, 1e-1, log=True)),
    "qloguniform": (lambda: tune.qloguniform(0.1, 10, 0.1), FloatDistribution(0.1, 10, log=True)),
    "randint": (lambda: tune.randint(1, 9), IntDistribution(1, 8)),
    "lograndint": (lambda: tune.lograndint(1, 9), IntDistribution(1, 8, log=True)),
    "qrandint": (lambda: tune.qrandint(2, 11, 3), IntDistribution(3, 9, step=3)),
    "qrandint, no q": (lambda: tune.qrandint(1, 9), IntDistribution(1, 8)),
    "qlograndint": (lambda: tune.qlograndint(2, 11, 3), IntDistribution(3, 9, log=True)),
    "choice": (lambda: tune.choice(["sgd", 3, None]), CategoricalDistribution(["sgd", 3, None])),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_is_a_distribution_of_the_same_values(name: str) -> None:
    """Drawn by Ray and by us, 400 times: the same values where they can be counted, else the same range."""
    domain, distribution = DOMAINS[name]
    assert distributions({"a": {"b": domain()}}) == {"a/b": distribution}
    theirs = domain().sample(size=400, random_state=np.random.RandomState(1))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    ours = [config_of({"x": domain()}, study.ask())["x"] for _ in range(400)]
    if "uniform" in name and name != "quniform":
        low, high = domain().lower, domain().upper
        assert all(low <= x <= high for x in [*ours, *theirs])
        assert np.quantile(ours, [0.1, 0.5, 0.9]) == pytest.approx(
            np.quantile(theirs, [0.1, 0.5, 0.9]), abs=0.5
        )
    else:
        assert set(map(exact, ours)) == set(map(exact, theirs))


def exact(value: Any) -> Any:
    return round(float(value), 9) if isinstance(value, int | float | np.number) else value


def test_choices_that_no_database_keeps_go_by_their_text() -> None:
    activation = {"relu": [64, 64], "tanh": (1, 2)}
    space = {"layers": tune.choice([[64, 64], [128]]), "function": tune.choice([max, min])}
    assert distributions(space) == {
        "layers": CategoricalDistribution(["[64, 64]", "[128]"]),
        "function": CategoricalDistribution(["max", "min"]),
    }
    study = optuna.create_study()
    study.enqueue_trial({"layers": "[128]", "function": "min"})
    assert config_of(space, study.ask()) == {"layers": [128], "function": min}
    unnamed = [object(), activation]
    assert distributions({"x": tune.choice(unnamed)}) == {"x": CategoricalDistribution([0, 1])}
    study.enqueue_trial({"x": 1})
    assert config_of({"x": tune.choice(unnamed)}, study.ask()) == {"x": activation}


def test_a_nested_space_with_constants_and_conditions() -> None:
    space = {
        "half": tune.sample_from(lambda config: config["model"]["width"] / 2),
        "model": {"width": tune.choice([8]), "layers": [tune.randint(4, 5), 7], "name": "mlp"},
        "quarter": tune.sample_from(lambda spec: spec.config.half / 2),
        "momentum": tune.sample_from(
            lambda config: tune.uniform(0.5, 0.6) if config["optimizer"]["name"] == "sgd" else None
        ),
        "optimizer": tune.choice([{"name": "sgd", "decay": tune.uniform(1, 2)}, {"name": "adam"}]),
        "fresh": tune.sample_from(lambda: 5),
    }
    assert set(distributions(space)) == {"model/width", "model/layers/0", "optimizer"}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for label in (0, 1):
        study.enqueue_trial({"optimizer": label})
        trial = study.ask()
        config = config_of(space, trial)
        assert config["model"] == {"width": 8, "layers": [4, 7], "name": "mlp"}
        assert (config["half"], config["quarter"], config["fresh"]) == (4, 2, 5)
        assert trial.user_attrs["half"] == 4
        if label == 0:
            assert config["optimizer"] == {"name": "sgd", "decay": trial.params["optimizer/decay"]}
            assert 0.5 <= config["momentum"] == trial.params["momentum"] <= 0.6
        else:
            assert config["optimizer"] == {"name": "adam"}
            assert config["momentum"] is None
            assert set(trial.params) == {"model/width", "model/layers/0", "optimizer"}
    assert isinstance(space["optimizer"], type(tune.choice([1]))), "the space itself is untouched"


def test_functions_that_wait_for_each_other_are_named() -> None:
    space = {
        "a": tune.sample_from(lambda config: config["b"]),
        "b": tune.sample_from(lambda config: config["a"]),
    }
    with pytest.raises(tuner.BadObjective, match="'a' and 'b' read each other's"):
        config_of(space, optuna.create_study().ask())


class Trainable(tune.Trainable):  # type: ignore[name-defined,misc]
    """Ray's other kind."""


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a grid": ({"param_space": {"m": {"x": tune.grid_search([1, 2])}}}, "'m/x' is a grid_search.*bruteforce"),
    "a normal": ({"param_space": {"x": tune.randn(0, 1)}}, "'x' is a randn.*tune.uniform"),
    "a class": ({"trainable": Trainable}, "Trainable is not a function"),
    "a name": ({"trainable": "PPO"}, "'PPO' is not a function"),
    "resources": ({"trainable": tune.with_resources(lambda config: None, {"cpu": 2})}, "tuner.Resources"),
    "a mode": ({"mode": "maximize"}, "mode='maximize': choose 'min' or 'max'"),
    "a metric": ({"metric": ""}, "metric=''"),
    "a space": ({"param_space": [1]}, r"param_space=\[1\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_with_the_next_step(name: str) -> None:
    given, text = REFUSED[name]
    asked = {"trainable": print, "param_space": {}, "metric": "loss", "mode": "min", **given}
    with pytest.raises(tuner.BadObjective, match=text):
        tuner.compat.ray_tune(**asked)


def run(study: optuna.Study, objective: Any, n_trials: int, **options: Any) -> optuna.Study:
    return tuner.optimize(study, objective, n_trials, executor="inline", progress=False, **options)


def reason(study: optuna.Study, url: str, number: int = 0) -> str:
    detail = reads.trial(Database(url, create=False).engine, study.study_name, number)
    assert detail is not None
    return detail.attempt_rows[-1].message


def train(config: dict[str, Any]) -> None:
    from ray import tune

    for epoch in range(3):
        tune.report({"loss": config["x"] + 1 / (epoch + 1), "time": {"epoch": epoch}, "note": "text"})


def test_reports_metrics_and_value_reach_the_study(url: str) -> None:
    objective = tuner.compat.ray_tune(train, {"x": tune.uniform(0, 1)}, metric="loss", mode="min")
    study = run(tuner.create_study("s", storage=url, seed=1), objective, 2)
    trial = study.trials[1]
    x = trial.params["x"]
    assert trial.intermediate_values == {1: x + 1, 2: x + 1 / 2, 3: x + 1 / 3}  # as Ray counts iterations
    assert trial.value == x + 1 / 3
    detail = reads.trial(Database(url, create=False).engine, "s", 1)
    assert detail is not None
    assert detail.metrics == {"time/epoch": ((1, 0.0), (2, 1.0), (3, 2.0))}
    record = reads.study(Database(url, create=False).engine, "s")
    assert record is not None
    assert set(record.settings["space"]) == {"x"}, "the driver knows what is drawn"


def returns(config: dict[str, Any]) -> dict[str, float]:
    return {"acc": config["x"]}


def yields(config: dict[str, Any]) -> Any:
    yield {"acc": 0.0}
    yield {"acc": config["x"], "done": True}
    raise AssertionError("done")


def by_ray_train(config: dict[str, Any]) -> None:
    from ray import train

    assert train.get_checkpoint() is None
    assert train.get_context().get_world_size() == 1
    train.report({"acc": config["x"]})


def with_context(config: dict[str, Any]) -> None:
    from ray import tune

    context = tune.get_context()
    assert (context.get_trial_id(), context.get_trial_name()) == ("00000", "with_context_00000")
    assert context.get_experiment_name() == "s"
    assert Path(context.get_trial_dir()).is_dir()
    assert context.get_trial_resources().required_resources == {"CPU": 1}
    tune.report({"acc": config["x"]})


def with_data(config: dict[str, Any], data: list[float]) -> None:
    from ray import tune

    tune.report({"acc": config["x"] * sum(data)})


@pytest.mark.parametrize(
    "trainable",
    [returns, yields, by_ray_train, with_context, None],  # Ray keeps the data for the Ray that is next
    ids=["returns", "yields", "ray.train", "context", "with_parameters"],
)
def test_the_ways_to_report(trainable: Any, sqlite_url: str) -> None:
    trainable = trainable or tune.with_parameters(with_data, data=[0.25, 0.75])
    objective = tuner.compat.ray_tune(trainable, {"x": 0.5}, metric="acc", mode="max")
    study = run(tuner.create_study("s", storage=sqlite_url, direction="maximize"), objective, 1)
    assert study.trials[0].state is TrialState.COMPLETE, reason(study, sqlite_url)
    assert study.trials[0].value == 0.5


def never(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"accuracy": 1.0, "loss": 2.0})


def test_a_metric_that_never_comes_fails_the_trial_and_names_what_came(sqlite_url: str) -> None:
    objective = tuner.compat.ray_tune(never, {}, metric="acc", mode="min")
    study = run(tuner.create_study("s", storage=sqlite_url), objective, 1)
    assert study.trials[0].state is TrialState.FAIL
    assert "never reported 'acc'; it reported: accuracy, loss" in reason(study, sqlite_url)


def stubborn(config: dict[str, Any]) -> None:
    from ray import tune

    for epoch in range(5):
        try:
            tune.report({"loss": epoch})
        except Exception:
            raise AssertionError("Ray's end of a trial is no Exception") from None


def test_a_pruned_trainable_ends_as_ray_would_end_it(sqlite_url: str) -> None:
    objective = tuner.compat.ray_tune(stubborn, {}, metric="loss", mode="min")
    study = tuner.create_study("s", storage=sqlite_url, pruner="threshold(upper=1.5)")
    run(study, objective, 1)
    assert study.trials[0].state is TrialState.PRUNED, reason(study, sqlite_url)
    assert study.trials[0].intermediate_values == {1: 0, 2: 1, 3: 2}


def fails_once(config: dict[str, Any]) -> None:
    """As Ray's guide to checkpoints has it; the first attempt fails after its third epoch."""
    import tempfile

    from ray import tune

    start, state = 0, {"sum": 0}
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = json.loads((Path(folder) / "inner" / "state.json").read_text())
            start = state["epoch"] + 1
    resumed = start > 0
    for epoch in range(start, 5):
        state = {"epoch": epoch, "sum": state["sum"] + epoch}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "inner").mkdir()
            (Path(folder) / "inner" / "state.json").write_text(json.dumps(state))
            tune.report({"sum": state["sum"]}, checkpoint=tune.Checkpoint.from_directory(folder))
        latest = tune.get_checkpoint()
        assert latest is not None
        with latest.as_directory() as folder:
            assert json.loads((Path(folder) / "inner" / "state.json").read_text()) == state
        if epoch == 2 and not resumed:
            raise ConnectionError("once")
        if epoch == 4 and config.get("last"):
            raise ConnectionError("after the last epoch")


@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "nothing left to do"])
def test_a_retry_goes_on_from_rays_checkpoint(sqlite_url: str, last: bool) -> None:
    objective = tuner.compat.ray_tune(fails_once, {"last": last}, metric="sum", mode="max")
    study = tuner.create_study("s", storage=sqlite_url, direction="maximize")
    run(study, objective, 1, retry=tuner.Retry(retry_on=("ConnectionError",), backoff=0.01))
    trial = study.trials[0]
    assert trial.state is TrialState.COMPLETE, reason(study, sqlite_url)
    assert trial.value == 0 + 1 + 2 + 3 + 4
    assert trial.intermediate_values == {1: 0, 2: 1, 3: 3, 4: 6, 5: 10}
    best = tuner.best_checkpoint(study)
    assert best is not None
    assert json.loads((best.state / "inner" / "state.json").read_text()) == {"epoch": 4, "sum": 10}


def test_a_trainable_that_is_told_to_stop_saves_what_it_brings_first(tmp_path: Path) -> None:
    trial: Any = RankTrial({}, tmp_path, stop_at=1)
    trial.study, trial.told_to_stop = SimpleNamespace(study_name="s"), False
    trial._folder_of = lambda step: tmp_path / "a1" / f"step-{step}" / "rank-0.dir"
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "weights").write_text("x")
    with in_place(Session(trial, "loss", "train")):
        tune.report({"loss": 1.0})
        with pytest.raises(Ended) as ended:
            tune.report({"loss": 0.5}, checkpoint=tune.Checkpoint.from_directory(tmp_path / "made"))
    assert not ended.value.pruned
    assert trial.reports == {1: 1.0, 2: 0.5}
    assert (tmp_path / "a1" / "step-2" / "rank-0.dir" / "weights").read_text() == "x"
    from ray.train._internal import session

    assert session._session is None


def test_the_study_must_go_the_way_that_the_mode_says(sqlite_url: str) -> None:
    objective = tuner.compat.ray_tune(train, {"x": 1}, metric="loss", mode="max")
    study = tuner.create_study("s", storage=sqlite_url)
    with pytest.raises(
        tuner.BadInput, match=r"to maximize, but study 's' is to minimize; .*direction='maximize'"
    ):
        run(study, objective, 1)
    assert study.trials == []


# What a user of Ray Tune has, with the last lines as they are with Tuner.
FILE = """
import json
import os
import sys
import tempfile
from pathlib import Path

from ray import tune

import tuner


def train(config):
    start, weight = 0, 0.0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = json.loads((Path(folder) / "state.json").read_text())
            start, weight = state["epoch"] + 1, state["weight"]
    for epoch in range(start, config["epochs"]):
        weight += config["lr"] * (1 - weight)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps({"epoch": epoch, "weight": weight}))
            tune.report({"loss": (1 - weight) ** 2}, checkpoint=tune.Checkpoint.from_directory(folder))
        marker = os.environ.get("KILL_ONCE", "")
        if epoch == 1 and marker and not os.path.exists(marker):
            Path(marker).touch()
            os.kill(os.getpid(), 9)


space = {"lr": tune.choice([0.25]), "epochs": 4}
objective = tuner.compat.ray_tune(train, space, metric="loss", mode="min")

if __name__ == "__main__":
    study = tuner.create_study("s", storage=sys.argv[1])
    tuner.optimize(study, objective, n_trials=1, env=("KILL_ONCE",))
"""


def under_ray_tune(
    trainable: Any, config: dict[str, Any], folder: Path, patch: pytest.MonkeyPatch
) -> list[Any]:
    """What Ray Tune itself sees of a trainable: its own session and thread, here, without a cluster."""
    from ray.train._internal import storage
    from ray.tune.result import RESULT_DUPLICATE
    from ray.tune.trainable import wrap_function

    patch.setenv("TUNE_DISABLE_RESOURCE_CHECKS", "1")
    patch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    patch.setattr(storage, "_get_ray_train_session_dir", lambda: str(folder / "session"))
    place = storage.StorageContext(
        storage_path=str(folder), experiment_dir_name="experiment", trial_dir_name="trial"
    )
    running, losses = wrap_function(trainable)(config=config, storage=place), []
    while RESULT_DUPLICATE not in (result := running.train()):
        losses.append(result["loss"])
    running.stop()
    return losses


def start(command: list[str], folder: Path, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(tuner.__file__).parent.parent), **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_gives_under_tuner_what_it_gives_under_ray_tune_where_its_rank_is_killed_too(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, which takes the direction and the space from the file."""
    (tmp_path / "fit.py").write_text(FILE)
    trainable = objectives.member(f"{tmp_path}/fit.py:train")
    expected = under_ray_tune(trainable, {"lr": 0.25, "epochs": 4}, tmp_path / "ray", monkeypatch)
    assert len(expected) == 4
    command = ["-m", "tuner", "run", "fit.py", "--study", "s", "--trials", "1", "--storage", sqlite_url]
    start([*command, "--env", "KILL_ONCE"], tmp_path, KILL_ONCE=str(tmp_path / "killed"))
    study = tuner.load_study("s", storage=sqlite_url)
    assert list(study.trials[0].intermediate_values.values()) == expected
    detail = reads.trial(Database(sqlite_url, create=False).engine, "s", 0)
    assert detail is not None
    attempts = [(one.reason, one.resumed_step) for one in detail.attempt_rows]
    assert attempts == [("rank_lost", None), ("complete", 2)]


def test_an_objective_in_a_file_travels_by_reference(tmp_path: Path) -> None:
    file = tmp_path / "ray_fit.py"
    file.write_text(FILE)
    objective = objectives.member(f"{file}:objective")
    ref = objectives.refer(objective)
    assert (ref.file, ref.name, ref.pickled) == (str(file), "objective", b"")
    assert objectives.load(ref) is objective
    assert objective.__name__ == "train"
