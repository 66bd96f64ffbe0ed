"""A parameter with a step: the probabilities of the cells around its values, kernel by kernel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import FloatDistribution, IntDistribution

from tuner.tpe.lines import Wide
from tuner.tpe.masses import log_mass
from tuner.tpe.table import Rows, grown

__all__ = ["Cells"]

Floats = npt.NDArray[np.float64]

_FLOOR = -1e4  # stands for the log of nothing; a kernel 100 widths away is at -5000
_FINE = 0.05  # widths of a kernel: a cell up to it is narrow
_KEPT = 512  # values whose cells are kept
_LOG_ROOT = 0.5 * math.log(2 * math.pi)
_NONE: Floats = np.zeros(0)


class Cells:
    """The cells of one parameter.

    Args:
        width: of a regular kernel.
    """

    def __init__(self, distribution: FloatDistribution | IntDistribution, width: float) -> None:
        assert distribution.step is not None
        self._half = distribution.step / 2
        self._is_log = distribution.log
        self._width = width
        self._levels: Floats = np.zeros(0)  # the different places of kernels, in the order in which they came
        self._codes: dict[float, int] = {}
        self._code: npt.NDArray[np.intp] = np.zeros(64, dtype=np.intp)  # of a row's place
        self._known: dict[float, Floats] = {}  # by value, each level's contribution

    def sync(self, rows: Rows, places: Floats, size: int) -> None:
        """Take in the places of rows that have changed; NaN where there is none."""
        self._code = grown(self._code, size, 0)
        codes, known = self._codes, len(self._codes)
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            self._code[row] = 0 if place != place else codes.setdefault(place, len(codes))
        if len(codes) > known:
            self._levels = np.fromiter(codes, dtype=np.float64, count=len(codes))

    def add(self, to: Floats, values: Floats, wide: Wide, places: Floats, constants: Floats) -> None:
        """Add each kernel's log probability of each value's cell, without a regular kernel's constant.

        Args:
            to: values by kernels.
            places, constants: of the wide kernels, were they regular.
        """
        different, which = np.unique(values, return_inverse=True)
        left, right = self.edges(different[:, np.newaxis])
        own = np.maximum(log_mass((left - places) / wide.widths, (right - places) / wide.widths), _FLOOR)
        own += wide.constants - constants
        code = self._code[: to.shape[1]]
        for at, contributions in enumerate(self._regular(different)):
            row = contributions[code]
            row[wide.rows] = own[at]
            for one in np.flatnonzero(which == at):
                to[one] += row

    def edges(self, values: Any) -> Any:
        """Where the cells of values begin and end."""
        left, right = values - self._half, values + self._half
        return (np.log(left), np.log(right)) if self._is_log else (left, right)

    def _regular(self, values: Floats) -> list[Floats]:
        """Each level's contribution to each value's cell, were its kernel a regular one."""
        known = [self._known.get(value, _NONE) for value in values.tolist()]
        short = [at for at, one in enumerate(known) if len(one) < len(self._levels)]
        if short:
            begin = min(len(known[at]) for at in short)
            new = self._masses(values[short], self._levels[begin:])
            for at, one in zip(short, new, strict=True):
                known[at] = np.concatenate([known[at][:begin], one])
                while len(self._known) >= _KEPT:
                    del self._known[next(iter(self._known))]
                self._known[float(values[at])] = known[at]
        return known

    def _masses(self, values: Floats, levels: Floats) -> Floats:
        """The log masses of the values' cells under regular kernels at the levels."""
        left, right = self.edges(values[:, np.newaxis])
        sizes = (right - left) / self._width
        narrow = sizes[:, 0] <= _FINE
        out = np.empty((len(values), len(levels)))
        if narrow.any():  # the density in the middle, times the size, and two terms of the series
            size = sizes[narrow]
            squares = ((0.5 * (left + right)[narrow] - levels) / self._width) ** 2
            terms = size**2 / 24 * (squares - 1) + size**4 / 1920 * (squares * (squares - 6) + 3)
            out[narrow] = np.log(size) - _LOG_ROOT - 0.5 * squares + np.log1p(terms)
        if not narrow.all():
            broad = ~narrow
            out[broad] = log_mass((left[broad] - levels) / self._width, (right[broad] - levels) / self._width)
        return np.maximum(out, _FLOOR)
