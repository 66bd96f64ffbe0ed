"""Runs attempts one after the other in the driver's own process and thread, for debugging."""

from __future__ import annotations

import dataclasses
import glob
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tuner import worker
from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch.base import Cluster, Executor, Sink
from tuner.errors import Infeasible
from tuner.messages import Answer, Ended, Envelope, Finished, Message, RankInfo, Released, Started
from tuner.outcome import Outcome, Reason
from tuner.processes import are_ended
from tuner.resources import Resources

__all__ = ["InlineExecutor", "first_that_fits"]


class InlineExecutor(Executor):
    """One rank, one slot, this process: breakpoints and profilers work.

    A message is in the sink's hands when the objective's call returns, and a question is
    answered before it does, so nothing waits. Nothing is killed: ``kill`` takes effect when the
    objective next speaks. An error that the sink raises ends the objective and leaves
    :meth:`poll`: it is the driver's, not the trial's.

    Args:
        objective: the function itself, where there is one: its closures are then shared.
    """

    def __init__(self, objective: Callable[[Any], Any] | None = None) -> None:
        self._objective = objective
        self._sink: Sink | None = None
        self._waiting: deque[_InlineChannel] = deque()
        self._running: _InlineChannel | None = None

    def open(
        self, run: str, epoch: int, resources: Sequence[Resources], sink: Sink, study: str = ""
    ) -> Cluster:
        if resources:
            first_that_fits(resources)
        self._sink = sink
        host = socket.gethostname()
        return Cluster(slots=1, description=f"this process on {host}", home="local/inline")

    def is_gone(self, home: str, ranks: Sequence[RankInfo]) -> bool:
        return home == "local/inline" or are_ended(ranks)

    def start(self, assignment: Assignment) -> None:
        assert self._sink is not None, "open() comes first"
        resources = first_that_fits(assignment.alternatives or (assignment.resources,))
        placed = dataclasses.replace(assignment, resources=resources)
        self._waiting.append(_InlineChannel(placed, self._sink, self._objective))

    def poll(self, timeout: float) -> None:
        if not self._waiting:
            time.sleep(timeout)  # nothing can arrive: keep the pace that the driver asked for
            return
        channel = self._running = self._waiting.popleft()
        try:
            if channel.verdict is None:
                channel.run()
        finally:
            self._running = None
        channel.deliver(Ended(outcome=channel.outcome(), seconds=channel.seconds))
        channel.deliver(Released())

    def answer(self, number: int, rank: int, answer: Answer) -> None:
        if self._running is not None and self._running.number == number:
            self._running.answers[answer.id] = answer

    def committed(self, number: int, rank: int, seq: int) -> None:
        pass

    def stop(self, number: int, reason: Reason, grace: float) -> None:
        for channel in self._find(number):
            channel.stop_reason = channel.stop_reason or reason

    def kill(self, number: int, reason: Reason, message: str) -> None:
        for channel in self._find(number):
            channel.verdict = channel.verdict or Outcome(reason=reason, message=message)

    def close(self) -> None:
        self._waiting.clear()

    def _find(self, number: int) -> list[_InlineChannel]:
        channels = [*self._waiting, *([self._running] if self._running else [])]
        return [channel for channel in channels if channel.number == number]


def first_that_fits(alternatives: Sequence[Resources]) -> Resources:
    """The first alternative that this process can be: one rank, and the GPUs that are here.

    Raises:
        Infeasible: none is.
    """
    # Counted without torch, which a plain Python objective need not have imported.
    devices = len(glob.glob("/dev/nvidia[0-9]*"))
    why = ""
    for one in (each.resolved(devices > 0) for each in alternatives):
        if one.count > 1:
            why = f"executor='inline' runs one rank, resources ask for {one.count}; use executor='ray'"
        elif (one.gpus or 0) > devices:
            why = f"one rank needs {one.gpus:g} GPUs and this machine has {devices}; ask for fewer"
        else:
            return one
    raise Infeasible(why)


class _Left(BaseException):
    """Leaves the objective at its next word, after ``kill`` or an error of the driver."""


class _InlineChannel:
    """One attempt, and its channel.

    Attributes:
        verdict: the end that ``kill`` decided; the objective's own does not count then.
    """

    def __init__(self, assignment: Assignment, sink: Sink, objective: Callable[[Any], Any] | None) -> None:
        self._objective = objective
        self.number = assignment.number
        self.answers: dict[int, Answer] = {}
        self.stop_reason: Reason | None = None
        self.verdict: Outcome | None = None
        self._assignment = assignment
        self._sink = sink
        self._finished: Outcome | None = None
        self.seconds = 0.0  # that the objective took
        self._failure: BaseException | None = None
        self._seq = 0
        self._questions = 0
        self._speaking = threading.RLock()  # an objective may have threads; the driver has one

    def run(self) -> None:
        try:
            self.send(Started(ranks=(RankInfo(rank=0, host=socket.gethostname(), node="", pid=os.getpid()),)))
            worker.run(self._assignment, Place(), self, self._objective)
        except _Left:
            pass
        if self._failure is not None:
            raise self._failure

    def outcome(self) -> Outcome:
        """How the attempt ended."""
        if self.verdict is not None:
            return self.verdict
        finished = self._finished or Outcome(reason=Reason.RANK_LOST, message="the objective left no outcome")
        if self.stop_reason is not None and finished.reason is Reason.INTERRUPTED:
            return Outcome(reason=self.stop_reason, message=finished.message)
        return finished

    def send(self, message: Message) -> None:
        if isinstance(message, Finished):
            self._finished, self.seconds = message.outcome, message.seconds
            return
        with self._speaking:
            if self._failure is None:
                try:
                    self.deliver(message)
                except BaseException as error:
                    self._failure = error
        if self._failure is not None or self.verdict is not None:
            raise _Left

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        question: Any = kind  # numbered by us, as every Question is
        with self._speaking:
            self._questions += 1
            self.send(question(id=self._questions, **fields))
            answer = self.answers.pop(self._questions, None)
        if answer is None:
            raise RuntimeError(f"the driver did not answer {kind.__name__}")
        if answer.error:
            raise RuntimeError(answer.error)
        return answer.value

    def stop_requested(self) -> bool:
        return self.stop_reason is not None

    def deliver(self, message: Message) -> None:
        """Hand a message to the driver."""
        self._seq += 1
        number, attempt = self.number, self._assignment.attempt
        self._sink(Envelope(number=number, attempt=attempt, rank=0, seq=self._seq, message=message))
