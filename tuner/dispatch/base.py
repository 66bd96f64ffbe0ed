"""The contract of an executor: it runs attempts and carries messages; it decides nothing else.

One executor serves one run of one driver, and is used from the driver's thread only. The same
contract tests (``tests/test_executors.py``) run on each implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tuner.assignment import Assignment, ObjectiveRef
from tuner.messages import Answer, Envelope, RankInfo
from tuner.outcome import Reason
from tuner.resources import Resources

__all__ = ["Adopted", "Cluster", "Executor", "Sink"]

Sink = Callable[[Envelope], None]
"""What the driver does with a message. It may call :meth:`Executor.answer` before it returns."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What an executor found when it opened.

    Attributes:
        slots: attempts that fit at once with the resources asked for, at least 1.
        description: one line for a person: nodes, cores, GPUs.
        home: names the cluster, for the next driver: ``local/...`` for one that ends with its
            driver, ``standing/...`` for one that does not.
    """

    slots: int
    description: str
    home: str = ""


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """An attempt of a driver that is gone, which runs on.

    Attributes:
        ranks: where; empty where not all of them had started.
        seconds: for how long it has run.
    """

    assignment: Assignment
    ranks: tuple[RankInfo, ...]
    seconds: float


class Executor(ABC):
    """Runs attempts of trials, each on as many processes as its resources say."""

    @abstractmethod
    def open(
        self, run: str, epoch: int, resources: Sequence[Resources], sink: Sink, study: str = ""
    ) -> Cluster:
        """Connect and compare what is asked with what the cluster can ever hold.

        Args:
            resources: what a trial may be given, in order of preference, each with one number of
                ranks; none where each trial has its own.
            study: our uid of the study, by which the next driver finds what this one leaves.
            run: mark that every process of this run carries in its environment (``TUNER_RUN``).
            epoch: the driver's lease epoch; groups refuse calls of a lower one.
            sink: called by :meth:`poll`, in the caller's thread, once per message in order of
                ``seq`` for each rank.

        Raises:
            Infeasible: one trial can never fit, whichever alternative it is given.
            ClusterUnavailable: the cluster cannot be reached.
        """

    def probe(self, folder: str) -> dict[str, str]:
        """Whether every node reaches the folder or URI of the checkpoints: what is wrong, by host name."""
        return {}

    def lacking(self, objective: ObjectiveRef) -> dict[str, str]:
        """Nodes that would not run the objective as it is here, by host name: what is wrong."""
        return {}

    def slots(self) -> int:
        """Attempts that are here, and that fit beside them by now: nodes come and go. Once an attempt
        has found no room, as many as are here.
        """
        return 1

    def queued(self) -> int | None:
        """Attempts that are here and have no place yet; each gets one as soon as another attempt leaves.
        None: it takes no more than :meth:`slots`.
        """
        return None

    def adopt(self, wanted: Callable[[Assignment], bool]) -> list[Adopted]:
        """Take over what a driver of the same study has left on the cluster, and end the rest of it.

        An attempt that is ``wanted`` runs on as if :meth:`start` had begun it here; messages that
        its former driver may have taken in come again.
        """
        return []

    def is_gone(self, home: str, ranks: Sequence[RankInfo]) -> bool:
        """Whether no process of an attempt that was not adopted can be alive any more.

        Args:
            home: :attr:`Cluster.home` of the driver that began it.
            ranks: where it ran; empty where that was not known yet.
        """
        return True

    @abstractmethod
    def start(self, assignment: Assignment) -> None:
        """Begin an attempt and return without waiting for it.

        Its messages are delivered by later calls of :meth:`poll`: ``Started``, the ranks' own,
        then ``Ended`` exactly once, then ``Released`` exactly once, whatever happens.
        """

    def waits(self) -> Mapping[int, str]:
        """By number of trial: what attempts wait for that have no place yet, in words; -1 for all."""
        return {}

    @abstractmethod
    def poll(self, timeout: float) -> None:
        """Deliver what has arrived to the sink; wait at most ``timeout`` seconds for the first.

        Raises:
            ClusterUnavailable: the cluster is gone, and every attempt with it.
        """

    @abstractmethod
    def answer(self, number: int, rank: int, answer: Answer) -> None:
        """Reply to a question of a rank. Ignored when the attempt is over."""

    @abstractmethod
    def committed(self, number: int, rank: int, seq: int) -> None:
        """What a rank sent up to ``seq`` is durable; its shell may forget it."""

    @abstractmethod
    def stop(self, number: int, reason: Reason, grace: float) -> None:
        """Ask an attempt to stop: it may checkpoint for ``grace`` seconds, then it is killed.

        Its ``Ended`` carries ``reason``, unless the objective finished on its own meanwhile.
        """

    @abstractmethod
    def kill(self, number: int, reason: Reason, message: str) -> None:
        """End an attempt's processes, with their whole trees, now. ``Ended`` carries ``reason``."""

    @abstractmethod
    def close(self) -> None:
        """End every process of the run and let go of the cluster. Can be called twice."""
