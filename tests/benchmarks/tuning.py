"""``make bench``: whole studies, and what they cost beside the training: Tuner, Optuna and Ray Tune.

Sides work in turn, each time in a process of its own (:mod:`tests.benchmarks.contenders`), and the median of
the rounds' ratios counts. Exit 0 when every figure is reached, 1 when one is missed. Nothing else should run
on the machine meanwhile: the load is printed before each work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from rich.console import Console

from tests.benchmarks import driven, growth, machine, readme
from tests.benchmarks.alone import alone
from tests.benchmarks.goals import Result, judge, reached, table
from tests.benchmarks.rows import FIGURES, FULL, NAMES, QUICK, Sizes
from tests.benchmarks.verdict import conclude

__all__ = ["MEASURES", "Bench", "in_turn", "main"]

WIDTH = 140
LONGEST = 900.0  # seconds of one piece of work


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a measure works with.

    Attributes:
        folder: for its files.
        say: prints a figure as it comes.
        keep: the growth's points and picture are kept beside the benchmark.
    """

    sizes: Sizes
    folder: Path
    say: Callable[[str], object]
    keep: bool = False

    def work(self, side: str, what: str, count: int, folder: Path | None = None) -> dict[str, float]:
        """Let a side do so much of a piece of work in a process of its own.

        Args:
            folder: with what is there already; default: an empty one.
        """
        with tempfile.TemporaryDirectory(prefix="work-", dir=self.folder, ignore_cleanup_errors=True) as own:
            place = folder or Path(own)
            arguments = ["-m", "tests.benchmarks.contenders", side, what, str(count), str(place)]
            said = alone(arguments, place, seconds=LONGEST)
        found: dict[str, float] = json.loads(said.splitlines()[-1])
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in found.items() if name != "flood_began")
        self.say(f"{side}, {what}: {shown}")
        return found

    def judge(
        self, key: str, values: Sequence[float], details: str = "", sides: Mapping[str, str] | None = None
    ) -> Result:
        """Against the figure of this key."""
        return judge(FIGURES[key], values, details, judged=self.sizes.judged, sides=sides)


