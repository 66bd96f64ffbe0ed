"""A driver under attack: a whole study by ``tuner.optimize`` in one process, with failures and retries.

``python -m tests.chaos.driver URL STUDY HISTORY --n N --seed S``. Of every four trials one fails its
first two attempts, and one is pruned. The history has each attempt's ``start``.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

import tuner
from storage import HeldStudy, owner
from tests.chaos.history import History


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("study")
    parser.add_argument("history", type=Path)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--foreign", action="store_true", help="as if on another host")
    parser.add_argument("--mutant", default="", help="break the store: apart")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.foreign:
        owner._boot_id = lambda: "another host"  # type: ignore[assignment]
    if arguments.mutant == "apart":
        _write_apart()
    study = tuner.create_study(
        arguments.study,
        storage=arguments.url,
        sampler="random",
        pruner="none",
        seed=arguments.seed,
        load_if_exists=True,
    )
    print("opened", flush=True)
    try:
        tuner.optimize(
            study,
            objective,
            n_trials=arguments.n,
            executor="inline",
            retry=tuner.Retry(retry_on=(RuntimeError,), backoff=0.0, stop_after=0),
            checkpoints=str(arguments.history.parent / "checkpoints"),
            progress=False,
        )
    except tuner.StudyHeld as error:
        print(f"lost: {error}", flush=True)
        return 3
    print("done", flush=True)
    return 0


@functools.cache
def _history() -> History:
    return History(Path(sys.argv[3]))


def objective(trial: Any) -> float:
    with _history().operation("start", number=trial.number, attempt=trial.attempt):
        x = float(trial.suggest_float("x", 0.0, 1.0))
    for step in range(3):
        trial.report(x, step)
    if trial.number % 4 == 1 and trial.attempt <= 2:
        raise RuntimeError("fails at first")
    if trial.number % 4 == 3:
        raise optuna.TrialPruned
    return x


def _write_apart() -> None:
    """What belongs into one transaction goes into several: the failing and the queueing of a retry."""
    flush = HeldStudy.flush

    def apart(self: HeldStudy, *writes: Any) -> Sequence[Any]:
        return [result for write in writes for result in flush(self, write)] if writes else flush(self)

    HeldStudy.flush = apart  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
