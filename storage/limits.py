"""The limits of values, the same on every database, checked before a value is queued."""

from __future__ import annotations

import json
from typing import Any

from storage.errors import Refused

__all__ = ["MAX_ATTRIBUTE", "MAX_STEP", "check_key", "check_step", "to_json"]

MAX_STEP = 2**31 - 1
MAX_KEY = 512
MAX_ATTRIBUTE = 16 * 2**20


def check_key(key: str) -> None:
    """Refuse a parameter, attribute or metric name that PostgreSQL would refuse."""
    if "\0" in key or len(key) > MAX_KEY or (not key.isprintable() and "\ud800" <= max(key) <= "\udfff"):
        shown = key if len(key) <= 60 else f"{key[:57]}..."
        raise Refused(f"the name {shown!r} has {len(key)} characters; give at most {MAX_KEY} without NUL")


def check_step(step: int) -> None:
    """Refuse a step that is no signed 32-bit number."""
    if not 0 <= step <= MAX_STEP:
        raise Refused(f"step {step} is not within 0 to {MAX_STEP}")


def to_json(key: str, value: Any) -> str:
    """The attribute's JSON text.

    Raises:
        Refused: not plain data, a NUL in it, or above 16 MiB.
    """
    check_key(key)
    try:
        text = json.dumps(value)
    except (TypeError, ValueError) as error:
        raise Refused(
            f"attribute {key!r} is not plain data ({error}); store text, numbers, lists and dicts"
        ) from None
    if len(text) > MAX_ATTRIBUTE:
        raise Refused(f"attribute {key!r} has {len(text)} characters of JSON; at most {MAX_ATTRIBUTE}")
    if "\\u0000" in text:
        raise Refused(f"attribute {key!r} contains a NUL character, which PostgreSQL cannot hold")
    return text
