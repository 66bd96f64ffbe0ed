"""The table of faults, printed at the end: what fired, what was found, how long it took, what it cost.

A test notes what it injected with the fixture ``recovered``, or is marked ``fault("16: ...")`` as a whole.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

__all__ = ["pytest_runtest_makereport", "pytest_terminal_summary", "recovered"]


@dataclass(kw_only=True)
class _Row:
    times: int = 0
    failed: bool = False
    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


_rows: dict[str, _Row] = defaultdict(_Row)
_noted: dict[str, set[str]] = defaultdict(set)


@pytest.fixture
def recovered(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note a fault that has fired, how many seconds it took from its injection to the first word of who
    goes on, and how many steps of a training were run again.
    """

    def note(fault: str, seconds: float | None = None, steps: int | None = None) -> None:
        row = _rows[fault]
        row.times += 1
        row.seconds += [] if seconds is None else [seconds]
        row.steps += [] if steps is None else [steps]
        _noted[request.node.nodeid].add(fault)

    return note


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        marked = [mark.args[0] for mark in item.iter_markers("fault")]
        for fault in marked:
            _rows[fault].times += 1
        for fault in {*marked, *_noted[item.nodeid]}:
            _rows[fault].failed |= report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _rows:
        return
    terminalreporter.section("faults: fired, verdict, seconds until somebody goes on, steps run again")
    line = "{:56} {:>5} {:>7} {:>15} {:>13}"
    titles = line.format("fault", "fired", "verdict", "s median / max", "steps, same")
    terminalreporter.write_line(titles)
    for fault, row in sorted(_rows.items(), key=_place):
        verdict = "FAILED" if row.failed else "ok"
        terminalreporter.write_line(
            line.format(fault, row.times, verdict, _both(row.seconds, ".2f"), _both(row.steps, "g"))
        )


def _place(entry: tuple[str, _Row]) -> tuple[int, str]:
    number = entry[0].partition(":")[0]
    return int(number) if number.isdigit() else 1000, entry[0]


def _both(values: list[float] | list[int], form: str) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} / {max(values):{form}}"
