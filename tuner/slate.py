"""What a process was before an attempt, put back after it: for ``isolation="shared"``.

A process that is kept for the next trial starts it as a fresh one would: environment, modules of the user's
own, import hooks, logging, warnings, signals, limits, cores and priority, locale, event loop, the folder for
temporary files, how standard output is written, the start method of ``multiprocessing``, NumPy's answer to
errors, what is switched in torch (:mod:`tuner.switches`), CUDA caches. Context variables are those of a
context that each attempt has alone. One that leaks (threads, child processes, open files, memory, a priority
that it cannot raise again) is not kept. What this cannot know of is what an objective changes inside
installed libraries; for that there is ``isolation="attempt"``.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of signal, without an enum for each number
import builtins
import contextlib
import contextvars
import ctypes
import faulthandler
import gc
import io
import locale
import logging
import multiprocessing
import operator
import os
import resource
import signal
import site
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tuner.arrival import on_import
from tuner.parting import PARTING, flush_files
from tuner.switches import Switches, device_memory

__all__ = ["Leaks", "Slate", "is_users_file", "leak"]

MORE_MEMORY = 256 * 2**20  # bytes above those after the first attempt
MORE_FILES = 32  # open files above those after the first attempt

_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_LIBC = ctypes.CDLL(None)
_FLOATING = 64  # bytes; above those of C's fenv_t on any processor
_OOM_SCORE = "/proc/self/oom_score_adj"
_WALL = 0x40000000  # of linux/wait.h: children of whatever kind
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What an attempt may leave behind, counted after it."""

    threads: int = 0
    children: int = 0
    files: int = 0
    memory: int = 0
    device_memory: int = 0


def leak(now: Leaks, first: Leaks) -> str:
    """Why a process is not to be kept, or "".

    Args:
        first: after its first attempt, which may have loaded a library or a data set for good.

    Example:
        >>> leak(Leaks(children=1), Leaks())
        '1 child process was left'
    """
    if now.children:
        return f"{now.children} child process{'es were' if now.children > 1 else ' was'} left"
    if now.threads:
        return f"{now.threads} thread{'s were' if now.threads > 1 else ' was'} left"
    if now.device_memory:
        return f"{now.device_memory / 2**20:.0f} MiB of GPU memory were left"
    if now.files > first.files + MORE_FILES:
        return f"open files grew from {first.files} to {now.files}"
    if now.memory > first.memory + MORE_MEMORY:
        return f"memory grew from {first.memory / 2**20:.0f} to {now.memory / 2**20:.0f} MiB"
    return ""


