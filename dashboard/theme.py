"""One colour for each state everywhere, always beside its text; how numbers and times are written."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

__all__ = [
    "COLOURS",
    "STATES",
    "ago",
    "badges",
    "dot",
    "duration",
    "escape",
    "number",
    "params_text",
    "said",
    "shortened",
    "value_text",
]

COLOURS: Mapping[str, str] = {
    "green": "#2e9e5b",
    "orange": "#e08a1e",
    "red": "#d64545",
    "blue": "#3b6fd4",
    "gray": "#8a8f98",
}
"""Streamlit's names of the colours that mean something, and what they look like."""

_MEANING = {"COMPLETE": "green", "PRUNED": "orange", "FAIL": "red", "RUNNING": "blue", "WAITING": "gray"}

STATES: Mapping[str, tuple[str, str]] = {state: (COLOURS[name], name) for state, name in _MEANING.items()}
"""State name: colour in charts, and Streamlit's name of it in text."""


def said(state: str) -> str:
    """A state as a person says it: Optuna's FAIL is ``failed`` on every page."""
    return "failed" if state == "FAIL" else state.lower()


def number(value: float | None) -> str:
    """A number with five significant digits; a dash for none.

    Example:
        >>> number(0.123456789)
        '0.12346'
    """
    if value is None:
        return "-"
    if math.isnan(value):
        return "nan"
    return f"{value:.5g}"


def value_text(value: Any) -> str:
    """A parameter or attribute for a person."""
    if isinstance(value, float):
        return number(value)
    return str(value)


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters in one line."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in params.items())


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and dots where it is longer than ``most``."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def ago(moment: dt.datetime | None, now: dt.datetime | None = None) -> str:
    """A naive UTC time as the time since, such as ``3 min ago``."""
    if moment is None:
        return "-"
    now = now or dt.datetime.now(dt.UTC).replace(tzinfo=None)
    seconds = max(0.0, (now - moment).total_seconds())
    if seconds < 10:
        return "just now"
    return f"{duration(seconds)} ago"


def duration(seconds: float | None) -> str:
    """Seconds as one or two units, such as ``2 min`` or ``3.1 s``."""
    if seconds is None:
        return "-"
    if 0 < seconds < 0.1:
        return f"{max(1.0, 1000 * seconds):.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} d"


def escape(text: str) -> str:
    """Text that Streamlit's Markdown shows as it is: no mark-up, link, formula or icon of a name.

    A backslash stops the parser; the invisible joiner stops what replaces ``:name:`` and ``->``
    after it.
    """
    plain = "".join(char if char.isprintable() else " " for char in text)
    escaped = "".join(f"\\{char}" if char in "\\`*_{}[]()<>#+-.!|~$:&^=" else char for char in plain)
    return escaped.replace(":", ":\u2060").replace("-", "-\u2060")


def dot(state: str) -> str:
    """A state in Markdown: a coloured badge with its text."""
    return f":{STATES.get(state, ('', 'gray'))[1]}-badge[{escape(said(state))}]"


def badges(states: Mapping[str, int]) -> str:
    """The counts of states in Markdown, those that are there."""
    shown = [
        f":{colour}-badge[{states[name]} {said(name)}]"
        for name, (_, colour) in STATES.items()
        if states.get(name)
    ]
    return " ".join(shown) or ":gray-badge[no trials]"
