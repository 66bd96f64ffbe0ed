"""A database as a run leaves it: pruned and failed trials, retries, hostile names."""

from __future__ import annotations

from typing import Any

import optuna

import tuner

__all__ = ["HOSTILE", "fill"]

HOSTILE = "<script>alert(1)</script> '; DROP TABLE trials; -- :smile: $x^2$ [a](b) **bold** -> " + "n" * 250


def objective(trial: Any) -> float:
    """Prunes every fifth trial, fails trial 3, and trial 4 succeeds on its second attempt."""
    x = trial.suggest_float("x", 0, 1)
    trial.suggest_categorical("kind", ["sgd", None])
    trial.set_user_attr(HOSTILE[:100], HOSTILE)
    trial.log({"train/loss": x}, 0)
    saved = trial.load_checkpoint()
    for step in range(saved.step + 1 if saved else 0, 4):
        trial.report(x + step / 10, step)
        if step == 1:
            trial.save_checkpoint({"step": step}, step)
        if trial.number == 4 and step == 3 and trial.attempt == 1:
            raise ConnectionError("the second time it works")
        if trial.number == 3 and step == 2:
            raise ValueError("<b>no luck</b>")
    if trial.number % 5 == 0:
        raise optuna.TrialPruned
    return float("inf") if trial.number == 6 else float(x)


def fill(url: str, n_trials: int = 8) -> None:
    """Four studies: ``main``, one with a hostile name, ``multi`` with two objectives, Optuna's ``plain``."""
    retry = tuner.Retry(retry_on=(ConnectionError,), backoff=0.0)
    for name, budget in (("main", n_trials), (HOSTILE, 2)):
        study = tuner.create_study(name, storage=url, seed=1, sampler="random")
        tuner.optimize(study, objective, n_trials=budget, executor="inline", progress=False, retry=retry)
    multi = tuner.create_study("multi", storage=url, seed=1, directions=["minimize", "maximize"])
    tuner.optimize(multi, lambda trial: (1.0, trial.suggest_float("y", 0, 1)), n_trials=3, executor="inline")
    plain = optuna.create_study(study_name="plain", storage=url, direction="maximize")
    plain.optimize(lambda trial: trial.suggest_int("z", 1, 9), n_trials=2)
