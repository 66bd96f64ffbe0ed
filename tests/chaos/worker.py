"""A program under attack: holds a study and works on it until it has N finished trials.

``python -m tests.chaos.worker URL STUDY HISTORY --n N --seed S``. Every random choice comes from
the seed. Prints ``held`` once it has the lease, ``done`` at the end, ``lost`` and exits 3 when
another program took the study over.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

from storage import LeaseLost, SqlStorage, fence, owner
from tests.chaos.history import History

__all__ = ["mutate"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("study")
    parser.add_argument("history", type=Path)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reports", type=int, default=5)
    parser.add_argument("--duration", type=float, default=15.0)
    parser.add_argument("--foreign", action="store_true", help="as if on another host")
    parser.add_argument("--lose", type=int, default=0, help="lose the reply to the N-th COMMIT")
    parser.add_argument("--mutant", default="", help="break the store: fence | repeat")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.foreign:
        owner._boot_id = lambda: f"another host, seed {arguments.seed}"  # type: ignore[assignment]
    mutate(arguments.mutant)
    if arguments.lose:
        _lose(arguments.lose)
    try:
        _Work(arguments).run()
    except LeaseLost as error:
        print(f"lost: {error}", flush=True)
        return 3
    print("done", flush=True)
    return 0


class _Work:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._n = arguments.n
        self._reports = arguments.reports
        self._history = History(arguments.history)
        self._random = random.Random(arguments.seed)
        self._storage = SqlStorage(arguments.url)
        self._study = optuna.create_study(
            study_name=arguments.study,
            storage=self._storage,
            sampler=optuna.samplers.RandomSampler(seed=arguments.seed),
            load_if_exists=True,
        )
        self._duration = arguments.duration

    def run(self) -> None:
        with self._storage.lease(self._study.study_name, duration=self._duration) as held:
            print("held", flush=True)
            for left in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._tell(left.number, "FAIL", None)
            while self._finished() < self._n:
                if self._random.random() < 0.2:
                    self._add(held)
                else:
                    self._trial(held)

    def _finished(self) -> int:
        trials = self._study.get_trials(deepcopy=False)
        return sum(trial.state.is_finished() for trial in trials)

    def _trial(self, held: Any) -> None:
        with self._history.operation("create") as found:
            trial = self._study.ask()
            found["number"] = trial.number
        x = trial.suggest_float("x", 0.0, 1.0)
        for step in range(self._random.randrange(self._reports + 1)):
            value = round(x + self._random.random(), 9)
            with self._history.operation("report", number=trial.number, step=step, value=value):
                trial.report(value, step)
            if self._random.random() < 0.3:
                with self._history.operation("flush"):
                    held.flush()
        if self._random.random() < 0.2:
            self._tell(trial.number, "FAIL", None)
        else:
            self._tell(trial.number, "COMPLETE", round(x, 9))

    def _tell(self, number: int, state: str, value: float | None) -> None:
        with self._history.operation("tell", number=number, state=state, value=value):
            self._study.tell(number, value, state=TrialState[state])

    def _add(self, held: Any) -> None:
        tag = f"{self._random.getrandbits(60):x}"
        with self._history.operation("add", tag=tag):
            self._study.add_trial(create_trial(value=1.0, user_attrs={"tag": tag}))
            held.flush()


def mutate(mutant: str) -> None:
    """Break the store in a way that the checker has to notice."""
    if mutant == "fence":
        passes = fence.Fence._pass

        def _pass(self: Any, *given: Any) -> bool:
            passes(self, *given)
            return True

        fence.Fence._pass = _pass  # type: ignore[method-assign]
    elif mutant == "repeat":
        fence.Fence._recorded = lambda self: -1  # type: ignore[method-assign]
    elif mutant:
        raise ValueError(mutant)


def _lose(count: int) -> None:
    passed = 0

    def reach(name: str) -> None:
        nonlocal passed
        passed += name == "committed"
        if name == "committed" and passed == count:
            raise sa.exc.OperationalError("COMMIT", None, OSError("the reply was lost"))

    fence.reach = reach


if __name__ == "__main__":
    sys.exit(main())
