"""The limits of values, the same on every database, checked before a value is queued."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.trial import FrozenTrial

from storage.errors import Refused

__all__ = [
    "MAX_ATTRIBUTE",
    "MAX_STEP",
    "check_key",
    "check_step",
    "check_template",
    "check_values",
    "distribution_text",
    "to_json",
]

MAX_STEP = 2**31 - 1
MAX_KEY = 512
MAX_ATTRIBUTE = 16 * 2**20

# An escape in JSON text counts only behind an even number of backslashes.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_SURROGATE = re.compile(r"(?<!\\)(?:\\\\)*\\ud[89a-f]")


def distribution_text(distribution: BaseDistribution) -> str:
    """A distribution as Optuna stores it, made once: every trial has the same ones.

    Example:
        >>> from optuna.distributions import CategoricalDistribution
        >>> distribution_text(CategoricalDistribution([False, True]))
        '{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}'
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution_to_json(distribution)  # equal ones may differ as text: 0, False and 0.0
    return _numbers_text(distribution)


@functools.lru_cache(maxsize=4096)
def _numbers_text(distribution: BaseDistribution) -> str:
    return distribution_to_json(distribution)


def check_key(key: str) -> None:
    """Refuse a parameter, attribute or metric name that one of the databases would refuse."""
    if len(key) <= MAX_KEY and key.isascii() and "\0" not in key:
        return
    shown = key if len(key) <= 60 else f"{key[:57]}..."
    if len(key) > MAX_KEY:
        raise Refused(f"the name {shown!r} has {len(key)} characters; give at most {MAX_KEY}")
    if "\0" in key:
        raise Refused(f"the name {shown!r} contains a NUL character; leave it out")
    if not _is_text(key):
        raise Refused(f"the name {shown!r} contains a lone surrogate, which no database stores")


def check_step(step: int) -> None:
    """Refuse a step that is no number from 0 to 2^31 - 1."""
    if not 0 <= step <= MAX_STEP:
        raise Refused(f"step {step} is not within 0 to {MAX_STEP}")


def check_values(values: Sequence[float] | None) -> None:
    """Refuse NaN as an objective's value: Optuna's tables have no room for it."""
    if values is not None and any(value != value for value in values):
        raise Refused(f"the values {list(values)} contain NaN; tell the trial as failed instead")


def check_template(trial: FrozenTrial) -> None:
    """Refuse an added or enqueued trial that holds a value which a database would refuse."""
    for name in trial._params:
        check_key(name)
    check_values(trial._values)
    for step in trial.intermediate_values:
        check_step(step)
    for attrs in (trial._user_attrs, trial._system_attrs):
        for key, value in attrs.items():
            to_json(key, value)


def to_json(key: str, value: Any) -> str:
    """The attribute's JSON text.

    Raises:
        Refused: not plain data, a NUL or a lone surrogate in it, or above 16 MiB.
    """
    check_key(key)
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(
            f"attribute {key!r} is not plain data ({error}); store text, numbers, lists and dicts"
        ) from None
    if len(text) > MAX_ATTRIBUTE:
        raise Refused(f"attribute {key!r} has {len(text)} characters of JSON; at most {MAX_ATTRIBUTE}")
    if "\\u" in text:
        if _NUL.search(text):
            raise Refused(f"attribute {key!r} contains a NUL character; leave it out")
        if _SURROGATE.search(text) and not _is_text(json.dumps(value, ensure_ascii=False)):
            raise Refused(f"attribute {key!r} contains a lone surrogate, which no database stores")
    return text


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
