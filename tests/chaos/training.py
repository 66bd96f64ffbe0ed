"""A training under attack, on any number of ranks: it says in its history what it does, step by step.

``TUNER_CHAOS_FOLDER`` names the folder of the histories, ``TUNER_CHAOS_STEPS`` and ``TUNER_CHAOS_PACE``
the steps of a trial and the seconds of one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import optuna

from tests.chaos.history import History

EVERY = 5
"""Steps between two checkpoints."""


def objective(trial: Any) -> float:
    """Of every five trials one is pruned when it may be."""
    folder = Path(os.environ["TUNER_CHAOS_FOLDER"])
    steps, pace = int(os.environ["TUNER_CHAOS_STEPS"]), float(os.environ["TUNER_CHAOS_PACE"])
    history = History(folder / f"trial-{trial.number}-{trial.rank}.history")
    who = {"number": trial.number, "attempt": trial.attempt, "rank": trial.rank}
    x = trial.suggest_float("x", 0.0, 1.0)
    saved = trial.load_checkpoint()
    first = saved.step + 1 if saved else 0
    with history.operation("start", **who, first=first, x=x, pid=os.getpid()):
        pass
    for step in range(first, steps):
        with history.operation("step", **who, step=step):
            _train(trial, pace)
        trial.report(x + step, step)
        stop = trial.should_stop()
        if stop or step % EVERY == EVERY - 1:
            with history.operation("save", **who, step=step):
                trial.save_checkpoint({"x": x}, step)
        if stop:
            return float(x)
        if trial.number % 5 == 4 and trial.should_prune():
            raise optuna.TrialPruned
    with history.operation("end", **who, value=x):
        pass
    return float(x)


def _train(trial: Any, pace: float) -> None:
    if trial.world_size > 1:
        import torch

        torch.distributed.all_reduce(torch.ones(1))
    time.sleep(pace)
