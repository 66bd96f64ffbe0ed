"""What the charts of a study show, as pure functions of columns: orders, samples, fronts, distributions."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from storage.columns import ParamColumn
from storage.views import CurvePoint

__all__ = [
    "apart",
    "best_first",
    "best_so_far",
    "edf",
    "pareto_front",
    "positions",
    "quartiles",
    "sampled",
    "surface",
    "thinned",
]

Floats = npt.NDArray[np.float64]

_T = TypeVar("_T")


def best_first(values: Sequence[float], direction: str, feasible: Sequence[bool]) -> list[int]:
    """The places of the finite values, best first: feasible before infeasible, then the earlier one."""
    sign = -1 if direction == "maximize" else 1
    finite = [place for place, value in enumerate(values) if math.isfinite(value)]
    return sorted(finite, key=lambda place: (not feasible[place], sign * values[place], place))


def sampled(places: Sequence[int], most: int, keep: Iterable[int] = ()) -> list[int]:
    """At most ``most`` of the places, evenly and the same each time, with all of ``keep`` among them."""
    if len(places) <= most:
        return list(places)
    kept = set(keep)
    rest = [place for place in places if place not in kept]
    room = max(0, most - len(kept))
    chosen = [rest[at * len(rest) // room] for at in range(room)] if room < len(rest) else rest
    return sorted(kept.union(chosen))


def best_so_far(values: Sequence[float], direction: str) -> list[tuple[int, float]]:
    """The places that improved on all before them, with their values; the last place once more."""
    better = operator.gt if direction == "maximize" else operator.lt
    found: list[tuple[int, float]] = []
    for place, value in enumerate(values):
        if not found or better(value, found[-1][1]):
            found.append((place, value))
    if found and found[-1][0] != len(values) - 1:
        found.append((len(values) - 1, found[-1][1]))
    return found


def edf(values: Sequence[float]) -> list[tuple[float, float]]:
    """The empirical distribution function where it steps: a value, and the share at most that large.

    NaN counts for nothing; an infinite value counts, and has no step.
    """
    ordered = np.sort(np.array([value for value in values if not math.isnan(value)], dtype=np.float64))
    steps = np.unique(ordered[np.isfinite(ordered)])
    shares = np.searchsorted(ordered, steps, side="right") / max(1, len(ordered))
    return list(zip(steps.tolist(), shares.tolist(), strict=True))


def pareto_front(columns: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """The places of the points that no other dominates, in order; equal points are on it together.

    A point dominates another one if it is at least as good in every objective and better in one.
    Points with NaN are on no front. Sorted by all objectives the first point is on the front; what
    it dominates goes, and the next one that is left is on it too.
    """
    signs = np.array([-1.0 if way == "maximize" else 1.0 for way in directions])
    losses = np.array(columns, dtype=np.float64).reshape(len(directions), -1).T * signs
    places = np.flatnonzero(~np.isnan(losses).any(axis=1))
    points, which = np.unique(losses[places], axis=0, return_inverse=True)  # sorted by all objectives
    left = np.arange(len(points))
    front = np.zeros(len(points), dtype=bool)
    while len(left):
        first = left[0]
        front[first] = True
        left = left[(points[left] < points[first]).any(axis=1)]
    return [int(place) for place in places[front[which.reshape(-1)]]]


def quartiles(curves: Collection[Sequence[CurvePoint]]) -> list[tuple[int, float, float, float]]:
    """By step: the lower quartile, the median and the upper one of the finite reports."""
    at: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            if math.isfinite(value):
                at.setdefault(step, []).append(value)
    found = []
    for step in sorted(at):
        low, middle, high = np.percentile(at[step], [25, 50, 75])
        found.append((step, float(low), float(middle), float(high)))
    return found


def thinned(points: Sequence[_T], most: int) -> list[_T]:
    """At most ``most`` of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(at * (len(points) - 1) / (most - 1))] for at in range(most)]


def positions(column: ParamColumn) -> tuple[list[float], list[tuple[float, str]]]:
    """Where the values of a parameter lie on an axis from 0 to 1 (NaN for none), and marks along it."""
    if column.choices is not None:
        last = max(1, len(column.choices) - 1)
        place = {choice: at / last for at, choice in enumerate(column.choices)}
        taken = [math.nan if value is None else place[str(value)] for value in column.values]
        return taken, thinned([(place[choice], choice) for choice in column.choices], 9)
    plain = np.array([math.nan if value is None else value for value in column.values], dtype=np.float64)
    scaled = np.log(plain) if column.log else plain
    known = scaled[np.isfinite(scaled)]
    if not len(known):
        return [math.nan] * len(plain), []
    low, high = float(known.min()), float(known.max())
    if low == high:
        mark = f"{math.exp(low) if column.log else low:.3g}"
        return np.where(np.isfinite(scaled), 0.5, math.nan).tolist(), [(0.5, mark)]
    at = ((scaled - low) / (high - low)).tolist()
    if column.log:
        powers = range(math.ceil(low / math.log(10) - 1e-9), math.floor(high / math.log(10) + 1e-9) + 1)
        if len(powers) > 1:
            return at, thinned([((n * math.log(10) - low) / (high - low), f"1e{n}") for n in powers], 6)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    between = [low + share * (high - low) for share in shares]
    texts = [f"{math.exp(value) if column.log else value:.3g}" for value in between]
    return at, list(zip(shares, texts, strict=True))


def surface(x: Sequence[float], y: Sequence[float], z: Sequence[float], at_x: Floats, at_y: Floats) -> Floats:
    """Values between points by inverse distance (Shepard 1968), at each y (rows) and each x (columns).

    Distances are in the units given: scale both axes alike before. The power of 4 keeps a value
    local; the small addend keeps a point from standing out of its surroundings.
    """
    across = (at_x[None, :, None] - np.asarray(x)) ** 2
    along = (at_y[:, None, None] - np.asarray(y)) ** 2
    weights = 1.0 / (across + along + 5e-4) ** 2
    between: Floats = (weights * np.asarray(z)).sum(axis=2) / weights.sum(axis=2)
    return between


def apart(texts: Sequence[str]) -> list[str]:
    """The texts, with a number behind one that was there before."""
    found: list[str] = []
    for text in texts:
        fresh, count = text, 1
        while fresh in found:
            count += 1
            fresh = f"{text} ({count})"
        found.append(fresh)
    return found
