"""Zygotes that are started before a local Ray: the first group's shells find their imports done.

Each listens in a folder that becomes its shell's. Until the shell calls there it lives by a pipe from the
driver, whose end ends it. What its modules read of the environment while they are imported is as a shell
would set it; so only ranks without GPUs are served, since which ones another gets is Ray's to say.

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
from tuner.dispatch.surroundings import SHELL_MARK, environment
from tuner.imports import TORCH
from tuner.processes import sweep
from tuner.resources import Resources

__all__ = ["Ahead", "begin", "call", "end", "hired", "mark", "modules", "start", "start_group", "taken"]

_ADDRESS = "zygote"  # in the folder
_SIZE = struct.Struct("!I")


class Ahead:
    """One zygote that has no shell yet (the driver's side).

    Args:
        run: mark of the run.
        cpus: cores of its rank.
        preload: modules that it imports.

    Attributes:
        run: as it was given.
        folder: of the shell that is to have it.

    Raises:
        OSError: the folder for temporary files cannot be used, such as one with a very long name.
    """

    def __init__(self, run: str, cpus: float, preload: Sequence[str]) -> None:
        self.run = run
        self._has = (cpus, tuple(preload))
        self.folder = tempfile.mkdtemp(prefix=f"tuner-{run}-")
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{self.folder}/{_ADDRESS}")
                listener.listen(1)
                own = environment(run, os.path.basename(self.folder), cpus, True, "")
                self._process = start(listener, self.folder, preload, own, subprocess.PIPE)
        except OSError:
            working_folder.remove(self.folder)
            raise

    def is_for(self, cpus: float, preload: Sequence[str]) -> bool:
        """Whether a shell without GPUs would start the same."""
        return self._has == (cpus, tuple(preload))

    def end(self) -> None:
        """End it with its shell's folder, unless that shell has done so. Can be called twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()  # for what has started it
        sweep(os.path.basename(self.folder), SHELL_MARK)  # it may be at its imports
        working_folder.remove(self.folder)


def modules(wanted: Resources, own: Sequence[str]) -> tuple[str, ...]:
    """What a zygote imports for an attempt, whose objective's own modules are ``own``."""
    return (*((TORCH,) if wanted.count > 1 or wanted.gpus else ()), *own)


def start_group(run: str, wanted: Resources, own: Sequence[str]) -> list[Ahead]:
    """The zygotes for the ranks of one group; none where there can be none."""
    group: list[Ahead] = []
    if not wanted.gpus and wanted.count <= (os.cpu_count() or 1):
        with contextlib.suppress(OSError):
            for _ in range(wanted.count):
                group.append(Ahead(run, wanted.cpus, modules(wanted, own)))
    return group


_begun: list[Ahead] = []


def begin(wanted: Resources, own: Sequence[str]) -> None:
    """Start the zygotes of the run that this process is about to begin; it takes them, or :func:`end`."""
    end()
    _begun.extend(start_group(_new_mark(), wanted, own))


def end() -> None:
    """End what :func:`begin` has started, if no run has taken it."""
    while _begun:
        _begun.pop().end()


def mark() -> str:
    """The mark of a run that begins now: that of what :func:`begin` has started for it, or a new one."""
    return _begun[0].run if _begun else _new_mark()


def taken(run: str) -> list[Ahead]:
    """What :func:`begin` has started for a run: the caller's from here on."""
    if not _begun or _begun[0].run != run:
        return []
    found = [*_begun]
    _begun.clear()
    return found


def _new_mark() -> str:
    return uuid.uuid4().hex[:16]


def start(
    connection: socket.socket, folder: str, preload: Sequence[str], env: Mapping[str, str], stdin: int
) -> subprocess.Popen[bytes]:
    """Start a zygote; what is returned is not itself, but its parent, which ends at once.

    Args:
        connection: its end of a control socket, or one that listens for :func:`call`.
    """
    return subprocess.Popen(
        # -P: a file of the user's in the working folder must not stand in for one of ours
        [
            *(sys.executable, "-P", "-m", "tuner.dispatch.zygote"),
            *(str(connection.fileno()), folder, *preload),
        ],
        pass_fds=[connection.fileno()],
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
