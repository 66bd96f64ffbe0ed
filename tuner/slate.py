"""What a process was before an attempt, put back after it: for ``isolation="shared"``.

A process that is kept for the next trial starts it as a fresh one would: environment, modules of the user's
own, logging, warnings, signals, limits and cores, the start method of ``multiprocessing``, NumPy's answer to
errors, default dtype and device, ``torch.distributed``, CUDA caches. One that leaks (threads, child
processes, open files, memory) is not kept. What this cannot know of is what an objective
changes inside installed libraries; for that there is ``isolation="attempt"``.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import logging
import multiprocessing
import os
import resource
import signal
import site
import socket
import sys
import sysconfig
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Leaks", "Slate", "leak"]

MORE_MEMORY = 256 * 2**20  # bytes above those after the first attempt
MORE_FILES = 32  # open files above those after the first attempt
PARTING = 0.5  # seconds for threads that are about to end

_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})


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
    """Taken in a process before its first attempt; :meth:`wipe` follows each."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._umask = _umask()
        self._path, self._argv = list(sys.path), list(sys.argv)
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._hooks = sys.excepthook, threading.excepthook, sys.displayhook
        self._recursion = sys.getrecursionlimit()
        self._builtins = dict(vars(builtins))
        self._modules = set(sys.modules)
        self._warnings = list(warnings.filters)
        self._signals = {number: signal.getsignal(number) for number in _SIGNALS}
        self._loggers = {name: _levels(logger) for name, logger in _loggers().items()}
        self._disabled = logging.root.manager.disable
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._cores = os.sched_getaffinity(0)
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        self._start_method = multiprocessing.get_start_method(allow_none=True)
        self._socket_timeout = socket.getdefaulttimeout()
        self._gc, self._switch = gc.get_threshold(), sys.getswitchinterval()
        self._numpy = _numpy_errors()
        self._torch = _torch_settings()
        self._first: Leaks | None = None

    def wipe(self) -> str:
        """Put everything back; why the process is not to be kept all the same, or ""."""
        _leave_torch(self._torch)
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        for number, handler in self._signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        self._restore_process()
        self._restore_python()
        self._restore_logging()
        _forget(set(sys.modules) - self._modules)
        gc.enable()
        gc.collect()
        if self._first is None:
            gc.freeze()  # what is left is there for good: it need not be looked through each time
        now = _count()
        self._first = self._first or now
        return leak(now, self._first)

    def _restore_process(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        with contextlib.suppress(OSError):  # cores may be taken from us meanwhile
            os.sched_setaffinity(0, self._cores)
        for limit, both in self._limits.items():
            with contextlib.suppress(OSError, ValueError):  # a hard limit that was lowered stays so
                resource.setrlimit(limit, both)

    def _restore_python(self) -> None:
        sys.settrace(None)
        sys.setprofile(None)
        sys.setswitchinterval(self._switch)
        gc.set_threshold(*self._gc)
        multiprocessing.set_start_method(self._start_method, force=True)
        socket.setdefaulttimeout(self._socket_timeout)
        if "decimal" in sys.modules:
            import decimal

            decimal.setcontext(decimal.Context())
        if self._numpy:
            import numpy

            numpy.seterr(**self._numpy)
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
            time.tzset()
        os.umask(self._umask)
        sys.path[:], sys.argv[:] = self._path, self._argv
        sys.stdin, sys.stdout, sys.stderr = self._streams
        sys.excepthook, threading.excepthook, sys.displayhook = self._hooks
        sys.setrecursionlimit(self._recursion)
        warnings.filters[:] = self._warnings  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        known = vars(builtins)
        for name in set(known) - set(self._builtins) - {"_"}:
            del known[name]
        known.update(self._builtins)

    def _restore_logging(self) -> None:
        logging.disable(self._disabled)
        for name, logger in _loggers().items():
            level, handlers, filters, propagate, disabled = self._loggers.get(
                name, (logging.NOTSET, [], [], True, False)
            )
            if logger.level != level:  # to set it empties the caches of all loggers
                logger.setLevel(level)
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.propagate, logger.disabled = propagate, disabled


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


_UNTOUCHED = {
    "dtype": "float32",
    "deterministic": False,
    "warn_only": False,
    "precision": "highest",
    "cudnn": (False, False, True),
}
"""Torch's settings as it comes, for a process whose first trial has brought it."""


def _torch_settings() -> dict[str, Any]:
    """Of what a trial may set for the whole process."""
    if "torch" not in sys.modules:
        return _UNTOUCHED
    import torch

    return {
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.enabled,
        ),
    }


def _leave_torch(before: dict[str, Any]) -> None:
    if "torch" not in sys.modules:
        return
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch.set_default_dtype(getattr(torch, before["dtype"]))
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.autograd.set_detect_anomaly(False)
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (before["deterministic"], before["warn_only"]):  # to say it imports a compiler: 1.7 s
        torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn_only"])
    torch.set_float32_matmul_precision(before["precision"])
    torch.set_flush_denormal(False)
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.enabled = before["cudnn"]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()  # tensors in cycles hold their memory
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # a product of matrices leaves one, which is memory in use
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def _forget(names: set[str]) -> None:
    """Modules that are the user's own are imported anew by the next trial; installed ones stay."""
    for name in names:
        module = sys.modules.get(name)
        if module is not None and _is_users(module):
            sys.modules.pop(name, None)


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and not os.path.abspath(file).startswith(_INSTALLED)


def _installed() -> tuple[str, ...]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    here = Path(__file__).parents[1]
    ours = (str(here / "tuner"), str(here / "storage"))
    return tuple(f"{folder}/" for folder in {*folders, *site.getsitepackages(), *ours} if folder)


_INSTALLED = _installed()


def _count() -> Leaks:
    deadline = time.monotonic() + PARTING
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    allocated = 0
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            allocated = torch.cuda.memory_allocated()
    return Leaks(
        threads=threading.active_count() - 1,
        children=_children(),
        files=len(os.listdir("/proc/self/fd")),
        memory=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        device_memory=allocated,
    )


def _children() -> int:
    """Of this process, and those that have left it for its parent, which forks nothing else."""
    found: list[str] = []
    for pid in (os.getpid(), os.getppid()):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    return len([pid for pid in found if int(pid) != os.getpid()])
