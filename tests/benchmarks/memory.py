"""A process that holds a big study as a driver does, and says how much memory that took at its peak.

``python -m tests.benchmarks.memory URL`` prints one line of JSON: the peak in MB, and how much of
the study is in memory.
"""

from __future__ import annotations

import json
import math
import sys

import optuna
import ray  # noqa: F401  what a driver has imported counts

import tuner.optimization  # noqa: F401
from tests.benchmarks.sides import ours
from tests.benchmarks.workplace import peak
from tests.benchmarks.works import asks

__all__ = ["main"]


def main(url: str) -> None:
    """Open the study, run a few trials on it, and print the line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with ours(url) as opened:
        found = opened.study.get_trials(deepcopy=False)
        asks(5)(opened.study)
        opened.flush()
        most = peak()
        curves = [trial.intermediate_values for trial in found]
        print(
            json.dumps(
                {
                    "peak": most,
                    "trials": len(curves),
                    "reports": sum(map(len, curves)),
                    "sum": math.fsum(value for curve in curves for value in curve.values()),
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1])
