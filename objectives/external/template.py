"""A command line with places for parameters: ``./solver --lr {lr} --steps {steps}``.

``{{`` and ``}}`` are braces. A value is put in as it is, into the word where its name stands: whatever is in
it, it stays one argument of the program. With ``shell`` the whole text is the shell's, and values are quoted:
a name that stands within quotes of the text takes only values that need none.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tuner
from objectives.external.space import pointed

__all__ = ["Template", "check_quotes", "fill", "names", "shown", "template"]

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, kw_only=True)
class Template:
    """A checked command. ``words`` of the program, or one for the shell."""

    words: tuple[str, ...]
    shell: bool
    names: frozenset[str]

    @property
    def name(self) -> str:
        """For messages: the program, without its folder."""
        return "sh" if self.shell else os.path.basename(self.words[0])

    def filled(self, values: Mapping[str, str]) -> list[str]:
        """The program's words with the values in their places."""
        if self.shell:
            check_quotes(self.words[0], {name: (value,) for name, value in values.items()})
            return ["/bin/sh", "-c", fill(self.words[0], values, shlex.quote)]
        return [fill(word, values) for word in self.words]


def template(command: str | Sequence[str], known: Collection[str], *, shell: bool = False) -> Template:
    """Check a command.

    Args:
        command: one text, which is taken apart as a shell would, or the words themselves.
        known: names that may stand in it.

    Raises:
        BadInput: a brace that is not closed, an unknown name, a quote that is not closed; a program that is
            not there, or cannot be executed.
    """
    if not command or not (isinstance(command, str) or all(isinstance(word, str) for word in command)):
        raise tuner.BadInput(f"command={command!r}: give a text, or the words of one")
    if shell and not isinstance(command, str):
        raise tuner.BadInput("a command for the shell is one text, not a list of words")
    texts = [command] if isinstance(command, str) else list(command)
    found = frozenset(name for text in texts for name in names(text, known))
    if isinstance(command, str) and not shell:
        try:
            texts = shlex.split(command)
        except ValueError as error:
            raise tuner.BadInput(f"the command {command!r} cannot be taken apart: {error}") from None
    if not texts or not texts[0].strip():
        raise tuner.BadInput("the command is empty; name a program")
    if not shell and not any(True for _ in _PIECE.finditer(texts[0])):
        _check_program(texts[0])
    return Template(words=tuple(texts), shell=shell, names=found)


def names(text: str, known: Collection[str]) -> list[str]:
    """The names in a text.

    Raises:
        BadInput: one is unknown, or a brace has no other half; the place is shown.
    """
    found = []
    for piece in _PIECE.finditer(text):
        if piece[0] in ("{", "}"):
            raise pointed(
                f"this brace has no other half; write {piece[0] * 2} for a brace", text, piece.start()
            )
        if piece[1] is not None:
            if piece[1] not in known:
                has = f"; there are: {', '.join(sorted(known))}" if known else ""
                raise pointed(f"{piece[0]} is no parameter{has}; write {{{{ for a brace", text, piece.start())
            found.append(piece[1])
    return found


def fill(text: str, values: Mapping[str, str], quoted: Callable[[str], str] = str) -> str:
    """A text with the values in their places.

    Example:
        >>> fill("--lr={lr} {{x}}", {"lr": "0.1"})
        '--lr=0.1 {x}'
    """
    return _PIECE.sub(
        lambda piece: piece[0][0] if piece[1] is None else quoted(values[piece[1]]),
        text,
    )


def check_quotes(text: str, values: Mapping[str, Collection[str]]) -> None:
    """Refuse a shell's text in which a name stands within quotes whose values would end these.

    Args:
        values: by name, those that it may have.

    Raises:
        BadInput: the place is shown.
    """
    for piece in _PIECE.finditer(text):
        wrong = [value for value in values.get(piece[1] or "", ()) if shlex.quote(value) != value]
        if wrong and _is_quoted(text[: piece.start()]):
            raise pointed(
                f"{piece[0]} stands within quotes, which its value {wrong[0]!r} would end; take them away: "
                "a value is quoted where it is put in",
                text,
                piece.start(),
            )


def _is_quoted(before: str) -> bool:
    """Whether a quote is open, or what follows stands behind a backslash, at the end of a shell's text."""
    is_open = re.sub(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*"|[^'"\\]""", "", before, flags=re.DOTALL)
    return bool(is_open)


def shown(value: Any) -> str:
    """A value as a program gets it: a number in the shortest form that reads back as the same one."""
    return repr(value) if isinstance(value, float) else str(value)


def _check_program(word: str) -> None:
    if os.sep not in word:
        if shutil.which(word) is None:
            raise tuner.BadObjective(f"there is no program {word!r} on PATH; install it, or give its path")
    elif not os.path.isfile(word):
        raise tuner.BadObjective(f"there is no program {word} (from {os.getcwd()}); give its path")
    elif not os.access(word, os.X_OK):
        raise tuner.BadObjective(f"{word} is not executable; run 'chmod +x {shlex.quote(word)}'")
