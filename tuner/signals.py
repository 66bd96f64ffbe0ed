"""SIGINT and SIGTERM as a count that a loop looks at, instead of an exception at any line."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Signals"]

_PATIENCE = 2  # signals that are only counted; after them whoever sends one means it


class Signals:
    """Counts SIGINT and SIGTERM from :meth:`install` to the end of the ``with`` block.

    The third one raises KeyboardInterrupt where the program is: an objective that runs in the
    driver's own process may never come back to look.

    Outside the main thread, where Python allows no handlers, it counts nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        return self

    def install(self) -> None:
        """Set the handlers; the former ones come back at the end of the block."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
        if self.count > _PATIENCE:
            raise KeyboardInterrupt(f"{self.name} for the {self.count}. time")
