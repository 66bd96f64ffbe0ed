"""Functions: benchmarks with known optima, each an objective of its own.

What it teaches: how little an objective needs. These are plain Optuna objectives without a word of
Tuner in them; they cost microseconds, so that what a study of them takes is Tuner's own time, and
their optima are known, so that a sampler can be judged.

============================ ============ ===========================================================
objective                    inputs       optimum
============================ ============ ===========================================================
:func:`branin`               x, y         0.397887 at (-pi, 12.275), (pi, 2.275) and (9.42478, 2.475)
:func:`rosenbrock`           x0 ... x3    0 at (1, 1, 1, 1)
:func:`hartmann6`            x0 ... x5    -3.32237
:func:`constrained_branin`   x, y         0.397887 at (pi, 2.275) only
:func:`zdt1`                 x0 ... x29   the front f2 = 1 - sqrt(f1), where x1 = ... = x29 = 0
============================ ============ ===========================================================

All are minimised. :func:`zdt1` has two objectives: ``directions=["minimize", "minimize"]``.
::

    tuner run objectives/functions.py:branin --study branin --trials 100
"""

from __future__ import annotations

import itertools
import math

import optuna

__all__ = ["branin", "constrained_branin", "hartmann6", "rosenbrock", "zdt1"]


def branin(trial: optuna.Trial) -> float:
    """Branin's function: three minima of the same value 0.397887, for x in [-5, 10] and y in [0, 15].

    Source: L. C. W. Dixon and G. P. Szego, Towards Global Optimisation 2, 1978.

    Example:
        >>> round(branin(optuna.trial.FixedTrial({"x": math.pi, "y": 2.275})), 6)
        0.397887
    """
    return _branin(trial.suggest_float("x", -5.0, 10.0), trial.suggest_float("y", 0.0, 15.0))


def rosenbrock(trial: optuna.Trial) -> float:
    """Rosenbrock's curved valley in four dimensions, each in [-2, 2]: 0 at (1, 1, 1, 1).

    The valley is found at once and its end hardly ever: parameters that depend on each other are
    hard for a sampler that looks at one at a time.

    Source: H. H. Rosenbrock, The Computer Journal 3 (1960) 175, chained as is usual.

    Example:
        >>> rosenbrock(optuna.trial.FixedTrial({"x0": 1.0, "x1": 1.0, "x2": 1.0, "x3": 1.0}))
        0.0
    """
    x = [trial.suggest_float(f"x{index}", -2.0, 2.0) for index in range(4)]
    return sum(100.0 * (b - a**2) ** 2 + (1.0 - a) ** 2 for a, b in itertools.pairwise(x))


def hartmann6(trial: optuna.Trial) -> float:
    """Hartmann's function of six variables in [0, 1]: six local minima.

    The lowest is -3.32237 at (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573).

    Source: J. K. Hartman, Naval Research Logistics Quarterly 20 (1973) 569; constants as in Dixon
    and Szego.

    Example:
        >>> lowest = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
        >>> round(hartmann6(optuna.trial.FixedTrial({f"x{i}": x for i, x in enumerate(lowest)})), 5)
        -3.32237
    """
    x = [trial.suggest_float(f"x{index}", 0.0, 1.0) for index in range(6)]
    return -sum(
        height * math.exp(-sum(a * (value - p) ** 2 for a, value, p in zip(width, x, peak, strict=True)))
        for height, width, peak in zip(_HEIGHTS, _WIDTHS, _PEAKS, strict=True)
    )


def constrained_branin(trial: optuna.Trial) -> float:
    """Branin's function within a disk: (x - 2.5)^2 + (y - 7.5)^2 <= 50.

    Of the three minima only (pi, 2.275) lies in the disk, so that a sampler which does not heed the
    constraint ends outside two times in three. As always in Optuna, a constraint of at most 0 is met.

    Example:
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        >>> study.optimize(constrained_branin, n_trials=20)
        >>> study.best_value == min(one.value for one in study.trials if one.constraints["disk"] <= 0)
        True
    """
    x, y = trial.suggest_float("x", -5.0, 10.0), trial.suggest_float("y", 0.0, 15.0)
    trial.set_constraint("disk", (x - 2.5) ** 2 + (y - 7.5) ** 2 - 50.0)
    return _branin(x, y)


def zdt1(trial: optuna.Trial) -> tuple[float, float]:
    """Two objectives of 30 variables in [0, 1] that cannot both be small.

    The Pareto front is f2 = 1 - sqrt(f1) for f1 in [0, 1], reached where all but the first
    variable are 0.

    Source: E. Zitzler, K. Deb and L. Thiele, Evolutionary Computation 8 (2000) 173.

    Example:
        >>> zdt1(optuna.trial.FixedTrial({f"x{i}": 0.0 for i in range(30)}))
        (0.0, 1.0)
    """
    first, *others = [trial.suggest_float(f"x{index}", 0.0, 1.0) for index in range(30)]
    distance = 1.0 + 9.0 * sum(others) / len(others)
    return first, distance * (1.0 - math.sqrt(first / distance))


def _branin(x: float, y: float) -> float:
    valley = y - 5.1 / (4.0 * math.pi**2) * x**2 + 5.0 / math.pi * x - 6.0
    return valley**2 + 10.0 * (1.0 - 1.0 / (8.0 * math.pi)) * math.cos(x) + 10.0


# Hartmann's four wells: depth, steepness along each axis, place.
_HEIGHTS = (1.0, 1.2, 3.0, 3.2)
_WIDTHS = (
    (10.0, 3.0, 17.0, 3.5, 1.7, 8.0),
    (0.05, 10.0, 17.0, 0.1, 8.0, 14.0),
    (3.0, 3.5, 1.7, 10.0, 17.0, 8.0),
    (17.0, 8.0, 0.05, 10.0, 0.1, 14.0),
)
_PEAKS = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)
