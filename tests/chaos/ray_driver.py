"""A driver of trainings on Ray, under attack.

``python -m tests.chaos.ray_driver URL STUDY HISTORY --n N --address ADDRESS``. Prints ``opened``, then
``done``, ``interrupted``, ``lost: ...`` or the error in one line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import optuna

import tuner
from storage import owner
from tests.chaos import training
from tests.chaos.history import History


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("study")
    parser.add_argument("history", type=Path)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--address")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=1.0)
    parser.add_argument("--stall", type=float)
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--checkpoints")
    parser.add_argument("--failures", type=int, default=3)
    parser.add_argument("--foreign", action="store_true", help="as if on another host")
    parser.add_argument("--pruner", default="none")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.foreign:
        owner._boot_id = lambda: "another host"  # type: ignore[assignment]
    history = History(arguments.history)
    study = tuner.create_study(
        arguments.study,
        storage=arguments.url,
        sampler="random",
        pruner=arguments.pruner,
        seed=arguments.seed,
        load_if_exists=True,
    )
    print("opened", flush=True)

    def told(study: Any, trial: optuna.trial.FrozenTrial) -> None:
        value = trial.values[0] if trial.values else None
        with history.operation("told", number=trial.number, state=trial.state.name, value=value):
            pass

    try:
        tuner.optimize(
            study,
            f"{training.__file__}:objective",
            n_trials=arguments.n,
            address=arguments.address,
            resources=tuner.Resources(ranks=arguments.ranks, cpus=arguments.cpus, gpus=0),
            retry=tuner.Retry(max_failures=arguments.failures, backoff=0.1, max_preemptions=10_000),
            stall_timeout=arguments.stall,
            trial_timeout=arguments.timeout,
            checkpoints=arguments.checkpoints or str(arguments.history.parent / "checkpoints"),
            callbacks=[told],
            env=("TUNER_CHAOS_*",),
            progress=False,
        )
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    except tuner.StudyHeld as error:
        print(f"lost: {error}", flush=True)
        return 3
    except tuner.TunerError as error:
        print(f"ended: {error}", flush=True)
        return 2
    print("done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
