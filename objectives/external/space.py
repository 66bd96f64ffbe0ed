"""Parameters as text: ``log(1e-5,1e-1)``, ``int(10,100)``, ``sgd|adam``.

================================= ==========================================================
text                              a parameter
================================= ==========================================================
``float(low,high)``               a number, uniform; ``float(low,high,step)`` on a grid
``log(low,high)``                 a number above 0, uniform in its logarithm
``int(low,high)``                 a whole number, both ends included; ``int(low,high,step)``
``intlog(low,high)``              a whole number above 0, uniform in its logarithm
``a|b|c``                         one of these texts; what is written as a number is one
================================= ==========================================================
"""

from __future__ import annotations

import math
import re
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)

import tuner

__all__ = ["distribution", "pointed"]

_KINDS = {"float": (float, False), "log": (float, True), "int": (int, False), "intlog": (int, True)}
_WRITE = "write float(low,high[,step]), log(low,high), int(low,high[,step]), intlog(low,high) or a|b|c"


def distribution(name: str, text: str) -> BaseDistribution:
    """What a parameter is drawn from.

    Args:
        name: of the parameter, for the error.
        text: as in the table above, or the JSON of an Optuna distribution.

    Raises:
        BadInput: with the place in the text.

    Example:
        >>> distribution("lr", "log(1e-5,1e-1)")
        FloatDistribution(high=0.1, log=True, low=1e-05, step=None)
        >>> distribution("batch", "16|32")
        CategoricalDistribution(choices=(16, 32))
    """
    if text.startswith("{"):
        return json_to_distribution(text)
    call = re.match(r"\s*(\w+)\s*\(", text)
    if call is None:
        return _choices(name, text)
    kind = call[1]
    if kind not in _KINDS:
        raise _error(name, f"there is no {kind!r}; {_WRITE}", text, call.start(1))
    close = text.rfind(")")
    if close < 0:
        raise _error(name, "a ')' is missing", text, len(text))
    if text[close + 1 :].strip():
        raise _error(name, "nothing follows the ')'", text, close + 1)
    return _range(name, text, kind, call.end(), close)


def pointed(message: str, text: str, position: int) -> tuner.BadInput:
    """An error whose lines below the first show the place in a text."""
    shown = text.replace("\n", " ").replace("\t", " ")
    return tuner.BadInput(f"{message}\n  {shown}\n  {' ' * position}^")


def _error(name: str, message: str, text: str, position: int) -> tuner.BadInput:
    return pointed(f"parameter {name!r}: {message}", f"{name}={text}", len(name) + 1 + position)


def _range(name: str, text: str, kind: str, start: int, close: int) -> BaseDistribution:
    number, is_log = _KINDS[kind]
    values: list[Any] = []
    places: list[int] = []
    for part in re.finditer(r"[^,]*(?:,|$)", text[start:close]):
        if not part[0] and part.start():
            break  # the empty match after the last part
        word = part[0].rstrip(",").strip()
        places.append(start + part.start() + len(part[0]) - len(part[0].lstrip()))
        values.append(_number(name, word, number, text, places[-1]))
    most = 2 if is_log else 3
    if len(values) < 2:
        raise _error(name, f"{kind} has a low and a high end", text, close)
    if len(values) > most:
        raise _error(name, f"{kind} has {most} numbers at most", text, places[most])
    low, high, *step = values
    if low > high:
        raise _error(name, f"the high end {high} is below the low end {low}", text, places[1])
    if is_log and low <= 0:
        raise _error(name, f"a logarithm needs a low end above 0, not {low}", text, places[0])
    if step and step[0] <= 0:
        raise _error(name, f"a step is above 0, not {step[0]}", text, places[2])
    if number is int:
        return IntDistribution(low, high, log=is_log, step=step[0] if step else 1)
    return FloatDistribution(low, high, log=is_log, step=step[0] if step else None)


def _number(name: str, word: str, kind: type, text: str, position: int) -> Any:
    try:
        value = kind(word)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise _error(name, f"{word!r} is not {wanted}", text, position) from None
    if not math.isfinite(value):
        raise _error(name, f"{word} is no end of a range", text, position)
    return value


def _choices(name: str, text: str) -> BaseDistribution:
    parts = text.split("|")
    if len(parts) < 2:
        raise _error(name, _WRITE, text, 0)
    choices: list[Any] = []
    position = 0
    for part in parts:
        choice = _choice(part.strip())
        if choice == "":
            raise _error(name, "a choice is empty", text, position)
        if choice in choices:
            raise _error(name, f"{choice!r} is there twice", text, position)
        choices.append(choice)
        position += len(part) + 1
    return CategoricalDistribution(choices)


def _choice(text: str) -> str | int | float:
    """A number where it is written as Python writes it, so that the program gets what was written."""
    for kind in (int, float):
        try:
            if str(kind(text)) == text and math.isfinite(kind(text)):
                return kind(text)
        except ValueError:
            continue
    return text
