"""The signals that end a program as a count that a loop looks at, instead of an exception at any line."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Signals", "deferred"]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one: the terminal has gone
_PATIENCE = 2  # signals that are only counted; after them whoever sends one means it


def _wanted() -> list[signal.Signals]:
    """Those that are ours to answer: under ``nohup`` the end of the terminal is none."""
    return [one for one in _ENDING if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP that come within the block take effect at its end.

    Around a fork: what a handler raises in Python's own fork hooks is ignored, and has kept the lock of
    ``logging`` held for ever. Outside the main thread, which no handler interrupts, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {one: signal.signal(one, lambda number, frame: came.append(number)) for one in _wanted()}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)
        for number in came:
            signal.raise_signal(number)


class Signals:
    """Counts SIGINT, SIGTERM and SIGHUP (unless ``nohup`` has it ignored) to the end of the ``with`` block.

    Until :meth:`count_only` each one raises KeyboardInterrupt where the program is, and from the
    third one on again: an objective that runs in the driver's own process may never come back to look.

    Outside the main thread, where Python allows no handlers, it counts nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self._patience = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self._install()
        return self

    def count_only(self) -> None:
        """From here on a loop looks at the count. Sets the handlers again, which Ray replaces."""
        self._patience = _PATIENCE
        self._install()

    def _install(self) -> None:
        """The former handlers come back at the end of the block."""
        if threading.current_thread() is threading.main_thread():
            for number in _wanted():
                self._before.setdefault(number, signal.signal(number, self._receive))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.name = signal.Signals(number).name
        if self.count > self._patience:
            self._patience = self.count + _PATIENCE  # the next one does not end the cleaning up
            raise KeyboardInterrupt(f"{self.name}, signal {self.count}")
