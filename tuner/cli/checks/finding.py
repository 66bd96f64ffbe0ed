"""A line of the report."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GIB", "Finding"]

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. ``state`` is "ok", "warning" or "wrong"; ``fix`` says what to do."""

    name: str
    state: str
    detail: str
    fix: str = ""
