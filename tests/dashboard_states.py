"""Studies in every state that a driver can leave them in, written as rows: no driver runs."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import TrialState

from storage import Database, owner, studies, tables
from storage.clock import utcnow
from storage.tables import optuna_tables

__all__ = ["ARGUMENTS", "DEAD", "PROVENANCE", "add_study", "here"]

ARGUMENTS = ["/usr/bin/tuner", "run", "train.py", "--study", "<b>a</b>"]

PROVENANCE = {
    "objective": "train.py:objective",
    "objective_digest": "ab12" * 16,
    "arguments": ARGUMENTS,
    "git": {"commit": "0123456789abcdef" * 2, "uncommitted_digest": "feed" * 16},
    "python": "3.11.9",
    "packages": {"optuna": "5.0", "ray": "2.60"},
    "host": "gpu-box",
    "study_seed": 1,
}

DEAD = {**owner.identity("run"), "pid": 2**22 + 1, "start_time": "1"}
"""The owner of a lease whose process is gone: the kernel gives no number that high."""


def add_study(
    database: Database,
    name: str,
    *,
    ended: Sequence[str] = (),
    running: int = 0,
    claimed: int = 0,
    retrying: int = 0,
    budget: int = 100,
    holder: dict[str, Any] | None = None,
    renewed: float = 0.0,
    every: float = 10.0,
    stop_reason: str | None = None,
) -> None:
    """A study with ``ended`` trials of those states, one each ``every`` seconds until now, and open ones.

    Args:
        holder: of the lease; None: released.
        renewed: seconds since the lease was renewed.
    """
    record = studies.create(database, name, ["minimize"], seed=1, sampler="tpe", pruner="median")
    assert record is not None
    now = utcnow()
    uid, at = record.uid, now - dt.timedelta(seconds=every * len(ended))
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("trials", "trial_values", "trial_params", "trial_intermediate_values")
    }
    attempts: list[dict[str, Any]] = []
    space = distribution_to_json(FloatDistribution(0.0, 200.0))
    with database.errors(), database.write() as connection:
        trials = optuna_tables["trials"]
        first = (connection.execute(sa.select(sa.func.max(trials.c.trial_id))).scalar() or 0) + 1
        open_states = ["running"] * running + ["claimed"] * claimed + ["retrying"] * retrying
        for number, state in enumerate([*ended, *open_states]):
            trial_id, x = first + number, (number * 37 % 101 + 1) * 0.97**number
            is_open = state in ("running", "claimed", "retrying")
            begin = at + dt.timedelta(seconds=every * min(number, len(ended)))
            end = None if is_open else begin + dt.timedelta(seconds=every)
            rows["trials"].append(
                {
                    "trial_id": trial_id,
                    "number": number,
                    "study_id": record.study_id,
                    "state": TrialState.RUNNING if is_open else TrialState[state],
                    "datetime_start": begin,
                    "datetime_complete": end,
                }
            )
            rows["trial_params"].append(
                {"trial_id": trial_id, "param_name": "x", "param_value": x, "distribution_json": space}
            )
            if state == "COMPLETE":
                rows["trial_values"].append(
                    {
                        "trial_id": trial_id,
                        "objective": 0,
                        "value": x,
                        "value_type": TrialValueModel.TrialValueType.FINITE,
                    }
                )
            if state == "running":
                rows["trial_intermediate_values"] += [
                    {
                        "trial_id": trial_id,
                        "step": step,
                        "intermediate_value": x + 1 / (step + 1),
                        "intermediate_value_type": (
                            TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
                        ),
                    }
                    for step in range(30)
                ]
            for attempt in (1, 2) if state == "retrying" else (1,):
                is_last = state != "retrying" or attempt == 2
                attempts.append(
                    {
                        "study_uid": uid,
                        "trial_id": trial_id,
                        "number": number,
                        "attempt": attempt,
                        "state": _attempt_state(state) if is_last else "ended",
                        "epoch": 1,
                        "created_at": begin,
                        "started_at": begin,
                        "ended_at": end,
                        "ranks": json.dumps([{"rank": 0, "host": "gpu-box", "pid": 9, "devices": [2]}]),
                        "provenance": json.dumps(PROVENANCE),
                    }
                )
        for table, found in rows.items():
            if found:
                connection.execute(optuna_tables[table].insert(), found)
        if attempts:
            connection.execute(tables.attempts.insert(), attempts)
            word = {"study_uid": uid, "epoch": 1, "kind": "started", "detail": "{}"}
            signs = [at for one in attempts for at in (one["created_at"], one["ended_at"]) if at]
            connection.execute(
                tables.events.insert(), [{**word, "created_at": at} for at in (min(signs), max(signs))]
            )
        lease = {
            "study_uid": uid,
            "epoch": 1,
            "owner": json.dumps(holder) if holder else None,
            "renewals": 1,
            "applied_seq": 1,
            "renewed_at": now - dt.timedelta(seconds=renewed),
        }
        connection.execute(tables.leases.insert().values(lease))
        settings = json.dumps({"n_trials": budget, "retry": {"max_failures": 3}, "timeout": None})
        connection.execute(
            tables.studies.update()
            .where(tables.studies.c.study_uid == uid)
            .values(settings=settings, stop_reason=stop_reason)
        )


def _attempt_state(state: str) -> str:
    return {"running": "running", "claimed": "claimed", "retrying": "claimed"}.get(state, "ended")


def here() -> dict[str, Any]:
    """This process as the owner of a lease."""
    return owner.identity("run", os.getpid())
