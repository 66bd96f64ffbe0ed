"""``make bench-store``: the store against Optuna's RDBStorage, in one run, on the same work.

Both sides work in turn (Optuna, ours, Optuna, ours, ...), the median of the ratios counts, and the
rows that they wrote are compared. Exit 0 when every figure is reached, 1 when one is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence

import optuna
from rich.console import Console
from rich.table import Table

from tests.benchmarks.databases import temporary
from tests.benchmarks.figures import DATABASES, FIGURES, FULL, QUICK
from tests.benchmarks.measures import MEASURES, Result
from tests.benchmarks.verdict import conclude

__all__ = ["main", "table"]

WIDTH = 140
"""Columns of the table where the output is not a terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for, print the table, and give the exit code."""
    options = _parser().parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    if options.pairs:
        sizes = dataclasses.replace(sizes, pairs=options.pairs)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; databases in {tempfile.gettempdir()}; "
        f"Optuna {optuna.__version__}; {sizes.pairs} pairs"
    )
    results = []
    with temporary() as databases:
        for key in options.only or MEASURES:
            for kind in options.database or DATABASES:
                begin = time.perf_counter()
                with console.status(f"{FIGURES[key].work}, {kind}"):
                    results.append(MEASURES[key](databases, kind, sizes))
                console.print(f"{_line(results[-1])}; measured in {time.perf_counter() - begin:.0f} s")
    return conclude(console, table(results), results, options.json, judged=sizes.judged)


def table(results: Sequence[Result]) -> Table:
    """Figure and measurement of each row, the two sides, and what peers were measured at."""
    made = Table(title="The store against Optuna's RDBStorage: median (lowest to highest)")
    for name in ("work", "database", "to reach", "reached", "", "ours", "Optuna now", "measured before"):
        made.add_column(name, justify="right" if name in ("to reach", "reached") else "left")
    for result in results:
        made.add_row(
            result.figure.work,
            result.database,
            _goal(result),
            _reached(result),
            {True: "[green]✓[/green]", False: "[red]✗ missed[/red]", None: "-"}[result.passed],
            result.ours,
            result.theirs,
            result.figure.peers,
        )
    return made


def _goal(result: Result) -> str:
    sign = "≥" if result.figure.unit == "times" else "≤"
    return f"{sign} {result.figure.goals[result.database]:g} {result.figure.unit}"


def _reached(result: Result) -> str:
    digits = 0 if result.figure.unit == "MB" else 1
    median, low, high = (f"{part:.{digits}f}" for part in dataclasses.astuple(result.reached))
    return f"{median} ({low} to {high})"


def _line(result: Result) -> str:
    return f"{result.figure.key}, {result.database}: {_reached(result)}, to reach {_goal(result)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-store", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it still run?")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="a row; may be repeated")
    parser.add_argument("--database", action="append", choices=DATABASES, help="default: both")
    parser.add_argument("--pairs", type=int, help="measurements of each side (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write the results to a file, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
