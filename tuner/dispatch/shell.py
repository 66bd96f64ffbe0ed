"""The shell of a rank: holds its resources and its outbox; the objective runs in a child.

A plain class, which :mod:`tuner.dispatch.ray_group` wraps as a Ray actor with several threads.
It imports neither torch nor optuna. Messages of its child are numbered and stay in the outbox
until the driver says that they are durable; :meth:`Shell.drain` can be repeated.

Every call carries the epoch of its driver, and a lower one than has been seen is refused. While no
driver calls, the child goes on: after :data:`UNANSWERED` seconds ``should_prune`` gets False, and a
checkpoint is recorded beside the others (:mod:`tuner.last_words`) instead of in the database; other
questions wait. After :data:`WITHOUT_DRIVER` seconds the shell ends itself, having let the child save a
checkpoint and written down what nobody has taken in.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage import owner
from tuner import last_words, shared_folder
from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch import memory, packages, working_folder
from tuner.dispatch.group import exit_outcome
from tuner.dispatch.line import Offer, Service, ring
from tuner.dispatch.nursery import Nursery, hang_up
from tuner.dispatch.outbox import Outbox
from tuner.dispatch.pipe import STOP, answer_line, lines
from tuner.dispatch.surroundings import SHELL_MARK, environment, loopback
from tuner.dispatch.turns import kept
from tuner.errors import BadInput
from tuner.messages import (
    Answer,
    Ask,
    Finished,
    Message,
    Output,
    Question,
    RankInfo,
    Saved,
    Turn,
    Unanswered,
    decode,
    encode,
    is_report,
)
from tuner.outcome import Outcome, Reason
from tuner.processes import kill_tree, marked, sweep

__all__ = ["WITHOUT_DRIVER", "Batch", "Begun", "Leaving", "Shell", "StaleEpoch", "Standing"]

PACE = 0.25  # seconds between drains that carry no question and no end
GOING = 0.02  # seconds that a drain waits for the end of a process that has said its last word
OUTBOX = 100_000  # messages that wait for their commit; above it the child's reports wait
UNANSWERED = 5.0  # seconds without a driver after which should_prune gets False
# seconds without a driver after which a shell ends itself; the tests of it make it short everywhere
WITHOUT_DRIVER = float(os.environ.get("TUNER_WITHOUT_DRIVER", "60"))
SAVING = 0.75  # the part of them after which the child is asked to save a checkpoint
WRITING = 0.93  # the part of them after which it is ended, and its last words are written
LOOK, SOON = 0.5, 0.1  # seconds between two looks at the memory and at the time without a driver
FOLLOW, FOLLOWED = 2.0, 4096  # seconds between looks at what rank 0 prints, and bytes told of it


class StaleEpoch(RuntimeError):
    """A call of a driver that was taken over."""


class Leaving(RuntimeError):
    """The shell was too long without a driver, and is ending itself."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a drain returns.

    Attributes:
        messages: (seq, message as JSON) in order, not yet known to be durable.
        ended: the rank's process is gone; nothing follows.
    """

    messages: tuple[tuple[int, str], ...] = ()
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A child has started: where it runs, and what it has said at once."""

    placed: RankInfo
    batch: Batch


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a driver that takes over finds: the attempt here, if there is one, and for how long it ran."""

    ready: dict[str, Any]
    assignment: Assignment | None = None
    placed: RankInfo | None = None
    seconds: float = 0.0


class Shell:
    """One rank's shell.

    Args:
        run: mark of the driver's run.
        cpus: cores of this rank, for the thread counts of its libraries.
        hide_gpus: no GPU was asked for: hide those that are there.
        preload: modules that the zygote imports once.
        study: its uid, by which shells of a node find the data that they share; "" for none.
        package: this node's copy of the folder that the driver has sent; "" for none.
        folder: of its own, where a zygote waits for it; "" where it makes one.
    """

    def __init__(
        self,
        run: str,
        cpus: float,
        hide_gpus: bool,
        preload: Sequence[str],
        study: str = "",
        package: str = "",
        folder: str = "",
    ) -> None:
        self._run = run
        self._node = ""
        self._package = package
        self._shared: shared_folder.Held | None = None
        self._folder = Path(folder or tempfile.mkdtemp(prefix=f"tuner-{run}-"))
        with contextlib.suppress(BadInput):  # who asks for shared data hears of it
            self._shared = shared_folder.hold(study)
        shared = self._shared.path if self._shared is not None else ""
        self._environment = environment(run, self._folder.name, cpus, hide_gpus, shared)
        self._changed = threading.Condition()
        self._starting = threading.Lock()
        self._lines: dict[bytes, Service] = {}
        self._again: set[tuple[int, int, int]] = set()  # attempts whose start was called again
        self._outbox = Outbox()
        self._series: Sequence[Assignment] = ()
        self._assignment: Assignment | None = None  # the one of the series that runs
        self._turned = 0  # number of the message with which it began
        self._killed: int | None = None  # the trial for which a process was ended
        self._placed: RankInfo | None = None
        self._place = Place()
        self._began = 0.0
        self._verdict: Outcome | None = None  # why we ended the child ourselves
        self._flush = False  # something waits that must not keep the pace
        self._quiet = False  # a drain waits for the first message
        self._ended = True
        self._epoch = 0
        self._finished = False
        self._child: socket.socket | None = None
        self._heard = time.monotonic()  # of a driver
        self._closing = self._leaving = False
        self._words_kept = threading.Event()
        self._kernel_kills = 0
        self._printed, self._next_follow = "", 0.0
        self._nursery = Nursery(self._folder, self._environment, preload, self._end_child, waits=bool(folder))
        threading.Thread(target=self._watch, daemon=True).start()

    def ready(self) -> dict[str, Any]:
        """Where this shell is: ``host``, ``pid``, its ``folder``, and ``loopback``, the same for shells that
        share one.
        """
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "loopback": loopback(),
            "folder": str(self._folder),
        }

    def adopt(self, epoch: int) -> Standing:
        """Serve another driver from here on, and tell it what there is.

        Raises:
            StaleEpoch: the caller was taken over.
            Leaving: it is too late.
        """
        self._check(epoch)
        with self._changed:
            if self._closing or self._leaving:
                raise Leaving("it was without a driver for too long, and ends")
            self._recall()
            # one may have begun of which we have not heard
            self._changed.wait_for(lambda: self._ended or self._is_last(), timeout=UNANSWERED)
            self._outbox.forget(self._turned)
            self._outbox.drop_answered()
            self._flush = True
            return Standing(
                ready=self.ready(),
                assignment=self._assignment,
                placed=self._placed,
                seconds=time.monotonic() - self._began,
            )

    def connect(self, epoch: int, offer: Offer) -> bool:
        """Take calls of this driver past Ray too; whether that can be had."""
        self._check(epoch)
        if (line := ring(offer)) is None:
            return False
        self._lines[offer.name] = Service(line, self)
        return True

    def hang_up(self, name: bytes) -> None:
        """Carry out no call of a line any more: they come again by Ray."""
        if (line := self._lines.pop(name, None)) is not None:
            line.end()

    def ping(self, epoch: int) -> None:
        """The driver lives."""
        self._check(epoch)

    def listen(self, epoch: int, host: str) -> int:
        """Bind the socket on which rank 0's next child serves its store; the port."""
        self._check(epoch)
        return self._nursery.listen(host)

    def start(self, series: Sequence[Assignment], place: Place, timeout: float = 0.0) -> Begun:
        """Fork a child for an attempt, and wait for so many seconds for its end or its first question: a
        short trial costs one call.

        Args:
            series: several attempts of a single rank are run one after the other, as far as they are not
                recalled; each begins with a :class:`~tuner.messages.Turn`.

        Raises:
            StaleEpoch: the caller was taken over.
        """
        self._check(series[0].epoch)
        with self._starting:
            if _key(series[0]) not in self._again:  # else it lay in a line that broke, and comes late
                self._fork(series, place)
        return self._begun(timeout)

    def start_again(self, series: Sequence[Assignment], place: Place, timeout: float = 0.0) -> Begun:
        """As :meth:`start`, of which nobody knows whether it came: it forks no second child."""
        self._check(series[0].epoch)
        with self._starting:
            self._again.add(_key(series[0]))
            if not self._series or _key(self._series[0]) != _key(series[0]):
                self._fork(series, place)
        return self._begun(timeout)

    def _begun(self, timeout: float) -> Begun:
        with self._changed:
            self._heard = time.monotonic()
            asks = self._changed.wait_for(
                lambda: self._ended or (self._flush and not self._finished), timeout=timeout
            )
            batch = self._batch(0) if asks or self._flush else Batch()
            assert self._placed is not None
            return Begun(placed=self._placed, batch=batch)

    def _fork(self, series: Sequence[Assignment], place: Place) -> None:
        if self._place.world_size > 1:
            self._collect()  # again: another rank of the attempt before may have outlived this one's
        child = self._nursery.prepare()
        with self._changed:
            self._outbox = Outbox()
            self._series, self._assignment, self._turned = series, series[0], 0
            self._placed, self._verdict, self._killed = None, None, None
            self._place = place
            self._ended = self._finished = self._flush = False
            self._child = child
            self._began = time.monotonic()
            self._printed = ""
            # in a series, once it is heard whose output it is
            self._next_follow = self._began + FOLLOW if len(series) == 1 else math.inf
            self._kernel_kills = memory.kernel_kills()
        # Before the child is there: it may end before we hear that it began.
        self._reader = threading.Thread(target=self._read_child, args=(child,), daemon=True)
        self._reader.start()
        seen = [packages.moved(one, self._package) if one.sent else one for one in series]
        if not self._nursery.fork(seen, place):
            self._conclude(child, Outcome(reason=Reason.RANK_LOST, message="did not start in time"))
        pid = self._nursery.pid
        placed = self._placed_in(pid)
        with self._changed:
            self._placed = self._placed or placed

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
        for answer in answers:
            self._answer(answer)
        with self._changed:
            self._outbox.forget(after)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._flush or self._ended, timeout=min(PACE, timeout))
            self._quiet = True
            self._changed.wait_for(
                lambda: self._ended or self._outbox.last > seen, timeout=max(0.0, timeout - PACE)
            )
            self._quiet = False
            if self._finished and self._is_last():  # its process is about to go: one call less
                self._changed.wait_for(lambda: self._ended, timeout=GOING)
            self._heard = time.monotonic()
            return self._batch(seen)

    def _batch(self, seen: int) -> Batch:
        """What a driver has not seen yet. The caller holds the lock."""
        self._flush = False
        return Batch(messages=self._outbox.above(seen), ended=self._ended)

    def reply(self, epoch: int, answers: Sequence[Answer]) -> None:
        """Deliver answers outside a drain."""
        self._check(epoch)
        for answer in answers:
            self._answer(answer)

    def recall(self, epoch: int) -> int:
        """Begin no further attempt of the series; how many of its last ones do not begin thereby."""
        self._check(epoch)
        return self._recall()

    def stop(self, epoch: int, number: int) -> None:
        """Ask the child to stop, if it runs this trial."""
        self._check(epoch)
        if self._runs(number):
            self._to_child(STOP)

    def kill(self, epoch: int, number: int) -> None:
        """End the child with its whole tree, if it runs this trial; its end is reported as any other."""
        self._check(epoch)
        if self._runs(number):
            self._kill()

    def _runs(self, number: int) -> bool:
        with self._changed:
            return self._assignment is not None and self._assignment.number == number

    def shutdown(self, epoch: int) -> None:
        """End the child and the zygote, and remove the output. Safe to call twice.

        Raises:
            StaleEpoch: the caller was taken over; nothing was ended.
        """
        self._check(epoch)
        if self._leaving:
            self._words_kept.wait(timeout=WITHOUT_DRIVER / 10)  # the caller may kill this process next
        self._shut_down()

    def _shut_down(self) -> None:
        self._closing = True
        self._kill()
        self._nursery.close()
        deadline = time.monotonic() + 2  # the zygote also finds what has lost its mark
        while marked(self._folder.name, SHELL_MARK) and time.monotonic() < deadline:
            time.sleep(0.02)
        sweep(self._folder.name, SHELL_MARK)
        working_folder.remove(str(self._folder))
        if self._shared is not None:
            self._shared.let_go()

    def _kill(self) -> None:
        with self._changed:
            pid = 0 if self._ended else self._nursery.pid
            self._killed = None if self._assignment is None else self._assignment.number
        if pid:
            kill_tree(pid)

    def _read_child(self, child: socket.socket) -> None:
        """The child's messages into the outbox; a full outbox makes the child wait."""
        with contextlib.suppress(OSError):
            for line in lines(child):
                self._put(child, line)

    def _put(self, child: socket.socket, line: str) -> None:
        message = None if is_report(line) else decode(line)
        with self._changed:
            if len(self._outbox) >= OUTBOX:
                self._changed.wait_for(lambda: len(self._outbox) < OUTBOX or child is not self._child)
            if child is not self._child:
                return
            if isinstance(message, Turn):
                message = self._take_turn(message)
                line = encode(message)
            elif self._finished:
                return
            is_last = self._is_last()
            if isinstance(message, Finished):
                self._finished = True
                # in a series the file may be the next one's by now, and it tells of its output itself
                if is_last and (tail := self._nursery.tail(kept(message.outcome.reason))):
                    line = _with_tail(message, tail)
            self._outbox.put(message, line)
            if isinstance(message, Turn):
                self._turned = self._outbox.last
            elif isinstance(message, Question) or (isinstance(message, Finished) and is_last):
                self._flush = True
            if self._flush or self._quiet:  # else a drain keeps its pace, and need not wake for each report
                self._changed.notify_all()

    def _take_turn(self, turn: Turn) -> Turn:
        """An attempt of the series has begun; the same with what names its process, which a process of
        milliseconds need not look up itself. The caller holds the lock.
        """
        if turn.at and not self._finished:
            self._say(Finished(outcome=exit_outcome(0, "")))
        self._assignment, self._finished, self._verdict = self._series[turn.at], False, None
        if turn.at:
            self._nursery.pid = turn.pid
        if self._placed is None or self._placed.pid != turn.pid:
            self._placed = self._placed_in(turn.pid)
        self._began, self._printed = time.monotonic(), ""
        self._next_follow = self._began + FOLLOW
        self._changed.notify_all()
        return replace(turn, process=self._placed.process)

    def _placed_in(self, pid: int) -> RankInfo:
        process: Mapping[str, str | int] = {}
        with contextlib.suppress(OSError):  # this one may open no further file: nobody can say
            process = owner.identity(self._run, pid)
        return RankInfo(
            rank=self._place.rank,
            host=socket.gethostname(),
            node=self._node,
            pid=pid,
            devices=self._place.devices,
            process=process,
        )

    def _is_last(self) -> bool:
        """Whether nothing follows the attempt that runs. The caller holds the lock."""
        return not self._series or self._assignment is self._series[-1]

    def _recall(self) -> int:
        with self._changed:
            count = self._nursery.recall()
            self._series = self._series[: len(self._series) - count]
            return count

    def _end_child(self, child: socket.socket, code: int | None) -> None:
        """The child is gone: let the reader come to the end of what it sent, then say how it ended."""
        while code is not None and self._reader.is_alive():
            before = self._outbox.last
            self._reader.join(timeout=2)
            with self._changed:
                goes_on = len(self._outbox) >= OUTBOX or self._outbox.last > before
            if not goes_on:
                break  # something outside its tree still holds the socket
        try:
            self._collect()
        finally:
            self._conclude(child, self._outcome(code))

    def _collect(self) -> None:
        """What the attempt left in its folder goes where it stays."""
        assignment, place = self._assignment, self._place
        if assignment is not None and place.folder and place.local_rank == 0:
            home = assignment.folder
            linked = packages.home_of(assignment, self._package) if assignment.sent else home
            working_folder.collect(place.folder, home, assignment.study, assignment.number, linked)

    def _outcome(self, code: int | None) -> Outcome:
        """Of a child that left no word of its own; ``code`` is None where its zygote was lost."""
        tail = self._nursery.tail()
        if self._verdict is not None:
            return replace(self._verdict, log_tail=tail)
        if self._killed is not None and not self._runs(self._killed):
            text = f"its process was ended for trial {self._killed}, which ran there just before"
            return Outcome(reason=Reason.INTERRUPTED, message=text, log_tail=tail)
        if code is None:
            text = "was lost: the process that it was forked from died"
            return Outcome(reason=Reason.RANK_LOST, message=text, log_tail=tail)
        if code == -signal.SIGKILL and memory.kernel_kills() > self._kernel_kills:
            text = "was killed by the kernel, which had run out of memory"
            return Outcome(reason=Reason.OOM, message=text, log_tail=tail)
        return exit_outcome(code, tail)

    def _conclude(self, child: socket.socket, outcome: Outcome) -> None:
        with self._changed:
            if child is not self._child or self._ended:
                return
            if not self._finished:
                self._finished = True
                self._say(Finished(outcome=outcome))
            self._ended = self._flush = True
            self._changed.notify_all()
        hang_up(child)

    def _to_child(self, line: bytes) -> None:
        with self._changed:
            child = None if self._ended else self._child
        if child is not None:
            with contextlib.suppress(OSError):
                child.sendall(line)

    def _say(self, message: Message) -> None:
        """A message of the shell's own, among the child's. The caller holds the lock."""
        self._outbox.put(message, encode(message))

    def _answer(self, answer: Answer) -> None:
        with self._changed:
            waits = self._outbox.answered(answer.id)
        if waits:
            self._to_child(answer_line(answer.id, answer.value, answer.error))

    def _check(self, epoch: int) -> None:
        with self._changed:
            if epoch < self._epoch:
                raise StaleEpoch(f"epoch {epoch} is over, the study's driver has epoch {self._epoch}")
            self._epoch = epoch
            self._heard = time.monotonic()

    # ------------------------------------------------------------------ the watch

    def _watch(self) -> None:
        """Look after the child when nobody else does: too much memory, no driver."""
        while not self._closing or self._leaving:
            tight = self._watch_memory()
            time.sleep(min(SOON if tight else LOOK, WITHOUT_DRIVER / 60))
            alone = time.monotonic() - self._heard
            if alone > UNANSWERED:
                self._recall()
                self._stand_in()
            else:
                self._follow()
            if alone > WITHOUT_DRIVER * SAVING and not self._leaving:
                self._to_child(STOP)  # again each time: it may only just have begun
            if alone > WITHOUT_DRIVER * WRITING and not self._leaving:
                self._leave()
            if alone > WITHOUT_DRIVER and self._leaving:
                self.left()
                os._exit(0)

    def _follow(self) -> None:
        """Tell what the rank printed meanwhile; it keeps the pace of the drains."""
        now = time.monotonic()
        with self._changed:
            running, assignment = not self._ended and self._place.rank == 0, self._assignment
            if not running or now < self._next_follow:
                return
            self._next_follow = now + FOLLOW
        text = self._nursery.tail(FOLLOWED)
        with self._changed:
            same = assignment is self._assignment and not self._finished
            if same and text != self._printed and len(self._outbox) < OUTBOX:
                self._printed = text
                self._say(Output(text=text))
                if self._quiet:
                    self._changed.notify_all()

    def left(self) -> None:
        """What else goes when the shell has ended itself."""

    def _leave(self) -> None:
        """End for want of a driver: its successor counts on it."""
        with self._changed:
            self._leaving = True
            assignment, placed = self._assignment, self._placed
            text = f"was without a driver for {WITHOUT_DRIVER:g} s"
            self._verdict = self._verdict or Outcome(reason=Reason.DRIVER_LOST, message=text)
        self._shut_down()
        with self._changed:
            self._changed.wait_for(lambda: self._ended, timeout=WITHOUT_DRIVER / 60)
        if assignment is not None and placed is not None:
            with contextlib.suppress(Exception):  # of any file system; the driver then knows less
                self._keep_words(assignment, placed)
        self._words_kept.set()

    def _keep_words(self, assignment: Assignment, placed: RankInfo) -> None:
        with self._changed:
            lines = [line for _, line in self._outbox.above(self._turned)]
        if assignment.checkpoints and lines:
            last_words.keep(assignment.checkpoints, assignment.attempt, placed.rank, lines)

    def _stand_in(self) -> None:
        """For a driver that is not there: no trial is pruned, and what is saved is written down."""
        with self._changed:
            question, assignment, placed = self._outbox.question, self._assignment, self._placed
        if isinstance(question, Saved) and assignment is not None and placed is not None:
            try:
                self._keep_words(assignment, placed)
            except Exception:
                return  # the file system is away too: the rank waits for either
        elif not isinstance(question, Ask):
            return
        with self._changed:
            if not self._outbox.answered(question.id, by_driver=isinstance(question, Ask)):
                return
            if isinstance(question, Ask):
                self._say(Unanswered(ordinal=question.ordinal))
        self._to_child(answer_line(question.id, False if isinstance(question, Ask) else None, ""))

    def _watch_memory(self) -> bool:
        """End the child before it takes the memory of others; whether that may be soon."""
        with self._changed:
            assignment, running = self._assignment, self._nursery.pid and not self._ended
        zygote = self._nursery.look_around()
        self._nursery.trim()
        if not running or assignment is None or not zygote or self._verdict is not None:
            return False
        limit, node = assignment.resources.memory, memory.node()
        used = memory.held_by(zygote, above=0 if node.is_full else limit or sys.maxsize)
        if node.is_full or (limit is not None and used > limit):
            mine = self._folder.name
            held = memory.trees(SHELL_MARK) if node.is_full else {}
            self._verdict = memory.verdict(mine, {**held, mine: used}, node, limit)
            if self._verdict is not None:
                self._kill()
        return node.is_filling or (limit is not None and used > limit / 2)


def _key(assignment: Assignment) -> tuple[int, int, int]:
    return assignment.number, assignment.attempt, assignment.epoch


def _with_tail(message: Finished, tail: str) -> str:
    return encode(replace(message, outcome=replace(message.outcome, log_tail=tail)))
