"""Recovery times of all faults, printed at the end."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable

import pytest

_times: dict[str, list[float]] = defaultdict(list)


@pytest.fixture
def recovered() -> Callable[[str, float], None]:
    """Note how many seconds a fault took from its injection to the first word of who goes on."""
    return lambda fault, seconds: _times[fault].append(seconds)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _times:
        terminalreporter.section("seconds from the fault until somebody goes on")
    for fault, seconds in sorted(_times.items()):
        median, most = statistics.median(seconds), max(seconds)
        terminalreporter.write_line(
            f"{fault:42} {len(seconds):3} times  median {median:6.2f}  max {most:6.2f}"
        )
