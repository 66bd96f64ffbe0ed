"""``python -m tests.benchmarks.live``: a driver of 200 trials, each with ten reports a second, on 4 nodes.

40 of the trials are real, each in a process of its own below a shell; the other 160 are
:mod:`tests.benchmarks.stubs`. A report's value is the time at which it was made; a process beside the driver
reads the database all the time, and takes for a report's lag how much later it saw it there. Exit 0 when
every figure is reached, 1 when one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from tests.benchmarks import chores, machine
from tests.benchmarks.goals import Figure, Result, judge, table
from tests.benchmarks.sides import STUDY
from tests.benchmarks.verdict import conclude
from tests.chaos.cluster import standing_ray

__all__ = ["FIGURES", "main"]

NODES = 4
LOOK = 0.1  # seconds between two looks at the database
PART = 0.2  # of the time: the begin, and the end, which are compared
WIDTH = 140

NEW_ROWS = """
SELECT trial_intermediate_value_id, trial_id, intermediate_value FROM trial_intermediate_values
WHERE trial_intermediate_value_id > ? ORDER BY 1
"""

FIGURES = {
    figure.key: figure
    for figure in (
        Figure(key="lag", work="lag of a report, 99th percentile at the end", goal=0.6, unit="s"),
        Figure(key="lag-growth", work="lag at the end beyond that at the begin, median", goal=0.1, unit="s"),
        Figure(key="memory", work="memory of a report in the driver, which holds all", goal=200, unit="B"),
        Figure(key="cpu", work="cores that the driver takes", goal=0.5, unit="cores"),
        Figure(key="lost", work="reports that are not in the database at the end", goal=0, unit="reports"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many trials of each kind, and for how long they all report."""

    real: int
    stubs: int
    seconds: float
    judged: bool

    @property
    def trials(self) -> int:
        """Of both kinds."""
        return self.real + self.stubs


FULL = Size(real=40, stubs=160, seconds=600, judged=True)
QUICK = Size(real=4, stubs=16, seconds=60, judged=False)


# ---------------------------------------------------------------------- the driver's process


