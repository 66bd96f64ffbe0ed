"""How long a trial of two ranks takes from its dispatch to its objective's first line, stage by stage."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import trainings
from tests.benchmarks.alone import alone
from tuner import objective
from tuner.assignment import Assignment
from tuner.dispatch.ray_cluster import RayExecutor
from tuner.messages import Ended, Envelope, Message, Released
from tuner.outcome import Reason
from tuner.resources import Resources

__all__ = ["RANKS", "STAGES", "measure", "measure_ray_tune", "medians", "stages"]

RANKS = 2
STAGES = ("to the fork", "to the worker", "store", "group", "import", "to the first line")


def measure(count: int, folder: Path) -> list[dict[str, float]]:
    """Milliseconds of each stage of ``count`` starts on a group that has run one trial.

    ``beyond`` is the whole without what ``init_process_group`` took in the rank itself; of the two ranks
    the one counts whose first line came later.
    """
    resources = Resources(ranks=RANKS, cpus=0.5, gpus=0)
    reference = objective.refer(f"{trainings.__file__}:start")
    reference = replace(reference, preload=(*reference.preload, "tests.benchmarks.probe"))
    run = f"bench-{os.getpid()}"
    seen: list[Message] = []

    def sink(envelope: Envelope) -> None:
        seen.append(envelope.message)
        executor.committed(envelope.number, envelope.rank, envelope.seq)

    executor = RayExecutor()
    executor.open(run, 1, [resources], sink)
    found = []
    try:
        for number in range(count + 1):
            result = folder / f"start-{number}"
            assignment = Assignment(
                run=run,
                epoch=1,
                study="s",
                directions=("minimize",),
                number=number,
                attempt=1,
                seed=1,
                started="2026-01-01T00:00:00",
                objective=reference,
                resources=resources,
                env={"TUNER_BENCH_RESULT": str(result)},
            )
            seen.clear()
            began = time.monotonic()
            executor.start(assignment)
            _run(executor, seen)
            ranks = [json.loads(Path(f"{result}.{rank}").read_text()) for rank in range(RANKS)]
            found.append(stages(began, max(ranks, key=lambda stamps: stamps["first line"])))
    finally:
        executor.close()
    return found[1:]


def _run(executor: RayExecutor, seen: list[Message]) -> None:
    deadline = time.monotonic() + 120
    while not any(isinstance(message, Released) for message in seen):
        if time.monotonic() > deadline:
            raise RuntimeError(f"start: the trial did not end within 120 s; it said {seen}")
        executor.poll(0.1)
    for message in seen:
        if isinstance(message, Ended) and message.outcome.reason is not Reason.COMPLETE:
            raise RuntimeError(f"start: the trial failed: {message.outcome}")


def stages(began: float, stamps: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of each stage of one rank, of the whole, and of the whole without ``group``.

    Example:
        >>> points = {"fork": 1.0, "run: begin": 2.0, "store: begin": 2.0, "store: end": 3.0}
        >>> points |= {"group: begin": 3.0, "group: end": 5.0, "load: begin": 5.0, "load: end": 6.0}
        >>> stages(0.0, points | {"first line": 7.0})["beyond"]
        5000.0
    """
    ends = ("fork", "run: begin", "store: end", "group: end", "load: end", "first line")
    found, before = {}, began
    for stage, end in zip(STAGES, ends, strict=True):
        found[stage] = 1000 * (stamps[end] - before)
        before = stamps[end]
    group = 1000 * (stamps["group: end"] - stamps["group: begin"])
    whole = 1000 * (stamps["first line"] - began)
    return {**found, "whole": whole, "beyond": whole - group}


_RAY_TUNE = """
import json, os, sys, time
import ray
from ray import tune
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

path, count, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Begin(tune.Callback):
    def on_trial_start(self, iteration, trials, trial, **info):
        self.note("start")
    def note(self, name):
        with open(path, "a") as file:
            print(json.dumps([name, time.monotonic()]), file=file, flush=True)

def loop(config):
    now = time.monotonic()
    if ray.train.get_context().get_world_rank() == 0:
        with open(path, "a") as file:
            print(json.dumps(["first line", now]), file=file, flush=True)

def objective(config):
    trainer = TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=ranks, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(storage_path=path + ".train"),
    )
    trainer.fit()
    tune.report({"value": 0.0})

ray.init(num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
tune.Tuner(
    tune.with_resources(objective, {"CPU": 0.5}),
    tune_config=tune.TuneConfig(num_samples=count, max_concurrent_trials=1, reuse_actors=False),
    run_config=tune.RunConfig(name="run", storage_path=path + ".tune", verbose=0, callbacks=[Begin()]),
).fit()
"""


def measure_ray_tune(count: int, folder: Path) -> list[float]:
    """Milliseconds from the start of a trial of Ray Tune, which reuses no actor, each a ``TorchTrainer`` with
    as many workers, to the first line of its loop. The first trial is left out: it finds nothing warm.
    """
    (folder / "peer.py").write_text(_RAY_TUNE)
    notes = folder / "notes"
    with tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True) as session:
        environment = {"RAY_TMPDIR": session, "OMP_NUM_THREADS": "1"}
        alone(["peer.py", str(notes), str(count + 1), str(RANKS)], folder, seconds=300, env=environment)
    said = [json.loads(line) for line in notes.read_text().splitlines()]
    begun, lines = ([at for name, at in said if name == which] for which in ("start", "first line"))
    return [1000 * (line - begin) for begin, line in zip(begun, lines, strict=True)][1:]


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    """Of each stage."""
    return {stage: statistics.median(one[stage] for one in found) for stage in found[0]}
