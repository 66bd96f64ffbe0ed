"""Tuner's side of ``make bench``: how much it does in a second, and what it costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler

import tuner
from tests.benchmarks import chores
from tests.benchmarks.sides import STUDY
from tests.benchmarks.workplace import (
    SLOTS,
    Found,
    busy_share,
    ends,
    environment,
    flooded,
    notes,
    peak,
    rate,
    rows,
    url,
)

__all__ = ["asking", "first_line", "growth", "memory", "one_second", "reporting", "simulation", "trivial"]


class Never(optuna.pruners.BasePruner):
    """Costs nothing, and nobody knows its answer without asking it."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return False


def _drive(chore: str, count: int, folder: Path, **options: Any) -> None:
    """Run a chore in a new study."""
    pruner = options.pop("pruner", "none")
    study = tuner.create_study(STUDY, storage=url(folder), sampler="random", pruner=pruner, seed=1)
    tuner.optimize(
        study,
        f"{chores.__file__}:{chore}",
        n_trials=count,
        resources=tuner.Resources(cpus=1, gpus=0),
        max_concurrent=SLOTS,
        env=("TUNER_BENCH_*",),
        progress=False,
        **options,
    )
    if (stored := rows(folder, "trials", "state = 'COMPLETE'")) != count:
        raise RuntimeError(f"{chore}: {stored} of {count} trials are in the database")


def trivial(count: int, folder: Path, **options: Any) -> Found:
    """Trials a second, by the times that the database has."""
    _drive("trivial", count, folder, **options)
    return {"rate": rate(ends(folder))}


def one_second(count: int, folder: Path) -> Found:
    """The part of the slots' time that trials get, each of which counts until it is committed."""
    heard: list[float] = []
    _drive("one_second", count, folder, callbacks=[lambda study, trial: heard.append(time.time())])
    return busy_share(heard, folder)


def reporting(count: int, folder: Path) -> Found:
    """Reports a second until the trial, and with it all of them, is committed; see :mod:`chores`."""
    heard: list[float] = []
    with environment(count, 0.001):
        _drive("reporting", 1, folder, callbacks=[lambda study, trial: heard.append(time.time())])
    expected = chores.WARM + chores.PACED + count
    if (stored := rows(folder, "trial_intermediate_values")) != expected:
        raise RuntimeError(f"reporting: {stored} of {expected} reports are in the database")
    return flooded(heard, count, folder)


def asking(count: int, folder: Path, *, step: float, asleep: bool = False) -> Found:
    """Milliseconds of an answer, over both trials."""
    with environment(count, step, asleep):
        _drive("asking", SLOTS, folder, pruner=Never())
    took = sorted(one for found in notes(folder) for one in found["took"])
    return {"p50": statistics.median(took), "p99": took[int(0.99 * len(took))], "questions": len(took)}


def simulation(count: int, folder: Path) -> Found:
    """So many trials of 27 steps on a tenth as many workers."""
    space: Any = {"x": FloatDistribution(0.0, 1.0), "rate": FloatDistribution(1e-4, 1.0, log=True)}

    def curve(params: Mapping[str, Any]) -> Sequence[tuple[float, float]]:
        return [(params["x"] + params["rate"] / step, 60.0) for step in range(1, 28)]

    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(sampler=RandomSampler(seed=1), pruner=pruner)
    began, spent = time.perf_counter(), time.process_time()
    found = tuner.simulate(study, space, curve, max_concurrent=count // 10, n_trials=count, seed=1)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - spent,
        "epochs": found.epochs,
        "trials": sum(found.states.values()),
        "peak": peak(),
    }


def memory(count: int, folder: Path) -> Found:
    """A driver that opens the study of the folder, and runs so many trials more; MB at its peak."""
    before = rows(folder, "trials")
    _extend("trivial", before + count, folder)
    if rows(folder, "trials") != before + count:
        raise RuntimeError(f"the driver ran {rows(folder, 'trials') - before} of {count} trials")
    return {"peak": peak(), "held": before}


def growth(count: int, folder: Path) -> Found:
    """CPU seconds of a driver for a trial, and for a report, once the study of the folder is open."""
    before = rows(folder, "trials")
    spent = _extend("trivial", before + count, folder)
    with environment(100 * count, 0.0):
        marks = _extend("flooding", before + count + 2, folder, slots=1)
    return {
        "held": before,
        "trial": (spent[-1] - spent[0]) / (len(spent) - 1),
        "report": (marks[1] - marks[0]) / (100 * count),
    }


def _extend(chore: str, trials: int, folder: Path, slots: int = SLOTS) -> list[float]:
    """Go on with the study of a folder up to so many trials; CPU seconds of this process at each end."""
    sampler, pruner = RandomSampler(seed=1), NopPruner()
    study = optuna.load_study(study_name=STUDY, storage=url(folder), sampler=sampler, pruner=pruner)
    spent: list[float] = []
    tuner.optimize(
        study,
        f"{chores.__file__}:{chore}",
        n_trials=trials,
        space=chores.SPACE if chore == "trivial" else None,
        resources=tuner.Resources(cpus=1, gpus=0),
        max_concurrent=slots,
        isolation="shared",
        env=("TUNER_BENCH_*",),
        callbacks=[lambda study, trial: spent.append(time.process_time())],
        progress=False,
    )
    return spent


def first_line(count: int, folder: Path) -> Found:
    """Seconds from the start of ``tuner run`` to the first line of the first trial."""
    early = Path(chores.__file__).with_name("early.py")
    command = [sys.executable, "-m", "tuner", "run", str(early), "--study", STUDY, "--storage", url(folder)]
    began = time.time()
    more = ("--trials", "1", "--gpus", "0", "--env", "TUNER_BENCH_*")
    subprocess.run([*command, *more], cwd=folder, check=True, capture_output=True)
    return {"seconds": notes(folder)[0]["at"] - began}
