"""Probability masses of normal distributions over intervals, for whole arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

__all__ = ["log_mass"]

Floats = npt.NDArray[np.float64]

_DEGREE = 26
_FURTHEST = 26.0  # erfc is nought in a float beyond it


def _series() -> Floats:
    """Chebyshev's series of log(erfc(x) / t) + x², smooth in t = 2 / (2 + x) (Numerical Recipes, 6.2)."""
    least = 2.0 / (2.0 + _FURTHEST)

    def smooth(at: Floats) -> Any:
        ts = least + (at + 1.0) * (1.0 - least) / 2.0
        xs = 2.0 / ts - 2.0
        return np.array([math.log(math.erfc(x) / t) + x * x for x, t in zip(xs, ts, strict=True)])

    return chebyshev.chebinterpolate(smooth, _DEGREE)


_COEFFICIENTS = _series()


def erfc(x: Floats) -> Floats:
    """The complementary error function of numbers of at least 0, to 13 digits; 0 beyond 26.

    Example:
        >>> bool(abs(erfc(np.array([1.0]))[0] - math.erfc(1.0)) < 1e-14)
        True
    """
    least = 2.0 / (2.0 + _FURTHEST)
    t = 2.0 / (2.0 + np.minimum(x, _FURTHEST))
    exponent = chebyshev.chebval((t - least) * (2.0 / (1.0 - least)) - 1.0, _COEFFICIENTS)
    return np.where(x > _FURTHEST, 0.0, t * np.exp(exponent - x * x))


def log_mass(a: Floats, b: Floats) -> Floats:
    """Log of the standard normal distribution's mass in the intervals [a, b], a < b; -inf from 36 sigmas on.

    Example:
        >>> round(float(np.exp(log_mass(np.array([-1.0]), np.array([1.0])))[0]), 6)
        0.682689
    """
    flip = a > 0
    low, high = np.where(flip, -b, a), np.where(flip, -a, b)  # symmetry: the left tail loses no digits
    below, beside = erfc(np.stack([np.maximum(-low, 0.0), np.abs(high)]) / math.sqrt(2.0))
    central = high > 0
    mass = np.where(central, 1.0 - 0.5 * below - 0.5 * beside, 0.5 * (beside - below))
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(mass, 0.0))  # type: ignore[no-any-return]
