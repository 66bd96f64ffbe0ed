"""How long trials take, as far as the driver needs it."""

from __future__ import annotations

__all__ = ["Pace"]

SHORT = 0.2  # seconds
_WEIGHT = 0.2  # of the trial that ended last


class Pace:
    """A moving average of the seconds of trials.

    Example:
        >>> pace = Pace()
        >>> pace.is_short
        False
        >>> pace.add(0.01)
        >>> pace.is_short
        True
    """

    def __init__(self) -> None:
        self._average: float | None = None

    def add(self, seconds: float) -> None:
        """A trial has ended."""
        before = seconds if self._average is None else self._average
        self._average = before + _WEIGHT * (seconds - before)

    @property
    def is_short(self) -> bool:
        """Whether trials are so short that what lies between two of them counts."""
        return self._average is not None and self._average < SHORT
