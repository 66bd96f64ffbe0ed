"""The peers' side of ``make bench``: Optuna, Ray Tune, and Ray without anything above it."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from tests.benchmarks import chores
from tests.benchmarks.sides import STUDY
from tests.benchmarks.workplace import SLOTS, Found, busy_share, environment, flooded, rate, url
from tests.local_cluster import local_cluster

__all__ = [
    "imports",
    "optuna_reporting",
    "optuna_trivial",
    "ray_loop",
    "ray_tune_one_second",
    "ray_tune_reporting",
    "ray_tune_trivial",
    "start_of_ray",
]


def _optuna(chore: str, count: int, folder: Path) -> list[float]:
    """The time of each trial's end, by ``Study.optimize`` on the RDBStorage that a URL gives."""
    study = optuna.create_study(
        study_name=STUDY, storage=url(folder), sampler=optuna.samplers.RandomSampler(seed=1)
    )
    ends: list[float] = []
    mark: Any = lambda study, trial: ends.append(time.time())  # noqa: E731
    study.optimize(getattr(chores, chore), n_trials=count, n_jobs=1, callbacks=[mark])
    return ends


def optuna_trivial(count: int, folder: Path) -> Found:
    """Trials a second."""
    return {"rate": rate(_optuna("trivial", count, folder))}


def optuna_reporting(count: int, folder: Path) -> Found:
    """Reports a second."""
    with environment(count, 0.0):
        return flooded(_optuna("flooding", 1, folder), count, folder)


def _ray_tune(chore: str, count: int, folder: Path, *, reuse: bool) -> list[float]:
    """The time at which each trial's end was heard of, by ``Tuner.fit`` with OptunaSearch."""
    ends: list[float] = []

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ends.append(time.time())

    search = OptunaSearch(
        space=chores.SPACE, metric="value", mode="min", sampler=optuna.samplers.RandomSampler(seed=1)
    )
    with local_cluster(SLOTS):
        results = tune.Tuner(
            tune.with_resources(functools.partial(_as_ray_tune_has_it, chore), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=count, max_concurrent_trials=SLOTS, reuse_actors=reuse
            ),
            run_config=tune.RunConfig(
                name="run", storage_path=str(folder / "tune"), verbose=0, callbacks=[Ends()]
            ),
        ).fit()
    if len(results) != count or results.num_errors or len(ends) != count:
        raise RuntimeError(f"{chore}: Ray Tune ran {len(ends)} of {count} trials; {results.errors}")
    return ends


def _as_ray_tune_has_it(chore: str, config: Mapping[str, float]) -> None:
    """A chore as a function of Ray Tune."""
    if chore == "flooding":
        chores.note(**chores.flood(lambda value, step: tune.report({"value": value})))
        return
    trial = optuna.trial.FixedTrial(dict(config))
    tune.report({"value": getattr(chores, chore)(trial)})


def ray_tune_trivial(count: int, folder: Path, *, reuse: bool) -> Found:
    """Trials a second."""
    return {"rate": rate(_ray_tune("trivial", count, folder, reuse=reuse))}


def ray_tune_one_second(count: int, folder: Path) -> Found:
    """The part of the slots' time that trials get."""
    return busy_share(_ray_tune("one_second", count, folder, reuse=True), folder)


def ray_tune_reporting(count: int, folder: Path) -> Found:
    """Reports a second."""
    with environment(count, 0.0):
        return flooded(_ray_tune("flooding", 1, folder, reuse=True), count, folder)


def ray_loop(count: int, folder: Path) -> Found:
    """Nothing but two actors and ``ray.wait``: what a trial would cost that nobody looks after."""

    @ray.remote(num_cpus=1)
    class Actor:
        def run(self, params: Mapping[str, float]) -> float:
            return sum(params.values())

    params = dict.fromkeys(chores.SPACE, 0.5)
    ends = []
    with local_cluster(SLOTS):
        actors = [Actor.remote() for _ in range(SLOTS)]
        running = {actor.run.remote(params): actor for actor in actors}
        started = SLOTS
        while running:
            (done,), _ = ray.wait(list(running))
            ray.get(done)
            ends.append(time.time())
            actor = running.pop(done)
            if started < count:
                running[actor.run.remote(params)] = actor
                started += 1
    return {"rate": rate(ends)}


def start_of_ray(count: int, folder: Path) -> Found:
    """Seconds of ``ray.init`` in a process that does nothing else."""
    began = time.perf_counter()
    context: Any = ray.init(address="local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    seconds = time.perf_counter() - began
    ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)
    return {"seconds": seconds}


def imports(count: int, folder: Path) -> Found:
    """Seconds of what an objective imports, in a process that has imported none of it."""
    code = (
        "import time; t = time.perf_counter(); import tests.benchmarks.early; print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {"seconds": float(done.stdout)}
