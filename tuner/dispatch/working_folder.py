"""The folder that an attempt works in: its own, in which what the driver's folder holds is there too.

Two trials that write ``model.pt`` do not meet, and one that reads ``data.csv`` or ``../data.csv`` finds it:
a link for each entry of the driver's folder, and of the one above it. What is written to one that was there
before is written to the driver's. What an attempt leaves there is
moved to ``tuner-files/STUDY/TRIAL`` in the driver's folder, where that is on this node; what it leaves in the
one above, to ``above`` in that.

The folder belongs to the shell of the first rank of a node, which the trial's other ranks there share.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["FILES", "collect", "enter", "folder_of", "prepare", "remove", "renew", "sweep"]

log = logging.getLogger(__name__)

FILES = "tuner-files"
"""In the driver's folder: what trials left, by study and number."""

_WORK, _ABOVE = "work", "above"
_LONGEST = 100  # characters of a study's name in a path
_SETTLED = 2 * 10**9  # nanoseconds: coarser than the times of any file system
_MOST = 2000  # entries of a folder that are linked; where there are more, trials work in it itself


def folder_of(shell: str, home: str) -> str:
    """Where a shell's attempts work.

    Args:
        shell: its folder.
        home: the driver's folder.
    """
    return f"{shell}/{_WORK}/{os.path.basename(home) or 'root'}"


def enter(folder: str, home: str, root: str = "") -> None:
    """Work in the folder from here on, or where :func:`prepare` says, whose arguments these are."""
    place = prepare(folder, home, root)
    try:
        os.chdir(place)
    except FileNotFoundError:  # as there
        os.chdir(home if os.path.isdir(home) else "/")


def prepare(folder: str, home: str, root: str = "") -> str:
    """Make the folder, with its links; all ranks of a node may do it at once.

    Args:
        home: of which everything is to be found there; it need not be on this node.
        root: what is above this one is not to be found.

    Returns:
        Where to work: there, or in ``home`` itself.
    """
    try:
        if os.path.islink(folder) or not os.path.isdir(folder):
            for made in (os.path.dirname(folder), folder):  # not what is above: that goes with its shell
                with contextlib.suppress(FileExistsError):
                    os.mkdir(made)
        if os.path.isdir(home):
            if not _link(home, folder, without=""):
                return home
            if home != root:
                _link(os.path.dirname(home), os.path.dirname(folder), without=os.path.basename(home))
        return folder
    except FileNotFoundError:  # the shell whose folder it is has just ended, and this rank will
        return home if os.path.isdir(home) else "/"


def renew(folder: str, home: str, study: str, number: int, *, linked: str = "", root: str = "") -> str:
    """:func:`collect` what an attempt left, and :func:`prepare` for the next one: a look at the times of the
    folders where nothing was to be done the last time, and nothing has changed.

    Returns:
        Where to work.
    """
    linked = linked or home
    watched = _watched(folder, linked)
    now = _stamps(*watched)
    if now is not None and _renewed.get(watched) == now:
        return folder
    collect(folder, home, study, number, linked)
    place = prepare(folder, linked, root)
    _renewed[watched] = _stamps(*watched) if place == folder else None
    return place


@functools.cache
def _watched(folder: str, home: str) -> tuple[str, ...]:
    return folder, home, os.path.dirname(folder), os.path.dirname(home)


def remove(shell: str) -> None:
    """Remove a shell's folder. Under another name first: another shell's rank may be about to enter it."""
    gone = f"{shell}.gone"
    with contextlib.suppress(OSError):
        os.rename(shell, gone)
    _remove(gone)


def sweep(run: str) -> None:
    """Remove what is left of the shells' folders of a run on this host, whose processes have all ended: the
    one that was removing its own may have been killed too.
    """
    for folder in glob.glob(f"{glob.escape(tempfile.gettempdir())}/tuner-{run}-*"):
        _remove(folder)


