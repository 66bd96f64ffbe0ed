"""How long trials take, as far as the driver needs it."""

from __future__ import annotations

__all__ = ["Pace"]

SHORT, SHORTEST = 2.0, 0.2  # seconds
_WEIGHT = 0.2  # of the trial that ended last


class Pace:
    """A moving average of the seconds of trials.

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
        """A trial has ended."""
        before = seconds if self._average is None else self._average
        self._average = before + _WEIGHT * (seconds - before)

    @property
    def ahead(self) -> int:
        """Trials for each place that had better be ready before there is room for them: the shorter trials
        are, the more does what lies between two of them count.
        """
        if self._average is None or self._average >= SHORT:
            return 0
        return 2 if self.is_shortest else 1

    @property
    def is_shortest(self) -> bool:
        """What takes milliseconds for each trial is too much."""
        return self._average is not None and self._average < SHORTEST
