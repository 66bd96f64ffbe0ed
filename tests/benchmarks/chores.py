"""What trials do in ``make bench``: objectives as Optuna's users write them.

How much is in ``TUNER_BENCH_COUNT`` and ``TUNER_BENCH_STEP`` (seconds). What a chore measures itself goes, as
a line of JSON, to the file that ``TUNER_BENCH_RESULT`` names.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution

__all__ = [
    "PACED",
    "RATE",
    "SPACE",
    "WARM",
    "asking",
    "flood",
    "flooding",
    "note",
    "one_second",
    "pace",
    "reporting",
    "steady",
    "trivial",
]

SPACE: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in "abcd"}

WARM = 50
"""Steps that do not count: the first ones find nothing warm."""

RATE = 10.0
"""Reports a second of a trial that goes on and on."""

PACED = 1000
"""Steps with a report after each, without haste."""


def trivial(trial: Any) -> float:
    """A number at once, of four parameters."""
    return float(sum(trial.suggest_float(name, 0.0, 1.0) for name in SPACE))


def one_second(trial: Any) -> float:
    """A training of a second."""
    note(began=time.time())
    time.sleep(1.0)
    return 0.0


def reporting(trial: Any) -> float:
    """Reports between steps, then as many more as the loop can make."""
    note(**pace(trial.report), **flood(trial.report))
    return 0.0


def flooding(trial: Any) -> float:
    """As many reports as the loop can make."""
    note(**flood(trial.report))
    return 0.0


def pace(report: Callable[[float, int], object]) -> dict[str, float]:
    """Microseconds that a report takes between steps: the median."""
    took = []
    for step in range(WARM + PACED):
        _train()
        began = time.perf_counter()
        report(0.5, step)
        took.append(time.perf_counter() - began)
    return {"paced_us": 1e6 * statistics.median(took[WARM:])}


def flood(report: Callable[[float, int], object]) -> dict[str, float]:
    """Reports without a pause: when they began, and microseconds of each in the loop."""
    began, count, first = time.time(), _count(), WARM + PACED
    for step in range(first, first + count):
        report(0.5, step)
    return {"flood_began": began, "flood_us": 1e6 * (time.time() - began) / count}


def asking(trial: Any) -> float:
    """A report and a question after each step; how long each answer took, in milliseconds."""
    took = []
    for step in range(WARM + _count()):
        _train()
        trial.report(0.5, step)
        began = time.perf_counter()
        trial.should_prune()
        took.append(1000 * (time.perf_counter() - began))
    note(took=took[WARM:])
    return 0.0


def steady(trial: Any) -> float:
    """Reports the time, some times a second, until there is the file that ``TUNER_BENCH_OVER`` names; returns
    how many it made.
    """
    step, due = 0, time.time()
    while not os.path.exists(os.environ["TUNER_BENCH_OVER"]):
        due += 1 / RATE
        time.sleep(max(0.0, due - time.time()))
        trial.report(time.time(), step)
        step += 1
    return float(step)


def note(**found: object) -> None:
    """A line for whoever measures; whole, whoever else writes one."""
    with open(os.environ["TUNER_BENCH_RESULT"], "a") as file:
        file.write(json.dumps(found) + "\n")


def _train() -> None:
    """A step on this process's core; asleep where ``TUNER_BENCH_ASLEEP`` is set, as one on a GPU is."""
    seconds = float(os.environ["TUNER_BENCH_STEP"])
    if os.environ.get("TUNER_BENCH_ASLEEP"):
        time.sleep(seconds)
        return
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _count() -> int:
    return int(os.environ["TUNER_BENCH_COUNT"])
