"""Which parameters the failed trials of a study have in common, against those that did not fail."""

from __future__ import annotations

import bisect
import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine

from storage import selects
from storage.expressions import among
from storage.rows import distribution
from storage.selects import PARAMS, TRIALS

__all__ = ["Bin", "Contrast", "Contrasts", "contrast", "contrasts", "kolmogorov_smirnov", "total_variation"]

MOST = 5_000
"""Trials of each side that are compared, the newest ones."""

FEWEST = 3
"""Trials that each side needs for a comparison to say anything."""

_BINS = 10
_CHOICES = 12  # a chart shows no more; the rest are one


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A part of a parameter's range, both ends in it, or one choice; and how many trials are there."""

    label: str
    low: float
    high: float
    failed: int
    good: int


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One parameter of the failed trials against the good ones.

    Attributes:
        distance: from 0, the same, to 1, apart: the Kolmogorov-Smirnov statistic of a number, the
            total variation distance between the shares of a categorical parameter.
        chance: what ``distance`` stays below, in 19 of 20 cases, where nothing differs.
        failed, good: trials that have the parameter.
        failed_quartiles, good_quartiles: 25 %, 50 % and 75 % of a number; () for a categorical one.
    """

    name: str
    categorical: bool
    log: bool
    distance: float
    chance: float
    failed: int
    good: int
    failed_quartiles: tuple[float, ...]
    good_quartiles: tuple[float, ...]
    bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """All parameters, the one that separates most first, and of how many trials."""

    params: tuple[Contrast, ...]
    failed: int
    good: int


def contrasts(engine: Engine, name: str, numbers: Sequence[int] | None = None) -> Contrasts:
    """The parameters of failed trials against those of COMPLETE and PRUNED ones.

    Args:
        numbers: the failed trials; None for all that FAILed.
    """
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        if study_id is None:
            return Contrasts(params=(), failed=0, good=0)
        if numbers is None:
            failed = _newest(connection, study_id, [TrialState.FAIL])
        else:
            failed = set(selects.trial_ids(connection, study_id, list(numbers)[:MOST]))
        good = _newest(connection, study_id, [TrialState.COMPLETE, TrialState.PRUNED]) - failed
        if len(failed) < FEWEST or len(good) < FEWEST:
            return Contrasts(params=(), failed=len(failed), good=len(good))
        query = sa.select(
            PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json
        ).where(among(connection, PARAMS.c.trial_id, [*failed, *good]))
        sides: dict[str, tuple[list[float], list[float]]] = {}
        texts: dict[str, str] = {}
        for trial_id, param, value, text in connection.execute(query):
            sides.setdefault(param, ([], []))[trial_id in good].append(value)
            texts[param] = text
    found = [contrast(param, *sides[param], distribution(texts[param])) for param in sides]
    known = sorted((one for one in found if one is not None), key=lambda one: (-one.distance, one.name))
    return Contrasts(params=tuple(known), failed=len(failed), good=len(good))


def contrast(
    name: str, failed: Sequence[float], good: Sequence[float], dist: BaseDistribution
) -> Contrast | None:
    """One parameter, its values as they are stored; None where too few trials have it."""
    if len(failed) < FEWEST or len(good) < FEWEST:
        return None
    choices = dist.choices if isinstance(dist, CategoricalDistribution) else None
    categorical = choices is not None
    log = bool(getattr(dist, "log", False)) and min(*failed, *good) > 0
    bins = _ranges(failed, good, log) if choices is None else _choices(failed, good, choices)
    return Contrast(
        name=name,
        categorical=categorical,
        log=log,
        distance=(total_variation if categorical else kolmogorov_smirnov)(failed, good),
        # the asymptotic 5 % bound of Kolmogorov and Smirnov; it holds for the shares of a few choices too
        chance=min(1.0, 1.358 * math.sqrt(1 / len(failed) + 1 / len(good))),
        failed=len(failed),
        good=len(good),
        failed_quartiles=() if categorical else _quartiles(failed),
        good_quartiles=() if categorical else _quartiles(good),
        bins=tuple(bins),
    )


def kolmogorov_smirnov(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest distance between the empirical distribution functions of two samples.

    Example:
        >>> kolmogorov_smirnov([1, 2, 3, 4], [2, 3, 4, 5])
        0.25
    """
    first, second = sorted(one), sorted(other)
    most = 0.0
    for at in {*first, *second}:
        share = bisect.bisect_right(first, at) / len(first)
        most = max(most, abs(share - bisect.bisect_right(second, at) / len(second)))
    return most


def total_variation(one: Sequence[float], other: Sequence[float]) -> float:
    """Half the sum of the differences between the shares of each value in two samples.

    Example:
        >>> total_variation([0, 0, 1, 1], [0, 0, 0, 0])
        0.5
    """
    first, second = collections.Counter(one), collections.Counter(other)
    return sum(abs(first[at] / len(one) - second[at] / len(other)) for at in {*first, *second}) / 2


def _newest(connection: Connection, study_id: int, states: Sequence[TrialState]) -> set[int]:
    query = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id, TRIALS.c.state.in_(states))
    return set(connection.execute(query.order_by(TRIALS.c.trial_id.desc()).limit(MOST)).scalars())


def _quartiles(values: Sequence[float]) -> tuple[float, ...]:
    """By linear interpolation between the two nearest values."""
    ordered = sorted(values)
    found = []
    for share in (0.25, 0.5, 0.75):
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return tuple(found)


def _choices(failed: Sequence[float], good: Sequence[float], choices: Sequence[Any]) -> list[Bin]:
    bad, fine = collections.Counter(failed), collections.Counter(good)
    common = [at for at, _ in (bad + fine).most_common()]
    shown = common if len(common) <= _CHOICES else common[: _CHOICES - 1]
    bins = [
        Bin(label=str(choices[int(at)]), low=at, high=at, failed=bad[at], good=fine[at])
        for at in sorted(shown)
    ]
    rest = common[len(shown) :]
    if rest:
        bad_rest, fine_rest = sum(bad[at] for at in rest), sum(fine[at] for at in rest)
        text = f"{len(rest)} others"
        bins.append(Bin(label=text, low=math.inf, high=math.inf, failed=bad_rest, good=fine_rest))
    return bins


def _ranges(failed: Sequence[float], good: Sequence[float], log: bool) -> list[Bin]:
    """Equal parts of what occurs, on the parameter's own scale; of few values each is its own."""
    values = sorted({*failed, *good})
    if len(values) <= _BINS:
        bad, fine = collections.Counter(failed), collections.Counter(good)
        return [Bin(label=f"{at:.5g}", low=at, high=at, failed=bad[at], good=fine[at]) for at in values]
    low, high = values[0], values[-1]
    if log:
        step = (high / low) ** (1 / _BINS)
        edges = [low * step**at for at in range(_BINS + 1)]
    else:
        edges = [low + (high - low) * at / _BINS for at in range(_BINS + 1)]
    bad_in, fine_in = _histogram(failed, edges), _histogram(good, edges)
    return [
        Bin(
            label=f"{edges[at]:.3g} to {edges[at + 1]:.3g}",
            low=edges[at],
            high=edges[at + 1],
            failed=bad_in[at],
            good=fine_in[at],
        )
        for at in range(_BINS)
    ]


def _histogram(values: Sequence[float], edges: Sequence[float]) -> collections.Counter[int]:
    inner = edges[1:-1]
    return collections.Counter(bisect.bisect_right(inner, value) for value in values)
