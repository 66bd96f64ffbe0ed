"""Runs attempts one after the other in the driver's own process and thread, for debugging."""

from __future__ import annotations

from collections import deque
from typing import Any

from tuner import worker
from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch.base import Cluster, Executor, Sink
from tuner.errors import Infeasible
from tuner.messages import Answer, Ended, Envelope, Finished, Message, RankInfo, Released, Started
from tuner.outcome import Outcome, Reason
from tuner.resources import Resources

__all__ = ["InlineExecutor"]


class InlineExecutor(Executor):
    """One rank, one slot, this process: breakpoints and profilers work.

    A message is in the sink's hands when the objective's call returns, and a question is
    answered before it does, so nothing waits. Nothing is killed: ``kill`` takes effect when the
    objective next speaks.
    """

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._waiting: deque[Assignment] = deque()
        self._running: _InlineChannel | None = None

    def open(self, run: str, epoch: int, resources: Resources, sink: Sink) -> Cluster:
        if resources.ranks > 1:
            raise Infeasible(
                f"executor='inline' runs one rank, resources ask for {resources.ranks}; use executor='ray'"
            )
        self._sink = sink
        return Cluster(slots=1, gpus=resources.gpus or 0, description="this process")

    def start(self, assignment: Assignment) -> None:
        self._waiting.append(assignment)

    def poll(self, timeout: float) -> None:
        if not self._waiting:
            return
        assignment = self._waiting.popleft()
        assert self._sink is not None
        channel = _InlineChannel(assignment, self._sink)
        self._running = channel
        channel.send(Started(ranks=(_here(),)))
        try:
            worker.run(assignment, Place(), channel)
        except _Killed:
            pass
        finally:
            self._running = None
        outcome = channel.verdict or channel.finished
        channel.deliver(Ended(outcome=outcome or Outcome(reason=Reason.RANK_LOST, message="no outcome")))
        channel.deliver(Released())

    def answer(self, number: int, rank: int, answer: Answer) -> None:
        if self._running is not None and self._running.number == number:
            self._running.answers[answer.id] = answer

    def committed(self, number: int, rank: int, seq: int) -> None:
        pass

    def stop(self, number: int, reason: Reason, grace: float) -> None:
        if self._running is not None and self._running.number == number:
            self._running.stop_reason = reason

    def kill(self, number: int, reason: Reason, message: str) -> None:
        if self._running is not None and self._running.number == number:
            self._running.verdict = Outcome(reason=reason, message=message)

    def close(self) -> None:
        self._waiting.clear()


class _Killed(BaseException):
    """Leaves the objective at its next word after ``kill``."""


class _InlineChannel:
    def __init__(self, assignment: Assignment, sink: Sink) -> None:
        self.number = assignment.number
        self.answers: dict[int, Answer] = {}
        self.stop_reason: Reason | None = None
        self.finished: Outcome | None = None
        self.verdict: Outcome | None = None
        self._attempt = assignment.attempt
        self._sink = sink
        self._seq = 0
        self._questions = 0

    def send(self, message: Message) -> None:
        if isinstance(message, Finished):
            self.finished = message.outcome
            if self.stop_reason is not None and message.outcome.reason is Reason.INTERRUPTED:
                self.verdict = Outcome(reason=self.stop_reason, message=message.outcome.message)
            return
        self.deliver(message)
        if self.verdict is not None:
            raise _Killed

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        self._questions += 1
        self.send(kind(id=self._questions, **fields))
        answer = self.answers.pop(self._questions, None)
        if answer is None:
            raise RuntimeError(f"the driver did not answer {kind.__name__}")
        if answer.error:
            raise RuntimeError(answer.error)
        return answer.value

    def stop_requested(self) -> bool:
        return self.stop_reason is not None

    def deliver(self, message: Message) -> None:
        self._seq += 1
        self._sink(
            Envelope(number=self.number, attempt=self._attempt, rank=0, seq=self._seq, message=message)
        )


def _here() -> RankInfo:
    import os
    import socket

    return RankInfo(rank=0, host=socket.gethostname(), node="", pid=os.getpid())
