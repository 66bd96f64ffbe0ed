"""One attempt on an executor with no study behind it: a final training, a rehearsal. Nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from tuner.assignment import Assignment
from tuner.dispatch.base import Cluster, Executor
from tuner.messages import Answer, Ask, Call, Ended, Envelope, Message, Question, Released, Sample
from tuner.outcome import Outcome, Reason
from tuner.signals import Signals

__all__ = ["Listener", "Solo", "answer_of_nothing"]

TURN = 0.25  # seconds between two looks at the signals


class Listener(Protocol):
    """Who takes the place of a driver."""

    def hear(self, rank: int, message: Message) -> None:
        """A message of a rank that asks nothing; ``Started`` too."""

    def answer(self, question: Question) -> Any:
        """The answer, as plain data.

        Raises:
            RuntimeError: its text is the error that the objective gets.
        """

    def is_enough(self) -> bool:
        """Whether to end the attempt now; asked after each message, and a few times a second."""


def answer_of_nothing(question: Question) -> Any:
    """The answer of a study that has no trials and keeps nothing.

    Raises:
        RuntimeError: there is none.
    """
    match question:
        case Ask():
            return False
        case Call(method="get_trials" | "trials" | "best_trials"):
            return []
        case Call(method="user_attrs" | "system_attrs"):
            return {}
        case Call(method=method) if method != "stop":
            raise RuntimeError("ValueError: No trials are completed yet.")
        case Sample(name=name):
            raise RuntimeError(f"nothing gives {name!r}")
    return None


class Solo:
    """Runs one attempt. A context manager, at whose end no process of it is left.

    Args:
        executor: opened and closed here.
        listener: hears what the ranks say and answers what they ask.
        grace: seconds that the ranks have after a first SIGINT or SIGTERM, to save a checkpoint; 0 where
            they run in this very thread, which a signal then interrupts.
    """

    def __init__(self, executor: Executor, listener: Listener, *, grace: float = 10.0) -> None:
        self._executor = executor
        self._listener = listener
        self._grace = grace
        self._signals = Signals()
        self._number = 0
        self._outcome: Outcome | None = None
        self._told = 0  # signals that the attempt was told of
        self._ending = self._released = False

    def __enter__(self) -> Solo:
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._executor.close()
        finally:
            self._signals.__exit__(kind, error, trace)

    def open(self, run: str, wanted: Sequence[Any]) -> Cluster:
        """Connect, and compare what is wanted with what the cluster can ever hold.

        Raises:
            Infeasible, ClusterUnavailable: see :meth:`tuner.dispatch.base.Executor.open`.
        """
        cluster = self._executor.open(run, 0, wanted, self._receive)
        if self._grace:
            self._signals.count_only()
        return cluster

    def probe(self, folder: str) -> dict[str, str]:
        """Whether every node reaches the folder of the checkpoints: what is wrong, by host name."""
        return self._executor.probe(folder)

    def run(self, assignment: Assignment) -> Outcome:
        """Run the attempt to its end.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM; the ranks have had their grace.
            ClusterUnavailable: the cluster is gone.
        """
        self._number = assignment.number
        self._executor.start(assignment)
        while not self._released:
            self._executor.poll(TURN)
            self._look()
        if self._told:
            raise KeyboardInterrupt(self._signals.name)
        return self._outcome or Outcome(reason=Reason.RANK_LOST, message="the attempt left no outcome")

    def _receive(self, envelope: Envelope) -> None:
        number, rank, message = envelope.number, envelope.rank, envelope.message
        match message:
            case Ended(outcome=outcome):
                self._outcome = outcome
            case Released():
                self._released = True
            case Question(id=asked):
                try:
                    answer = Answer(id=asked, value=self._listener.answer(message))
                except RuntimeError as error:
                    answer = Answer(id=asked, error=str(error))
                self._executor.answer(number, rank, answer)
            case _:
                self._listener.hear(rank, message)
        self._executor.committed(number, rank, envelope.seq)
        self._look()

    def _look(self) -> None:
        """End the attempt when it is to end."""
        if self._outcome is not None:
            return
        if self._signals.count > self._told and self._grace:
            self._told = self._signals.count
            if self._told == 1:
                self._executor.stop(self._number, Reason.INTERRUPTED, self._grace)
            else:
                self._executor.kill(self._number, Reason.INTERRUPTED, "told twice to stop")
        if not self._ending and self._listener.is_enough():
            self._ending = True
            self._executor.kill(self._number, Reason.STOPPED, "it has run for long enough")
