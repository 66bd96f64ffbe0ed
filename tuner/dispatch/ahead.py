"""Zygotes that are started while a local Ray starts: the first group's shells find their imports done.

Each listens in a folder that becomes its shell's. Until the shell calls there it lives by a pipe from the
driver, whose end ends it. What its modules read of the environment while they are imported is as a shell
would set it; so only ranks without GPUs are served, since which ones another gets is Ray's to say.
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
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.dispatch import working_folder
from tuner.dispatch.surroundings import environment

__all__ = ["Ahead", "call", "hired", "start"]

_ADDRESS = "zygote"  # in the folder
_SIZE = struct.Struct("!I")


class Ahead:
    """One zygote that has no shell yet (the driver's side).

    Args:
        run: mark of the run.
        cpus: cores of its rank.
        preload: modules that it imports.

    Attributes:
        folder: of the shell that is to have it.

    Raises:
        OSError: the folder for temporary files cannot be used, such as one with a very long name.
    """

    def __init__(self, run: str, cpus: float, preload: Sequence[str]) -> None:
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

    def let_go(self) -> None:
        """It is its shell's, if one has called, and else ends. Can be called twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()  # for what has started it


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