def drive(address: str, folder: str, real: int, stubs: int) -> None:
    """Drive a study whose first ``real`` trials have real shells, and the others stubs."""
    import optuna
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    import tuner
    from tests.benchmarks.stubs import StubHost, StubShell
    from tuner.dispatch import ray_group
    from tuner.dispatch.connection import show_token

    show_token(address)
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    over = os.environ["TUNER_BENCH_OVER"]
    each = -(-stubs // NODES)
    nodes = [node["NodeID"] for node in ray.nodes()]
    hosts = [
        StubHost.options(  # type: ignore[attr-defined]
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(each, over, chores.RATE)
        for node in nodes
    ]
    made = itertools.count(-real)
    actor = ray_group._actor

    def shell(shape: Any, placement: Any, rank: int) -> Any:
        number = next(made)
        if 0 <= number < stubs:
            return StubShell(hosts[number % NODES], number // NODES)
        return actor(shape, placement, rank)

    ray_group._actor = shell
    storage = f"sqlite:///{folder}/live.db"
    study = tuner.create_study(STUDY, storage=storage, sampler="random", pruner="none", seed=1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tuner.optimize(
        study,
        f"{chores.__file__}:steady",
        n_trials=real + stubs,
        resources=tuner.Resources(cpus=0.02, gpus=0),
        max_concurrent=real + stubs,
        env=("TUNER_BENCH_*",),
        progress=False,
    )


# ---------------------------------------------------------------------- beside it


@dataclass(kw_only=True)
class Watch:
    """What was seen of the driver and its database, moment by moment.

    Attributes:
        lags: (moment, seconds from a report to when it was seen) of each report.
        driver: (moment, CPU seconds, bytes resident) of the driver.
    """

    lags: list[tuple[float, float]] = field(default_factory=list)
    driver: list[tuple[float, float, int]] = field(default_factory=list)


def _watch(file: Path, process: psutil.Process, size: Size, over: Path, say: Any) -> Watch:
    """Look at both until every trial has reported for so long, then until the driver has ended."""
    seen, last, watch = set[int](), 0, Watch()
    until: float | None = None
    next_said = time.time() + 30
    deadline = time.time() + 600
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as connection:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            rows = connection.execute(NEW_ROWS, (last,)).fetchall()
            now = time.time()
            last = rows[-1][0] if rows else last
            if until is None:
                seen.update(trial for _, trial, _ in rows)
                if len(seen) == size.trials:
                    until = now + size.seconds
                    say(f"all {size.trials} trials report")
                elif now > deadline:
                    raise RuntimeError(f"only {len(seen)} of {size.trials} trials reported within 600 s")
            elif not over.exists():
                watch.lags += [(now, now - made) for _, _, made in rows]
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = process.cpu_times()
                    watch.driver.append((now, spent.user + spent.system, process.memory_info().rss))
                if now > until:
                    over.touch()
            if now > next_said:
                next_said = now + 30
                recent = [lag for moment, lag in watch.lags if moment > now - 30] or [0.0]
                lag, load = statistics.median(recent), os.getloadavg()[0]
                say(f"{len(seen)} trials, lag {lag:.2f} s, load {load:.1f}")
            time.sleep(LOOK)
    return watch


def judged(watch: Watch, size: Size, lost: int) -> list[Result]:
    """Each figure, of what was seen and of how many reports were lost."""
    began, ended = watch.driver[0][0], watch.driver[-1][0]
    part = PART * (ended - began)
    first = sorted(lag for moment, lag in watch.lags if moment < began + part)
    last = sorted(lag for moment, lag in watch.lags if moment > ended - part)
    cpu = (watch.driver[-1][1] - watch.driver[0][1]) / (ended - began)
    early, late = (
        statistics.median(held for moment, _, held in watch.driver if low <= moment <= high)
        for low, high in ((began, began + part), (ended - part, ended))
    )
    reports = len(watch.lags)
    percentile = last[int(0.99 * len(last))]
    median = statistics.median(last) - statistics.median(first)
    values = {
        "lag": (percentile, f"median {statistics.median(last):.2f} s, greatest {last[-1]:.2f} s"),
        "lag-growth": (median, f"{statistics.median(first):.2f} s, then {statistics.median(last):.2f} s"),
        "memory": (
            (late - early) / ((1 - PART) * reports),
            f"{early / 1e6:.0f} MB, then {late / 1e6:.0f} MB; {reports:,} reports meanwhile",
        ),
        "cpu": (cpu, f"{reports / (ended - began):,.0f} reports/s"),
        "lost": (float(lost), f"of {size.trials} trials"),
    }
    return [
        judge(FIGURES[key], [value], details, judged=size.judged) for key, (value, details) in values.items()
    ]


def _lost(file: Path) -> int:
    """Reports that a trial has made, as it returned, and that the database has not."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        ((made,),) = connection.execute("SELECT sum(value) FROM trial_values").fetchall()
        ((there,),) = connection.execute("SELECT count(*) FROM trial_intermediate_values").fetchall()
        ((complete,),) = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchall()
        ((trials,),) = connection.execute("SELECT count(*) FROM trials").fetchall()
    if complete != trials:
        raise RuntimeError(f"{complete} of {trials} trials are complete")
    return int(made) - int(there)


@contextlib.contextmanager
def _driver(address: str, folder: Path, size: Size) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.benchmarks.live", "--drive", address, str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TUNER_BENCH_OVER": str(folder / "over"),
    }
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, str(size.real), str(size.stubs)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def measure(size: Size, folder: Path, say: Any) -> list[Result]:
    """Start the nodes and the driver, and look on."""
    with standing_ray(cpus=1) as cluster:
        for _ in range(NODES - 1):
            cluster.add_node(cpus=1)
        with _driver(cluster.address, folder, size) as process:
            file = folder / "live.db"
            while not file.exists() or not _has_tables(file):
                if process.poll() is not None:
                    raise RuntimeError((folder / "output").read_text()[-3000:])
                time.sleep(LOOK)
            watch = _watch(file, psutil.Process(process.pid), size, folder / "over", say)
            if process.wait(timeout=60):
                raise RuntimeError((folder / "output").read_text()[-3000:])
    return judged(watch, size, _lost(file))


def _has_tables(file: Path) -> bool:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master").fetchall()
    return ("trial_intermediate_values",) in names


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 trials for a minute: does it still run?")
    parser.add_argument("--seconds", type=float, help="how long all report (default: 600)")
    parser.add_argument("--real", type=int, help="trials with processes (default: 40)")
    parser.add_argument("--stubs", type=int, help="trials without (default: 160)")
    parser.add_argument("--json", metavar="FILE", help="write the results to a file, too")
    parser.add_argument("--drive", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.drive:
        address, place, real, stubs = options.drive
        drive(address, place, int(real), int(stubs))
        return 0
    asked = {name: getattr(options, name) for name in ("seconds", "real", "stubs")}
    given = {name: value for name, value in asked.items() if value is not None}
    size = replace(QUICK if options.quick else FULL, **given)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(machine.in_words(machine.described()), highlight=False)
    console.print(f"load {os.getloadavg()[0]:.1f}; {size.real} trials, {size.stubs} stubs", highlight=False)
    with tempfile.TemporaryDirectory(prefix="tuner-bench-", ignore_cleanup_errors=True) as folder:
        results = measure(size, Path(folder), lambda text: console.print(f"  {text}", highlight=False))
    made = table(f"{size.trials} trials that report {chores.RATE:g} times a second", results)
    return conclude(console, made, results, options.json, judged=size.judged)


if __name__ == "__main__":
    sys.exit(main())
