"""Named points of the write path at which a test can end or stop this process.

``TUNER_FAULT="NAME:N:ACTION"`` acts at the N-th passage of the point NAME: ``kill`` and ``stop``
send the process SIGKILL and SIGSTOP. Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading

__all__ = ["reach"]

_NAME, _, _rest = os.environ.get("TUNER_FAULT", "").partition(":")
_COUNT, _, _ACTION = _rest.partition(":")
_lock = threading.Lock()
_passed = 0


def reach(name: str) -> None:
    """Act here if this is the point and the passage that ``TUNER_FAULT`` names."""
    if name != _NAME:
        return
    global _passed
    with _lock:
        _passed += 1
        due = _passed == int(_COUNT or 1)
    if due:
        os.kill(os.getpid(), signal.SIGSTOP if _ACTION == "stop" else signal.SIGKILL)
