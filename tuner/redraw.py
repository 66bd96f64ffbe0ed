"""A block of lines at the end of a terminal that is drawn again in place."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

__all__ = ["Redraw", "can_redraw", "has_unicode"]

_NEEDED = "▁█━─…"


def can_redraw(file: TextIO) -> bool:
    """Whether this is a terminal that moves its cursor: not that of an editor or of a CI's log."""
    return file.isatty() and os.environ.get("TERM") != "dumb"


def has_unicode(file: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a terminal can be expected to show block characters.

    Not under ``LANG=C``, where Python writes UTF-8 all the same, and not on the Linux console, whose
    font lacks them. Without any locale, as in a container, it can.
    """
    known = os.environ if environment is None else environment
    locale = known.get("LC_ALL") or known.get("LANG") or ""
    if locale in ("C", "POSIX") or known.get("TERM") in ("linux", "dumb", "vt100"):
        return False
    try:
        _NEEDED.encode(getattr(file, "encoding", None) or "utf-8")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


class Redraw:
    """A block of lines at the end of a terminal that is drawn again in place.

    What else is printed meanwhile, through ``sys.stdout`` or ``sys.stderr``, appears above it.
    The cursor stays visible, so nothing is left to repair when a process is killed.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._console = Console(file=file, highlight=False)
        self.unicode = has_unicode(file)
        self._text = ""
        self._widths: list[int] = []
        self._before: dict[str, TextIO] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Cells and lines that a block may have; the cursor stands in the line below it."""
        width, height = self._console.size
        return width, max(1, height - 1)

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines in place of the last ones, cut at the right edge."""
        self._redirect()
        width, height = self.size
        shown = [one.copy() for one in lines[:height]]
        for one in shown:
            one.truncate(width, overflow="ellipsis" if self.unicode else "crop")
        with self._console.capture() as captured:
            for one in shown:
                self._console.print(one, no_wrap=True, overflow="ignore", crop=False)
        self._write(self._erase() + captured.get())
        self._text, self._widths = captured.get(), [one.cell_len for one in shown]

    def finish(self) -> None:
        """Leave the last lines where they are, and standard output as it was."""
        for name, stream in self._before.items():
            if isinstance(getattr(sys, name), _Above):
                setattr(sys, name, stream)
        self._before.clear()
        self._text, self._widths = "", []

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The block is away from the terminal while other text is written."""
        self._write(self._erase())
        yield
        self._write(self._text)

    def _erase(self) -> str:
        """Back to the first line of the block; a terminal that was made narrower has broken lines in two."""
        width = max(1, self.size[0])
        lines = sum(max(1, -(-cells // width)) for cells in self._widths)
        return f"\x1b[{lines}F\x1b[J" if lines else ""

    def _write(self, text: str) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write(text.encode(encoding, "replace").decode(encoding))
        self._file.flush()

    def _redirect(self) -> None:
        if self._before:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._before[name] = stream
                setattr(sys, name, _Above(stream, self))


class _Above:
    """A standard stream whose whole lines are written above the block."""

    def __init__(self, stream: TextIO, block: Redraw) -> None:
        self._stream = stream
        self._block = block
        self._rest = ""

    def write(self, text: str) -> int:
        whole, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            with self._block.aside():
                self._stream.write(whole + newline)
                self._stream.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
