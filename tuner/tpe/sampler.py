"""Optuna's TPE with its history kept between questions.

For the same history, settings and state of the generator it suggests what Optuna's own class would:
the split, the kernels and the candidates are Optuna's, to the bit. Only the densities are computed
another way: they differ by some 1e-12, and by 1e-8 on grids of millions of points. Where the two best
candidates lie within 1e-6 of each other, Optuna's own arithmetic decides.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler as OptunaTPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import (
    _get_pruned_trial_score,
    _split_trials,
    default_gamma,
    default_gamma_multiobjective,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.tpe import mixture
from tuner.tpe.density import Density
from tuner.tpe.lines import SMALLEST
from tuner.tpe.table import COMPLETE, PRUNED, RUNNING, Column, Rows, Table, Unusual

__all__ = ["TPESampler"]

Floats = npt.NDArray[np.float64]

_CLOSE = 1e-6  # two candidates closer than this are told apart by Optuna's arithmetic
_DENSITIES = 16  # search spaces kept
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class TPESampler(OptunaTPESampler):
    """``optuna.samplers.TPESampler``, with the same arguments and suggestions, for long histories.

    Optuna's own path serves what is not kept: a ``_parzen_estimator_cls`` of the user's, trials that
    a storage lists out of order, values or choices that do not compare. With ``prior_weight=0`` or
    ``consider_magic_clip=False`` a long mixture costs as many operations as Optuna's.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(sampler=TPESampler(seed=1))
        >>> study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=20)
    """

    _history: _History | None = None
    _guard: threading.RLock | None = None

    @classmethod
    def of(cls, sampler: OptunaTPESampler) -> TPESampler:
        """A sampler with the settings and generators of another, which it shares."""
        made = cls.__new__(cls)
        vars(made).update(vars(sampler))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_history", "_guard")}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if not self._is_multivariate(study):
            return {}
        try:
            with self._current(study, use_cache=True) as history:
                fresh = history.table.fresh()
                if self._group:
                    return self._infer_groups(study, fresh)
                space = history.table.common(fresh)
        except Unusual:
            return super().infer_relative_search_space(study, trial)
        return {name: dist for name, dist in space.items() if not dist.single()}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if self._warn_independent_sampling:
            return super().sample_independent(study, trial, param_name, param_distribution)
        if self._is_starting(study):
            random = self._random_sampler
            return random.sample_independent(study, trial, param_name, param_distribution)
        return self._sample(study, trial, {param_name: param_distribution})[param_name]

    def _sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if search_space == {} or self._is_starting(study):
            return {}
        return self._sample(study, trial, search_space)

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._parzen_estimator_cls is not _ParzenEstimator:
            return super()._sample(study, trial, search_space)
        try:
            with self._current(study, use_cache=not self._constant_liar) as history:
                below, above = self._split(study, trial, history)
                table = history.table
                columns = [table.column(name, dist) for name, dist in search_space.items()]
                if any(column.misfits for column in columns):
                    raise Unusual("a value that its distribution refuses")
                return self._suggest(study, search_space, history, columns, below, above)
        except Unusual:
            return super()._sample(study, trial, search_space)

    def _suggest(
        self,
        study: optuna.Study,
        search_space: dict[str, BaseDistribution],
        history: _History,
        columns: Sequence[Column],
        is_below: npt.NDArray[np.bool_],
        is_above: npt.NDArray[np.bool_],
    ) -> dict[str, Any]:
        parameters, table = self._parzen_estimator_parameters, history.table
        density = history.density(columns, parameters.consider_endpoints, parameters.prior_weight)
        below, above = density.rows(table, is_below), density.rows(table, is_above)
        ones = np.ones(len(below)) if study._is_multi_objective() else None
        mpe_below = _ParzenEstimator(_observations(columns, below), search_space, parameters, ones)
        samples = mpe_below.sample(self._rng.rng, self._n_ei_candidates)
        mpe_above: _ParzenEstimator | None = None
        is_long = len(above) >= SMALLEST and parameters.prior_weight > 0 and parameters.consider_magic_clip
        weights = (
            _ParzenEstimator._call_weights_func(parameters.weights, len(above)) if is_long else np.ones(0)
        )
        if is_long and len(weights) == len(above):
            weights = np.append(weights, [parameters.prior_weight])
            pdf_above = density.log_pdf(samples, table, above, weights / weights.sum())
        else:
            mpe_above = _ParzenEstimator(_observations(columns, above), search_space, parameters)
            pdf_above = mixture.log_pdf(mpe_above, samples)
        pdf_below = None if pdf_above is None else mixture.log_pdf(mpe_below, samples)
        chosen: Mapping[str, int | float] | None = None
        if pdf_above is not None and pdf_below is not None:
            chosen = _clearest(samples, pdf_below - pdf_above)
        if chosen is None:
            mpe_above = mpe_above or _ParzenEstimator(_observations(columns, above), search_space, parameters)
            chosen = self._compare(samples, self._compute_acquisition_func(samples, mpe_below, mpe_above))
        return {name: dist.to_external_repr(chosen[name]) for name, dist in search_space.items()}

    def _split(
        self, study: optuna.Study, trial: FrozenTrial, history: _History
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """By row of the table: whether its trial is below, whether above."""
        table, several = history.table, study._is_multi_objective()
        if self._gamma is None:
            self._gamma = default_gamma_multiobjective if several else default_gamma
        count = self._gamma(table.finished())
        if not isinstance(count, int) or count < 0:
            raise Unusual(f"gamma gives {count!r}")
        below = np.zeros(table.size, dtype=bool)
        if several:
            below[history.best_of_several(study, count)] = True
        else:
            below[table.best(count, -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0)] = True
        kind = table.kind[: table.size]
        above = ((kind == COMPLETE) | (kind == PRUNED)) & ~below
        if self._constant_liar:
            above |= (kind == RUNNING) & (table.numbers[: table.size] != trial.number)
        return below, above

    def _is_starting(self, study: optuna.Study) -> bool:
        """Whether fewer trials are COMPLETE or PRUNED than random ones are asked for."""
        trials = study._get_trials(deepcopy=False, use_cache=True)
        finished = (one for one in trials if one.state in _FINISHED)
        needed = max(0, self._n_startup_trials)
        return sum(1 for _ in itertools.islice(finished, needed)) < needed

    def _infer_groups(self, study: optuna.Study, fresh: list[FrozenTrial]) -> dict[str, BaseDistribution]:
        """Optuna's decomposition, told only of the trials that it has not seen: the rest changes nothing."""
        assert self._group_decomposed_search_space is not None
        new: Any = _Only(study._study_id, fresh)
        self._search_space_group = self._group_decomposed_search_space.calculate(new)
        spaces = self._search_space_group.search_spaces
        pairs = itertools.chain.from_iterable(sorted(space.items()) for space in spaces)
        return {name: dist for name, dist in pairs if not dist.single()}

    @contextlib.contextmanager
    def _current(self, study: optuna.Study, *, use_cache: bool) -> Iterator[_History]:
        """The history with the study's trials of now; one thread at a time."""
        if self._guard is None:
            self._guard = threading.RLock()
        with self._guard:
            trials = study._get_trials(deepcopy=False, use_cache=use_cache)
            history = self._history
            if history is None or history.study_id != study._study_id or len(trials) < history.table.size:
                history = _History(self, study)
            self._history = None  # where the update fails
            history.table.update(trials)
            self._history = history
            yield history


