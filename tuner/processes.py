"""Processes of ours: found by a mark in their environment, ended with their whole trees."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

__all__ = ["MARK", "become_subreaper", "die_with_parent", "kill_tree", "marked", "sweep"]

MARK = "TUNER_RUN"
"""The environment variable that every process of a run carries."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def marked(run: str) -> list[int]:
    """Ids of the processes that carry the mark of ``run``, this one excepted."""
    wanted = f"{MARK}={run}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def sweep(run: str, *, seconds: float = 5.0, spare: Iterable[int] = ()) -> int:
    """Kill every process that carries the mark of ``run``, until none is left; how many there were.

    Args:
        seconds: bound on the whole.
        spare: ids to leave alone.
    """
    spared, killed = set(spare), set()
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid in marked(run) if pid not in spared and not _is_zombie(pid)]
        for pid in left:
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left or time.monotonic() > deadline:
            return len(killed)
        time.sleep(0.05)


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it. The root is stopped first, so that it starts nothing more."""
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        root = psutil.Process(pid)
        os.kill(pid, signal.SIGSTOP)
        below = root.children(recursive=True)
        for process in [root, *below]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                process.kill()


def become_subreaper() -> None:
    """Orphans below this process become its children instead of init's. Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """The kernel kills this process when the thread that forked it ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
