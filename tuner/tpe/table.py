"""The trials of a study as arrays, brought up to date at the price of what has changed.

Optuna's TPE walks over every trial at each question. Here a finished trial is looked at once: it is
never changed afterwards, so the same object at the same place of the list is known already.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe.sampler import _get_infeasible_trial_score
from optuna.trial import FrozenTrial, TrialState

__all__ = ["COMPLETE", "OTHER", "PRUNED", "RUNNING", "Column", "Rows", "Table", "Unusual"]

Rows = npt.NDArray[np.intp]
"""Places in the list of trials, ascending."""

OTHER, COMPLETE, PRUNED, RUNNING = range(4)
_KINDS = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED, TrialState.RUNNING: RUNNING}
_COLUMNS = 256  # columns kept; a space whose ranges change from trial to trial makes many


class Unusual(Exception):
    """A history that only Optuna's own path treats as Optuna does, such as one out of order."""


class Column:
    """One parameter's internal values by row, as one distribution reads them; NaN where there is none."""

    def __init__(self, name: str, distribution: BaseDistribution) -> None:
        self.name = name
        self.distribution = distribution
        self.values: npt.NDArray[np.float64] = np.full(64, np.nan)
        self.misfits: set[int] = set()  # rows whose value this distribution refuses
        self.seen = 0  # tick of the table up to which it is filled

    def fill(self, rows: Rows, params: Sequence[Mapping[str, Any] | None], size: int) -> None:
        """Take in the rows: None in ``params`` for a trial that does not count."""
        self.values = grown(self.values, size, np.nan)
        for row, known in zip(rows.tolist(), params, strict=True):
            value = np.nan
            self.misfits.discard(row)
            if known is not None and self.name in known:
                try:
                    value = self.distribution.to_internal_repr(known[self.name])
                except ValueError:
                    self.misfits.add(row)
            self.values[row] = value


