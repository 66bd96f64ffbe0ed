"""Floats as the tables hold them: a number with a type that marks the infinities and NaN."""

from __future__ import annotations

import math

__all__ = ["stored", "unstored"]


def stored(value: float) -> tuple[float | None, str]:
    """A float as (column value, type name).

    Example:
        >>> stored(float("inf"))
        (None, 'INF_POS')
    """
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return float(value), "FINITE"


def unstored(value: float | None, kind: str) -> float:
    """The float that :func:`stored` wrote; ``kind`` may be the enum's name."""
    if kind == "FINITE" and value is not None:
        return value
    return {"INF_POS": math.inf, "INF_NEG": -math.inf}.get(kind, math.nan)
