"""Processes of ours: found by a mark in their environment, ended with their whole trees."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from storage import owner

if TYPE_CHECKING:
    from tuner.messages import RankInfo

__all__ = [
    "MARK",
    "are_ended",
    "become_subreaper",
    "below",
    "die_with_parent",
    "is_gone",
    "kill_below",
    "kill_tree",
    "marked",
    "ray_processes",
    "sweep",
]

MARK = "TUNER_RUN"
"""The environment variable that every process of a run carries."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def marked(value: str, name: str = MARK) -> list[int]:
    """Ids of the processes that were started with ``name=value`` in their environment, this one excepted."""
    wanted = f"{name}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def below(root: int) -> Iterator[int]:
    """The descendants of a process; cheaper than a look at every process of the node."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{root}/task"):
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{root}/task/{task}/children").read_text().split():
                    yield int(child)
                    yield from below(int(child))


def ray_processes(folders: Iterable[str]) -> list[int]:
    """Ids of Ray's processes that have a file open below one of the folders (glob patterns).

    Ray's agents write their title over their environment, and with it over our mark.
    """
    patterns = [f"{folder}/*" for folder in folders]
    found = []
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                links = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))
                if any(fnmatch.fnmatch(link, pattern) for link in links for pattern in patterns):
                    found.append(pid)
    return found


def sweep(
    value: str,
    name: str = MARK,
    *,
    folders: Iterable[str] = (),
    seconds: float = 5.0,
    quiet: float = 0.0,
    spare: Iterable[int] = (),
    also: Iterable[int] = (),
) -> int:
    """Kill every process that carries a mark, and all below it, until none is left; how many there were.

    One that dropped the mark (``env -i``) is found below the process that it was started by, or that took
    it over when that one ended: a zygote takes what its ranks leave.

    Args:
        value, name: of the mark; see :func:`marked`.
        folders: of a Ray of ours; see :func:`ray_processes`.
        seconds: bound on the whole.
        quiet: seconds for which none must be seen: a process between its fork and its exec does
            not carry the mark yet.
        spare: ids to leave alone.
        also: ids to kill too. One that is just ending has lost its environment, and holds its
            files, sockets and device memory still.
    """
    spared, wanted, killed = {*spare, os.getpid()}, set(also), set()
    deadline = time.monotonic() + seconds
    clean_since: float | None = None
    while True:
        found = [*marked(value, name), *(ray_processes(folders) if folders else ())]
        ours = {pid for pid in found if pid not in spared}
        wanted |= ours
        wanted.update(pid for one in ours for pid in below(one) if pid not in spared)
        left = [pid for pid in wanted if not is_gone(pid)]
        for pid in left:
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        now = time.monotonic()
        clean_since = None if left else now if clean_since is None else clean_since
        if now > deadline or (clean_since is not None and now - clean_since >= quiet):
            return len(killed)
        time.sleep(0.02)


def are_ended(ranks: Iterable[RankInfo], seconds: float = 5.0) -> bool:
    """End the processes of ranks that run on this host; whether none of the ranks can be alive."""
    deadline = time.monotonic() + seconds
    for rank in ranks:
        if not rank.process:
            continue  # it had no process of its own
        if not owner.same_host(rank.process):
            return False
        owner.end(rank.process)
        while owner.alive(rank.process) is not False:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it. The root is stopped first, so that it starts nothing more."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        kill_below(pid)
        os.kill(pid, signal.SIGKILL)


def kill_below(pid: int) -> None:
    """Kill everything below a process that does not end meanwhile."""
    import psutil  # not ahead: a process that ranks are forked from pays for what it holds with each

    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()


def become_subreaper() -> None:
    """Orphans below this process become its children instead of init's. Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """The kernel kills this process when the thread that forked it ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        _LIBC.prctl(option, value, 0, 0, 0)


_LIBC = ctypes.CDLL(None, use_errno=True)  # to look it up takes a forked process half a millisecond


def is_gone(pid: int) -> bool:
    """Whether a process has ended, collected by its parent or not. Where this process may open no further
    file, nobody can say, and it has not.
    """
    try:
        # a process may name itself in any bytes
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
