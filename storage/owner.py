"""Who holds a lease: a process named so that its number cannot be mistaken after a reboot."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
from collections.abc import Mapping

__all__ = ["alive", "end", "identity", "is_stopped", "same_host", "shown"]


@functools.cache
def _boot_id() -> str:
    try:
        return _read("/proc/sys/kernel/random/boot_id").strip()
    except (FileNotFoundError, PermissionError):  # not Linux: the host name is the best there is
        return socket.gethostname()


@functools.cache  # no process changes its own
def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """The kernel's start time of a process in ticks since boot; None when it is gone or a zombie.

    Raises:
        OSError: nobody can say, for instance where this process may open no further file.
    """
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def identity(run: str, pid: int | None = None) -> dict[str, str | int]:
    """A process of this host, by default this one, and the mark of the run that it belongs to."""
    pid = os.getpid() if pid is None else pid
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid_namespace": _pid_namespace(),
        "pid": pid,
        "start_time": _start_time(pid) or "",
        "run": run,
    }


def same_host(owner: Mapping[str, object]) -> bool:
    """True when the owner's process number means something here."""
    return owner.get("boot_id") == _boot_id() and owner.get("pid_namespace") == _pid_namespace()


def alive(owner: Mapping[str, object]) -> bool | None:
    """Whether the owner's process lives; None when nobody can say: it is on another host, or this process
    may open no further file.
    """
    try:
        if not same_host(owner):
            return None
        return _start_time(int(str(owner["pid"]))) == owner.get("start_time")
    except OSError:
        return None


def is_stopped(owner: Mapping[str, object]) -> bool:
    """True for a process of this host that was stopped, by SIGSTOP or by a debugger."""
    try:
        stat = _read(f"/proc/{owner['pid']}/stat")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt" and bool(alive(owner))


def end(owner: Mapping[str, object]) -> None:
    """Kill a process of this host that stopped renewing its lease, so that it cannot wake up."""
    if alive(owner):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(str(owner["pid"])), signal.SIGKILL)


def _read(path: str) -> str:
    """A file of the kernel's. A process may name itself in any bytes."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096).decode(errors="replace")
    finally:
        os.close(file)


def shown(owner: Mapping[str, object] | str | None) -> str:
    """The owner for a person, such as ``process 812 on gpu-box``."""
    known = json.loads(owner) if isinstance(owner, str) else owner
    return f"process {known['pid']} on {known['host']}" if known else "nobody"
