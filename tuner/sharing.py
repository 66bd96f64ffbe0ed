"""``tuner.shared``: data laid once on each node, and read by every process there without a copy.

Each attempt of a trial is a fresh process, and its ranks are several: loading again in each costs time, and a
copy in each costs memory. The first process that asks lays the data into a file of its node, and all map it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import PurePath
from types import CodeType, ModuleType
from typing import IO, Any, TypeVar, cast, overload

from tuner import shared_folder
from tuner.errors import BadInput
from tuner.shared_layout import Layout, lay_out, open_file

__all__ = ["shared"]

T = TypeVar("T")

_LOOK = 0.05  # seconds between two looks whether another process has laid the data
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@overload
def shared(data: Callable[[], T], *, key: str = "", timeout: float = 3600.0) -> T: ...
@overload
def shared(data: T, *, key: str = "", timeout: float = 3600.0) -> T: ...
def shared(data: Any, *, key: str = "", timeout: float = 3600.0) -> Any:
    """Data that all processes of a node read from the same memory.

    Inside a trial the data stays while any process of the study's cluster is on the node, over trials and
    over the death of the driver. In a script without Tuner's ranks it goes with the process.

    Args:
        data: a function without arguments that loads it, called by the first process of the node that
            needs it; or the data itself. NumPy arrays (read-only when they come back), tensors (on the
            CPU; what is written to one stays in its process), Arrow tables, plain values, nested in dicts,
            lists and tuples.
        key: tells apart what a function loads, beside its code and the numbers, texts and paths that it
            captures; one that captures anything else needs it.
        timeout: seconds to wait for the process that loads it.

    Raises:
        BadInput: the data cannot be shared (the key is named), or the disk has no room for it.
        TimeoutError: the process that loads it is not done.

    What the function raises comes out as it is; the next process that asks calls it anew.

    Example:
        >>> import numpy
        >>> shared(lambda: {"x": numpy.arange(3)})["x"].tolist()
        [0, 1, 2]
    """
    name = _name_of_function(data, key) if callable(data) else _name_of_value(data)
    folder = _folder()
    path = f"{folder}/{name}"
    with contextlib.suppress(FileNotFoundError):
        return open_file(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)  # what cleans /tmp may have taken it
    with _turn(f"{path}.lock", timeout):
        if not os.path.exists(path):
            _lay(path, lay_out(data() if callable(data) else data))
    return open_file(path)


def _name_of_function(load: Callable[[], Any], key: str) -> str:
    """A function by its module, name, code, what it captures, and key."""
    code = getattr(load, "__code__", None)
    unknown = ["what it was made with"] if code is None or getattr(load, "__self__", None) is not None else []
    captured = {} if unknown else _captured(load)
    unknown += [name for name, value in captured.items() if not _is_telling(value)]
    if unknown and not key:
        text = f"{_called(load)} depends on {', '.join(unknown)}"
        raise BadInput(f"{text}; give shared(..., key=) a text that tells its data apart")
    known = sorted((name, repr(value)) for name, value in captured.items() if _is_telling(value))
    parts = (getattr(load, "__module__", ""), _called(load), _content(code), known, key)
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', _called(load))[-40:].strip('-')}-{digest[:32]}"


def _captured(load: Any) -> dict[str, Any]:
    """Variables of the scopes around a function, and its defaults, by name."""
    code, cells, defaults = load.__code__, load.__closure__ or (), load.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    found = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    found.update(load.__kwdefaults__ or {})
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            found[name] = cell
    return found


def _is_telling(value: Any) -> bool:
    """Whether a value's text is the same in every process, and another one for another value."""
    if type(value) is tuple:
        return all(map(_is_telling, value))
    return isinstance(value, ModuleType | PurePath) or type(value) in (
        bool,
        bytes,
        float,
        int,
        str,
        type(None),
    )


def _content(code: CodeType | None) -> Any:
    """What a function does. Its text is not enough: two lambdas may share a line."""
    if code is None:
        return None
    return code.co_code, code.co_names, [_constant(one) for one in code.co_consts]


def _constant(value: Any) -> Any:
    """A constant whose text is the same in every process: the order of a set is not."""
    if isinstance(value, CodeType):
        return _content(value)
    if isinstance(value, tuple):
        return tuple(map(_constant, value))
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


def _called(load: Callable[[], Any]) -> str:
    return str(getattr(load, "__qualname__", None) or type(load).__qualname__)


def _name_of_value(value: Any) -> str:
    digest = hashlib.sha256()
    lay_out(value).write(cast(IO[bytes], _Digesting(digest.update)))
    return f"value-{digest.hexdigest()[:32]}"


class _Digesting:
    """A file to write to that keeps nothing."""

    def __init__(self, update: Callable[[Any], None]) -> None:
        self.write = update


def _folder() -> str:
    """The folder that this rank's shell holds, or one of this process."""
    return os.environ.get(shared_folder.FOLDER) or _own(os.getpid())


@functools.cache
def _own(pid: int) -> str:
    """A folder that goes with this process; a process that was forked has another one."""
    held = shared_folder.hold()
    atexit.register(lambda: held.let_go() if os.getpid() == pid else None)
    return held.path


@contextlib.contextmanager
def _turn(path: str, timeout: float) -> Iterator[None]:
    """Be the one who loads; the lock of one who is killed is free at once."""
    deadline = time.monotonic() + timeout
    with open(path, "a+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    text = f"another process has been loading the data of {path} for {timeout:g} s"
                    raise TimeoutError(f"{text}; give shared(..., timeout=) more") from None
            time.sleep(_LOOK)
        yield


def _lay(path: str, layout: Layout) -> None:
    """Write the file, and then give it its name: who finds it finds it whole."""
    temporary, size = f"{path}.tmp", layout.total()
    try:
        with open(temporary, "wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is found before anything is written
            layout.write(cast(IO[bytes], file))
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise BadInput(
                f"{os.path.dirname(path)} has no room for {size / 2**20:.1f} MiB of shared data "
                f"({error.strerror}); set {shared_folder.PARENT} or TMPDIR to a folder of a larger disk"
            ) from error
        raise
