"""Conditions as a person writes them, such as ``lr<0.1`` or ``optimizer=adam,sgd``, as filters."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from storage.errors import Refused
from storage.filters import AttrFilter, Filter, NumberFilter, ParamFilter, ValueFilter

__all__ = ["parse", "parse_all", "written"]

_PLAIN_NAME = re.compile(r"[^\W\d]\w*")

_CONDITION = re.compile(
    r"""\s* (?:(?P<kind>param|attr|value):)?
    (?P<name>"(?:[^"\\]|\\.)*"|[^<>=!]*) (?<!\s)\s*
    (?P<sign><=|>=|==|=|<|>) \s* (?P<rest>.*?) \s*""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''
_COMMA = re.compile(rf"({_QUOTED})|(,)")
_AND = re.compile(rf"({_QUOTED})|(\s+and\s+)")
_LONGEST = 5000  # characters of conditions: the time of the patterns above grows with the square
_MOST = 50  # conditions: a database needs seconds for hundreds


def parse(text: str) -> Filter:
    """The filter that one condition means.

    ``NAME`` is a parameter, ``value`` or ``value:K`` an objective, ``attr:NAME`` a user attribute,
    ``number`` the trial's number; ``param:NAME`` is a parameter of any name, and double quotes
    hold a name with signs in it. Signs are ``<  <=  >  >=  =``; after ``=`` a parameter may have
    several values with commas between. A value is JSON, or Python's ``True`` and ``None``, or
    text, for which quotes are only needed where it would be read as something else.

    Raises:
        Refused: one line that shows the text and says what to write.

    Example:
        >>> parse("optimizer=adam,sgd")
        ParamFilter(name='optimizer', low=None, high=None, any_of=('adam', 'sgd'))
        >>> parse("value>=0.9")
        ValueFilter(objective=0, low=0.9, high=None)
    """
    found = _CONDITION.fullmatch(text)
    if found is None or not found["name"]:
        hint = "'!=' is not among the signs" if "!=" in text else "write NAME, a sign of < <= > >= =, a value"
        raise _bad(text, f"{hint}, such as lr<0.1 or optimizer=adam")
    kind, name, sign, rest = found["kind"], found["name"], found["sign"].replace("==", "="), found["rest"]
    quoted = name.startswith('"')
    if quoted:
        name = _unquoted(text, name)
    if not rest:
        raise _bad(text, f'there is no value after {sign!r}; write "" for empty text')
    if kind == "attr":
        if sign != "=":
            raise _bad(text, "an attribute can only be equal to something (=)")
        return AttrFilter(key=name, equals=_literal(rest))
    if kind == "value" or (kind is None and not quoted and name == "value"):
        low, high = _range(text, sign, rest)
        return ValueFilter(objective=_objective(text, name), low=low, high=high)
    if kind is None and not quoted and name == "number":
        return _number_filter(text, sign, rest)
    if kind is None and not quoted and _number(name) is not None:
        raise _bad(text, "write the name first, such as lr>0.01, and two conditions for two bounds")
    if sign == "=":
        return ParamFilter(name=name, any_of=tuple(_literal(part) for part in _split(_COMMA, rest)))
    low, high = _range(text, sign, rest)
    return ParamFilter(name=name, low=low, high=high)


def parse_all(text: str) -> tuple[Filter, ...]:
    """The filters of conditions with ``and`` between them; none for an empty text.

    Raises:
        Refused: as :func:`parse`.

    Example:
        >>> len(parse_all("lr<0.1 and optimizer=adam"))
        2
    """
    if len(text) > _LONGEST:
        raise Refused(f"conditions of {len(text)} characters are too long; give at most {_LONGEST}")
    parts = _split(_AND, text) if text.strip() else []
    if len(parts) > _MOST:
        raise Refused(f"{len(parts)} conditions are too many; give at most {_MOST}")
    return tuple(parse(part) for part in parts)


def written(name: str, sign: str, value: str, kind: str = "param") -> str:
    """The text of one condition, which :func:`parse` reads, with quotes where they are needed.

    Args:
        name: of a parameter or an attribute; the objective's number for ``value``; unused for ``number``.
        value: as a person writes it.
        kind: ``"param"``, ``"attr"``, ``"value"`` or ``"number"``.

    Example:
        >>> written("lr", "<", "0.1"), written("a b", "=", "this and that", "attr")
        ('lr<0.1', 'attr:"a b"="this and that"')
    """
    if kind == "number":
        left = "number"
    elif kind == "value":
        left = "value" if name in ("", "0") else f"value:{name}"
    else:
        plain = _PLAIN_NAME.fullmatch(name) and name not in ("value", "number", "and")
        left = name if plain and kind == "param" else f"{kind}:{name if plain else json.dumps(name)}"
    right = json.dumps(value) if re.search(r"\sand\s", f" {value} ") else value.strip()
    return f"{left}{sign}{right}"


def _bad(text: str, why: str) -> Refused:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return Refused(f"condition {shown!r}: {why}")


def _split(separator: re.Pattern[str], text: str) -> list[str]:
    """The parts between separators (group 2) that stand outside quotes (group 1)."""
    parts, begin = [], 0
    for found in separator.finditer(text):
        if found[2]:
            parts.append(text[begin : found.start()])
            begin = found.end()
    return [*parts, text[begin:]]


def _unquoted(text: str, name: str) -> str:
    try:
        return str(json.loads(name))
    except ValueError:
        raise _bad(text, f"{name} is not a name in double quotes, as JSON writes it") from None


def _literal(text: str) -> Any:
    text = text.strip()
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _objective(text: str, name: str) -> int:
    if name == "value":
        return 0
    if not (name.isascii() and name.isdigit() and len(name) < 10):
        raise _bad(text, f"{name!r} is no objective; write value:0 for the first")
    return int(name)


def _range(text: str, sign: str, rest: str) -> tuple[float | None, float | None]:
    """The inclusive bounds of ``sign rest``."""
    at = _number(rest)
    if at is None or math.isnan(at):
        raise _bad(text, f"{rest!r} is not a number")
    if sign in "<>" and math.isinf(at) and (at > 0) == (sign == ">"):
        return math.inf, -math.inf  # nothing lies beyond an infinity
    bounds: dict[str, tuple[float | None, float | None]] = {
        "=": (at, at),
        "<=": (None, at),
        ">=": (at, None),
        "<": (None, math.nextafter(at, -math.inf)),
        ">": (math.nextafter(at, math.inf), None),
    }
    return bounds[sign]


def _number_filter(text: str, sign: str, rest: str) -> NumberFilter:
    try:
        at = int(rest)
    except ValueError:
        raise _bad(text, f"{rest!r} is not a whole number") from None
    low = {"=": at, ">=": at, ">": at + 1}.get(sign)
    high = {"=": at, "<=": at, "<": at - 1}.get(sign)
    return NumberFilter(low=low, high=high)
