"""Which trials a person wants to see: frozen values that :mod:`storage.pages` turns into SQL.

Bounds are inclusive; a strict one is the next float (``math.nextafter``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import Refused
from storage.limits import check_key, to_json

__all__ = ["AttrFilter", "Filter", "NumberFilter", "ParamFilter", "ValueFilter", "same"]

_LAST_NUMBER = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ParamFilter:
    """Trials with this parameter, by its decoded value; a trial without the parameter is left out.

    Args:
        low, high: the value is a number from ``low`` to ``high``; None: no bound. Text, None and
            booleans among the choices of a categorical parameter are no numbers.
        any_of: the value is one of these; empty: any.

    Raises:
        Refused: a bound is NaN, or no parameter can have this name.

    Example:
        >>> ParamFilter(name="lr", high=0.1), ParamFilter(name="optimizer", any_of=("adam",))
        (ParamFilter(name='lr', low=None, high=0.1, any_of=()),
         ParamFilter(name='optimizer', low=None, high=None, any_of=('adam',)))
    """

    name: str
    low: float | None = None
    high: float | None = None
    any_of: Sequence[Any] = ()

    def __post_init__(self) -> None:
        check_key(self.name)
        _check_bounds(self.name, self.low, self.high)
        object.__setattr__(self, "any_of", tuple(self.any_of))

    def admits(self, value: object) -> bool:
        """Whether a parameter of this decoded value is wanted."""
        if self.any_of and not any(same(value, wanted) for wanted in self.any_of):
            return False
        if self.low is None and self.high is None:
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.floor <= value <= self.ceiling

    @property
    def floor(self) -> float:
        """The lower bound, -inf for none."""
        return -math.inf if self.low is None else self.low

    @property
    def ceiling(self) -> float:
        """The upper bound, inf for none."""
        return math.inf if self.high is None else self.high


@dataclass(frozen=True, kw_only=True)
class ValueFilter:
    """Trials whose value of an objective is from ``low`` to ``high``; None: no bound.

    An infinite value counts as what it is; NaN, and a trial without values, are left out.

    Raises:
        Refused: a bound is NaN, or the objective is below 0.
    """

    objective: int = 0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.objective <= _LAST_NUMBER:
            raise Refused(f"there is no objective {self.objective}; they are counted from 0")
        _check_bounds("value", self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class AttrFilter:
    """Trials whose user attribute ``key`` equals ``equals``.

    Numbers are equal by value; anything else by its JSON text, as ``json.dumps`` writes it.

    Raises:
        Refused: ``equals`` is not plain data, or no attribute can have this key.
    """

    key: str
    equals: Any

    def __post_init__(self) -> None:
        to_json(self.key, self.equals)

    @property
    def texts(self) -> tuple[str, ...]:
        """The JSON texts that the attribute may have."""
        found = [json.dumps(self.equals)]
        if isinstance(self.equals, int | float) and not isinstance(self.equals, bool):
            for kind in (int, float):
                try:
                    other = kind(self.equals)
                except (OverflowError, ValueError):  # no such int, or no such float
                    continue
                if other == self.equals:
                    found.append(json.dumps(other))
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class NumberFilter:
    """Trials whose number is from ``low`` to ``high``; None: no bound."""

    low: int | None = None
    high: int | None = None

    @property
    def floor(self) -> int:
        """The lower bound, within what the databases compare."""
        return -1 if self.low is None else min(max(self.low, -1), _LAST_NUMBER)

    @property
    def ceiling(self) -> int:
        """The upper bound, within what the databases compare."""
        return _LAST_NUMBER if self.high is None else min(max(self.high, -1), _LAST_NUMBER)


Filter = ParamFilter | ValueFilter | AttrFilter | NumberFilter


def same(value: object, wanted: object) -> bool:
    """Equality as a person means it: 1 is 1.0 but not True, and NaN is NaN."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, float) and isinstance(wanted, float) and math.isnan(value) and math.isnan(wanted):
        return True
    return value == wanted


def _check_bounds(name: str, low: float | None, high: float | None) -> None:
    for bound in (low, high):
        if bound is not None and math.isnan(bound):
            raise Refused(f"a bound of {name!r} is nan, and nothing is above or below it; give a number")
