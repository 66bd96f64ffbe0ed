"""``python -m tests.benchmarks.ahead``: what it costs TPE to be asked before its trial's place is free.

Studies are simulated: 8 places, trials of unequal length, and a trial is asked for when its place is free, or
one or two for each place ahead, without the results that come meanwhile. Everything else is the same, seed by
seed. What counts is the distance of the best value from the known optimum.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial

import tuner
from objectives.functions import branin, hartmann6, rosenbrock

__all__ = ["FUNCTIONS", "compare", "distances", "main"]

Function = Callable[[Any], float]

FUNCTIONS: Mapping[Function, float] = {branin: 0.397887, rosenbrock: 0.0, hartmann6: -3.32237}
"""By function, its optimum."""

PLACES = 8
AHEAD = (0, 1, 2)  # for each place
TRIALS, SEEDS = 200, 20
MARKS = (50, 100, 200)  # trials after which it is compared
CHANCE = 2.0  # standard errors, within which a difference says nothing


def distances(function: Function, ahead: int, seed: int, trials: int) -> list[float]:
    """Of the best value so far from the optimum, after each trial in the order in which they end."""
    ends: list[float] = []

    def curve(params: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
        value = function(FixedTrial(dict(params)))
        yield value, 60.0 * random.Random(repr(sorted(params.items()))).uniform(0.5, 1.5)
        ends.append(value)  # asked for a step after the last one

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.NopPruner()
    )
    tuner.simulate(
        study, function, curve, max_concurrent=PLACES, ahead=ahead * PLACES, n_trials=trials, seed=seed
    )
    assert len(ends) == trials
    return [max(best - FUNCTIONS[function], 1e-9) for best in itertools.accumulate(ends, min)]


def compare(found: Mapping[int, Sequence[Sequence[float]]], marks: Sequence[int]) -> dict[str, Any]:
    """Distances by how far ahead, each with those of the same seeds, at some numbers of trials.

    Returns:
        By mark and by how far ahead: the median distance; of the logarithms (base 10) of its ratios to that
        without asking ahead the mean and its standard error; and how many seeds were worse.
    """
    said: dict[str, Any] = {}
    for mark in marks:
        said[str(mark)] = {}
        plain = [run[mark - 1] for run in found[0]]
        for ahead, runs in found.items():
            own = [run[mark - 1] for run in runs]
            ratios = [math.log10(mine / other) for mine, other in zip(own, plain, strict=True)]
            error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
            said[str(mark)][str(ahead)] = {
                "median": statistics.median(own),
                "log_ratio": statistics.mean(ratios),
                "error": error,
                "worse": sum(ratio > 0 for ratio in ratios),
            }
    return said


def _in_words(one: Mapping[str, float], seeds: int) -> str:
    median = f"median distance {one['median']:.4g}"
    if not one["log_ratio"]:
        return median
    clear = "" if abs(one["log_ratio"]) > CHANCE * one["error"] else ", within chance"
    ratio = f"{10 ** one['log_ratio']:.2f} times that of none{clear}"
    return f"{median}, {ratio}; worse in {one['worse']} of {seeds}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print what was found, and keep it with ``--keep``."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ahead", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    parser.add_argument("--trials", type=int, default=TRIALS, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, help="a file for the figures, such as results/ahead.json")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    marks = [mark for mark in MARKS if mark <= options.trials] or [options.trials]
    said: dict[str, Any] = {"places": PLACES, "seeds": options.seeds, "trials": options.trials}
    for function in FUNCTIONS:
        name, began = function.__name__, time.perf_counter()
        found = {
            ahead: [distances(function, ahead, seed, options.trials) for seed in range(options.seeds)]
            for ahead in AHEAD
        }
        said[name] = compare(found, marks)
        print(f"{name}: {time.perf_counter() - began:.0f} s")
        for mark, by_ahead in said[name].items():
            for ahead, one in by_ahead.items():
                print(f"  {mark:>4} trials, {ahead} ahead of each place: {_in_words(one, options.seeds)}")
        sys.stdout.flush()
    if options.keep:
        options.keep.parent.mkdir(exist_ok=True)
        options.keep.write_text(json.dumps(said, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