class Slate:
    """Taken in a process before its first attempt; each is made by :meth:`run`, and :meth:`wipe` follows."""

    def __init__(self) -> None:
        self._environ = os.environ
        self._variables = _Variables()
        self._umask = _umask()
        self._path, self._argv = list(sys.path), list(sys.argv)
        self._streams = sys.stdin, sys.stdout, sys.stderr
        texts = [one for one in self._streams[1:] if isinstance(one, io.TextIOWrapper)]
        self._settings = [(one, _settings(one)) for one in texts]
        self._hooks = sys.excepthook, threading.excepthook, sys.displayhook
        self._rarer_hooks = sys.unraisablehook, sys.breakpointhook, warnings.showwarning
        self._import_hooks = list(sys.meta_path), list(sys.path_hooks)
        self._recursion, self._digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
        self._temporary, self._locale = tempfile.tempdir, locale.setlocale(locale.LC_ALL)
        self._builtins = dict(vars(builtins))
        self._modules = dict(sys.modules)
        self._warnings = list(warnings.filters)
        self._signals = {number: _signal.getsignal(number) for number in _SIGNALS}
        self._loggers = {name: _levels(logger) for name, logger in _loggers().items()}
        self._disabled = logging.root.manager.disable
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._cores, self._priority = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
        self._scheduling, self._is_slower = _scheduling(), False
        self._floating = ctypes.create_string_buffer(_FLOATING)  # rounding, and what becomes of denormals
        _LIBC.fegetenv(self._floating)
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        self._start_method = multiprocessing.get_start_method(allow_none=True)
        self._socket_timeout = socket.getdefaulttimeout()
        self._gc, self._switch = gc.get_threshold(), sys.getswitchinterval()
        self._numpy = _numpy_errors()
        self._torch: Switches | None = None
        if "torch" in sys.modules:
            self._note_torch()
        else:
            on_import("torch", "slate", self._note_torch)
        self._first: Leaks | None = None
        self._files = 0

    def _note_torch(self) -> None:
        self._torch = Switches()

    def run(self, attempt: Callable[[], bool]) -> bool:
        """What an attempt returns, which begins with the context variables of a fresh process."""
        return contextvars.copy_context().run(attempt)

    def wipe(self) -> str:
        """Put everything back; why the process is not to be kept all the same, or ""."""
        if self._torch is not None:
            self._torch.restore()
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        for number, handler in self._signals.items():
            if handler is not None and _signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        self._restore_process()
        self._restore_python()
        self._restore_logging()
        if _files() > self._files:
            flush_files()
        _forget(sys.modules.keys() - self._modules.keys())
        if len(sys.modules) > len(self._modules):
            self._modules = {**sys.modules, **self._modules}  # installed ones stay
        if sys.modules != self._modules:
            sys.modules.update(self._modules)
        gc.enable()
        gc.collect()
        if self._first is None:
            gc.freeze()  # what is left is there for good: it need not be looked through each time
        if any(stream is not None and stream.closed for stream in self._streams):
            return "a standard stream was closed"
        for stream, settings in self._settings:
            stream.reconfigure(newline=None, **settings)  # without a look: how it ends lines is not shown
        if self._is_slower:
            return "its priority was lowered for good"
        now = _count()
        self._first, self._files = self._first or now, now.files
        return leak(now, self._first)

    def _restore_process(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        with contextlib.suppress(OSError):  # cores may be taken from us meanwhile
            os.sched_setaffinity(0, self._cores)
        if self._ranks_otherwise():
            with contextlib.suppress(OSError):  # only some may raise it again
                os.setpriority(os.PRIO_PROCESS, 0, self._priority)
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, self._scheduling[0], os.sched_param(0))
            with contextlib.suppress(OSError):
                Path(_OOM_SCORE).write_text(self._scheduling[1])
            self._is_slower = self._ranks_otherwise()
        _LIBC.fesetenv(self._floating)
        for limit, both in self._limits.items():
            with contextlib.suppress(OSError, ValueError):  # a hard limit that was lowered stays so
                resource.setrlimit(limit, both)

    def _ranks_otherwise(self) -> bool:
        """Whether the kernel gives this process cores, or ends it, before or after others."""
        return os.getpriority(os.PRIO_PROCESS, 0) != self._priority or _scheduling() != self._scheduling

    def _restore_python(self) -> None:
        sys.settrace(None)
        sys.setprofile(None)
        sys.setswitchinterval(self._switch)
        gc.set_threshold(*self._gc)
        multiprocessing.set_start_method(self._start_method, force=True)
        socket.setdefaulttimeout(self._socket_timeout)
        faulthandler.cancel_dump_traceback_later()
        tempfile.tempdir = self._temporary
        locale.setlocale(locale.LC_ALL, self._locale)
        if "asyncio" in sys.modules:
            _leave_event_loop()
        if self._numpy:
            import numpy

            numpy.seterr(**self._numpy)
        os.environ = self._environ  # noqa: B003 - an object of the user's may stand there
        self._variables.restore()
        time.tzset()
        os.umask(self._umask)
        sys.path[:], sys.argv[:] = self._path, self._argv
        sys.stdin, sys.stdout, sys.stderr = self._streams
        sys.excepthook, threading.excepthook, sys.displayhook = self._hooks
        _restore_finders(sys.meta_path, self._import_hooks[0])
        _restore_finders(sys.path_hooks, self._import_hooks[1])
        sys.setrecursionlimit(self._recursion)
        sys.set_int_max_str_digits(self._digits)
        logging.captureWarnings(False)
        sys.unraisablehook, sys.breakpointhook, warnings.showwarning = self._rarer_hooks
        warnings.filters[:] = self._warnings  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        known = vars(builtins)
        for name in set(known) - set(self._builtins) - {"_"}:
            del known[name]
        known.update(self._builtins)

    def _restore_logging(self) -> None:
        if logging.root.manager.disable != self._disabled:  # as below
            logging.disable(self._disabled)
        for name, logger in _loggers().items():
            level, handlers, filters, propagate, disabled = self._loggers.get(
                name, (logging.NOTSET, [], [], True, False)
            )
            if logger.level != level:  # to set it empties the caches of all loggers
                logger.setLevel(level)
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.propagate, logger.disabled = propagate, disabled


