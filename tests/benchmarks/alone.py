"""A process of its own for a measurement, of which nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner.processes import sweep

__all__ = ["alone"]

ROOT = Path(__file__).parents[2]


def alone(
    arguments: Sequence[str], folder: Path, *, seconds: float, env: Mapping[str, str] | None = None
) -> str:
    """Run ``python ARGUMENTS`` in a folder, and give what it printed; what it started is ended with it.

    Raises:
        RuntimeError: it failed, or took longer; names the arguments, and what it said last.
    """
    mark = f"bench-{os.getpid()}-{folder.name}"
    environment = {**os.environ, **(env or {}), "TUNER_BENCH_PROCESS": mark, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(arguments)} took longer than {seconds:g} s") from None
    finally:
        sweep(mark, "TUNER_BENCH_PROCESS", seconds=10)
    if done.returncode:
        said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
        raise RuntimeError(f"{' '.join(arguments)} failed\n{said}")
    return done.stdout
