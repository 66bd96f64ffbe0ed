"""The shell of a rank: holds its resources and its outbox; the objective runs in a child.

A plain class, which :mod:`tuner.dispatch.ray_cluster` wraps as a Ray actor with several threads.
It imports neither torch nor optuna. Messages of its child are numbered and stay in the outbox
until the driver says that they are durable; :meth:`Shell.drain` can be repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch import zygote
from tuner.dispatch.group import exit_outcome
from tuner.dispatch.pipe import STOP, answer_line
from tuner.messages import Answer, Finished, Question, RankInfo, decode, encode
from tuner.outcome import Outcome, Reason
from tuner.processes import MARK, kill_tree, marked, sweep

__all__ = ["Batch", "Shell", "StaleEpoch"]

PACE = 0.25  # seconds between drains that carry no question and no end
OUTBOX = 100_000  # messages that wait for their commit; above it the child's reports wait
WITHOUT_DRIVER = 60.0  # seconds without a drain after which a shell ends itself
TAIL = 16_384  # bytes of output that are kept with an outcome
FORK = 100.0  # seconds that a zygote may take for its imports and the first fork
_CREDENTIALS = ("TUNER_STORAGE", "PGPASSWORD")  # of the database, which a rank does not need
_SHELL_MARK = "TUNER_SHELL"  # in the environment of this shell's processes, beside the run's mark


class StaleEpoch(RuntimeError):
    """A call of a driver that was taken over."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a drain returns.

    Attributes:
        messages: (seq, message as JSON) in order, not yet known to be durable.
        ended: the rank's process is gone; nothing follows.
    """

    messages: tuple[tuple[int, str], ...] = ()
    ended: bool = False


class Shell:
    """One rank's shell.

    Args:
        run: mark of the driver's run.
        cpus: cores of this rank, for the thread counts of its libraries.
        hide_gpus: no GPU was asked for: hide those that are there.
        preload: modules that the zygote imports once.
    """

    def __init__(self, run: str, cpus: float, hide_gpus: bool, preload: Sequence[str]) -> None:
        self._run = run
        self._folder = Path(tempfile.mkdtemp(prefix=f"tuner-{run}-"))
        self._log = self._folder / "output.log"
        self._environment = _environment(run, self._folder.name, cpus, hide_gpus)
        self._preload = tuple(preload)
        self._changed = threading.Condition()
        self._outbox: deque[tuple[int, str]] = deque()
        self._seq = 0
        self._flush = False  # something waits that must not keep the pace
        self._quiet = False  # a drain waits for the first message
        self._ended = True
        self._epoch = 0
        self._finished = False
        self._child: socket.socket | None = None
        self._child_pid = 0
        self._listener: socket.socket | None = None
        self._last_drain = time.monotonic()
        self._closing = self._has_zygote = False
        self._start_zygote()
        threading.Thread(target=self._watch_driver, daemon=True).start()

    def ready(self) -> dict[str, Any]:
        """Where this shell is: ``host``, ``pid``, and ``loopback``, the same for shells that share one."""
        return {"host": socket.gethostname(), "pid": os.getpid(), "loopback": _loopback()}

    def listen(self, host: str) -> int:
        """Bind the socket on which rank 0's next child serves its store; the port."""
        if self._listener is not None:
            self._listener.close()
        self._listener = socket.create_server((host, 0))
        return int(self._listener.getsockname()[1])

    def start(self, assignment: Assignment, place: Place) -> RankInfo:
        """Fork a child for an attempt, and return where it runs.

        Raises:
            StaleEpoch: the caller was taken over.
        """
        self._check(assignment.epoch)
        if not self._has_zygote:
            self._start_zygote()
        ours, theirs = socket.socketpair()
        with self._changed:
            self._outbox.clear()
            self._seq = 0
            self._ended = self._finished = self._flush = False
            self._child, self._child_pid = ours, 0
            self._last_drain = time.monotonic()
        # Before the child is there: it may end before we hear that it began.
        self._reader = threading.Thread(target=self._read_child, args=(ours,), daemon=True)
        self._reader.start()
        self._fork(assignment, place, theirs)
        with self._changed:
            self._changed.wait_for(lambda: self._child_pid or self._ended, timeout=FORK)
            late = not self._child_pid and not self._ended
            self._last_drain = time.monotonic()
        if late:
            self._conclude(ours, Outcome(reason=Reason.RANK_LOST, message=f"did not start in {FORK:g} s"))
            sweep(self._folder.name, _SHELL_MARK)
        devices = self._environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        return RankInfo(
            rank=place.rank,
            host=socket.gethostname(),
            node="",
            pid=self._child_pid,
            devices=tuple(filter(None, devices)),
        )

    def drain(
        self, after: int, epoch: int, answers: Sequence[Answer], timeout: float, seen: int = 0
    ) -> Batch:
        """Forget messages up to ``after``, deliver answers, and wait for messages above ``seen``.

        Returns at once for a question or the end, after a short pace for other messages, and
        after ``timeout`` seconds with nothing. A repeated call returns the same messages again.

        Raises:
            StaleEpoch: the caller was taken over.
        """
        self._check(epoch)
        self.reply(answers)
        with self._changed:
            self._last_drain = time.monotonic()
            while self._outbox and self._outbox[0][0] <= after:
                self._outbox.popleft()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._flush or self._ended, timeout=min(PACE, timeout))
            self._quiet = True
            self._changed.wait_for(
                lambda: self._ended or (self._outbox and self._outbox[-1][0] > seen),
                timeout=max(0.0, timeout - PACE),
            )
            self._flush = self._quiet = False
            self._last_drain = time.monotonic()
            news = tuple(one for one in self._outbox if one[0] > seen)
            return Batch(messages=news, ended=self._ended)

    def reply(self, answers: Sequence[Answer]) -> None:
        """Deliver answers outside a drain."""
        for answer in answers:
            self._to_child(answer_line(answer.id, answer.value, answer.error))

    def stop(self) -> None:
        """Ask the child to stop."""
        self._to_child(STOP)

    def kill(self) -> None:
        """End the child with its whole tree; its end is reported as any other."""
        with self._changed:
            pid = 0 if self._ended else self._child_pid
        if pid:
            kill_tree(pid)

    def shutdown(self) -> None:
        """End the child and the zygote, and remove the output."""
        self.kill()
        self._closing = True
        _hang_up(self._control)
        deadline = time.monotonic() + 2  # the zygote also finds what has lost its mark
        while marked(self._folder.name, _SHELL_MARK) and time.monotonic() < deadline:
            time.sleep(0.02)
        sweep(self._folder.name, _SHELL_MARK)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fork(self, assignment: Assignment, place: Place, theirs: socket.socket) -> None:
        """Ask the zygote for a child with the other end of its channel."""
        ours = self._child
        listener, self._listener = self._listener, None
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        listen = listener.fileno() if listener is not None and place.rank == 0 else -1
        try:
            zygote.request(self._control, assignment, place, theirs.fileno(), output, listen)
        except OSError:
            if ours is not None:
                self._conclude(ours, self._without_zygote())
        finally:
            theirs.close()
            os.close(output)
            if listener is not None:
                listener.close()

    def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._control, self._has_zygote = ours, True
            process = subprocess.Popen(
                # -P: a file of the user's in the working folder must not stand in for one of ours
                [
                    *(sys.executable, "-P", "-m", "tuner.dispatch.zygote"),
                    *(str(theirs.fileno()), str(self._folder), *self._preload),
                ],
                pass_fds=[theirs.fileno()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        threading.Thread(target=self._read_zygote, args=(ours, process), daemon=True).start()

    def _read_zygote(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Starts and exact ends of children, until the zygote goes."""
        process.wait()  # not the zygote itself, see there
        with contextlib.suppress(OSError), control.makefile("r") as lines:
            for line in lines:
                message = json.loads(line)
                with self._changed:
                    if "started" in message:
                        self._child_pid = message["started"]
                        self._changed.notify_all()
                    mine = message.get("exited") == self._child_pid
                    child = self._child
                if mine and child is not None:
                    self._end_child(child, message["code"])
        with self._changed:
            child, pid = None if self._ended else self._child, self._child_pid
        if not self._closing:
            # with all that its rank had started: nobody else looks after them now
            sweep(self._folder.name, _SHELL_MARK, also=[pid] if pid and child is not None else [])
        self._has_zygote = False
        if child is not None:
            self._conclude(child, self._without_zygote())

    def _without_zygote(self) -> Outcome:
        text = "was lost: the process that it was forked from died"
        return Outcome(reason=Reason.RANK_LOST, message=text, log_tail=self._tail())

    def _read_child(self, child: socket.socket) -> None:
        """The child's messages into the outbox; a full outbox makes the child wait."""
        with contextlib.suppress(OSError), child.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # else it was killed while it wrote
                    self._put(child, line)

    def _put(self, child: socket.socket, line: str) -> None:
        message = decode(line)
        with self._changed:
            self._changed.wait_for(lambda: len(self._outbox) < OUTBOX or child is not self._child)
            if child is not self._child or self._finished:
                return
            if isinstance(message, Finished):
                self._finished = True
                if message.outcome.reason not in (Reason.COMPLETE, Reason.PRUNED):
                    line = _with_tail(message, self._tail())
            self._seq += 1
            self._outbox.append((self._seq, line))
            if isinstance(message, Question | Finished):
                self._flush = True
            if self._flush or self._quiet:  # else a drain keeps its pace, and need not wake for each report
                self._changed.notify_all()

    def _end_child(self, child: socket.socket, code: int) -> None:
        """The child is gone: let the reader come to the end of what it sent, then say how it ended."""
        while self._reader.is_alive():
            self._reader.join(timeout=2)
            with self._changed:
                waiting = len(self._outbox) >= OUTBOX
            if not waiting:
                break  # something outside its tree still holds the socket
        self._conclude(child, exit_outcome(code, self._tail()))

    def _conclude(self, child: socket.socket, outcome: Outcome) -> None:
        with self._changed:
            if child is not self._child or self._ended:
                return
            if not self._finished:
                self._finished = True
                self._seq += 1
                self._outbox.append((self._seq, encode(Finished(outcome=outcome))))
            self._ended = self._flush = True
            self._changed.notify_all()
        _hang_up(child)

    def _to_child(self, line: bytes) -> None:
        with self._changed:
            child = None if self._ended else self._child
        if child is not None:
            with contextlib.suppress(OSError):
                child.sendall(line)

    def _tail(self) -> str:
        with contextlib.suppress(OSError), self._log.open("rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - TAIL))
            return handle.read().decode(errors="replace")
        return ""

    def _check(self, epoch: int) -> None:
        with self._changed:
            if epoch < self._epoch:
                raise StaleEpoch(f"epoch {epoch} is over, the study's driver has epoch {self._epoch}")
            self._epoch = epoch

    def _watch_driver(self) -> None:
        """Without a driver for a minute, end: its successor counts on it."""
        while True:
            time.sleep(WITHOUT_DRIVER / 12)
            with self._changed:
                running = self._child_pid and not self._ended
                alone = running and time.monotonic() - self._last_drain > WITHOUT_DRIVER
            if alone:
                self.shutdown()
                os._exit(0)


def _with_tail(message: Finished, tail: str) -> str:
    return encode(replace(message, outcome=replace(message.outcome, log_tail=tail)))


def _hang_up(connection: socket.socket) -> None:
    """Close both ways, also while a thread reads it, which keeps the descriptor open."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _loopback() -> str:
    """A name of this process's loopback interface: of its network namespace, on this boot of its host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/net')}"
    except OSError:
        return socket.gethostname()


def _environment(run: str, mark: str, cpus: float, hide_gpus: bool) -> Mapping[str, str]:
    threads = str(max(1, int(cpus)))
    environment = {name: value for name, value in os.environ.items() if name not in _CREDENTIALS}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = os.environ.get(f"TUNER_{name}", threads)
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    environment[MARK] = run
    environment[_SHELL_MARK] = mark
    home = str(Path(__file__).parents[2])  # where this very Tuner is imported from
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    if hide_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment
