"""Calls an objective in a rehearsal and measures it, on each rank: when it reports, what memory it holds."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from types import TracebackType
from typing import Any

from tuner import device
from tuner import objective as objectives
from tuner.assignment import ObjectiveRef
from tuner.dispatch import memory
from tuner.messages import Measured
from tuner.trial import Trial

__all__ = ["measured"]

LOOK = 0.2  # seconds between two looks at the memory, each of which is sent
MOST = 20  # reports whose moments are sent


def measured(objective: ObjectiveRef, trial: Trial) -> Any:
    """The objective's own return value; with :func:`functools.partial` an objective in its place.

    The driver ends the attempt when it has heard enough.
    """
    with _Meter(trial):
        return objectives.load(objective)(trial)


class _Meter:
    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._report = trial.report
        self._began = time.monotonic()
        self._reports: list[float] = []
        self._most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="tuner-meter", daemon=True)

    def __enter__(self) -> None:
        self._trial.report = self._reported  # type: ignore[method-assign]
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._say()

    def _reported(self, value: float, step: int) -> None:
        self._reports.append(time.monotonic() - self._began)
        self._report(value, step)

    def _look(self) -> None:
        with contextlib.suppress(BaseException):  # inline, a listener that has enough raises here too
            while not self._over.wait(LOOK):
                self._say()

    def _say(self) -> None:
        self._most = max(self._most, memory.tree(os.getpid()))
        self._trial.tell(
            Measured(
                seconds=time.monotonic() - self._began,
                reports=self._reports[:MOST],
                memory=self._most,
                resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                gpu=device.most_reserved(),
            )
        )
