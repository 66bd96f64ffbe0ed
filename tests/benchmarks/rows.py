"""The rows of ``make bench``: what has to be reached, by name of the sides, and how much work is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.goals import Figure

__all__ = ["FIGURES", "FULL", "NAMES", "QUICK", "Sizes"]

NAMES = {
    "tuner": "Tuner",
    "optuna": "Optuna",
    "ray-tune-reuse": "Ray Tune, actors reused",
    "ray-tune": "Ray Tune",
    "ray": "bare Ray",
}
"""Of the sides, as the tables have them."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work a run does.

    Attributes:
        rounds: measurements of each side.
        trials, reports, seconds: how many of them, by side.
        questions: of each of two trials, by milliseconds of a step.
        starts: of ``tuner run``.
        simulated: trials, on a tenth as many workers.
        held: (trials, reports of each) of the study whose driver's memory is measured.
        grown: trials of the studies in which a trial's cost is measured.
        judged: whether these are the sizes that the figures are meant for.
    """

    rounds: int
    trials: Mapping[str, int]
    reports: Mapping[str, int]
    seconds: int
    questions: Mapping[int, int]
    starts: int
    simulated: int
    held: tuple[int, int]
    grown: Sequence[int]
    judged: bool


FULL = Sizes(
    rounds=5,
    trials={"tuner": 2000, "optuna": 200, "ray-tune-reuse": 240, "ray-tune": 8, "ray": 4000},
    reports={"tuner": 50_000, "optuna": 500, "ray-tune-reuse": 500},
    seconds=40,
    questions={1: 2000, 20: 300},
    starts=5,
    simulated=100_000,
    held=(100_000, 10),
    grown=(100, 1000, 10_000, 100_000),
    judged=True,
)
QUICK = Sizes(
    rounds=1,
    trials={"tuner": 60, "optuna": 20, "ray-tune-reuse": 6, "ray-tune": 2, "ray": 200},
    reports={"tuner": 2000, "optuna": 50, "ray-tune-reuse": 20},
    seconds=4,
    questions={1: 100, 20: 10},
    starts=1,
    simulated=1000,
    held=(300, 10),
    grown=(100, 300),
    judged=False,
)

_TRIVIAL = "trivial trials, 4 parameters in a `space`, random sampler, durable, 2 slots"
_SHARED = f'{_TRIVIAL}, processes kept (`isolation="shared"`)'
_FRESH = f"{_TRIVIAL}, a fresh process each (the default)"
_REPORTS, _QUESTIONS = "reports of a live trial, durable", "should_prune, exact, 2 trials at once"

FIGURES = {
    figure.key: figure
    for figure in (
        Figure(
            key="shared/ray-tune-reuse",
            work=_SHARED,
            goal=25,
            unit="times Ray Tune, actors reused",
            is_floor=True,
        ),
        Figure(key="shared/optuna", work=_SHARED, goal=11, unit="times Optuna", is_floor=True),
        Figure(key="shared/ray", work=_SHARED, goal=0.4, unit="times bare Ray", is_floor=True),
        Figure(
            key="attempt/ray-tune-reuse",
            work=_FRESH,
            goal=8,
            unit="times Ray Tune, actors reused",
            is_floor=True,
        ),
        Figure(key="attempt/ray-tune", work=_FRESH, goal=150, unit="times Ray Tune", is_floor=True),
        Figure(key="reports/optuna", work=_REPORTS, goal=100, unit="times Optuna", is_floor=True),
        Figure(
            key="reports/ray-tune-reuse",
            work=_REPORTS,
            goal=100,
            unit="times Ray Tune, actors reused",
            is_floor=True,
        ),
        Figure(key="reports/loop", work="a report in the training loop, 1 ms steps", goal=20, unit="us"),
        Figure(key="questions/1ms/p50", work=f"{_QUESTIONS}, 1 ms steps, median", goal=2, unit="ms"),
        Figure(
            key="questions/1ms/p99", work=f"{_QUESTIONS}, 1 ms steps, 99th percentile", goal=10, unit="ms"
        ),
        Figure(key="questions/20ms/p50", work=f"{_QUESTIONS}, 20 ms steps, median", goal=4, unit="ms"),
        Figure(
            key="seconds",
            work="40 trials of 1.0 s on 2 slots, groups up: ideal / wall",
            goal=0.98,
            unit="",
            is_floor=True,
        ),
        Figure(
            key="first-line",
            work="tuner run to the first line, beyond ray.init and the objective's imports",
            goal=1,
            unit="s",
        ),
        Figure(
            key="simulation",
            work="simulation of 100,000 trials x 27 steps on 10,000 workers, random + ASHA",
            goal=60,
            unit="s",
        ),
        Figure(
            key="memory",
            work="a driver's memory at 100,000 trials x 10 reports, its peak",
            goal=1500,
            unit="MB",
        ),
        Figure(
            key="growth/trial",
            work="a driver's CPU for a trial: largest study / smallest",
            goal=None,
            unit="times",
        ),
        Figure(
            key="growth/report",
            work="a driver's CPU for a report: largest study / smallest",
            goal=None,
            unit="times",
        ),
    )
}
