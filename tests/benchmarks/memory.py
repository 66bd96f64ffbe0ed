"""A process that holds a big study as a driver does, and says how much memory that took at its peak.

``python -m tests.benchmarks.memory URL`` prints one line of JSON: the peak in MB, and how much of
the study is in memory.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import optuna
import ray  # noqa: F401  what a driver has imported counts

import tuner.optimize  # noqa: F401
from tests.benchmarks.sides import ours
from tests.benchmarks.works import asks

__all__ = ["main"]


def main(url: str) -> None:
    """Open the study, run a few trials on it, and print the line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with ours(url) as opened:
        found = opened.study.get_trials(deepcopy=False)
        asks(5)(opened.study)
        opened.flush()
        peak = _peak()
        curves = [trial.intermediate_values for trial in found]
        print(
            json.dumps(
                {
                    "peak": peak,
                    "trials": len(curves),
                    "reports": sum(map(len, curves)),
                    "sum": math.fsum(value for curve in curves for value in curve.values()),
                }
            )
        )


def _peak() -> float:
    """The greatest resident size in MB; ``getrusage`` would count the parent's from before the exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    main(sys.argv[1])
