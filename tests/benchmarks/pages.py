"""``make bench-dashboard``: every page in a real Chromium at 10,000 trials, beside optuna-dashboard.

Both read the same SQLite file, of 10,000 trials with 78 reports each. A page counts as open when all its
tables and charts are painted. Exit 0 when every figure is reached, 1 when one is missed. Nothing else should
run on the machine meanwhile: the load is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from dashboard import server
from tests.benchmarks import driven
from tests.benchmarks.browser import Loaded, Viewer, give_way, viewer
from tests.benchmarks.verdict import conclude

__all__ = ["PAGES", "Result", "main", "table"]

WIDTH = 140
WARM, COLD = 1.0, 2.0  # seconds
DATA = 1.0  # MB of a page
MEMORY = 400.0  # MB of the server
GROWTH = 10.0  # MB that the second ten visits of each page may add: the allocator is not exact
CROWD, CROWDED, SLOWER = 10, 4.0, 5.0  # viewers, seconds of a page, percent of a driver's throughput

THEIRS_PAINTED = r"""() => document.querySelector('.js-plotly-plot .main-svg') !== null
  && performance.getEntriesByType('resource').some(one => /api.studies.\d+\?/.test(one.name))"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page: its address, a link to it on the page before it, and what is only on it when it is there."""

    name: str
    path: str
    link: str
    marker: Mapping[str, str]


def _of_study(name: str, path: str) -> Page:
    marker = {"selector": ".st-key-pages strong", "text": name}
    link = f"a[href*='{path}?study={driven.STUDY}']"  # the file may have other studies
    return Page(name=name, path=f"/{path}?study={driven.STUDY}", link=link, marker=marker)


def _headed(name: str, path: str, link: str, heading: str) -> Page:
    return Page(name=name, path=path, link=link, marker={"selector": "h1, h2, h3", "text": heading})


PAGES = (
    _headed("Studies", "/", "a:has-text('all studies')", "Studies"),
    _of_study("Overview", "study"),
    _headed("Trial", f"/trial?study={driven.STUDY}&n=103", "a[href*='trial?']", "Trial "),
    _of_study("Trials", "trials"),
    _of_study("Analyse", "analyse"),
    _of_study("Failures", "failures"),
    _of_study("Workers", "workers"),
    _headed("Compare", f"/compare?study={driven.STUDY}", "a[href*='compare?']", "Compare"),
)
"""In the order of a walk: each has a link to the next, and the last one to the first."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table. ``passed`` is None where there was too little to judge by."""

    work: str
    goal: str
    reached: str
    passed: bool | None
    peer: str = ""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    trials: int
    reports: int
    times: int
    rounds: int
    judged: bool


