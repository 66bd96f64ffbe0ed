"""Several measurements as one: the median, and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "spread"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of some measurements, the least and the greatest of them."""

    median: float
    low: float
    high: float


def spread(numbers: Sequence[float]) -> Spread:
    """The median and the range.

    Example:
        >>> spread([10.0, 30.0, 11.0])
        Spread(median=11.0, low=10.0, high=30.0)
    """
    return Spread(median=statistics.median(numbers), low=min(numbers), high=max(numbers))
