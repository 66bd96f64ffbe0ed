"""The numerical parameters of a long mixture: where its kernels are, and how wide.

In a mixture of 99 kernels and more, TPE's "magic clip" sets most widths to one hundredth of the
parameter's range: a kernel is *regular* unless a gap beside it is wider than that, so that few are
not. What regular kernels contribute follows from their places alone and is kept; the others are
corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.samplers._tpe._truncnorm import _log_gauss_mass

from tuner.tpe.masses import log_mass
from tuner.tpe.table import Column, Rows, grown

__all__ = ["SMALLEST", "Lines", "Wide"]

Floats = npt.NDArray[np.float64]

SMALLEST = 128
"""Fewer kernels than this are no long mixture: below 99 the width of regular ones depends on their number."""

_MANY = 16  # rows put in their order at once, from which on sorting anew is cheaper


@dataclass(frozen=True, kw_only=True)
class Wide:
    """The kernels of one parameter that are wider than the regular ones.

    Attributes:
        rows, widths: of each.
        constants: logs of their normalising factors.
    """

    rows: Rows
    widths: Floats
    constants: Floats


class Lines:
    """Numerical parameters side by side; the first axis of each array is theirs, the second the rows'.

    Args:
        columns: of their values.
        endpoints: Optuna's ``consider_endpoints``.

    Attributes:
        low, high, width: of each range, half a step wider at both ends where there are steps, in
            logarithms for a log one; ``width`` is that of a regular kernel.
        places: of the kernels on the range; NaN where there is none.
        constants: logs of the normalising factors of regular kernels; 0 where there is none.
    """

    def __init__(self, columns: Sequence[Column], endpoints: bool) -> None:
        self._columns = columns
        self._endpoints = endpoints
        ranges: list[Any] = [column.distribution for column in columns]
        halves = np.array([(one.step or 0.0) / 2 for one in ranges])
        self.is_log = np.array([one.log for one in ranges], dtype=bool)
        self.low = self.on_range(np.array([float(one.low) for one in ranges]) - halves)
        self.high = self.on_range(np.array([float(one.high) for one in ranges]) + halves)
        self.width = (self.high - self.low) / 100.0
        self.places: Floats = np.full((len(columns), 64), np.nan)
        self.constants: Floats = np.zeros((len(columns), 64))
        self._own: Floats = np.full((2, len(columns), 64), np.nan)  # widths of wide ones, their constants
        self._order: Rows = np.zeros((len(columns), 64), dtype=np.intp)  # rows by place
        self._sorted: Floats = np.zeros((len(columns), 64))  # their places
        self._filed = np.zeros(64, dtype=bool)  # rows that are in the order
        self._count = 0

    def on_range(self, values: Floats) -> Floats:
        """The values of each parameter, as logarithms for a log one."""
        out = values.copy()
        out[self.is_log] = np.log(values[self.is_log])
        return out

    def sync(self, rows: Rows, present: npt.NDArray[np.bool_]) -> None:
        """Take in the rows that have changed.

        Args:
            present: by row of the table, whether it counts and has a value in every column.
        """
        size = len(present)
        self.places = grown(self.places, size, np.nan)
        self.constants = grown(self.constants, size, 0.0)
        self._own = grown(self._own, size, np.nan)
        self._order = grown(self._order, size, 0)
        self._sorted = grown(self._sorted, size, 0.0)
        self._filed = grown(self._filed, size, False)
        if not self._columns:
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            new = self.on_range(np.array([column.values[rows] for column in self._columns]))
        new[:, ~present[rows]] = np.nan
        moved = (new != self.places[:, rows]).any(axis=0) & (present[rows] | self._filed[rows])
        rows, new = rows[moved], new[:, moved]
        if not len(rows):
            return
        if len(rows) <= _MANY:
            for row in rows[self._filed[rows]].tolist():
                self._take_out(row)
        self.places[:, rows] = new
        at = np.arange(len(self._columns))
        self.constants[:, rows] = np.nan_to_num(self.constant(at, new, self.width[:, np.newaxis]), nan=0.0)
        self._own[:, :, rows] = np.nan
        self._filed[rows] = present[rows]
        if len(rows) <= _MANY:
            for row in rows[present[rows]].tolist():
                self._put_in(row)
            return
        filed = np.flatnonzero(self._filed[:size])
        order = np.argsort(self.places[:, filed], axis=1, kind="stable")
        self._count = len(filed)
        self._order[:, : self._count] = filed[order]
        self._sorted[:, : self._count] = np.take_along_axis(self.places[:, filed], order, axis=1)

    def _put_in(self, row: int) -> None:
        count = self._count
        for places, rows, place in zip(self._sorted, self._order, self.places[:, row], strict=True):
            at = int(places[:count].searchsorted(place, side="right"))
            places[at + 1 : count + 1] = places[at:count]
            rows[at + 1 : count + 1] = rows[at:count]
            places[at], rows[at] = place, row
        self._count += 1

    def _take_out(self, row: int) -> None:
        count = self._count
        for places, rows, place in zip(self._sorted, self._order, self.places[:, row], strict=True):
            at = int(places[:count].searchsorted(place, side="left"))
            at += int(np.flatnonzero(rows[at:count] == row)[0])
            places[at : count - 1] = places[at + 1 : count]
            rows[at : count - 1] = rows[at + 1 : count]
        self._count -= 1

    def constant(self, at: npt.NDArray[np.intp], places: Floats, widths: Floats) -> Floats:
        """The log of the normalising factor of kernels of the parameters ``at``, cut off at the range's ends.

        Args:
            places, widths: the first axis is that of ``at``.
        """
        shape = (len(at), *[1] * (places.ndim - 1))
        low = (self.low[at].reshape(shape) - places) / widths
        high = (self.high[at].reshape(shape) - places) / widths
        with np.errstate(invalid="ignore"):
            inside = (low <= 0) & (high >= 0)
            outside = ~inside & ~np.isnan(places)  # a value of another range
        mass = np.full(places.shape, np.nan)
        mass[inside] = log_mass(low[inside], high[inside])
        if outside.any():
            mass[outside] = _log_gauss_mass(low[outside], high[outside])
        return -mass

    def wide(self, rows: Rows, size: int) -> list[Wide]:
        """The kernels among ``rows``, for each parameter, that are no regular ones."""
        above = np.zeros(size, dtype=bool)
        above[rows] = True
        order, places = self._order[:, : self._count], self._sorted[:, : self._count]
        if self._count > len(rows):
            keep = above[order]
            order, places = order[keep].reshape(-1, len(rows)), places[keep].reshape(-1, len(rows))
        gaps = np.empty((len(self._columns), len(rows) + 1))
        np.subtract(places[:, 1:], places[:, :-1], out=gaps[:, 1:-1])
        gaps[:, 0], gaps[:, -1] = places[:, 0] - self.low, self.high - places[:, -1]
        widths = np.maximum(gaps[:, :-1], gaps[:, 1:])
        if not self._endpoints:
            widths[:, 0], widths[:, -1] = gaps[:, 1], gaps[:, -2]
        at, spot = np.nonzero(widths > self.width[:, np.newaxis])
        found = order[at, spot]
        # Of kernels in the same place some may be wide: which ones, the order of Optuna's sort says.
        tied = (gaps[at, spot] == 0) | (gaps[at, spot + 1] == 0)
        for one in np.unique(at[tied]).tolist():
            theirs = rows[np.argsort(self.places[one, rows])]
            mine = at == one
            found[mine] = theirs[spot[mine]]
        own = np.minimum(widths[at, spot], (self.high - self.low)[at])
        new = self._own[0, at, found] != own
        if new.any():
            at_new, row_new = at[new], found[new]
            self._own[0, at_new, row_new] = own[new]
            self._own[1, at_new, row_new] = self.constant(at_new, self.places[at_new, row_new], own[new])
        constants = self._own[1, at, found]
        cuts = np.searchsorted(at, np.arange(1, len(self._columns)))
        parts = zip(np.split(found, cuts), np.split(own, cuts), np.split(constants, cuts), strict=True)
        return [Wide(rows=found, widths=widths, constants=constants) for found, widths, constants in parts]
