"""How long a study still takes, from when its newest trials ended. No page, no database.

The gaps between ends have a mean ``m`` and a standard deviation ``s``. The sum of ``left`` more
gaps is expected to be ``left * m``, with the variance ``left * s**2`` of the gaps to come and
``left**2 * s**2 / n`` since ``m`` is known from ``n`` gaps only; the range is 1.28 standard
deviations to both sides, which holds four of five times where the pace stays the same. Trials that
end in waves make ``s``, and so the range, wide, which is as it should be. The time since the newest
end counts as a gap as soon as it is longer than the mean: a study that hangs gets no nearer.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Sequence

from dashboard.theme import duration

__all__ = ["range_text", "remaining"]

_LEAST = 4  # gaps: fewer say nothing of the spread
_DEVIATIONS = 1.28


def remaining(finishes: Sequence[dt.datetime], left: int, now: dt.datetime) -> tuple[float, float] | None:
    """Seconds until ``left`` more trials have ended, as a range; None where nobody can say.

    Args:
        finishes: when the newest trials of this run ended, in order.
        now: by the same clock, about.
    """
    if left <= 0:
        return None
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(finishes)]
    if len(gaps) < _LEAST:
        return None
    since = (now - finishes[-1]).total_seconds()
    if since > sum(gaps) / len(gaps):
        gaps.append(since)
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    spread = _DEVIATIONS * math.sqrt(variance * (left + left**2 / len(gaps)))
    expected = left * mean
    return max(0.0, expected - spread), expected + spread


def range_text(seconds: tuple[float, float] | None) -> str:
    """A range of seconds for a person.

    Example:
        >>> range_text((120, 250)), range_text((0, 0.5)), range_text((3, 90)), range_text(None)
        ('2 to 4 min', 'below 1 s', 'up to 2 min', '-')
    """
    if seconds is None:
        return "-"
    low, high = seconds
    if high < 1:
        return "below 1 s"
    begin, end = duration(low), duration(high)
    if low < 1 or low < high / 20:
        return f"up to {end}"
    if begin == end:
        return f"about {end}"
    (first, unit), (_, other) = (text.split(" ") for text in (begin, end))
    return f"{first} to {end}" if unit == other else f"{begin} to {end}"
