"""Zygotes that are started before a local Ray: its shells find their imports done.

One process imports for all of them, and is forked. Each listens in a folder that becomes its shell's. Until
the shell calls there it lives by a pipe from the driver, whose end ends it. What its modules read of the
environment while they are imported is as a shell would set it; so only ranks without GPUs are served, since
which ones another gets is Ray's to say.

``tuner run`` starts them when it looks at its objective, whose imports take as long here as there
(:func:`begin`), and another driver when it starts Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.dispatch import working_folder
from tuner.dispatch.surroundings import SHELL_MARK, environment, rename
from tuner.processes import sweep
from tuner.resources import Resources

__all__ = [
    "GROUPS",
    "Ahead",
    "begin",
    "call",
    "end",
    "hatched",
    "hired",
    "mark",
    "modules",
    "start",
    "start_groups",
    "taken",
]

GROUPS = "torch.distributed"  # what ranks of any objective need of torch
MOST = 8  # zygotes that wait at once
_ADDRESS = "zygote"  # in the folder
_SIZE = struct.Struct("!I")


class Ahead:
    """Zygotes that have no shells yet (the driver's side).

    Args:
        run: mark of the run.
        cpus: cores of each one's rank.
        preload: modules that they have imported.
        count: of zygotes.

    Attributes:
        run: as it was given.
        is_taken: some were.

    Raises:
        OSError: the folder for temporary files cannot be used, such as one with a very long name.
    """

    def __init__(self, run: str, cpus: float, preload: Sequence[str], count: int) -> None:
        self.run = run
        self.is_taken = False
        self._has = (cpus, tuple(preload))
        self._folders: list[str] = []
        listeners: list[socket.socket] = []
        try:
            for _ in range(count):
                self._folders.append(tempfile.mkdtemp(prefix=f"tuner-{run}-"))
                listeners.append(socket.socket(socket.AF_UNIX))
                listeners[-1].bind(f"{self._folders[-1]}/{_ADDRESS}")
                listeners[-1].listen(1)
            own = environment(run, os.path.basename(self._folders[0]), cpus, True, "")
            self._process = start(listeners, self._folders[0], preload, own, subprocess.PIPE)
        except OSError:
            for folder in self._folders:
                working_folder.remove(folder)
            raise
        finally:
            for listener in listeners:
                listener.close()
        self._free = [*self._folders]

    def is_for(self, cpus: float, preload: Sequence[str]) -> bool:
        """Whether a shell without GPUs would start the same."""
        return self._has == (cpus, tuple(preload))

    def take(self, count: int) -> tuple[str, ...]:
        """The folders for so many shells, whose zygotes wait there; none where too few are left."""
        if count > len(self._free):
            return ()
        self.is_taken = True
        taken, self._free = self._free[:count], self._free[count:]
        return tuple(taken)

    def end(self) -> None:
        """End them with their shells' folders, unless those have done so. Can be called twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()  # for what has started them
        for folder in self._folders:
            sweep(os.path.basename(folder), SHELL_MARK)  # it may be at its imports
            working_folder.remove(folder)


def modules(wanted: Resources, own: Sequence[str]) -> tuple[str, ...]:
    """What a zygote imports for an attempt, whose objective's own modules are ``own``."""
    return (*((GROUPS,) if wanted.count > 1 or wanted.gpus else ()), *own)


def start_groups(run: str, wanted: Resources, own: Sequence[str], groups: int | None) -> Ahead | None:
    """The zygotes for the ranks of the first groups; None where there can be none.

    Args:
        groups: that will be there at once at most, where that is known.
    """
    cores = os.cpu_count() or 1
    if wanted.gpus or wanted.count > cores:
        return None
    room = int(cores / (wanted.count * wanted.cpus)) if wanted.cpus else cores
    count = wanted.count * max(1, min(groups or room, room, MOST // wanted.count))
    with contextlib.suppress(OSError):
        return Ahead(run, wanted.cpus, modules(wanted, own), count)
    return None


_begun: list[Ahead] = []


def begin(wanted: Resources, own: Sequence[str], groups: int | None) -> None:
    """Start the zygotes of the run that this process is about to begin; it takes them, or :func:`end`."""
    end()
    if (begun := start_groups(_new_mark(), wanted, own, groups)) is not None:
        _begun.append(begun)


def end() -> None:
    """End what :func:`begin` has started, if no run has taken it."""
    while _begun:
        _begun.pop().end()


def mark() -> str:
    """The mark of a run that begins now: that of what :func:`begin` has started for it, or a new one."""
    return _begun[0].run if _begun else _new_mark()


def taken(run: str) -> Ahead | None:
    """What :func:`begin` has started for a run: the caller's from here on."""
    return _begun.pop() if _begun and _begun[0].run == run else None


def _new_mark() -> str:
    return uuid.uuid4().hex[:16]


def start(
    connections: Sequence[socket.socket],
    folder: str,
    preload: Sequence[str],
    env: Mapping[str, str],
    stdin: int,
) -> subprocess.Popen[bytes]:
    """Start a zygote; what is returned is not itself, but its parent, which ends at once.

    Args:
        connections: its end of a control socket; or for each zygote one that listens for :func:`call`.
    """
    numbers = [connection.fileno() for connection in connections]
    return subprocess.Popen(
        # -P: a file of the user's in the working folder must not stand in for one of ours
        [
            *(sys.executable, "-P", "-m", "tuner.dispatch.zygote"),
            *(",".join(map(str, numbers)), folder, *preload),
        ],
        pass_fds=numbers,
        env=dict(env),
        stdin=stdin,
        start_new_session=True,
    )


def call(folder: str, env: Mapping[str, str]) -> socket.socket | None:
    """Take the zygote that waits in a shell's folder (the shell's side); None where none does.

    Returns:
        The control socket, which may be written to before the zygote's imports are done.
    """
    connection = socket.socket(socket.AF_UNIX)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises it for its workers
    body = json.dumps({"environment": dict(env), "files": files}).encode()
    try:
        connection.connect(f"{folder}/{_ADDRESS}")
        connection.sendall(_SIZE.pack(len(body)) + body)
    except OSError:
        connection.close()
        return None
    return connection


def hatched(given: Sequence[socket.socket], folder: str) -> tuple[socket.socket, str]:
    """Become one of the zygotes that this process has imported for; where there are several it forks them,
    and ends.

    Args:
        given: a control socket, or for each zygote the one that listens.
        folder: of the first.

    Returns:
        The zygote's own socket and folder.
    """
    if len(given) == 1:
        return given[0], folder
    for one in given:
        if os.fork() == 0:
            own = os.path.dirname(one.getsockname())
            rename(SHELL_MARK, os.path.basename(folder), os.path.basename(own))
            for other in given:
                if other is not one:
                    other.close()
            return one, own
    os._exit(0)  # they are nobody's children then: what one ends with all that is below it is no other


def hired(control: socket.socket) -> socket.socket | None:
    """The zygote's side: its control socket, and its shell's environment. Where ``control`` listens it waits
    for the call; None when the driver ends before one comes.
    """
    if not control.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return control
    with control:
        readable, _, _ = select.select([control, sys.stdin], [], [])
        if control not in readable:
            return None
        connection, _ = control.accept()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    try:
        (size,) = _SIZE.unpack(connection.recv(_SIZE.size, socket.MSG_WAITALL))
        told: dict[str, Any] = json.loads(connection.recv(size, socket.MSG_WAITALL))
    except (OSError, ValueError, struct.error):  # the shell has just died
        return None
    os.environ.clear()
    os.environ.update(told["environment"])
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, tuple(told["files"]))
    return connection