class _History:
    """A table and what is derived from it."""

    def __init__(self, sampler: TPESampler, study: optuna.Study) -> None:
        self.study_id = study._study_id
        several = study._is_multi_objective()
        multivariate = sampler._is_multivariate(study)
        direction = None if several else study.direction
        self.table = Table(
            (lambda trial: sampler._get_params(trial, study))
            if multivariate
            else (lambda trial: trial.params),
            None if direction is None else (lambda trial: _pruned_score(trial, direction)),
        )
        self._densities: dict[tuple[Column, ...], Density] = {}
        self._best: tuple[tuple[int, int], Rows] | None = None

    def density(self, columns: Sequence[Column], endpoints: bool, prior_weight: float) -> Density:
        """The mixture over these columns."""
        key = tuple(columns)
        if key not in self._densities:
            while len(self._densities) >= _DENSITIES:
                del self._densities[next(iter(self._densities))]
            self._densities[key] = Density(columns, endpoints, prior_weight)
        return self._densities[key]

    def best_of_several(self, study: optuna.Study, count: int) -> Rows:
        """The rows below, of several objectives, by Optuna's own ranking: once for each history."""
        key = self.table.settled, count
        if self._best is None or self._best[0] != key:
            rows = {trial.number: row for row, trial in enumerate(self.table.trials)}
            finished = [trial for trial in self.table.trials if trial.state in _FINISHED]
            below, _ = _split_trials(study, finished, count)
            found = np.array([rows[trial.number] for trial in below], dtype=np.intp)
            self._best = key, found
        return self._best[1]


class _Only:
    """A study as Optuna's decomposition sees it, with some of its trials."""

    def __init__(self, study_id: int, trials: list[FrozenTrial]) -> None:
        self._study_id = study_id
        self._trials = trials

    def _get_trials(self, **_: Any) -> list[FrozenTrial]:
        return self._trials


class _Facing:
    """As much of a study as Optuna's score of a pruned trial reads."""

    def __init__(self, direction: StudyDirection) -> None:
        self.direction = direction


def _pruned_score(trial: FrozenTrial, direction: StudyDirection) -> tuple[float, float]:
    facing: Any = _Facing(direction)
    return _get_pruned_trial_score(trial, facing)


def _observations(columns: Sequence[Column], rows: Rows) -> dict[str, Floats]:
    return {column.name: column.values[rows] for column in columns}


def _clearest(samples: Mapping[str, Floats], values: Floats) -> Mapping[str, int | float] | None:
    """The sample with the greatest value; None where another one comes close, or a value is no number."""
    if not np.isfinite(values).all():
        return None
    best = int(np.argmax(values))
    same = np.ones(len(values), dtype=bool)
    for one in samples.values():
        same &= one == one[best]
    rest = values[~same]
    if len(rest) and values[best] - rest.max() <= _CLOSE:
        return None
    return {name: one[best].item() for name, one in samples.items()}
