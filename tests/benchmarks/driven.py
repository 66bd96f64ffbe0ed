"""A big study as a driver leaves it: rows of :mod:`tests.benchmarks.filling`, and attempts and events."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Iterator

import optuna

import tuner
from tests.benchmarks import filling
from tests.benchmarks.sides import STUDY

__all__ = ["STUDY", "fill"]

_TRACEBACK = """Traceback (most recent call last):
  File "train.py", line {line}, in objective
    loss.backward()
  File "torch/_tensor.py", line 630, in backward
    torch.autograd.backward(
{error}
"""
_FAILURES = (
    ("exception", "ValueError", "ValueError: the loss has no gradient"),
    ("oom", "torch.OutOfMemoryError", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ("nan", "", "the objective returned nan"),
    ("rank_lost", "", "rank 1 was killed by signal 9 (SIGKILL)"),
)


def fill(url: str, *, trials: int, reports: int) -> None:
    """A study of finished trials in a SQLite file; every 50th failed, every 25th was tried twice."""
    filling.fill(url, trials=trials, reports=reports)
    study = optuna.load_study(study_name=STUDY, storage=url)
    tuner.optimize(
        study, _nothing, n_trials=trials, executor="inline", progress=False
    )  # it is spent: makes our rows
    uid = study._storage.get_study_system_attrs(study._study_id)["tuner:uid"]
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.execute("PRAGMA synchronous=OFF")  # of this connection only
    with connection:
        for table, columns, rows in (
            (
                "tuner_attempts",
                "study_uid, trial_id, number, attempt, state, epoch, reason, charged, message, exception, "
                "traceback, log_tail, created_at, started_at, ended_at, resumed_step, ranks, relative, "
                "attributes, provenance",
                _attempts(uid, trials),
            ),
            (
                "tuner_events",
                "study_uid, trial_id, attempt, epoch, kind, detail, created_at",
                _events(uid, trials),
            ),
        ):
            marks = ", ".join("?" for _ in columns.split(","))
            connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
    connection.close()


def _nothing(trial: optuna.Trial) -> float:
    return 0.0


def _attempts(uid: str, trials: int) -> Iterator[tuple[object, ...]]:
    first = dt.datetime(2025, 1, 1)
    provenance = json.dumps({"host": "node-1", "git": {"commit": "0" * 40}, "packages": {"torch": "2.13.0"}})
    for number in range(trials):
        began, ended = (str(first + dt.timedelta(seconds=number + more)) for more in (0, 60))
        ranks = json.dumps(
            [
                {
                    "rank": rank,
                    "host": f"node-{number % 8}",
                    "node": "",
                    "pid": 1000 + number,
                    "devices": [str(rank)],
                }
                for rank in range(2)
            ]
        )
        fixed = (ranks, "{}", None, provenance)
        last = ("complete", 0, "", "", "", "")
        if number % 50 == 49:
            reason, exception, message = _FAILURES[number // 50 % len(_FAILURES)]
            trace = _TRACEBACK.format(line=40 + number // 50 % 3, error=message) if exception else ""
            last = (reason, 1, message, exception, trace, "epoch 17: loss 0.12\n" * 40)
        elif number % 20 == 19:
            last = ("pruned", 0, "", "", "", "")
        if number % 25 == 0:
            lost = ("rank_lost", 1, "rank 0 was killed by signal 9 (SIGKILL)", "", "", "epoch 3\n" * 20)
            yield (uid, number + 1, number, 1, "ended", 1, *lost, began, began, ended, None, *fixed)
        attempt = 2 if number % 25 == 0 else 1
        yield (uid, number + 1, number, attempt, "ended", 1, *last, began, began, ended, None, *fixed)


def _events(uid: str, trials: int) -> Iterator[tuple[object, ...]]:
    first = dt.datetime(2025, 1, 1)
    for number in range(trials):
        for kind, more in (("started", 0), ("finished", 60)):
            moment = str(first + dt.timedelta(seconds=number + more))
            yield (uid, number + 1, 1, 1, kind, "{}", moment)
