"""Trials in every state: pruned by several pruners, failed in several ways, running, claimed, odd reports."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import optuna
import sqlalchemy as sa

import tuner
from storage import Database
from storage.clock import utcnow
from storage.tables import attempts, optuna_tables

__all__ = ["RUNNING", "fill_states"]

RUNNING = {"running": 8, "claimed": 9}
"""Numbers of the trials of the study ``states`` that are made to look as they do in the middle of a run."""


def objective(trial: Any) -> float:
    """By number: 0 to 2 complete, 3 is pruned by the pruner, 4 raises, 5 returns NaN, 6 is retried, 7 has
    odd reports.
    """
    trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    trial.suggest_categorical("optimizer", ["adam", "sgd", None])
    trial.set_user_attr("note", f"=trial {trial.number}")
    if trial.attempt == 1:  # a retry has what was set before its checkpoint
        trial.set_constraint("size", trial.number - 5.0)
    trial.log({"train/loss": 1.0}, 0)
    saved = trial.load_checkpoint()
    value = 0.0
    for step in range(saved.step + 1 if saved else 0, 4):
        value = 1.0 / (step + 1) + (2.0 if trial.number == 3 else -trial.number / 100)
        if trial.number == 7:
            value = [0.1, math.inf, 0.05, 0.04][step]
        trial.report(value, step)
        trial.save_checkpoint({"step": step}, step)
        if trial.should_prune():
            raise optuna.TrialPruned
        if trial.number == 4 and step == 2:
            raise ValueError("<b>no luck</b>")
        if trial.number == 6 and step == 2 and trial.attempt == 1:
            raise ConnectionError("the second time it works")
    return math.nan if trial.number == 5 else value


def fill_states(url: str) -> None:
    """The studies ``states``, ``halving`` (its trials are pruned by rungs) and ``optunas``."""
    study = tuner.create_study(
        "states", storage=url, seed=1, sampler="random", pruner="median(n_startup_trials=2)"
    )
    retry = tuner.Retry(retry_on=(ConnectionError,), backoff=0.0)
    tuner.optimize(study, objective, n_trials=8, executor="inline", progress=False, retry=retry)
    _leave_in_the_middle(url)
    halving = tuner.create_study(
        "halving", storage=url, seed=1, sampler="random", pruner="asha(reduction_factor=2)"
    )
    tuner.optimize(halving, _worse_and_worse, n_trials=3, executor="inline", progress=False)
    plain = optuna.create_study(study_name="optunas", storage=url, pruner=optuna.pruners.NopPruner())
    plain.optimize(_prune_itself, n_trials=2)
    plain.enqueue_trial({"x": 0.5})


def _worse_and_worse(trial: Any) -> float:
    for step in range(1, 5):
        trial.report(trial.number + step / 10, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(trial.number)


def _prune_itself(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    trial.report(math.nan if trial.number else x, 0)
    if trial.number == 1:
        raise optuna.TrialPruned
    return x


def _leave_in_the_middle(url: str) -> None:
    """Two trials as a driver has them while it runs: one at work, and one that waits for its second try."""
    study = optuna.load_study(study_name="states", storage=url)
    for _ in RUNNING:
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)})
        trial.report(0.9, 0)
    database = Database(url, create=False)
    with database.write() as connection:
        uid = connection.execute(sa.select(attempts.c.study_uid)).scalars().first()
        for state, number in RUNNING.items():
            table = optuna_tables["trials"]
            ids = sa.select(table.c.trial_id).where(table.c.number == number, table.c.study_id == 1)
            row = {
                "study_uid": uid,
                "trial_id": connection.execute(ids).scalar_one(),
                "number": number,
                "epoch": 1,
                "created_at": utcnow(),
            }
            first = {**row, "attempt": 1, "state": "ended", "reason": "oom", "charged": True}
            first |= {
                "message": "out of memory",
                "provenance": '{"packages": {"torch": "2.12"}, "host": "a"}',
            }
            now = {
                **row,
                "attempt": 2,
                "state": state,
                "provenance": '{"packages": {"torch": "2.13"}, "host": "a"}',
            }
            if state == "running":
                now |= {
                    "started_at": utcnow() - dt.timedelta(seconds=5),
                    "resumed_step": 0,
                    "log_tail": "epoch 1 of 9",
                    "ranks": '[{"rank": 0, "host": "a", "node": "n", "pid": 7, "devices": ["cuda:0"]}]',
                }
            connection.execute(attempts.insert().values(first))
            connection.execute(attempts.insert().values(now))
    database.dispose()
