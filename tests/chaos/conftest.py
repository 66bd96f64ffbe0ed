"""The table of faults, printed at the end: what fired, what was found, how long it took, what it cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest


@dataclass(kw_only=True)
class _Row:
    times: int = 0
    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    tests: set[str] = field(default_factory=set)


_rows: dict[str, _Row] = defaultdict(_Row)
_failed: set[str] = set()


@pytest.fixture
def recovered(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note a fault that has fired, how many seconds it took from its injection to the first word of who
    goes on, and how many steps of a training were run again.
    """

    def note(fault: str, seconds: float | None = None, steps: int | None = None) -> None:
        row = _rows[fault]
        row.times += 1
        row.tests.add(request.node.nodeid)
        row.seconds += [] if seconds is None else [seconds]
        row.steps += [] if steps is None else [steps]

    return note


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.add(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _rows:
        return
    terminalreporter.section("faults: fired, verdict, seconds until somebody goes on, steps run again")
    line = "{:52} {:>5} {:>8} {:>15} {:>15}"
    titles = line.format("fault", "fired", "verdict", "s median/max", "steps med./max")
    terminalreporter.write_line(titles)
    for fault, row in sorted(_rows.items()):
        verdict = "FAILED" if row.tests & _failed else "ok"
        terminalreporter.write_line(
            line.format(fault, row.times, verdict, _both(row.seconds, ".2f"), _both(row.steps, "g"))
        )


def _both(values: list[float] | list[int], form: str) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} / {max(values):{form}}"
