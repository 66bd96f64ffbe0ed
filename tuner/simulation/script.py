"""What a simulated trial does, where nobody stops it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.outcome import Outcome

__all__ = ["Curve", "Script"]

Curve = Callable[[Mapping[str, Any]], Iterable[tuple[float, float]]]
"""Of a trial's parameters: (value, seconds) of each step, the first of which is step 1."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a simulated trial does if nobody stops it.

    Attributes:
        steps: (step, value, seconds) of each report, steps ascending.
        end: its outcome, of the last value reported; None where nothing was.
    """

    steps: Iterable[tuple[int, float, float]]
    end: Callable[[float | None], Outcome]
