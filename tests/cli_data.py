"""Objectives for the tests of the command line, and what a test calls there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import storage

__all__ = ["OBJECTIVES", "Run", "database"]

OBJECTIVES = """
import optuna


def objective(trial):
    x = trial.suggest_float("x", -3, 3)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    for step in range(3):
        trial.report(x * x + step, step)
    trial.log({"half": x / 2}, 2)
    trial.save_checkpoint({"x": x}, 2)
    return x * x + (kind == "b")


def fails(trial):
    trial.suggest_float("x", 1e-5, 1, log=True)
    raise ValueError("boom [x]")


def two(trial):
    x = trial.suggest_float("x", 0, 1)
    return x, 1 - x


def constrained(trial):
    x = trial.suggest_int("x", 0, 9)
    trial.set_constraint("at least 3", 3 - x)
    return x


def prunes(trial):
    raise optuna.TrialPruned()
"""

Run = Callable[..., tuple[int, str, str]]
"""A command by its words: (exit code, stdout, stderr)."""


def database(folder: Path) -> storage.Database:
    return storage.Database(f"sqlite:///{folder}/tuner.db", create=False)
