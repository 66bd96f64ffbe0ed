"""``make bench-train``: what Tuner costs a training: its start, its steps, its reports.

Sides work in turn, and the median of the ratios counts. Exit 0 when every figure is reached, 1 when one is
missed. Nothing else should run on the machine meanwhile: the load is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks import starts, trainings
from tests.benchmarks.alone import alone
from tests.benchmarks.goals import Figure, Result, judge, table
from tests.benchmarks.verdict import conclude

__all__ = ["FIGURES", "FULL", "MEASURES", "QUICK", "Sizes", "main"]

WIDTH = 140


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work a run does.

    Attributes:
        starts, peer_starts: trials whose start is measured, of ours and of Ray Tune's; 0: not at all.
        rounds: measurements of each side of the throughput.
        seconds: of each of these, and of each kind of step where reports are measured.
        judged: whether these are the sizes that the figures are meant for.
    """

    starts: int
    peer_starts: int
    rounds: int
    seconds: float
    judged: bool


FULL = Sizes(starts=30, peer_starts=3, rounds=5, seconds=6.0, judged=True)
QUICK = Sizes(starts=2, peer_starts=0, rounds=1, seconds=0.3, judged=False)

FIGURES = {
    figure.key: figure
    for figure in (
        Figure(
            key="start",
            work="from dispatch to the first line on 2 warm ranks, beyond init_process_group",
            goal=50,
            unit="ms",
        ),
        Figure(
            key="throughput",
            work="steps/s of 2 ranks under Tuner, of those under torchrun",
            goal=0.98,
            unit="times",
            is_floor=True,
        ),
        Figure(key="report-torch", work="a report after each 1 ms step of torch", goal=2, unit="%"),
        Figure(key="report-busy", work="a report after each 1 ms step of a busy loop", goal=2, unit="%"),
    )
}


def _result(key: str, sizes: Sizes, values: Sequence[float], details: str) -> Result:
    return judge(FIGURES[key], values, details, judged=sizes.judged)


def measure_starts(sizes: Sizes, folder: Path) -> list[Result]:
    """Fresh processes on a warm group; beside it Ray Tune, where it is installed."""
    found = starts.measure(sizes.starts, folder)
    stages = starts.medians(found)
    details = ", ".join(f"{name} {stages[name]:.1f}" for name in (*starts.STAGES, "whole"))
    if sizes.peer_starts:
        peer = statistics.median(starts.measure_ray_tune(sizes.peer_starts, folder))
        details += f" ms; Ray Tune {peer:.0f} ms"
    return [_result("start", sizes, [one["beyond"] for one in found], details)]


def measure_throughput(sizes: Sizes, folder: Path) -> list[Result]:
    """The same loop in turn; Ray is ended before torchrun's turn."""
    pairs = []
    for number in range(sizes.rounds):
        both = {"tuner": 0.0, "torchrun": 0.0}
        for side in sorted(both, reverse=number % 2 == 0):
            result = folder / f"{side}-{number}"
            if side == "tuner":
                _under_tuner("throughput", result, sizes.seconds, folder / f"{number}.db", ranks=2)
            else:
                torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
                _run([*torchrun, trainings.__file__], result, sizes.seconds)
            both[side] = _read(result)["steps/s"]
        pairs.append(both)
    ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in ("tuner", "torchrun"))
    ratios = [pair["tuner"] / pair["torchrun"] for pair in pairs]
    return [_result("throughput", sizes, ratios, f"Tuner {ours:.0f} steps/s, torchrun {theirs:.0f}")]


def measure_reports(sizes: Sizes, folder: Path) -> list[Result]:
    """Within one process, blocks with reports in turn with blocks without; the driver beside it."""
    result = folder / "reporting"
    _under_tuner("reporting", result, sizes.seconds, folder / "reporting.db", ranks=1)
    results = []
    for kind, sides in _read(result).items():
        extra = [100 * (slow / fast - 1) for slow, fast in zip(sides["with"], sides["without"], strict=True)]
        took = {name: 1000 * statistics.median(times) for name, times in sides.items()}
        details = f"{took['with']:.4f} ms a step with, {took['without']:.4f} without; {len(extra)} pairs"
        results.append(_result(f"report-{kind}", sizes, extra, details))
    return results


MEASURES: dict[str, Callable[[Sizes, Path], list[Result]]] = {
    "start": measure_starts,
    "throughput": measure_throughput,
    "reports": measure_reports,
}

_OPTIMIZE = """
import sys, tuner
study = tuner.create_study("bench", storage=sys.argv[2], sampler="random")
tuner.optimize(
    study, sys.argv[1], n_trials=1, resources=tuner.Resources(ranks=int(sys.argv[3]), cpus=0.5, gpus=0),
    env=("TUNER_BENCH_*",), progress=False, retry=tuner.Retry(max_failures=0),
)
"""


def _under_tuner(name: str, result: Path, seconds: float, database: Path, ranks: int) -> None:
    reference = f"{trainings.__file__}:{name}"
    _run(["-c", _OPTIMIZE, reference, f"sqlite:///{database}", str(ranks)], result, seconds)


def _run(arguments: Sequence[str], result: Path, seconds: float) -> None:
    environment = {
        "OMP_NUM_THREADS": "1",  # as a shell gives a rank of half a core
        "TUNER_BENCH_RESULT": str(result),
        "TUNER_BENCH_SECONDS": str(seconds),
    }
    said = alone(arguments, result.parent, seconds=300, env=environment)
    if not Path(f"{result}.0").exists():
        raise RuntimeError(f"{result.name}: the training left no result\n{said[-2000:]}")


def _read(result: Path) -> Mapping[str, Any]:
    """What rank 0 measured."""
    return json.loads(Path(f"{result}.0").read_text())  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(prog="bench-train", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it still run?")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the results to a file, too")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    results: list[Result] = []
    for key in options.only or MEASURES:
        console.print(f"{key}: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        with tempfile.TemporaryDirectory(prefix="tuner-bench-") as folder:
            results += MEASURES[key](sizes, Path(folder))
    made = table("What Tuner costs a training", results)
    return conclude(console, made, results, options.json, judged=sizes.judged)


if __name__ == "__main__":
    sys.exit(main())
