"""What Python does at the end of a process, for one that ends without: a fork that must not run what the
process that it was forked from has registered.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import sys
import threading
import time
import weakref

__all__ = ["PARTING", "flush_files", "flush_streams", "forget_exits", "wind_up"]

PARTING = 0.5
"""Seconds for threads that are about to end."""

_newest: list[object] = []  # the last handler of logging that a process inherits, if there is one
_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def forget_exits() -> None:
    """Forget what was registered with ``atexit``, for processes that are forked from this one, as
    :mod:`multiprocessing` does; but for what Python's own library registers once, for all that comes.
    """
    for inherited in list(getattr(weakref.finalize, "_registry", ())):
        inherited.atexit = False
    atexit._clear()
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    _newest[:] = logging._handlerList[-1:]  # type: ignore[attr-defined]


def wind_up() -> None:
    """Wait for threads, for a moment, call what was registered with ``atexit``, and write what files still
    hold.
    """
    if len(sys._current_frames()) > 1:
        deadline = time.monotonic() + PARTING
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(max(0.0, deadline - time.monotonic()))
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
        if logging._handlerList[-1:] != _newest:  # type: ignore[attr-defined]  # those before hold nothing back
            logging.shutdown()
    flush_streams()
    flush_files()


def flush_streams() -> None:
    """Write what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # an objective may have closed it
            stream.flush()


def flush_files() -> None:
    """Write what open files still hold; where they become garbage, Python may lose it.

    Files from before ``gc.freeze`` are not looked at.
    """
    for thing in gc.get_objects():
        if type(thing) in _WRITERS:
            with contextlib.suppress(Exception):  # it may be closed, or detached
                thing.flush()