FULL = Sizes(trials=10_000, reports=78, times=5, rounds=10, judged=True)
QUICK = Sizes(trials=200, reports=20, times=1, rounds=2, judged=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it still run?")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="may be repeated")
    parser.add_argument(
        "--database", metavar="FILE", help="a SQLite file that an earlier run has kept, or will"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results to a file, too")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as folder:
        file = Path(options.database or f"{folder}/big.db")
        url = f"sqlite:///{file.absolute()}"
        if not file.exists():
            with console.status(f"writing {sizes.trials:,} trials"):
                driven.fill(url, trials=sizes.trials, reports=sizes.reports)
        for name in options.only or MEASURES:
            console.print(f"{name}: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
            found = MEASURES[name](url, sizes)
            for one in found:  # should a later one fail
                console.print(f"  {one.work}: {one.reached}", highlight=False)
            results += found
    return conclude(console, table(results), results, options.json, judged=sizes.judged)


def table(results: Sequence[Result]) -> Table:
    """Figure and measurement of each row."""
    made = Table(title="The dashboard in Chromium: median (lowest to highest)")
    for name in ("work", "to reach", "reached", "", "optuna-dashboard"):
        made.add_column(name, justify="right" if name in ("to reach", "reached") else "left")
    for one in results:
        sign = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: ""}[one.passed]
        made.add_row(one.work, one.goal, one.reached, sign, one.peer)
    return made


# ---------------------------------------------------------------------- opening pages


def opening(url: str, sizes: Sizes) -> list[Result]:
    """Each page from the click on its link: for the first time in a new server and browser, and again.

    The first page has no link to it, then: it is opened from its address, as is optuna-dashboard's.
    """
    from playwright.sync_api import sync_playwright

    cold: dict[str, list[Loaded]] = {page.name: [] for page in PAGES}
    warm: dict[str, list[Loaded]] = {page.name: [] for page in PAGES}
    address_bar: list[Loaded] = []
    theirs: list[Loaded] = []
    with sync_playwright() as playwright:
        for _ in range(sizes.times):
            with serving(url) as address, viewer(playwright) as person:
                person.page.goto("about:blank")
                for found in (cold, warm):
                    for page in PAGES:
                        found[page.name].append(_walk_to(person, address, page))
            with serving(url) as address, viewer(playwright) as person:
                overview = PAGES[1]
                address_bar.append(person.open(address + overview.path, dict(overview.marker)))
            with _optuna_dashboard(url) as address:
                theirs.append(_data_of_theirs(address))
        with _optuna_dashboard(url) as address, viewer(playwright) as person:
            painted = _open_theirs(person, address)
    peer = f"{_seconds([painted])} in its page; {_seconds(theirs)}, {_megabytes(theirs)} its data alone"
    rows = []
    for page in PAGES:
        for kind, goal, found in (("warm", WARM, warm[page.name]), ("cold", COLD, cold[page.name])):
            rows.append(
                Result(
                    work=f"{page.name}, {kind}",
                    goal=f"≤ {goal:g} s, {DATA:g} MB",
                    reached=f"{_seconds(found)}, {_megabytes(found)}",
                    passed=_median(found) <= goal and max(one.data for one in found) <= DATA * 1e6,
                )
            )
    rows.append(
        Result(
            work="Overview from its address in a browser without a cache",
            goal="",
            reached=f"{_seconds(address_bar)}, {_megabytes(address_bar)}",
            passed=None,
            peer=peer,
        )
    )
    return rows


def _data_of_theirs(address: str) -> Loaded:
    """What optuna-dashboard's page of the study waits for, asked for once and by nobody else."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"{address}/api/studies/1?after=0", timeout=300) as answer:
        size = len(answer.read())
    return Loaded(seconds=time.perf_counter() - began, data=size)


def _open_theirs(person: Viewer, address: str) -> Loaded:
    """The same study in optuna-dashboard; infinite where it shows no trial within two minutes.

    Its page asks again every ten seconds, whether it was answered or not: where an answer takes longer, what
    it asks for piles up.
    """
    from playwright.sync_api import TimeoutError as TooLate

    try:
        return person.open(f"{address}/dashboard/studies/1", None, painted=THEIRS_PAINTED)
    except TooLate:
        return Loaded(seconds=float("inf"))


def _walk_to(person: Viewer, address: str, page: Page) -> Loaded:
    """From its link on the page before it; the first page of all from its address."""
    link = person.page.locator(page.link).first
    if person.page.url == "about:blank":
        return person.open(address + page.path, dict(page.marker))
    return person.click(link, dict(page.marker))


# ---------------------------------------------------------------------- the server's memory


def memory(url: str, sizes: Sizes) -> list[Result]:
    """What the server holds after each page was opened ten times, and after ten times more."""
    from playwright.sync_api import sync_playwright

    held = []
    with sync_playwright() as playwright, serving(url) as address, viewer(playwright) as person:
        process = next(
            one
            for one in psutil.process_iter(["cmdline"])
            if address.rpartition(":")[2] in (one.info["cmdline"] or ())
        )
        for _ in range(2):
            for _ in range(sizes.rounds):
                for page in PAGES:
                    person.open(address + page.path, dict(page.marker))
            held.append(process.memory_full_info().uss / 1e6)
    return [
        Result(
            work=f"memory of the server after {sizes.rounds} visits of each page",
            goal=f"≤ {MEMORY:g} MB",
            reached=f"{held[0]:.0f} MB",
            passed=held[0] <= MEMORY,
        ),
        Result(
            work=f"growth in {sizes.rounds} more",
            goal=f"≤ {GROWTH:g} MB",
            reached=f"{held[1] - held[0]:+.0f} MB",
            passed=held[1] - held[0] <= GROWTH,
        ),
    ]


# ---------------------------------------------------------------------- many viewers


def crowd(url: str, sizes: Sizes) -> list[Result]:
    """Ten viewers while a driver works on the same database: what it loses, and what they wait.

    Their browsers are on this machine, which those of people are not. What the driver loses is measured while
    they get the time that is left, and what they wait while they take what they want.
    """
    from playwright.sync_api import sync_playwright

    shares: list[float] = []
    waits: list[float] = []
    with sync_playwright() as playwright, serving(url) as address, contextlib.ExitStack() as stack:
        people = [stack.enter_context(viewer(playwright, elsewhere=True)) for _ in range(CROWD)]

        def visit(pages: Sequence[Page]) -> list[float]:
            visits = zip(people, pages, strict=False)
            return [person.open(address + page.path, dict(page.marker)).seconds for person, page in visits]

        visit(PAGES * 2)
        for _ in range(sizes.times):
            for person in people:
                person.page.goto("about:blank")
            alone = _throughput(url)
            visit(PAGES * 2)
            give_way(True)
            with _driving(url) as rate:
                visit(PAGES[1:] * 2)
            shares.append(100 * (1 - rate() / alone))
            give_way(False)
            with _driving(url):
                waits += visit(PAGES[2:] * 2)
    return [
        Result(
            work=f"a driver's throughput lost to {CROWD} viewers",
            goal=f"≤ {SLOWER:g} %",
            reached=f"{statistics.median(shares):.1f} % ({min(shares):.1f} to {max(shares):.1f})",
            passed=statistics.median(shares) <= SLOWER,
        ),
        Result(
            work="a page for one of them, meanwhile",
            goal=f"≤ {CROWDED:g} s",
            reached=f"{statistics.median(waits):.2f} s ({min(waits):.2f} to {max(waits):.2f})",
            passed=max(waits) <= CROWDED,
        ),
    ]


DRIVING = """
import sys, time, tuner, uuid
study = tuner.create_study("busy-" + uuid.uuid4().hex[:8], storage=sys.argv[1], sampler="random", seed=1)
print("ready", flush=True)
sys.stdin.readline()
began, seconds = time.perf_counter(), float(sys.argv[2])
def objective(trial):
    if time.perf_counter() - began > seconds:
        trial.study.stop()
    return trial.suggest_float("x", 0, 1)
tuner.optimize(study, objective, n_trials=10**6, executor="inline", progress=False)
print(len(study.trials) / (time.perf_counter() - began), flush=True)
"""
DRIVEN = 10.0  # seconds of a measurement


@contextlib.contextmanager
def _driving(url: str) -> Iterator[Callable[[], float]]:
    """A driver on the same database during the block; after it, its trials a second."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVING, url, str(DRIVEN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    found: list[float] = []
    yield lambda: found[0]
    found.append(float(process.communicate(timeout=120)[0].split()[-1]))


def _throughput(url: str) -> float:
    with _driving(url) as rate:
        pass
    return rate()


# ---------------------------------------------------------------------- servers


@contextlib.contextmanager
def serving(url: str) -> Iterator[str]:
    """Our dashboard in a process of its own; its address."""
    port = _free_port()
    argv, environment = server.command(url, port=port)
    with _process(argv, environment, f"http://127.0.0.1:{port}/_stcore/health"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _optuna_dashboard(url: str) -> Iterator[str]:
    port = _free_port()
    argv = [str(Path(sys.executable).with_name("optuna-dashboard")), url, "--port", str(port)]
    with _process(argv, dict(os.environ), f"http://127.0.0.1:{port}/dashboard"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _process(argv: Sequence[str], environment: Mapping[str, str], health: str) -> Iterator[None]:
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(argv, env=dict(environment), cwd=tempfile.gettempdir(), **quiet)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(health, timeout=2).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                threading.Event().wait(0.05)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def _free_port() -> int:
    with create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _median(found: Sequence[Loaded]) -> float:
    return statistics.median(one.seconds for one in found)


def _seconds(found: Sequence[Loaded]) -> str:
    times = [one.seconds for one in found]
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"


def _megabytes(found: Sequence[Loaded]) -> str:
    return f"{max(one.data for one in found) / 1e6:.2f} MB"


MEASURES: Mapping[str, Callable[[str, Sizes], list[Result]]] = {
    "opening": opening,
    "memory": memory,
    "crowd": crowd,
}

if __name__ == "__main__":
    sys.exit(main())
