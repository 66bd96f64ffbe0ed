"""A training under attack, on any number of ranks: it says in its history what it does, step by step.

``TUNER_CHAOS_FOLDER`` names the folder of the histories, ``TUNER_CHAOS_STEPS`` and ``TUNER_CHAOS_PACE``
the steps of a trial and the seconds of one, ``TUNER_CHAOS_FAULTS`` (JSON: number of a trial to rank and
name of a fault) what befalls a trial at step :data:`AT` of its first attempt.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from tests.chaos.history import History

EVERY = 5
"""Steps between two checkpoints."""

AT = 12
"""The step before which a fault strikes."""


def _hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _hold_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(600)  # unlike CDLL it keeps the GIL: no other thread runs


def _leave_helpers() -> None:
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": _hang,
    "gil": _hold_the_interpreter,
    "exit": lambda: os._exit(7),
    "sys.exit": lambda: sys.exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "helpers": _leave_helpers,
}


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
    faults = json.loads(os.environ.get("TUNER_CHAOS_FAULTS", "{}"))
    rank, fault = faults.get(str(trial.number), (-1, ""))
    for step in range(first, steps):
        if step == AT and trial.attempt == 1 and trial.rank == rank:
            with history.operation("fault", **who, fault=fault):
                pass
            FAULTS[fault]()
        with history.operation("step", **who, step=step):
            _train(trial, pace)
        trial.report(x - step / 1000, step)
        stop = trial.should_stop()
        if stop or step % EVERY == EVERY - 1:
            with history.operation("save", **who, step=step):
                trial.save_checkpoint({"x": x}, step)
        if stop:
            return float(x)
        if trial.number % 5 == 4 and trial.should_prune():
            with history.operation("pruned", **who, step=step):
                pass
            raise optuna.TrialPruned
    with history.operation("end", **who, value=x):
        pass
    return float(x)


def _train(trial: Any, pace: float) -> None:
    if trial.world_size > 1:
        import torch

        torch.distributed.all_reduce(torch.ones(1))
    time.sleep(pace)
