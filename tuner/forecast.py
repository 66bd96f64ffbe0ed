"""What a rehearsal says of a whole run (pure): how long it may take, and what memory it needs."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Forecast", "Pace", "is_enough", "pace"]

ENOUGH = 5  # reports after which a rehearsal ends
LINGER = (2.0, 60.0)  # seconds after the first report, at least and at most, in which others may come
PATIENCE = 600.0  # seconds for the first report


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast one trial went, alone; in seconds.

    Attributes:
        first: from the start of its process to its first report; None: it made none.
        between: from one report to the next: the shortest, the median, the longest; None: it made one only.
        whole: its length, where it came to its end by itself; None: it was ended.
    """

    first: float | None = None
    between: tuple[float, float, float] | None = None
    whole: float | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A pace, and the budget that it is to carry.

    Attributes:
        trials: that are still to run; None for a budget in seconds only.
        slots: trials at once.
    """

    pace: Pace
    trials: int | None
    slots: int

    def seconds(self, reports: int) -> tuple[float, float] | None:
        """From and to how many seconds the budget takes if each trial makes so many reports.

        Every trial is taken to be as fast as the rehearsed one was alone; those at once start together.
        None where nothing says so: no budget of trials, or no pace.

        Example:
            >>> pace = Pace(first=2.0, between=(1.0, 1.0, 3.0))
            >>> Forecast(pace=pace, trials=10, slots=4).seconds(reports=5)
            (18.0, 42.0)
        """
        if self.trials is None or self.pace.first is None:
            return None
        waves = math.ceil(self.trials / self.slots)
        if reports <= 1:
            return waves * self.pace.first, waves * self.pace.first
        if self.pace.between is None:
            return None
        shortest, _, longest = self.pace.between
        return (
            waves * (self.pace.first + (reports - 1) * shortest),
            waves * (self.pace.first + (reports - 1) * longest),
        )

    def whole(self) -> float | None:
        """Seconds that the budget takes if each trial is as long as the rehearsed one, where that ended."""
        if self.trials is None or self.pace.whole is None:
            return None
        return math.ceil(self.trials / self.slots) * self.pace.whole


def pace(reports: Sequence[float], ended: float | None) -> Pace:
    """The pace of a trial.

    Args:
        reports: the seconds at which it reported.
        ended: the seconds at which it came to its end by itself, or None.
    """
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(reports))
    return Pace(
        first=reports[0] if reports else None,
        between=(gaps[0], statistics.median(gaps), gaps[-1]) if gaps else None,
        whole=ended,
    )


def is_enough(reports: Sequence[float], seconds: float) -> bool:
    """Whether a rehearsal has said what it can: after some reports, or once it has had as long again as it
    took to the first one.

    Args:
        reports: the seconds at which the trial reported.
        seconds: since it began.
    """
    if not reports:
        return seconds > PATIENCE
    since, (least, most) = seconds - reports[0], LINGER
    return (len(reports) >= ENOUGH and since >= least) or since > min(most, max(least, reports[0]))
