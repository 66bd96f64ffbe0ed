"""Text without its passwords, for messages, logs and records."""

from __future__ import annotations

import re

__all__ = ["mask_url"]

# With the colon of the scheme forgotten it is no URL any more, and still a password.
_SECRET = re.compile(r"(\w:?//[^:/@\s]*):(\S+)@")
_NAMED_SECRET = re.compile(r"\b((?:ssl)?pass(?:word|wd)?|pwd|secret|token)=([^&\s]+)", re.IGNORECASE)


def mask_url(text: str) -> str:
    """The text with the passwords of its URLs and connection strings hidden.

    Example:
        >>> mask_url("--storage=postgresql://ann:secret@db/tuner")
        '--storage=postgresql://ann:***@db/tuner'
    """
    return _NAMED_SECRET.sub(r"\1=***", _SECRET.sub(r"\1:***@", text))
