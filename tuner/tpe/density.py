"""The log density of a long mixture of TPE's kernels at a few points, to some 1e-10.

Optuna evaluates every kernel in every parameter at every point, with a dozen passes over that
array. Here the regular kernels (:mod:`tuner.tpe.lines`) are one product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tuner.tpe.cells import Cells
from tuner.tpe.lines import Lines
from tuner.tpe.masses import log_mass
from tuner.tpe.mixture import EDGE
from tuner.tpe.table import OTHER, Column, Rows, Table, grown

__all__ = ["Density"]

Floats = npt.NDArray[np.float64]

_LOG_ROOT = 0.5 * math.log(2 * math.pi)
_NOTHING = -50.0  # below the greatest term: a million of such terms are 1e-16 of it


class Density:
    """The mixture over the parameters of some columns, of any rows of their table.

    Args:
        columns: of the search space.
        endpoints: Optuna's ``consider_endpoints``.
        prior_weight: Optuna's.
    """

    def __init__(self, columns: Sequence[Column], endpoints: bool, prior_weight: float) -> None:
        self._columns = columns
        self._prior_weight = prior_weight
        numeric = [one for one in columns if not isinstance(one.distribution, CategoricalDistribution)]
        self._choices = [one for one in columns if isinstance(one.distribution, CategoricalDistribution)]
        self._smooth = [one for one in numeric if _step(one) is None]
        self._stepped = [one for one in numeric if _step(one) is not None]
        self._lines = Lines([*self._smooth, *self._stepped], endpoints)
        count = len(self._smooth)
        self._cells = [
            Cells(_numeric(one), width)
            for one, width in zip(self._stepped, self._lines.width[count:].tolist(), strict=True)
        ]
        self._middle = 0.5 * (self._lines.low + self._lines.high)
        self._span = self._lines.high - self._lines.low
        self._prior_constant = self._lines.constant(np.arange(len(numeric)), self._middle, self._span)
        self._scaled: Floats = np.zeros(
            (count, 64)
        )  # places from the middle, in widths; 0 where there is none
        self._constant: Floats = np.zeros(64)
        self._present = np.zeros(64, dtype=bool)
        self._seen = 0

    def rows(self, table: Table, among: npt.NDArray[np.bool_]) -> Rows:
        """The rows of ``among`` that have a value in every column."""
        self._sync(table)
        return np.flatnonzero(among & self._present[: table.size])

    def log_pdf(
        self, samples: Mapping[str, Floats], table: Table, rows: Rows, weights: Floats
    ) -> Floats | None:
        """The log density at each sample; None where rounding decides, next to the end of a range.

        Args:
            samples: values by name, as many of each.
            rows: the kernels, each with a value in all columns.
            weights: of the kernels, and last of the prior.
        """
        self._sync(table)
        lines, smooth = self._lines, len(self._smooth)
        number = len(next(iter(samples.values())))
        points = np.empty((len(lines.low), number))
        for at, column in enumerate([*self._smooth, *self._stepped]):
            points[at] = samples[column.name]
        points = lines.on_range(points)
        inside = np.minimum(points - lines.low[:, np.newaxis], lines.high[:, np.newaxis] - points)
        if not (inside[:smooth] > EDGE * self._span[:smooth, np.newaxis]).all():
            return None
        scaled = (points[:smooth] - self._middle[:smooth, np.newaxis]) / lines.width[:smooth, np.newaxis]
        found: Floats = scaled.T @ self._scaled[:, : table.size]
        base = np.full(table.size, -np.inf)
        with np.errstate(divide="ignore"):
            base[rows] = np.log(weights[:-1]) + self._constant[rows]
        found += base
        self._correct(found, points, samples, rows)
        for column in self._choices:
            self._choose(found, column, samples[column.name], len(rows) + 1)
        squares = 0.5 * (scaled**2).sum(axis=0)
        prior = squares + math.log(weights[-1]) + self._prior(points, samples)
        most = np.maximum(found.max(axis=1), prior)
        found -= most[:, np.newaxis]
        sums = [np.exp(row[row > _NOTHING]).sum() for row in found]  # most kernels are far away
        total = np.log(np.array(sums) + np.exp(prior - most))
        return total + most - squares  # type: ignore[no-any-return]

    def _correct(self, to: Floats, points: Floats, samples: Mapping[str, Floats], rows: Rows) -> None:
        """Give wide kernels their own width, and add what parameters with a step contribute."""
        lines, smooth = self._lines, len(self._smooth)
        for at, wide in enumerate(lines.wide(rows, to.shape[1]) if len(lines.low) else ()):
            width, places = lines.width[at], lines.places[at, wide.rows]
            constants = lines.constants[at, wide.rows]
            if at >= smooth:
                values = samples[self._stepped[at - smooth].name]
                self._cells[at - smooth].add(to, values, wide, places, constants)
            elif len(wide.rows):
                shape = 0.5 / width**2 - 0.5 / wide.widths**2
                shift = wide.constants - constants + np.log(width / wide.widths)
                to[:, wide.rows] += (points[at, :, np.newaxis] - places) ** 2 * shape + shift

    def _choose(self, to: Floats, column: Column, values: Floats, kernels: int) -> None:
        """Add each kernel's log probability of each choice."""
        base, number = self._prior_weight / kernels, _choices(column)
        miss = math.log(base / (1.0 + number * base))
        hit = math.log((base + 1.0) / (1.0 + number * base))
        chosen = column.values[: to.shape[1]]
        for choice in np.unique(values):
            row = np.where(chosen == choice, hit, miss)
            for at in np.flatnonzero(values == choice):
                to[at] += row

    def _prior(self, points: Floats, samples: Mapping[str, Floats]) -> Floats:
        """The log density of the prior: in the middle of each range and as wide, each choice alike."""
        smooth = len(self._smooth)
        middle, span = self._middle[:, np.newaxis], self._span[:, np.newaxis]
        squares = ((points[:smooth] - middle[:smooth]) / span[:smooth]) ** 2
        total = self._prior_constant.sum() - 0.5 * squares.sum(axis=0)
        total -= (np.log(self._span[:smooth]) + _LOG_ROOT).sum()
        for column in self._choices:
            total -= math.log(_choices(column))
        for at, (column, cells) in enumerate(zip(self._stepped, self._cells, strict=True), smooth):
            left, right = cells.edges(samples[column.name])
            total += log_mass((left - middle[at]) / span[at], (right - middle[at]) / span[at])
        return total  # type: ignore[no-any-return]

    def _sync(self, table: Table) -> None:
        if self._seen == table.tick:
            return
        rows, lines, smooth = table.since(self._seen), self._lines, len(self._smooth)
        self._scaled = grown(self._scaled, table.size, 0.0)
        self._constant = grown(self._constant, table.size, 0.0)
        self._present = grown(self._present, table.size, False)
        there = table.kind[rows] != OTHER
        for column in self._columns:
            there &= ~np.isnan(column.values[rows])
        self._present[rows] = there
        lines.sync(rows, self._present[: table.size])
        middle, width = self._middle[:smooth, np.newaxis], lines.width[:smooth, np.newaxis]
        scaled = np.nan_to_num((lines.places[:smooth, rows] - middle) / width, nan=0.0)
        self._scaled[:, rows] = scaled
        self._constant[rows] = (
            lines.constants[:, rows].sum(axis=0)
            - 0.5 * (scaled**2).sum(axis=0)
            - (np.log(lines.width[:smooth]) + _LOG_ROOT).sum()
        )
        for at, cells in enumerate(self._cells, smooth):
            cells.sync(rows, lines.places[at, rows], table.size)
        self._seen = table.tick


def _numeric(column: Column) -> FloatDistribution | IntDistribution:
    assert isinstance(column.distribution, FloatDistribution | IntDistribution)
    return column.distribution


def _step(column: Column) -> float | None:
    return _numeric(column).step


def _choices(column: Column) -> int:
    assert isinstance(column.distribution, CategoricalDistribution)
    return len(column.distribution.choices)