class Table:
    """What TPE needs of a study's trials.

    Args:
        params_of: the parameters of a trial, those of an unfinished one's joint draw included.
        rank_of: the sort key of a PRUNED trial, two numbers; of a study with one objective.

    Attributes:
        size: number of rows.
        numbers: of the trials, by row.
        kind: by row: COMPLETE, PRUNED, RUNNING, or 0 for those that TPE leaves out.
        tick: grows with each update that changed something; ``changed`` has it by row.
        settled: the tick at which a finished row last changed.
    """

    def __init__(
        self,
        params_of: Callable[[FrozenTrial], Mapping[str, Any]],
        rank_of: Callable[[FrozenTrial], tuple[float, float]] | None,
    ) -> None:
        self._params_of = params_of
        self._rank_of = rank_of
        self.tick = 0
        self.settled = 0
        self.trials: list[FrozenTrial] = []
        self.size = 0
        self.numbers = np.zeros(64, dtype=np.int64)
        self.kind = np.zeros(64, dtype=np.int8)
        self.changed = np.zeros(64, dtype=np.int64)
        self._value = np.zeros(64)
        self._violation = np.zeros(64)
        self._rank = np.zeros((2, 64))
        self._open: dict[int, tuple[object, ...]] = {}  # rows of unfinished trials, and what was seen
        self._params: dict[int, Mapping[str, Any]] = {}  # of RUNNING ones
        self._columns: dict[tuple[str, BaseDistribution], Column] = {}
        self._fresh: list[FrozenTrial] = []
        self._common: dict[str, BaseDistribution] | None = None

    def update(self, trials: list[FrozenTrial]) -> None:
        """Take in the study's trials, all of them, in order of number: at least as many as before.

        After an exception this table is of no use any more.

        Raises:
            Unusual: they are not in that order, or a COMPLETE one has no number for a value.
        """
        stale = self._stale(trials)
        if not stale:
            return
        self.tick += 1
        self.size = len(trials)
        self.numbers = grown(self.numbers, self.size, 0)
        self.kind = grown(self.kind, self.size, OTHER)
        self.changed = grown(self.changed, self.size, 0)
        self._value = grown(self._value, self.size, 0.0)
        self._violation = grown(self._violation, self.size, 0.0)
        self._rank = grown(self._rank, self.size, 0.0)
        self.trials = list(trials)
        for row in stale:
            self._read(row, trials[row])

    def _stale(self, trials: list[FrozenTrial]) -> list[int]:
        """Rows that are new or may have changed."""
        found = set(range(self.size, len(trials)))
        for row, seen in self._open.items():
            if self._look(trials[row]) != seen:
                found.add(row)
            self.trials[row] = trials[row]
        begin = trials[: self.size]
        if self.trials != begin:  # equal lists are compared by identity, at C's speed
            found.update(itertools.compress(range(self.size), map(operator.is_not, self.trials, begin)))
        return sorted(found)

    def _look(self, trial: FrozenTrial) -> tuple[object, ...]:
        """What tells an unfinished trial from itself later on, where a storage changes it in place."""
        draw = trial._system_attrs.get("tpe:relative_params:0")
        return id(trial), trial.state, len(trial._params), len(trial._system_attrs), draw

    def _read(self, row: int, trial: FrozenTrial) -> None:
        if row and trial.number <= self.numbers[row - 1]:
            raise Unusual("the trials are not in order of number")
        self.numbers[row] = trial.number
        kind = _KINDS.get(trial.state, OTHER)
        if kind in (COMPLETE, PRUNED) or self.kind[row] in (COMPLETE, PRUNED):
            self.settled = self.tick
        self.kind[row] = kind
        self.changed[row] = self.tick
        self._open.pop(row, None)
        self._params.pop(row, None)
        if not trial.state.is_finished():
            self._open[row] = self._look(trial)
        if kind == RUNNING:
            self._params[row] = dict(self._params_of(trial))
        elif kind != OTHER:
            self._fresh.append(trial)
            self._violation[row] = _get_infeasible_trial_score(trial)
            if self._rank_of is None:
                return
            if kind == COMPLETE:
                self._value[row] = number(trial.value)
            else:
                self._rank[:, row] = self._rank_of(trial)

    def fresh(self) -> list[FrozenTrial]:
        """The trials that finished, COMPLETE or PRUNED, since the last call, in order of number."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def common(self, fresh: Iterable[FrozenTrial]) -> dict[str, BaseDistribution]:
        """The parameters that every finished trial has with the same distribution, by name.

        Args:
            fresh: the trials that finished since the last call.
        """
        for trial in fresh:
            own = trial._distributions
            if self._common is None:
                self._common = dict(sorted(own.items()))
            elif any(own.get(name) != dist for name, dist in self._common.items()):
                self._common = {name: d for name, d in self._common.items() if own.get(name) == d}
        return self._common or {}

    def column(self, name: str, distribution: BaseDistribution) -> Column:
        """The parameter's column, up to date."""
        try:
            column = self._columns.get((name, distribution))
        except TypeError:
            raise Unusual(f"a choice of {name!r} cannot be a key") from None
        if column is None:
            while len(self._columns) >= _COLUMNS:
                del self._columns[next(iter(self._columns))]
            column = self._columns[name, distribution] = Column(name, distribution)
        if column.seen < self.tick:
            rows = self.since(column.seen)
            column.fill(rows, [self._known(row) for row in rows.tolist()], self.size)
            column.seen = self.tick
        return column

    def since(self, tick: int) -> Rows:
        """The rows that changed after ``tick``."""
        return np.flatnonzero(self.changed[: self.size] > tick)

    def _known(self, row: int) -> Mapping[str, Any] | None:
        if self.kind[row] == RUNNING:
            return self._params[row]
        return None if self.kind[row] == OTHER else self.trials[row]._params

    def finished(self) -> int:
        """How many are COMPLETE or PRUNED."""
        kind = self.kind[: self.size]
        return int(np.count_nonzero((kind == COMPLETE) | (kind == PRUNED)))

    def best(self, count: int, sign: float) -> Rows:
        """The rows of the ``count`` best of one objective, as Optuna ranks them, ascending.

        COMPLETE trials come first, by value, then PRUNED ones, by their last step and its value, then
        those that violate a constraint; among equals the earlier.

        Args:
            sign: 1 to minimise, -1 to maximise.
        """
        kind, violation = self.kind[: self.size], self._violation[: self.size]
        broken = violation > 0
        complete = np.flatnonzero((kind == COMPLETE) & ~broken)
        chosen = [least(complete, sign * self._value[complete], count)]
        count = max(0, min(count, self.size) - len(chosen[0]))
        if count:
            pruned = np.flatnonzero((kind == PRUNED) & ~broken)
            depth, value = self._rank[0, pruned], self._rank[1, pruned]
            chosen.append(pruned[np.lexsort((value, depth))[:count]])
            count -= len(chosen[-1])
        if count:
            outside = np.flatnonzero(((kind == COMPLETE) | (kind == PRUNED)) & broken)
            chosen.append(least(outside, violation[outside], count))
        return np.sort(np.concatenate(chosen))


def least(rows: Rows, keys: npt.NDArray[np.float64], count: int) -> Rows:
    """The rows with the ``count`` least keys; among equal keys the earlier rows."""
    if count <= 0:
        return rows[:0]
    if count >= len(rows):
        return rows
    bound = np.partition(keys, count - 1)[count - 1]
    below = rows[keys < bound]
    return np.concatenate([below, rows[keys == bound][: count - len(below)]])


def number(value: float | None) -> float:
    """A value that sorts as itself.

    Raises:
        Unusual: NaN, nothing, or a whole number that a float does not hold.
    """
    if value is None or float(value) != value:
        raise Unusual(f"the value {value!r} of a COMPLETE trial")
    return float(value)


def grown(array: npt.NDArray[Any], size: int, empty: float) -> npt.NDArray[Any]:
    """The array with room for ``size`` along its last axis."""
    room = array.shape[-1]
    if room >= size:
        return array
    wider = np.full((*array.shape[:-1], max(size, 2 * room)), empty, dtype=array.dtype)
    wider[..., :room] = array
    return wider
