"""How long objectives take, as far as the driver needs it."""

from __future__ import annotations

__all__ = ["Pace"]

SHORT, SHORTEST = 2.0, 0.2  # seconds
BUFFER = 0.1  # seconds of work for each place that are ready, of the shortest trials
MOST = 24
_WEIGHT = 0.2  # of the trial that ended last


class Pace:
    """A moving average of the seconds that objectives take.

    Example:
        >>> pace = Pace()
        >>> pace.ahead
        0
        >>> pace.add(1.0)
        >>> pace.ahead
        1
    """

    def __init__(self) -> None:
        self._average: float | None = None

    def add(self, seconds: float) -> None:
        """An objective has returned."""
        before = seconds if self._average is None else self._average
        self._average = before + _WEIGHT * (seconds - before)

    @property
    def ahead(self) -> int:
        """Trials for each place that had better be ready before there is room for them: the shorter trials
        are, the more does what lies between two of them count.
        """
        if self._average is None or self._average >= SHORT:
            return 0
        if not self.is_shortest:
            return 1
        return min(MOST, max(2, int(BUFFER / max(self._average, 1e-6))))

    @property
    def is_shortest(self) -> bool:
        """What takes milliseconds for each trial is too much."""
        return self._average is not None and self._average < SHORTEST
