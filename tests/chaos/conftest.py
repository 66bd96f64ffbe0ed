"""What the tests of trainings share: starting drivers, and ending them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.observer import left_behind
from tests.chaos.programs import Program, until


@pytest.fixture
def train(tmp_path: Path, sqlite_url: str) -> Iterator[Callable[..., Program]]:
    """Start a driver of :mod:`tests.chaos.training`: ``train(name, *arguments, n=2, steps=40, pace=0.1)``.

    ``faults`` maps the number of a trial to a rank and a fault; other keywords are environment variables.
    All drivers are ended with the test, and then nothing of them may be left within 20 s: a killed driver's
    reaper has 5, groups of a standing cluster that nobody adopts have as long as their test gives them.
    """
    programs: list[Program] = []

    def train(
        name: str,
        *arguments: str,
        n: int,
        steps: int = 40,
        pace: float = 0.1,
        faults: dict[int, Any] | None = None,
        **environment: str,
    ) -> Program:
        program = Program(
            tmp_path,
            sqlite_url,
            *("--n", str(n), *arguments),
            name=name,
            module="ray_driver",
            environment={
                "TUNER_CHAOS_FOLDER": str(tmp_path),
                "TUNER_CHAOS_STEPS": str(steps),
                "TUNER_CHAOS_PACE": str(pace),
                "TUNER_CHAOS_FAULTS": json.dumps(faults or {}),
                **environment,
            },
        )
        programs.append(program)
        return program

    yield train
    for program in programs:
        if program.alive:
            program.signal(signal.SIGCONT)
        program.end()
    until(lambda: not left_behind(sqlite_url), 20)
