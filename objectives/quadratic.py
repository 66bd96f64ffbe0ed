"""Quadratic: gradient descent of f(x) = x^2 + 2x + 1 by ranks that each hold a part of f.

What it teaches, in milliseconds instead of minutes: the whole life of a distributed trial. The
three terms of f are dealt out to the ranks, so that no rank knows f or its gradient; the ranks sum
both with ``all_reduce``, as a training sums the gradients of its shards. It reports, prunes, saves
checkpoints and goes on from them, and it stops when it is asked to.

The answer is known: f has its minimum 0 at x = -1, and any number of ranks finds it. A step
multiplies the distance to -1 by (1 - 2 lr): slow for a small learning rate, divergent above 1,
and exact in one step at lr = 0.5.

::

    study = tuner.create_study("quadratic", direction="minimize")
    tuner.optimize(study, objective, n_trials=20, resources=tuner.Resources(ranks=2))
"""

from __future__ import annotations

from typing import Any

import optuna
import torch
import torch.distributed as dist
from torch import Tensor

import tuner

__all__ = ["objective"]

START = 4.0  # f(4) = 25
STEPS = 20
CHECKPOINT_EVERY = 5

COEFFICIENTS = {2: 1.0, 1: 2.0, 0: 1.0}  # power of x: its factor in f


def objective(trial: tuner.Trial) -> float:
    """Descend from x = 4 with the learning rate ``lr`` and return f at the end; 0 is the minimum.

    The user attribute ``x`` is where the descent ended.

    Example:
        >>> study = tuner.create_study("quadratic", storage="sqlite:///tuner.db")
        >>> study.enqueue_trial({"lr": 0.5})
        >>> tuner.optimize(study, objective, n_trials=1, executor="inline").best_value
        0.0
    """
    lr = trial.suggest_float("lr", 1e-3, 1.2, log=True)
    mine = list(COEFFICIENTS.items())[trial.rank :: trial.world_size]  # beyond three ranks: nothing

    first_step, x = 1, torch.tensor(START, dtype=torch.float64, device=trial.device)
    checkpoint = trial.load_checkpoint()
    if checkpoint is not None:
        state: Any = checkpoint.state
        first_step, x = checkpoint.step + 1, state["x"].to(trial.device)
    value, gradient = value_and_gradient(x, mine, trial.world_size)

    for step in range(first_step, STEPS + 1):
        x = x - lr * gradient
        value, gradient = value_and_gradient(x, mine, trial.world_size)

        trial.report(value.item(), step)
        if trial.should_prune():  # the same answer on all ranks: they leave together
            raise optuna.TrialPruned
        stop = trial.should_stop()
        if stop or step % CHECKPOINT_EVERY == 0:
            trial.save_checkpoint({"x": x}, step)
        if stop:
            break  # the trial goes on from here in its next attempt

    trial.set_user_attr("x", x.item())
    return value.item()


def value_and_gradient(x: Tensor, terms: list[tuple[int, float]], world_size: int) -> tuple[Tensor, Tensor]:
    """f(x) and f'(x), summed over the parts of f that the ranks hold. Scalars of x's type."""
    value = sum((factor * x**power for power, factor in terms), torch.zeros_like(x))
    slope = sum((factor * power * x ** (power - 1) for power, factor in terms if power), torch.zeros_like(x))
    both = torch.stack([value, slope])
    if world_size > 1:
        dist.all_reduce(both)
    return both[0], both[1]