class _Variables:
    """The environment: as ``os.environ`` has it, and as C has it, where ``os.putenv`` writes alone. To set
    each variable anew is a call, and a tenth of what a short trial costs.
    """

    def __init__(self) -> None:
        self._data: dict[bytes, bytes] = dict(os.environ._data)  # type: ignore[attr-defined]
        self._there = ctypes.c_void_p.in_dll(_LIBC, "environ")
        texts = [b"%b=%b" % pair for pair in os.environb.items()]
        self._kept = (ctypes.c_char_p * (len(texts) + 1))(*texts, None)
        self._used = type(self._kept)()  # setenv writes into it

    def restore(self) -> None:
        """Put all of it back, in an ``os.environ`` that is the one of the beginning."""
        known = os.environ._data  # type: ignore[attr-defined]
        known.clear()
        known.update(self._data)
        ctypes.memmove(self._used, self._kept, ctypes.sizeof(self._kept))
        self._there.value = ctypes.addressof(self._used)


def _settings(stream: io.TextIOWrapper) -> dict[str, Any]:
    return {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through")}


def _scheduling() -> tuple[int, str]:
    """How the kernel shares out cores, and whom it ends first where memory is short."""
    score = ""
    with contextlib.suppress(OSError):  # not every sandbox has it
        score = _read(_OOM_SCORE).decode()
    return os.sched_getscheduler(0), score


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def _loggers() -> dict[str, logging.Logger]:
    named = logging.root.manager.loggerDict.items()
    return {"": logging.root, **{name: one for name, one in named if isinstance(one, logging.Logger)}}


def _levels(logger: logging.Logger) -> tuple[int, list[Any], list[Any], bool, bool]:
    return logger.level, [*logger.handlers], [*logger.filters], logger.propagate, logger.disabled


def _numpy_errors() -> dict[str, Any]:
    if "numpy" not in sys.modules:
        return {}
    import numpy

    return {**numpy.geterr()}


def _restore_finders(now: list[Any], before: list[Any]) -> None:
    """Those of installed libraries stay: modules of theirs stay too, and count on them."""
    if len(now) == len(before) and all(map(operator.is_, now, before)):
        return
    added = [one for one in now if not any(one is other for other in before)]
    now[:] = [one for one in now if one not in added or not _is_of_users(one)]
    now += [one for one in before if not any(one is other for other in now)]


def _is_of_users(thing: Any) -> bool:
    kind = thing if hasattr(thing, "__module__") else type(thing)
    module = sys.modules.get(kind.__module__)
    return module is None or _is_users(module)


def _leave_event_loop() -> None:
    import asyncio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(None)  # with it goes the loop, which may be closed


def _forget(names: set[str]) -> None:
    """Modules that are the user's own are imported anew by the next trial; installed ones stay."""
    found = {name: sys.modules[name] for name in names}
    for name, module in found.items():
        if module is None or _is_users(module) or _is_made(name, module):
            sys.modules.pop(name, None)


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is not None:
        return is_users_file(file)
    folders = [*getattr(module, "__path__", ())]  # of a package without a file of its own
    return bool(folders) and not any(f"{os.path.abspath(one)}/".startswith(_INSTALLED) for one in folders)


def is_users_file(file: str) -> bool:
    """Whether a file belongs to no installed package, and to none of ours."""
    return not os.path.abspath(file).startswith(_INSTALLED)


def _is_made(name: str, module: Any) -> bool:
    """Whether it was put among the modules by hand, in place of one that is not there."""
    return "." not in name and getattr(module, "__spec__", None) is None and name != "__mp_main__"


def _installed() -> tuple[str, ...]:
    library = os.path.dirname(os.__file__)
    here = Path(__file__).parents[1]
    ours = (str(here / "tuner"), str(here / "storage"))
    return tuple(f"{folder}/" for folder in {library, *site.getsitepackages(), *ours})


_INSTALLED = _installed()


def _count() -> Leaks:
    deadline = time.monotonic() + PARTING
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return Leaks(
        threads=max(threading.active_count(), len(sys._current_frames())) - 1,
        children=_children(),
        files=_files(),
        memory=int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        device_memory=device_memory(),
    )


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children() -> int:
    """Of this process, and those that have left it for its parent, which forks nothing else."""
    tasks = [(os.getppid(),) * 2]  # of one thread
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
    except ChildProcessError:
        pass
    else:
        tasks += [(os.getpid(), int(task)) for task in os.listdir("/proc/self/task")]
    found: list[bytes] = []
    for pid, task in tasks:
        with contextlib.suppress(OSError):
            found += _read(f"/proc/{pid}/task/{task}/children").split()
    return len([pid for pid in found if int(pid) != os.getpid()])


def _read(path: str) -> bytes:
    """A file of the kernel's, with no object around it."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 65536)
    finally:
        os.close(file)
