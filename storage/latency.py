"""How long commits take: counted by size, at the price of an addition each."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass

__all__ = ["BOUNDS", "Commits", "Latencies"]

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds; a commit counts for the first bound that it does not exceed."""


@dataclass(frozen=True, kw_only=True)
class Commits:
    """The commits so far.

    Attributes:
        counts: by :data:`BOUNDS`, and last those that took longer than all of them.
        seconds: of all together.
        last: when the newest was, in seconds since 1970; 0 for none.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    seconds: float = 0.0
    last: float = 0.0


class Latencies:
    """Counts commits; one thread at a time may add."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._last = 0.0

    def add(self, seconds: float) -> None:
        """A commit took so long."""
        self._counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds
        self._last = time.time()

    def taken(self) -> Commits:
        """What was counted so far."""
        return Commits(counts=tuple(self._counts), seconds=self._seconds, last=self._last)
