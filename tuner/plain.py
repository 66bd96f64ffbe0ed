"""What an objective may name and note: plain data that every database holds."""

from __future__ import annotations

import json
import re
from typing import Any

from tuner.errors import BadInput

__all__ = ["MAX_NAME", "check_name", "checked", "shortened"]

MAX_NAME = 512
_MAX_ATTRIBUTE = 2**20
# A NUL in a JSON text: \u0000 after an even number of backslashes.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def check_name(name: str, longest: int = MAX_NAME) -> None:
    """Refuse the name of a parameter, a metric or an attribute.

    Raises:
        BadInput: not text, empty, too long, or with a NUL or a lone surrogate in it.
    """
    if not isinstance(name, str) or not name or len(name) > longest or "\0" in name or _has_surrogate(name):
        text = (
            f"the name {shortened(name)} must be text of 1 to {longest} characters "
            "without NUL or lone surrogates"
        )
        raise BadInput(text)


def shortened(name: object) -> str:
    """A name in quotes for a message: control signs are escaped, a long one is cut.

    Example:
        >>> shortened("two\\nlines"), shortened("a" * 100)
        ("'two\\\\nlines'", "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'...")
    """
    text = name if isinstance(name, str) else repr(name)
    return repr(name) if len(text) <= 60 else f"{text[:57]!r}..."


def checked(kind: str, key: str, value: Any) -> Any:
    """An attribute's value as it comes back from the store: not an object that may change meanwhile.

    Args:
        kind: of attribute, for the message.

    Raises:
        TypeError: not plain data; names the key.
        BadInput: above 1 MiB as JSON, or a NUL or a lone surrogate in it; names the key.
    """
    check_name(key)
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        text = f"{kind} {key!r}: {error}; store text, numbers, lists and dicts"
        raise TypeError(text) from None
    if len(text) > _MAX_ATTRIBUTE:
        raise BadInput(
            f"{kind} {key!r} has {len(text)} characters of JSON, above {_MAX_ATTRIBUTE}; "
            "store it in a file or a checkpoint"
        )
    if _NUL.search(text):
        raise BadInput(f"{kind} {key!r} contains a NUL character, which PostgreSQL cannot hold")
    if _has_surrogate(json.dumps(value, ensure_ascii=False)):
        raise BadInput(f"{kind} {key!r} contains a lone surrogate, which no database stores")
    return json.loads(text)


def _has_surrogate(text: str) -> bool:
    """Half a character, as in the name of a file that is not in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
