"""A trial as named series of points, and names as other programs take them. Pure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from storage.exports import ExportedTrial
from storage.views import CurvePoint

__all__ = ["SHAPE", "objective", "plain", "safe", "series"]

SHAPE = r"[^A-Za-z0-9_.\-]"
"""What no file name may hold."""


def objective(name: str) -> str:
    """The series of an objective's final value."""
    return f"objective/{name}"


def series(objectives: Sequence[str], trial: ExportedTrial) -> Iterator[tuple[str, Sequence[CurvePoint]]]:
    """Name and points of each series: ``report``, ``metrics/NAME``, ``objective/NAME``, ``constraint/NAME``.

    The last two are one point, at the trial's last step. No name can be another's.

    Example:
        >>> trial = ExportedTrial(number=0, trial_id=1, state="COMPLETE", values=(0.5,), reports=((3, 0.6),))
        >>> list(series(["value"], trial))
        [('report', ((3, 0.6),)), ('objective/value', [(3, 0.5)])]
    """
    if trial.reports:
        yield "report", trial.reports
    for name, points in sorted(trial.metrics.items()):
        yield f"metrics/{name}", points
    last = max((points[-1][0] for points in (trial.reports, *trial.metrics.values()) if points), default=0)
    for name, value in zip(objectives, trial.values, strict=False):
        yield objective(name), [(last, value)]
    for name, value in sorted(trial.constraints.items()):
        yield f"constraint/{name}", [(last, value)]


def safe(name: str, refused: str = SHAPE) -> str:
    """A name without the characters that match ``refused``; two names never become the same one.

    Example:
        >>> safe("digits"), safe("acc@5")
        ('digits', 'acc_5.a7b80f52')
    """
    clean = re.sub(refused, "_", name)
    if clean == name and name not in ("", ".", "..") and len(name) <= 150:
        return name
    return f"{clean[:150]}.{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def plain(value: Any) -> bool | float | int | str:
    """A parameter as a flag, a number or a text."""
    return value if isinstance(value, bool | float | int | str) else str(value)
