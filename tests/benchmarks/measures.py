"""How each row is measured: both sides in turn on the same work, and their rows compared."""

from __future__ import annotations

import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import TrialState

from storage import Database, reads
from tests.benchmarks import contents, works
from tests.benchmarks.databases import Databases
from tests.benchmarks.figures import FIGURES, Figure, Sizes
from tests.benchmarks.filling import fill, report
from tests.benchmarks.ratios import Spread, spread
from tests.benchmarks.sides import STUDY, Side, create, model, ours, theirs

__all__ = ["MEASURES", "Measure", "Result"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one row reached on one database.

    Attributes:
        reached: in the unit of the figure; for ``"times"`` of the ratios of the pairs.
        ours, theirs: the two sides in this run, as a person reads them.
        passed: None when the work was too small to judge.
    """

    figure: Figure
    database: str
    reached: Spread
    ours: str
    theirs: str
    passed: bool | None


Measure = Callable[[Databases, str, Sizes], Result]
"""Measures one row on one kind of database."""


def measure_asks(databases: Databases, kind: str, sizes: Sizes) -> Result:
    """Trials asked and told."""
    return _compare_rates("ask-tell", works.asks, sizes.asks, databases, kind, sizes)


def measure_reports(databases: Databases, kind: str, sizes: Sizes) -> Result:
    """Reports of one running trial."""
    return _compare_rates("reports", works.reports, sizes.reports, databases, kind, sizes)


def measure_additions(databases: Databases, kind: str, sizes: Sizes) -> Result:
    """Finished trials given to ``study.add_trials``."""
    return _compare_rates("add-trials", works.additions, sizes.additions, databases, kind, sizes)


def measure_opening(databases: Databases, kind: str, sizes: Sizes) -> Result:
    """From nothing but a URL to a new trial and the whole history, which a sampler would read."""
    trials, reports = sizes.opened
    seconds: list[tuple[float, float]] = []
    with databases.empty(kind) as their_url, databases.empty(kind) as our_url:
        for url in (their_url, our_url):
            fill(url, trials=trials, reports=reports)
        Database(our_url).dispose()  # our tables, which a database that we open again has
        for _ in range(sizes.pairs):
            slow, expected = _open(theirs, their_url)
            fast, found = _open(ours, our_url)
            contents.compare(found, expected, f"open, {kind}, ours against Optuna's in memory")
            seconds.append((slow, fast))
        written, expected = (contents.of_tables(url, STUDY) for url in (our_url, their_url))
        contents.compare(written, expected, f"open, {kind}, ours against Optuna's in the tables")
    return _times("open", kind, sizes, seconds, (1, 1), "s")


def measure_page(databases: Databases, kind: str, sizes: Sizes) -> Result:
    """The first page of the list of trials, with curves; Optuna would load the study instead."""
    trials, reports = sizes.paged
    took = []
    with databases.empty(kind) as url:
        fill(url, trials=trials, reports=reports)
        database = Database(url)
        for _ in range(sizes.readings):
            begin = time.perf_counter()
            page = reads.trials(database.engine, STUDY, size=50)
            curves = reads.curves(database.engine, STUDY, [row.number for row in page.rows])
            took.append(1000 * (time.perf_counter() - begin))
        database.dispose()
        begin = time.perf_counter()
        with theirs(url) as opened:
            loaded = opened.study.get_trials(deepcopy=False)
            seconds = time.perf_counter() - begin
    found = [
        (row.number, row.state, list(row.values), dict(row.params), dict(curves[row.number]))
        for row in page.rows
    ]
    expected = [
        (trial.number, trial.state.name, trial.values or [], trial.params, trial.intermediate_values)
        for trial in loaded[: -len(found) - 1 : -1]
    ]
    if found != expected or page.total != len(loaded):
        raise contents.Different(f"page, {kind}: the page is not what Optuna loads")
    reached = spread(took)
    return _result(
        "page",
        kind,
        sizes,
        reached,
        our_side=f"{reached.median:.1f} ms",
        their_side=f"{seconds:.1f} s to load it",
    )


def measure_memory(databases: Databases, kind: str, sizes: Sizes) -> Result:
    """The peak of a process of its own that imports what a driver does and holds the study."""
    trials, reports = sizes.held
    with databases.empty(kind) as url:
        fill(url, trials=trials, reports=reports)
        command = [sys.executable, "-m", "tests.benchmarks.memory", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory, {kind}: the process that holds the study failed\n{done.stderr}")
    said = json.loads(done.stdout)
    total = math.fsum(report(number, step) for number in range(trials) for step in range(reports))
    if (said["trials"], said["reports"], said["sum"]) != (trials, trials * reports, total):
        raise contents.Different(f"memory, {kind}: the process held {said}, not what was written")
    reached = spread([said["peak"]])
    return _result("memory", kind, sizes, reached, our_side=f"{reached.median:.0f} MB", their_side="-")


MEASURES: dict[str, Measure] = {
    "ask-tell": measure_asks,
    "reports": measure_reports,
    "add-trials": measure_additions,
    "open": measure_opening,
    "page": measure_page,
    "memory": measure_memory,
}


def _compare_rates(
    key: str,
    prepare: Callable[[int], works.Work],
    counts: tuple[int, int],
    databases: Databases,
    kind: str,
    sizes: Sizes,
) -> Result:
    """Optuna does the first count of the work and we the second, in turn, on new databases each time.

    The rows of each are compared with those of Optuna's InMemoryStorage after as much of the same work.
    """
    expected = [_expected(prepare, count) for count in counts]
    seconds: list[tuple[float, float]] = []
    for _ in range(sizes.pairs):
        took = []
        for name, side, count, rows in zip(("Optuna", "ours"), (theirs, ours), counts, expected, strict=True):
            with databases.empty(kind) as url:
                create(url)
                took.append(_timed(side, url, prepare, count))
                contents.compare(contents.of_tables(url, STUDY), rows, f"{key}, {kind}, {name}")
        seconds.append((took[0], took[1]))
    return _times(key, kind, sizes, seconds, counts, "reports/s" if key == "reports" else "trials/s")


def _expected(prepare: Callable[[int], works.Work], count: int) -> list[contents.Content]:
    study = model()
    for work in (prepare(1), prepare(count)):
        work(study)
    return contents.of_trials(study.get_trials(deepcopy=False))


def _timed(side: Side, url: str, prepare: Callable[[int], works.Work], count: int) -> float:
    """Seconds until all of the work is durable; one item before it opens what opens lazily."""
    first, work = prepare(1), prepare(count)
    with side(url) as opened:
        first(opened.study)
        opened.flush()
        gc.collect()
        begin = time.perf_counter()
        work(opened.study)
        opened.flush()
        return time.perf_counter() - begin


def _open(side: Side, url: str) -> tuple[float, list[contents.Content]]:
    """Seconds to a new trial and the history, and what that history is."""
    gc.collect()
    begin = time.perf_counter()
    with side(url) as opened:
        trial = opened.study.ask()
        opened.flush()
        history = opened.study.get_trials(deepcopy=False)
        seconds = time.perf_counter() - begin
        found = contents.of_trials(history)
        opened.study.tell(trial, state=TrialState.FAIL)
    return seconds, found


def _times(
    key: str,
    kind: str,
    sizes: Sizes,
    seconds: Sequence[tuple[float, float]],
    counts: tuple[int, int],
    unit: str,
) -> Result:
    """The ratios of pairs of (Optuna's seconds for the first count, ours for the second)."""
    ratios = [(slow / counts[0]) / (fast / counts[1]) for slow, fast in seconds]
    middle = [statistics.median(side) for side in zip(*seconds, strict=True)]
    said = [
        f"{middle[side]:.2f} s" if unit == "s" else f"{counts[side] / middle[side]:,.0f} {unit}"
        for side in (0, 1)
    ]
    return _result(key, kind, sizes, spread(ratios), our_side=said[1], their_side=said[0])


def _result(key: str, kind: str, sizes: Sizes, reached: Spread, *, our_side: str, their_side: str) -> Result:
    figure = FIGURES[key]
    passed = figure.reached(reached.median, kind) if sizes.judged else None
    return Result(
        figure=figure, database=kind, reached=reached, ours=our_side, theirs=their_side, passed=passed
    )
