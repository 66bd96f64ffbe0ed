"""Folders of data that the ranks of a node share: each lives as long as a process holds it.

A holder has a shared ``flock`` on the folder's lock file. The kernel frees it when the holder dies, however
it dies, so that whoever comes next finds the folders that nobody holds, by trying the lock, and removes them.
They lie in ``$TUNER_SHARED``, else in the folder for temporary files, and belong to one user and one study.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from tuner.errors import BadInput

__all__ = ["FOLDER", "PARENT", "Held", "hold", "sweep"]

PARENT = "TUNER_SHARED"
"""The variable that names where such folders are made, on a disk with room for the data."""

FOLDER = "TUNER_SHARED_FOLDER"
"""The variable in which a shell tells its ranks the folder that it holds."""

_LOCK = ".lock"
_HELP = f"set {PARENT} to a folder of yours"
_TRIES = 100  # each is lost to one who removes the folder just then


@dataclass(frozen=True, kw_only=True)
class Held:
    """A folder that this process holds.

    Attributes:
        path: of the folder.
    """

    path: str
    lock: IO[bytes]

    def let_go(self) -> None:
        """Remove the folder, if no other process holds it, and any other that nobody holds. Safe twice."""
        self.lock.close()
        sweep()


def hold(study: str = "") -> Held:
    """Hold a study's folder on this node, made if it is not there; what nobody holds is removed before.

    Args:
        study: its uid; "" for a folder of this process alone.

    Raises:
        BadInput: the folder belongs to someone else, or cannot be made.
    """
    sweep()
    name = re.sub(r"[^A-Za-z0-9]", "", study)[:12] or f"own-{secrets.token_hex(6)}"
    path = f"{_prefix()}{name}"
    try:
        for _ in range(_TRIES):
            _make(path)
            lock = _lock(path, fcntl.LOCK_SH)
            if lock is not None:
                return Held(path=path, lock=lock)
    except OSError as error:
        raise BadInput(f"{path} cannot be made ({error.strerror}); {_HELP}") from error
    raise BadInput(f"{path} is removed again and again by another process; {_HELP}")


def sweep() -> None:
    """Remove every folder of this user on this node that no process holds."""
    for path in _found():
        with contextlib.suppress(OSError):
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is None:
                continue
            with lock:
                # Under another name first: who waits for the lock finds that this is not the folder any more.
                gone = f"{_prefix()}gone-{secrets.token_hex(6)}"
                os.rename(path, gone)
                shutil.rmtree(gone, ignore_errors=True)


def _prefix() -> str:
    return f"{os.environ.get(PARENT) or tempfile.gettempdir()}/tuner-shared-{os.geteuid()}-"


def _found() -> Iterator[str]:
    folder, start = os.path.split(_prefix())
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            if name.startswith(start) and _is_ours(path):
                yield path


def _make(path: str) -> None:
    """A folder for this user alone; one of the same name that is not is refused: anyone may write to /tmp."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    if os.path.lexists(path) and not _is_ours(path):
        raise BadInput(f"{path} is not a folder of this user's alone; {_HELP}")


def _is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _lock(path: str, how: int) -> IO[bytes] | None:
    """The lock; None if the folder went meanwhile, or is held and ``how`` does not wait."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        file = open(os.open(f"{path}/{_LOCK}", flags, 0o600), "r+b")  # noqa: SIM115 - open while it is held
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, how)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(f"{path}/{_LOCK}")):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None
