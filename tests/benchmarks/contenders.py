"""Each side of ``make bench``: a process of its own, in which it does one piece of work, and says how fast.

::

    python -m tests.benchmarks.contenders SIDE WORK COUNT FOLDER

The last line that it prints is JSON. All sides have 2 slots, but Optuna, which has one (``n_jobs=1``: its
other ones are threads of the same process). Ray is started anew in each process that needs one, and its start
is in no rate: see :func:`tests.benchmarks.workplace.rate`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from tests.benchmarks import chores
from tests.benchmarks.workplace import NOTES

__all__ = ["CONTENDERS", "main"]

SPACE = {"space": chores.SPACE}

CONTENDERS: Mapping[tuple[str, str], tuple[str, str, Mapping[str, Any]]] = {
    ("tuner", "shared"): ("ours", "trivial", {**SPACE, "isolation": "shared"}),
    ("tuner", "attempt"): ("ours", "trivial", SPACE),
    ("tuner", "spaceless"): ("ours", "trivial", {"isolation": "shared"}),
    ("tuner", "reports"): ("ours", "reporting", {}),
    ("tuner", "ask-1ms"): ("ours", "asking", {"step": 0.001}),
    ("tuner", "ask-20ms"): ("ours", "asking", {"step": 0.020}),
    ("tuner", "ask-1ms-asleep"): ("ours", "asking", {"step": 0.001, "asleep": True}),
    ("tuner", "ask-20ms-asleep"): ("ours", "asking", {"step": 0.020, "asleep": True}),
    ("tuner", "seconds"): ("ours", "one_second", {}),
    ("tuner", "simulation"): ("ours", "simulation", {}),
    ("tuner", "memory"): ("ours", "memory", {}),
    ("tuner", "growth"): ("ours", "growth", {}),
    ("tuner", "first-line"): ("ours", "first_line", {}),
    ("ray", "first-line"): ("peers", "start_of_ray", {}),
    ("imports", "first-line"): ("peers", "imports", {}),
    ("ray", "trivial"): ("peers", "ray_loop", {}),
    ("optuna", "trivial"): ("peers", "optuna_trivial", {}),
    ("optuna", "reports"): ("peers", "optuna_reporting", {}),
    ("ray-tune-reuse", "trivial"): ("peers", "ray_tune_trivial", {"reuse": True}),
    ("ray-tune", "trivial"): ("peers", "ray_tune_trivial", {"reuse": False}),
    ("ray-tune-reuse", "reports"): ("peers", "ray_tune_reporting", {}),
    ("ray-tune-reuse", "seconds"): ("peers", "ray_tune_one_second", {}),
}
"""Module, function and options of each; a side imports nothing of another."""


def main(side: str, work: str, count: str, folder: str) -> None:
    """Do it and print the line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ["TUNER_BENCH_RESULT"] = str(Path(folder) / NOTES)
    module, name, options = CONTENDERS[side, work]
    function = getattr(importlib.import_module(f"tests.benchmarks.{module}"), name)
    print(json.dumps(function(int(count), Path(folder), **options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
