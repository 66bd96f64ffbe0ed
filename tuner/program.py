"""An external program as a part of a trial: started, read, ended with all that it started.

It runs in a session of its own and carries a mark in its environment, which its descendants inherit. It is
asked to end by SIGTERM to its process group, and after a grace killed; then whatever carries the mark is
ended too, wherever it moved to: a daemon of its own, a rank that a launcher put into another group.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO

from tuner import credentials
from tuner.dispatch import memory
from tuner.dispatch.reaper import Reaper
from tuner.errors import ProgramFailed
from tuner.outcome import Reason
from tuner.processes import MARK as RUN
from tuner.processes import kill_tree, marked, sweep

__all__ = ["Program"]

MARK = "TUNER_PROGRAM"
_LOOK = 0.1  # seconds of silence after which the caller may look around
_TAIL = 50  # lines of each stream that are kept for an error
_LONGEST = 2**20  # bytes of a line; a longer one comes in parts
_FATAL = frozenset({"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGINT", "SIGKILL", "SIGSEGV", "SIGTERM"})


@functools.cache
def _guarded() -> str:
    """The mark of the programs of this process: should it be killed, a reaper ends whatever carries it."""
    mark = uuid.uuid4().hex
    atexit.register(Reaper(mark).dismiss)
    return mark


class Program:
    """A program that runs for the length of a ``with`` block, and leaves nothing behind.

    What it prints goes on to this process's standard output and error, line by line.

    Args:
        words: the program and its arguments; no shell sees them.
        env: its environment, without the database's credentials; default: that of this process.
        grace: seconds between SIGTERM and SIGKILL.
        name: for messages; default: the program's own.

    Raises:
        ProgramFailed: it cannot be started.

    Example:
        >>> with Program(["sh", "-c", "echo hello; exit 3"], name="greeting") as program:
        ...     [line for line in program.output() if line is not None]
        hello
        ['hello']
        >>> program.code
        3
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        grace: float = 5.0,
        name: str = "",
    ) -> None:
        self.name = name or os.path.basename(words[0])
        self.is_stopped = False
        self._words = list(words)
        self._mark = uuid.uuid4().hex
        given = os.environ if env is None else env
        self._env = credentials.without(given)
        self._env[MARK] = self._mark
        if RUN not in os.environ:  # not on a rank, whose zygote ends what a killed one leaves
            self._env[RUN] = _guarded()
        self._grace = grace
        self._deadline = float("inf")
        self._process: subprocess.Popen[bytes] | None = None
        self._kernel_kills = 0
        self._partial = {"stdout": b"", "stderr": b""}
        self._tails = {name: collections.deque[str](maxlen=_TAIL) for name in self._partial}

    def __enter__(self) -> Program:
        self._kernel_kills = memory.kernel_kills()
        try:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            text = f"{self.name} cannot be started: {error.strerror}: {self._words[0]}"
            raise ProgramFailed(text, reason=Reason.EXCEPTION) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.code is None:
                self.end()
                collections.deque(self.output(), maxlen=0)
        finally:
            self._kill()
            process = self._started
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._started.poll()

    def output(self) -> Iterator[str | None]:
        """The lines of its standard output as they come, to its end; None after a moment of silence.

        After :meth:`end` they go on until the program has ended, by itself or not.
        """
        streams = {"stdout": self._started.stdout, "stderr": self._started.stderr}
        with selectors.DefaultSelector() as ready:
            for name, stream in streams.items():
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                ready.register(stream, selectors.EVENT_READ, name)
            while True:
                is_over = self._is_over()  # looked at first: what it said before its end is in the pipes
                found = ready.select(0 if is_over else _LOOK)
                for key, _ in found:
                    chunk = os.read(key.fd, 2**16)
                    if not chunk:
                        ready.unregister(key.fileobj)
                    yield from self._lines(key.data, chunk)
                if is_over and not found:
                    break  # what it left behind may hold the pipes for ever
                if not found:
                    yield None
                if not ready.get_map() and not is_over:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._started.wait(timeout=_LOOK)
        for name in streams:
            yield from self._lines(name, b"")

    def end(self) -> None:
        """Ask it to end: SIGTERM to its process group, SIGKILL to all of it after the grace."""
        if not self.is_stopped and self.code is None:  # else its group's number may be another's by now
            self.is_stopped = True
            self._deadline = time.monotonic() + self._grace
            os.killpg(self._started.pid, signal.SIGTERM)

    def check(self) -> None:
        """Say how it ended, once it has.

        Raises:
            ProgramFailed: its exit code is not 0, or a signal ended it, and :meth:`end` was not asked for.
        """
        code = self.code
        if not code or self.is_stopped:
            return
        ended_by = _signal_of(code)
        told = [line for line in self._tails["stderr"] or self._tails["stdout"] if line.strip()]
        how, reason = f"exited with code {code}", Reason.EXCEPTION
        if ended_by:
            reason = Reason.RANK_LOST
            how = f"was killed by {ended_by}" if code < 0 else f"{how}: something in it died of {ended_by}"
        if ended_by == "SIGKILL" and memory.kernel_kills() > self._kernel_kills:
            reason, how = Reason.OOM, f"{how}, by the kernel, which had run out of memory"
        # a line of dashes, as torchrun ends its report with, says nothing
        said = next((line.strip() for line in reversed(told) if any(map(str.isalnum, line))), "")
        text = f"{self.name} {how}{f'; its last line: {said}' if said else ''}"
        raise ProgramFailed(text, code=code, reason=reason, tail="\n".join(told))

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "a program runs within its 'with' block"
        return self._process

    def _is_over(self) -> bool:
        """Whether it has ended; after :meth:`end`, all that it started too: a shell goes before its child."""
        is_late = time.monotonic() > self._deadline
        if is_late:
            self._kill()
        return self.code is not None and (is_late or not self.is_stopped or not marked(self._mark, MARK))

    def _kill(self) -> None:
        if self.code is None:
            kill_tree(self._started.pid)
        sweep(self._mark, MARK)

    def _lines(self, name: str, chunk: bytes) -> Iterator[str]:
        """Whole lines of a stream are passed on, standard output's yielded too; an empty chunk ends it."""
        *lines, rest = (self._partial[name] + chunk).split(b"\n")
        if rest and (not chunk or len(rest) > _LONGEST):
            lines, rest = [*lines, rest], b""
        self._partial[name] = rest
        echo: IO[str] = sys.stdout if name == "stdout" else sys.stderr
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r")
            self._tails[name].append(text)
            print(text, file=echo, flush=True)
            if name == "stdout":
                yield text


def _signal_of(code: int) -> str:
    """The signal that an exit code tells of: its own, or one that a launcher hands on as 128 + n."""
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        name = signal.Signals(number).name
        return name if code < 0 or name in _FATAL else ""
    return f"signal {number}" if code < 0 else ""
