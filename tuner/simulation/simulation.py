"""Simulations from what a person gives: checked, and run on a copy of the study's sampler and pruner."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from storage import StudyRecord
from storage.memory import MemoryStudy
from tuner.errors import BadInput
from tuner.outcome import classify_return
from tuner.retry import Retry
from tuner.simulation.faults import Faults
from tuner.simulation.result import Simulation
from tuner.simulation.script import Curve, Script
from tuner.simulation.simulator import Simulator
from tuner.study import DrivenStudy, Space, check_space

__all__ = ["play", "simulate"]


def simulate(
    study: optuna.Study,
    space: Any,
    curve: Curve,
    *,
    max_concurrent: int = 64,
    ahead: int = 0,
    n_trials: int | None = None,
    until: float | None = None,
    faults: Faults | None = None,
    retry: Retry | None = None,
    seed: int = 0,
    charge_sampler: bool = False,
) -> Simulation:
    """Run a study's sampler and pruner on a virtual cluster; the study itself is not touched.

    The simulated study starts without trials. For a seed it is the same to the bit each time, unless
    the sampler's time is charged.

    Args:
        study: whose directions, sampler and pruner are tried; with one objective.
        space: as for ``optimize``: distributions by name, or a function of the trial.
        curve: parameters -> (value, seconds) per step; the value of the last step is the trial's.
        max_concurrent: workers.
        ahead: trials that are asked for before a worker is free for them, without the results that come
            meanwhile.
        n_trials: finished trials after which nothing new starts.
        until: seconds after which it ends, whatever runs; this or ``n_trials`` is needed.
        faults: losses, stragglers and delays; default: none.
        retry: as for ``optimize``.
        charge_sampler: let the clock run while the sampler thinks, as a real driver has to wait.

    Raises:
        BadInput: an argument is wrong.

    Example:
        >>> import optuna
        >>> space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        >>> def curve(params):
        ...     return [(params["x"] + 1.0 / step, 10.0) for step in range(1, 4)]
        >>> found = simulate(study, space, curve, max_concurrent=4, n_trials=8)
        >>> found.seconds, found.epochs, found.utilisation
        (60.0, 24, 1.0)
    """
    checked = check_space(space)
    directions = [one.name.lower() for one in study.directions]

    def script(trial: FrozenTrial) -> Script:
        steps = enumerate(curve(dict(trial.params)), 1)
        return Script(
            steps=((step, value, seconds) for step, (value, seconds) in steps),
            end=lambda value: classify_return(value, directions),
        )

    return play(
        study,
        checked,
        script,
        max_concurrent=max_concurrent,
        ahead=ahead,
        n_trials=n_trials,
        until=until,
        faults=faults,
        retry=retry,
        seed=seed,
        charge_sampler=charge_sampler,
    )


def play(
    study: optuna.Study,
    space: Space,
    script: Callable[[FrozenTrial], Script],
    *,
    max_concurrent: int,
    ahead: int = 0,
    n_trials: int | None = None,
    until: float | None = None,
    faults: Faults | None = None,
    retry: Retry | None = None,
    seed: int = 0,
    charge_sampler: bool = False,
) -> Simulation:
    """As :func:`simulate`, of trials whose scripts are given, each when its attempt starts."""
    if len(study.directions) != 1:
        raise BadInput(f"study {study.study_name!r} has {len(study.directions)} objectives; a curve has one")
    if n_trials is None and until is None:
        raise BadInput("simulate: give n_trials, until, or both: nothing else ends it")
    if isinstance(max_concurrent, bool) or not isinstance(max_concurrent, int) or max_concurrent < 1:
        raise BadInput(f"max_concurrent={max_concurrent!r}: give a whole number of at least 1")
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 0:
        raise BadInput(f"ahead={ahead!r}: give a whole number of at least 0")
    if until is not None and not until > 0:
        raise BadInput(f"until={until!r}: give seconds")
    record = StudyRecord(
        name=study.study_name,
        study_id=1,
        directions=(study.direction.name.lower(),),
        uid="simulated",
        seed=seed,
    )
    driven = DrivenStudy(MemoryStudy(record), copy.deepcopy(study.sampler), copy.deepcopy(study.pruner))
    return Simulator(
        driven,
        space,
        script,
        workers=max_concurrent,
        ahead=ahead,
        n_trials=n_trials,
        until=until,
        faults=faults or Faults(),
        policy=retry or Retry(),
        charge_sampler=charge_sampler,
    ).run()
