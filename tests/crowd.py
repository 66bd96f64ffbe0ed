"""A study as a cluster leaves it: hosts, devices, failures of a few kinds, retries, attempts that run now."""

from __future__ import annotations

import datetime as dt
import json

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

import tuner
from storage import Database, owner, tables
from storage.clock import utcnow
from storage.tables import optuna_tables

__all__ = ["CROWD", "fill_crowd"]

CROWD = "crowd"

LR = FloatDistribution(1e-4, 1.0, log=True)
OPTIMIZER = CategoricalDistribution(["sgd", "adam", None])
WIDTH = FloatDistribution(0, 1)

RESOURCES = {"ranks": 2, "cpus": 1, "gpus": 1}

_FRAMES = """Traceback (most recent call last):
  File "/home/node{host}/work/train.py", line 41, in objective
    loss = step(model, batch)
  File "/home/node{host}/work/train.py", line 17, in step
    raise FloatingPointError(f"loss is {{loss}} at step {{at}}")
FloatingPointError: loss is {loss} at step {at}
"""


def fill_crowd(url: str, n_trials: int = 60, *, live: bool = True, name: str = CROWD) -> None:
    """Trials that began a second apart on four hosts, at most eight at once.

    Of each 20 trials number 3 and 7 fail with a loss that is not finite, at a high ``lr``; number 11 loses
    a rank; 13 is tried again and completes; 5 is pruned. The last six run, the seventh and eighth to last
    wait: for a place, and for a slot.

    Args:
        live: this process holds the lease; else a driver that is gone.
    """
    study = tuner.create_study(name, storage=url, seed=1, sampler="random")
    database = Database(url)
    study_id = study._study_id
    began = utcnow() - dt.timedelta(seconds=n_trials + 30)
    with database.engine.begin() as connection:
        attrs = optuna_tables["study_system_attributes"]
        uid = json.loads(
            connection.execute(
                sa.select(attrs.c.value_json).where(
                    attrs.c.study_id == study_id, attrs.c.key == tables.UID_KEY
                )
            ).scalar_one()
        )
        _trials(connection, study_id, n_trials, began)
        trials = optuna_tables["trials"]
        chosen = sa.select(trials.c.number, trials.c.trial_id).where(trials.c.study_id == study_id)
        ids = {row.number: row.trial_id for row in connection.execute(chosen)}
        _params(connection, n_trials, ids)
        rows = [row for number in range(n_trials) for row in _attempts(number, n_trials, began)]
        fixed = {"study_uid": uid, "epoch": 1, "charged": False, "created_at": began}
        connection.execute(
            sa.insert(tables.attempts), [{**fixed, **row, "trial_id": ids[row["number"]]} for row in rows]
        )
        words = [
            {"study_uid": uid, "epoch": 1, "kind": kind, "detail": "{}", "created_at": at}
            for kind, at in (("started", began), ("finished", began + dt.timedelta(seconds=n_trials)))
        ]
        connection.execute(sa.insert(tables.events), words)
        reports = [
            {
                "trial_id": ids[number],
                "step": 4,
                "intermediate_value": 0.5,
                "intermediate_value_type": "FINITE",
            }
            for number in range(n_trials - 6, n_trials)
        ]
        connection.execute(sa.insert(optuna_tables["trial_intermediate_values"]), reports)
        connection.execute(
            sa.update(tables.studies)
            .where(tables.studies.c.study_uid == uid)
            .values(settings=json.dumps({"n_trials": 2 * n_trials, "resources": RESOURCES}))
        )
        holder = owner.identity("crowd")
        if not live:
            holder["start_time"] = "0"
        connection.execute(sa.delete(tables.leases).where(tables.leases.c.study_uid == uid))
        connection.execute(
            sa.insert(tables.leases),
            {
                "study_uid": uid,
                "epoch": 1,
                "owner": json.dumps(holder),
                "renewals": 7,
                "applied_seq": 0,
                "renewed_at": utcnow(),
            },
        )
    database.dispose()


def _state(number: int, n_trials: int) -> str:
    if number >= n_trials - 8:
        return "RUNNING"
    return {3: "FAIL", 7: "FAIL", 11: "FAIL", 5: "PRUNED"}.get(number % 20, "COMPLETE")


def _trials(connection: sa.Connection, study_id: int, n_trials: int, began: dt.datetime) -> None:
    rows = []
    for number in range(n_trials):
        state, start = _state(number, n_trials), began + dt.timedelta(seconds=number)
        end = None if state == "RUNNING" else start + dt.timedelta(seconds=7)
        rows.append(
            {
                "number": number,
                "study_id": study_id,
                "state": state,
                "datetime_start": start,
                "datetime_complete": end,
            }
        )
    connection.execute(sa.insert(optuna_tables["trials"]), rows)


def _params(connection: sa.Connection, n_trials: int, ids: dict[int, int]) -> None:
    rows = []
    for number in range(n_trials):
        high = number % 20 in (3, 7)
        values = {
            "lr": (0.5 + number % 7 / 20 if high else 10 ** (-1 - number % 31 / 10), LR),
            "width": (number % 17 / 17, WIDTH),
            "optimizer": (number % 3, OPTIMIZER),
        }
        for param, (value, dist) in values.items():
            text = distribution_to_json(dist)
            rows.append(
                {
                    "trial_id": ids[number],
                    "param_name": param,
                    "param_value": value,
                    "distribution_json": text,
                }
            )
    connection.execute(sa.insert(optuna_tables["trial_params"]), rows)


def _attempts(number: int, n_trials: int, began: dt.datetime) -> list[dict[str, object]]:
    start = began + dt.timedelta(seconds=number)
    host = number % 4
    ranks = [
        {
            "rank": rank,
            "host": f"gpu-{host}",
            "node": f"{host}" * 56,
            "pid": 1000 + number * 2 + rank,
            "devices": [str(rank)],
        }
        for rank in range(2)
    ]
    row: dict[str, object] = {
        "number": number,
        "attempt": 1,
        "state": "ended",
        "reason": "complete",
        "message": "",
        "exception": "",
        "traceback": "",
        "log_tail": "",
        "started_at": start,
        "ended_at": start + dt.timedelta(seconds=7),
        "ranks": json.dumps(ranks),
    }
    unfinished = {"reason": None, "ended_at": None, "state": "running"}
    if number == n_trials - 8:
        return [{**row, **unfinished, "ranks": None, "state": "claimed", "started_at": None}]
    if number == n_trials - 7:
        return [{**row, **unfinished, "ranks": None}]
    if number >= n_trials - 6:
        return [{**row, **unfinished}]
    match number % 20:
        case 3 | 7:
            text = _FRAMES.format(
                host=host, loss=float("nan") if number % 40 < 20 else 1e9 + number, at=number
            )
            failed = {
                "reason": "exception",
                "exception": "FloatingPointError",
                "message": text.splitlines()[-1].replace("nan", "1e30"),
                "traceback": text,
                "log_tail": f"epoch {number}\nloss 3.2",
            }
            return [{**row, **failed}]
        case 11:
            return [
                {**row, "reason": "rank_lost", "message": f"rank 1 (process {4000 + number}) got signal 9"}
            ]
        case 13:
            half = start + dt.timedelta(seconds=3)
            device = "GPU 1 of gpu-1 does not work: CUDA error: uncorrectable ECC error"
            first = {"reason": "device_failed", "message": device, "ended_at": half}
            return [{**row, **first}, {**row, "attempt": 2, "started_at": half}]
        case 5:
            return [{**row, "reason": "pruned"}]
    return [row]
