"""What a simulation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial

__all__ = ["Simulation"]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a simulation found. Seconds are virtual ones.

    Attributes:
        seconds: until its end.
        history: (seconds, best value of the COMPLETE trials) at each improvement.
        best: the last of these values, or None.
        utilisation: share of the workers' seconds that went into steps.
        epochs: steps computed, those that were computed again included; ``repeated`` of these.
        attempts: that were started.
        states: number of trials by state, such as ``{"COMPLETE": 30, "PRUNED": 70}``.
        trials: as Optuna has them.

    Example:
        >>> space = {"x": optuna.distributions.FloatDistribution(0, 1)}
        >>> study = optuna.create_study(
        ...     sampler=optuna.samplers.RandomSampler(), pruner=optuna.pruners.NopPruner()
        ... )
        >>> found = tuner.simulate(study, space, lambda params: [(params["x"], 2.0)], n_trials=6, seed=1)
        >>> found.epochs, found.states
        (6, {'COMPLETE': 6})
    """

    seconds: float
    history: tuple[tuple[float, float], ...]
    best: float | None
    utilisation: float
    epochs: int
    repeated: int
    attempts: int
    states: Mapping[str, int]
    trials: tuple[FrozenTrial, ...] = field(repr=False)
