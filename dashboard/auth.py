"""Who looks at the pages, and what they may do."""

from __future__ import annotations

__all__ = ["is_editor", "name"]


def is_editor() -> bool:
    """Whether this viewer may change anything; asked before each write."""
    return True  # the loopback's own user


def name() -> str:
    """The viewer as the author of a command."""
    return "dashboard"