def in_turn(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Values of each side, which work in turn: forwards in one round and backwards in the next."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sorted(sides, key=list(sides).index, reverse=bool(number % 2)):
            found[side].append(sides[side]())
    return found


def _against(
    bench: Bench, work: str, found: Mapping[str, Sequence[float]], unit: str, details: str = ""
) -> list[Result]:
    """Ours over each peer's, round by round, where there is a figure for it; every result has all sides."""
    sides = {
        NAMES[side]: f"{statistics.median(rates):,.{0 if statistics.median(rates) >= 100 else 2}f}{unit}"
        for side, rates in found.items()
        if side in NAMES
    }
    results = []
    for peer, rates in found.items():
        if f"{work}/{peer}" in FIGURES:
            ratios = [ours / theirs for ours, theirs in zip(found["tuner"], rates, strict=True)]
            results.append(bench.judge(f"{work}/{peer}", ratios, details, sides))
    return results


def _rate(bench: Bench, side: str, work: str, count: int) -> Callable[[], float]:
    return lambda: bench.work(side, work, count)["rate"]


def measure_trivial(bench: Bench) -> list[Result]:
    """Trials that return a number at once, with kept processes and with fresh ones; the peers serve both."""
    trials = bench.sizes.trials
    sides: dict[str, Callable[[], float]] = {
        "shared": _rate(bench, "tuner", "shared", trials["tuner"]),
        "attempt": _rate(bench, "tuner", "attempt", trials["tuner"]),
        "spaceless": _rate(bench, "tuner", "spaceless", trials["tuner"]),
        **{
            peer: _rate(bench, peer, "trivial", trials[peer])
            for peer in ("optuna", "ray-tune-reuse", "ray-tune", "ray")
        },
    }
    found = in_turn(bench.sizes.rounds, sides)
    without = statistics.median(found["spaceless"])
    peers = {side: found[side] for side in NAMES if side in found}
    said = f"without space=..., which saves a question for each parameter: {without:,.0f}/s"
    return [
        *_against(bench, "shared", {"tuner": found["shared"], **peers}, "/s", said),
        *_against(bench, "attempt", {"tuner": found["attempt"], **peers}, "/s"),
    ]


def measure_reports(bench: Bench) -> list[Result]:
    """Reports until all are in the database, and what one costs between steps of a training."""
    paced: list[float] = []
    flooded: list[float] = []

    def ours() -> float:
        found = bench.work("tuner", "reports", bench.sizes.reports["tuner"])
        paced.append(found["paced_us"])
        flooded.append(found["flood_us"])
        return found["rate"]

    peers = {
        peer: _rate(bench, peer, "reports", bench.sizes.reports[peer])
        for peer in ("optuna", "ray-tune-reuse")
    }
    found = in_turn(bench.sizes.rounds, {"tuner": ours, **peers})
    without_pause = f"{statistics.median(flooded):.1f} us in a loop that does nothing else"
    return [
        *_against(bench, "reports", found, "/s"),
        bench.judge("reports/loop", paced, without_pause),
    ]


def measure_questions(bench: Bench) -> list[Result]:
    """Answers to two trials that ask after each step; the pruner costs nothing."""
    results = []
    for step, count in bench.sizes.questions.items():
        kinds = (f"ask-{step}ms", f"ask-{step}ms-asleep")
        rounds = [
            {kind: bench.work("tuner", kind, count) for kind in kinds} for _ in range(bench.sizes.rounds)
        ]
        for part in ("p50", "p99"):
            if f"questions/{step}ms/{part}" in FIGURES:
                busy, asleep = ([found[kind][part] for found in rounds] for kind in kinds)
                details = f"{statistics.median(asleep):.2f} ms where steps leave the cores idle"
                results.append(bench.judge(f"questions/{step}ms/{part}", busy, details))
    return results


def measure_seconds(bench: Bench) -> list[Result]:
    """The part of the slots' time that trials of a second get."""
    count = bench.sizes.seconds
    sides = {
        side: lambda side=side: bench.work(side, "seconds", count)["share"]
        for side in ("tuner", "ray-tune-reuse")
    }
    found = in_turn(min(3, bench.sizes.rounds), sides)
    said = {NAMES[side]: f"{statistics.median(shares):.3f}" for side, shares in found.items()}
    return [bench.judge("seconds", found["tuner"], sides=said)]


def measure_first_line(bench: Bench) -> list[Result]:
    """What ``tuner run`` adds to the start of Ray and the imports of the objective."""
    sides = {
        side: lambda side=side: bench.work(side, "first-line", 1)["seconds"]
        for side in ("tuner", "ray", "imports")
    }
    found = in_turn(bench.sizes.starts, sides)
    beyond = [one - ray - own for one, ray, own in zip(*found.values(), strict=True)]
    middle = {side: statistics.median(values) for side, values in found.items()}
    details = (
        f"{middle['tuner']:.2f} s in all, ray.init {middle['ray']:.2f} s, imports {middle['imports']:.2f} s"
    )
    return [bench.judge("first-line", beyond, details)]


def measure_simulation(bench: Bench) -> list[Result]:
    """Once: it takes a minute."""
    found = bench.work("tuner", "simulation", bench.sizes.simulated)
    details = (
        f"{found['cpu']:.1f} s of CPU; {found['epochs']:,.0f} steps, {found['peak']:,.0f} MB at its peak"
    )
    return [bench.judge("simulation", [found["seconds"]], details)]


def measure_memory(bench: Bench) -> list[Result]:
    """A driver opens a big study and runs some trials more."""
    trials, reports = bench.sizes.held
    with tempfile.TemporaryDirectory(prefix="held-", dir=bench.folder) as folder:
        driven.fill(f"sqlite:///{folder}/bench.db", trials=trials, reports=reports)
        found = bench.work("tuner", "memory", 20, Path(folder))
    return [bench.judge("memory", [found["peak"]], f"{found['held']:,.0f} trials")]


def measure_growth(bench: Bench) -> list[Result]:
    """CPU of the driver for a trial and a report, in studies of several sizes."""
    points = []
    for trials in bench.sizes.grown:
        with tempfile.TemporaryDirectory(prefix="grown-", dir=bench.folder) as folder:
            driven.fill(f"sqlite:///{folder}/bench.db", trials=trials, reports=10)
            found = bench.work("tuner", "growth", min(300, 3 * trials), Path(folder))
        points.append(growth.Point(trials=trials, trial=found["trial"], report=found["report"]))
    if bench.keep:
        growth.keep(points)
    results = []
    for what, unit, scale in (("trial", "ms", 1e3), ("report", "us", 1e6)):
        values = [getattr(point, what) for point in points]
        said = ", ".join(
            f"{scale * value:.2f} {unit} at {point.trials:,}"
            for point, value in zip(points, values, strict=True)
        )
        results.append(bench.judge(f"growth/{what}", [values[-1] / values[0]], said))
    return results


MEASURES: Mapping[str, Callable[[Bench], list[Result]]] = {
    "trivial": measure_trivial,
    "reports": measure_reports,
    "questions": measure_questions,
    "seconds": measure_seconds,
    "first-line": measure_first_line,
    "simulation": measure_simulation,
    "memory": measure_memory,
    "growth": measure_growth,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for, print the table, and give the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick and options.keep:
        _parser().error("--keep: what --quick measures is too little to keep; leave one of them out")
    sizes = QUICK if options.quick else FULL
    if options.rounds:
        sizes = dataclasses.replace(sizes, rounds=options.rounds, starts=options.rounds)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(machine.in_words(machine.described()), highlight=False)
    console.print(f"{sizes.rounds} rounds; Optuna with n_jobs=1, all others with 2 slots", highlight=False)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="tuner-bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(sizes=sizes, folder=Path(folder), say=_printer(console), keep=options.keep)
        for key in options.only or MEASURES:
            load = os.getloadavg()[0]
            console.print(f"[bold]{key}[/bold]: load {load:.1f}", highlight=False)
            began = time.perf_counter()
            found = [dataclasses.replace(result, load=round(load, 2)) for result in MEASURES[key](bench)]
            results += found
            if options.keep:
                readme.keep(found)
            for result in found:
                console.print(
                    f"  {result.figure.key}: {reached(result)} {result.figure.unit}", highlight=False
                )
            console.print(f"  measured in {time.perf_counter() - began:.0f} s", highlight=False)
    made = table("What a study costs", results)
    return conclude(console, made, results, options.json, judged=sizes.judged)


def _printer(console: Console) -> Callable[[str], object]:
    return lambda text: console.print(f"    {text}", highlight=False, style="dim")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it still run?")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="may be repeated")
    parser.add_argument("--rounds", type=int, help="measurements of each side (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write the results to a file, too")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the results in tests/benchmarks/results, and the README's table",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
