"""A text as one word of a shell, for commands that are shown to be pasted."""

from __future__ import annotations

import shlex

__all__ = ["quoted"]


def quoted(text: str) -> str:
    r"""The word; with control signs it is one of bash and zsh, since these must not reach a terminal.

    Example:
        >>> print(quoted("digits"), quoted("my study"), quoted("two\nlines"))
        digits 'my study' $'two\nlines'
    """
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(sign: str) -> str:
    if sign in "\\'":
        return f"\\{sign}"
    if sign.isprintable():
        return sign
    return "\\n" if sign == "\n" else f"\\U{ord(sign):08x}"
