"""How Python's collector works meanwhile where a driver has a process to itself."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["seldom_collected"]

SELDOM = 20_000
"""Objects that are made before the collector looks at them; Python's own measure is 700."""


@contextlib.contextmanager
def seldom_collected(*, alone: bool) -> Iterator[None]:
    """Let the collector look at less and, in a process without objectives, less often.

    With trials of milliseconds it takes a fifth of a driver's time otherwise: for what is there already, the
    most imported modules, and for trials, which stay. What makes no cycles goes at once, as ever.

    Args:
        alone: no objective runs in this process, whose cycles may hold a GPU's memory.

    Example:
        >>> import gc
        >>> with seldom_collected(alone=True):
        ...     gc.get_threshold()[0]
        20000
    """
    mine, before = not gc.get_freeze_count(), gc.get_threshold()
    slower = (max(SELDOM, before[0]), *before[1:]) if alone and before[0] else before
    if mine:
        gc.freeze()
    gc.set_threshold(*slower)
    try:
        yield
    finally:
        if gc.get_threshold() == slower:  # else somebody has set another meanwhile
            gc.set_threshold(*before)
        if mine:
            gc.unfreeze()
