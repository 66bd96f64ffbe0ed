"""The work that both sides do: each function prepares n items and gives what does them to a study."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

__all__ = ["SPACE", "Work", "additions", "asks", "reports"]

Work = Callable[[optuna.Study], None]

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "momentum": FloatDistribution(0.0, 1.0),
    "width": IntDistribution(8, 512),
    "activation": CategoricalDistribution(("relu", "tanh", "gelu", None)),
}


def asks(count: int) -> Work:
    """``count`` trials, asked, suggested and told one after the other."""

    def run(study: optuna.Study) -> None:
        for _ in range(count):
            trial = study.ask()
            rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
            momentum = trial.suggest_float("momentum", 0.0, 1.0)
            width = trial.suggest_int("width", 8, 512)
            trial.suggest_categorical("activation", ("relu", "tanh", "gelu", None))
            study.tell(trial, rate * width + momentum)

    return run


def reports(count: int) -> Work:
    """One trial that is asked, reports ``count`` times, and goes on running."""
    values = [report(step) for step in range(count)]

    def run(study: optuna.Study) -> None:
        trial = study.ask()
        for step, value in enumerate(values):
            trial.report(value, step)

    return run


def report(step: int) -> float:
    """The value of a step; a few of them infinite, or not a number."""
    odd = {50: float("inf"), 51: float("-inf"), 52: float("nan")}
    return odd.get(step % 1000, (step * 37 % 1009) / 1009)


def additions(count: int) -> Work:
    """``count`` trials of 10 reports each, in several states, given to ``study.add_trials``."""
    trials = [_frozen(number) for number in range(count)]
    return lambda study: study.add_trials(trials)


def _frozen(number: int) -> FrozenTrial:
    state = (
        (TrialState.PRUNED, TrialState.FAIL)[number % 20 // 10] if number % 10 == 9 else TrialState.COMPLETE
    )
    return optuna.trial.create_trial(
        state=state,
        value=None if state == TrialState.FAIL else number / 7,
        params={
            "lr": 10 ** -(1 + number % 401 / 100),
            "momentum": number % 101 / 100,
            "width": 8 + number % 505,
            "activation": ("relu", "tanh", "gelu", None)[number % 4],
        },
        distributions=SPACE,
        intermediate_values={step: report(step + 45 + number) for step in range(10)},
    )