def collect(folder: str, home: str, study: str, number: int, linked: str = "") -> list[str]:
    """Move what an attempt left in its folder to where it stays, so that the next one finds nothing of it.

    Args:
        home: the driver's folder.
        linked: the copy of it that was entered, where it was sent.

    Returns:
        The paths of the files, in ``home``; none where ``home`` is not on this node. What cannot be moved,
        where the disk is full or a path too long, is not kept: it would be the next attempt's.
    """
    linked = linked or home
    places = [(folder, linked, "")]
    above = os.path.dirname(folder)
    if os.path.basename(above) == _WORK:
        places.append((above, os.path.dirname(linked), _ABOVE))
    found = []
    for place, origin, part in places:
        if (now := _stamps(place)) is not None and _clean.get(place) == now:
            continue
        if os.path.islink(place) or not os.path.isdir(place):
            _remove(place)  # what an attempt has put in its stead
            continue
        _open(place)
        for entry in _entries(place):
            if entry.path == folder or _is_ours(entry, origin):
                continue
            if os.path.isdir(home):
                kept = Path(home) / FILES / _file_name(study) / str(number)
                found += _move(entry.path, kept / part / entry.name)
            _remove(entry.path)
        _clean[place] = _stamps(place)
    return found


def _file_name(study: str) -> str:
    """A study's name as that of a folder: it may be a path, or longer than a file system takes."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", study)
    name = re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), name)
    return (
        name
        if len(name) <= _LONGEST
        else f"{name[:_LONGEST]}-{hashlib.sha256(study.encode()).hexdigest()[:8]}"
    )


def _link(home: str, folder: str, without: str) -> bool:
    """Let the links in a folder be those to the entries of another; False where these are too many."""
    now = _stamps(home, folder)
    if now is not None and _linked.get((home, folder)) == now:
        return True
    wanted = {entry.name for entry in _entries(home)} - {without, FILES}
    if len(wanted) > _MOST:
        return False
    there = {entry.name: entry for entry in _entries(folder)}
    for name, entry in there.items():
        if name not in wanted and _is_ours(entry, home):
            _remove(entry.path)
    for name in wanted - set(there):
        with contextlib.suppress(FileExistsError):  # another rank was first
            os.symlink(f"{home}/{name}", f"{folder}/{name}")
    _linked[home, folder] = now
    return True


_linked: dict[tuple[str, str], tuple[int, ...] | None] = {}
"""When folders had last changed that a process has linked: one that is kept for the next trial need not
look again.
"""


_renewed: dict[tuple[str, ...], tuple[int, ...] | None] = {}
"""When folders had last changed, all told, that were as they should be."""


_clean: dict[str, tuple[int, ...] | None] = {}
"""When folders had last changed in which a shell has found nothing but links."""


def _stamps(*folders: str) -> tuple[int, ...] | None:
    """When they have last changed; None where that was so lately that another change would not show."""
    found: list[int] = []
    settled = time.time_ns() - _SETTLED
    try:
        for folder in folders:
            there = os.stat(folder)
            if there.st_ctime_ns >= settled:  # no program can set it, as tar and rsync set the other
                return None
            found += there.st_ctime_ns, there.st_ino
    except OSError:
        return None
    return tuple(found)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_ours(entry: os.DirEntry[str], home: str) -> bool:
    if not entry.is_symlink():
        return False
    with contextlib.suppress(OSError):
        return os.readlink(entry.path) == f"{home}/{entry.name}"
    return False


def _move(source: str, target: Path) -> list[str]:
    """Files of a tree to another, in place of those of the same name; what cannot be moved is left out."""
    moved, waiting = [], [(source, target)]
    while waiting:
        path, goal = waiting.pop()
        if os.path.islink(path):
            continue
        if os.path.isdir(path):
            _open(path)
            waiting += [(entry.path, goal / entry.name) for entry in _entries(path)]
        elif os.path.isfile(path) and _move_file(path, goal):
            moved.append(str(goal))
    return sorted(moved)


def _move_file(path: str, goal: Path) -> bool:
    """Whole, or not at all."""
    part = goal.with_name(f".tuner-{os.getpid()}.part")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, part)
        os.replace(part, goal)
    except OSError as error:
        log.warning("%s was not kept as %s: %s", path, goal, error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()
        return False
    return True


def _open(folder: str) -> None:
    """Let its owner in again, whom an attempt may have shut out."""
    with contextlib.suppress(OSError):
        mode = os.stat(folder).st_mode
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(folder, stat.S_IMODE(mode) | stat.S_IRWXU)


def _remove(path: str) -> None:
    """Whatever it is, and as far as it can be removed."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError):  # its modes, or it is deeper than Python goes
        for command in (("chmod", "-R", "u+rwX", "--", path), ("rm", "-rf", "--", path)):
            with contextlib.suppress(OSError):
                subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
