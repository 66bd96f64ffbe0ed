"""The log density of a short mixture, kernel by kernel as Optuna has made it, to some 1e-10."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions

from tuner.tpe.masses import log_mass

__all__ = ["EDGE", "log_pdf"]

Floats = npt.NDArray[np.float64]

EDGE = 1e-9
"""Of a range: nearer to its end than this, rounding decides whether a point is inside."""

_LOG_ROOT = 0.5 * math.log(2 * math.pi)


def log_pdf(estimator: _ParzenEstimator, samples: Mapping[str, Floats]) -> Floats | None:
    """The log density at each sample; None where rounding decides, next to the end of a range.

    Optuna evaluates the masses of intervals one by one; here all of them are one array.

    Args:
        samples: values by name, in the order of the estimator's search space, as many of each.
    """
    mixture = estimator._mixture_distribution
    with np.errstate(divide="ignore"):
        total = np.log(mixture.weights)[np.newaxis, :]
    intervals: list[tuple[Floats, Floats]] = []  # cells of values first, then the ranges of kernels
    ranges: list[tuple[Floats, Floats]] = []
    for values, one in zip(samples.values(), mixture.distributions, strict=True):
        if isinstance(one, _BatchedCategoricalDistributions):
            with np.errstate(divide="ignore"):
                total = total + np.log(one.weights[:, values.astype(np.intp)].T)
            continue
        kernels: Any = one
        low, high = kernels.adapted_low, kernels.adapted_high
        ranges.append(((low - kernels.mu) / kernels.sigma, (high - kernels.mu) / kernels.sigma))
        half = kernels.step / 2
        left, right = values[:, np.newaxis] - half, values[:, np.newaxis] + half
        if kernels.is_log:
            left, right = np.log(left), np.log(right)
        if half:
            intervals.append(((left - kernels.mu) / kernels.sigma, (right - kernels.mu) / kernels.sigma))
            continue
        edge = EDGE * (high - low)
        if not ((left > low + edge) & (left < high - edge)).all():
            return None
        squares = ((left - kernels.mu) / kernels.sigma) ** 2
        total = total - 0.5 * squares - np.log(kernels.sigma) - _LOG_ROOT
    if ranges:
        rows = [*intervals, *((low[np.newaxis], high[np.newaxis]) for low, high in ranges)]
        masses = log_mass(
            np.concatenate([low for low, _ in rows]), np.concatenate([high for _, high in rows])
        )
        cut = masses[len(masses) - len(ranges) :].sum(axis=0)
        count = len(next(iter(samples.values())))
        total = total - cut + masses[: len(masses) - len(ranges)].reshape(-1, count, len(cut)).sum(axis=0)
    most = total.max(axis=1)
    with np.errstate(invalid="ignore"):
        return np.log(np.exp(total - most[:, np.newaxis]).sum(axis=1)) + most  # type: ignore[no-any-return]
