"""Where the trials of a study stand, kept sorted as they report: what pruners compare with.

Optuna's pruners walk over every trial at each question. Here a trial that changed is looked at
once more, and a question is answered by bisection.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeGuard

from optuna.trial import FrozenTrial, TrialState

from storage.image import StudyImage

__all__ = ["RUNG", "Rungs", "Steps", "Values"]

RUNG = "completed_rung_"
"""What the name of a rung's attribute begins with: Optuna's, read by any of its programs."""


class Values:
    """Numbers in order.

    Attributes:
        ordered: those that are numbers.
        others: how many are NaN, or no numbers at all.

    Example:
        >>> values = Values()
        >>> for one in (3.0, 1.0, math.nan): values.add(one)
        >>> values.ordered, values.others, values.better(2.0, maximize=False)
        ([1.0, 3.0], 1, 1)
    """

    def __init__(self) -> None:
        self.ordered: list[float] = []
        self.others = 0

    def add(self, value: object) -> None:
        """Put a value in."""
        if _is_number(value):
            bisect.insort(self.ordered, value)
        else:
            self.others += 1

    def remove(self, value: object) -> None:
        """Take a value out that was put in."""
        if _is_number(value):
            del self.ordered[bisect.bisect_left(self.ordered, value)]
        else:
            self.others -= 1

    def extend(self, values: Iterable[object]) -> None:
        """Put many values in."""
        given = list(values)
        numbers = [value for value in given if _is_number(value)]
        self.others += len(given) - len(numbers)
        self.ordered = sorted(self.ordered + numbers)

    def better(self, value: float, *, maximize: bool) -> int:
        """How many are better than ``value``."""
        if maximize:
            return len(self.ordered) - bisect.bisect_right(self.ordered, value)
        return bisect.bisect_left(self.ordered, value)

    def percentile(self, percent: float) -> float:
        """As ``numpy.percentile`` of the numbers, to the bit; NaN where there are none.

        Args:
            percent: 0 to 100.
        """
        ordered = self.ordered
        if not ordered:
            return math.nan
        place = (len(ordered) - 1) * (percent / 100)
        before = math.floor(place)
        if place >= len(ordered) - 1:
            before = len(ordered) - 1
        low, high = ordered[before], ordered[min(before + 1, len(ordered) - 1)]
        part = place - before
        return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


class Rungs:
    """The values with which trials completed the rungs of successive halving.

    Args:
        image: hold its lock in each call.
        bracket: of a trial; trials compete with those of their own.
    """

    def __init__(self, image: StudyImage, bracket: Callable[[FrozenTrial], int]) -> None:
        self._image = image
        self._bracket = bracket
        self._changed = image.watch()
        self._known: dict[int, tuple[int, Mapping[str, object]]] = {}  # by trial: bracket, value by rung
        self._values: dict[tuple[int, str], Values] = {}
        gathered: dict[tuple[int, str], list[object]] = {}
        for trial in image.trials():
            if found := rungs_of(trial):
                mine = bracket(trial)
                self._known[trial._trial_id] = mine, found
                for key, value in found.items():
                    gathered.setdefault((mine, key), []).append(value)
        for place, values in gathered.items():
            self._at(*place).extend(values)

    def at(self, bracket: int, key: str) -> Values:
        """What completed the rung of this key, in a bracket, up to now."""
        while self._changed:
            self._take_in(self._changed.pop())
        return self._at(bracket, key)

    def _at(self, bracket: int, key: str) -> Values:
        return self._values.setdefault((bracket, key), Values())

    def _take_in(self, trial_id: int) -> None:
        trial = self._image.trial(trial_id) if trial_id in self._image else None
        found = {} if trial is None else rungs_of(trial)
        bracket, known = self._known.get(trial_id, (0, {}))
        if found == known:
            return
        for key, value in known.items():
            if key not in found or found[key] != value:
                self._at(bracket, key).remove(value)
        if trial is None or not found:
            del self._known[trial_id]
            return
        bracket = self._bracket(trial) if not known else bracket
        for key, value in found.items():
            if key not in known or known[key] != value:
                self._at(bracket, key).add(value)
        self._known[trial_id] = bracket, found


class Steps:
    """The reports of COMPLETE trials, by step.

    Args:
        image: hold its lock in each call.
    """

    def __init__(self, image: StudyImage) -> None:
        self._image = image
        self._changed = image.watch()
        self._known: dict[int, Mapping[int, float]] = {}  # by trial, its reports
        self._values: dict[int, Values] = {}
        gathered: dict[int, list[object]] = {}
        for trial in image.trials((TrialState.COMPLETE,)):
            self._known[trial._trial_id] = trial.intermediate_values
            for step, value in trial.intermediate_values.items():
                gathered.setdefault(step, []).append(value)
        for step, values in gathered.items():
            self._at(step).extend(values)

    def at(self, step: int) -> Values:
        """What COMPLETE trials reported at this step."""
        while self._changed:
            self._take_in(self._changed.pop())
        return self._values.get(step) or Values()

    def _at(self, step: int) -> Values:
        return self._values.setdefault(step, Values())

    def _take_in(self, trial_id: int) -> None:
        trial = self._image.trial(trial_id) if trial_id in self._image else None
        is_complete = trial is not None and trial.state is TrialState.COMPLETE
        now = trial.intermediate_values if trial is not None and is_complete else None
        known = self._known.pop(trial_id, None)
        if now is not None:
            self._known[trial_id] = now
        if now is known:
            return
        for step, value in (known or {}).items():
            self._at(step).remove(value)
        for step, value in (now or {}).items():
            self._at(step).add(value)


def rungs_of(trial: FrozenTrial) -> dict[str, object]:
    """The values with which a trial completed rungs, by their keys."""
    return {key: value for key, value in trial._system_attrs.items() if key.startswith(RUNG)}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float | int) and value == value
