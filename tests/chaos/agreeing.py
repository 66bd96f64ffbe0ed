"""A training whose ranks ask by patterns of their own, late, and die: each writes down what it was told.

What happens in an attempt is drawn from its number and attempt, in all ranks alike. ``TUNER_CHAOS_FOLDER``
is where each rank writes, a line of JSON for each thing; a line is out before what follows it happens, and
what a killed process has written stays.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

__all__ = ["PATTERNS", "Plan", "coin", "objective", "plan"]

PATTERNS = ("all", "only 0", "only 1", "random")
FATES = ("kill", "kill", "exit", "raise", "return", "hang", "freeze")
PATIENCE = 1.0
"""Seconds instead of 30 that a rank waits for rank 0, which in a quarter of the trials never asks."""

SEED = os.environ.get("CHAOS_SEED", "1")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to happen in an attempt.

    Attributes:
        pattern: which ranks ask whether to prune.
        together: a collective ends each step.
        stops: all ranks ask whether to stop.
        fate: rank, step and kind of what befalls it.
    """

    steps: int
    pattern: str
    together: bool
    stops: bool
    fate: tuple[int, int, str] | None


def plan(number: int, attempt: int, ranks: int) -> Plan:
    """Of one attempt: in a third of them something befalls a rank."""
    chance = random.Random(f"{SEED} {number} {attempt}")
    steps = chance.randrange(3, 12)
    fate = (chance.randrange(ranks), chance.randrange(steps), chance.choice(FATES))
    return Plan(
        steps=steps,
        pattern=chance.choice(PATTERNS),
        together=chance.random() < 0.6,
        stops=chance.random() < 0.5,
        fate=fate if chance.random() < 0.35 else None,
    )


def coin(number: int, step: int) -> bool:
    """What the pruner says of a trial whose last report was at ``step``."""
    return random.Random(f"{SEED} prune {number} {step}").random() < 0.08


def objective(trial: Any) -> float:
    """As planned."""
    diary = Path(os.environ["TUNER_CHAOS_FOLDER"]) / f"{trial.number}-{trial.attempt}-{trial.rank}.diary"
    with diary.open("a", buffering=1) as file:

        def write(what: str, **found: Any) -> None:
            file.write(json.dumps({"what": what, "at": time.time(), **found}) + "\n")

        write("begin", pid=os.getpid())
        try:
            value = _train(trial, write)
        except BaseException as error:
            write("end", how=type(error).__name__)
            raise
        write("end", how="returned")
        return value


def _train(trial: Any, write: Any) -> float:
    made = plan(trial.number, trial.attempt, trial.world_size)
    own = random.Random(f"{SEED} {trial.number} {trial.attempt} {trial.rank}")
    trial._prune._patience = trial._stop._patience = PATIENCE
    x = trial.suggest_float("x", 0.0, 1.0)
    kind = trial.suggest_categorical("kind", ["flat", "deep"])
    for step in range(made.steps):
        time.sleep(own.uniform(0, 0.05))
        if step == 2 and kind == "deep":
            trial.suggest_int("depth", 1, 100)  # which no rank could know before
            write("params", params=trial.params)
        if made.fate is not None and made.fate[:2] == (trial.rank, step):
            write("fate", kind=made.fate[2])
            if made.fate[2] == "return":
                return x
            _befall(made.fate[2])
        trial.report(x + step, step)
        if _asks(made.pattern, trial.rank, own):
            verdict = trial.should_prune()
            write("prune", verdict=verdict, step=step)
            if verdict:
                raise optuna.TrialPruned
        if made.stops:
            verdict = trial.should_stop()
            write("stop", verdict=verdict)
            if verdict:
                return x
        if made.together:
            import torch

            torch.distributed.all_reduce(torch.ones(1))
    write("params", params=trial.params)
    return x


def _asks(pattern: str, rank: int, own: random.Random) -> bool:
    match pattern:
        case "all":
            return True
        case "random":
            return own.random() < 0.5
        case _:
            return rank == int(pattern.split()[1])


def _befall(kind: str) -> None:
    match kind:
        case "raise":
            raise ValueError("as planned")
        case "exit":
            os._exit(7)
        case "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
        case _:
            os.kill(os.getpid(), signal.SIGSTOP if kind == "freeze" else signal.SIGKILL)
