"""What starts next: a pure function of counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Action", "Counts", "Done", "StartClaimed", "StartEnqueued", "StartNew", "Wait", "decide"]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A study at one moment, as the scheduler needs it.

    Attributes:
        finished: COMPLETE, PRUNED and FAIL trials of the study, whoever made them.
        running: attempts that hold a slot, those whose processes are still leaving included.
        running_unfinished: of these, attempts whose trial has no outcome yet.
        retries_due, retries_waiting: claimed attempts that may start now, or later.
        claiming: new trials that the next commit claims.
        enqueued: WAITING trials.
        slots: attempts that run at once at most.
        ahead: attempts beyond these that may wait for a place with all that they need.
        draining: nothing new starts, and the run ends once nothing runs.
        paused: nothing new starts, until a person says so.
    """

    finished: int = 0
    running: int = 0
    running_unfinished: int = 0
    retries_due: int = 0
    retries_waiting: int = 0
    claiming: int = 0
    enqueued: int = 0
    slots: int = 1
    ahead: int = 0
    draining: bool = False
    paused: bool = False


@dataclass(frozen=True)
class Action:
    """The base of what can be done next."""


@dataclass(frozen=True)
class StartClaimed(Action):
    """Start the claimed attempt that has been due longest: a retry, or a first one."""


@dataclass(frozen=True)
class StartEnqueued(Action):
    """Start the oldest enqueued trial."""


@dataclass(frozen=True)
class StartNew(Action):
    """Ask the sampler for a new trial."""


@dataclass(frozen=True)
class Wait(Action):
    """Nothing can start now; something will change."""


@dataclass(frozen=True)
class Done(Action):
    """Nothing runs, waits to be retried, or may still start."""


def decide(counts: Counts, n_trials: int | None) -> Action:
    """The next action: a due retry first, then an enqueued trial, then a new one, within the budget.

    Finished trials and those that are ours and unfinished never exceed ``n_trials``; None means
    no bound. A paused study is not done as long as something may still start in it.

    Example:
        >>> decide(Counts(finished=9, running_unfinished=1, running=1, slots=2), 10)
        Wait()
    """
    unfinished = counts.running_unfinished + counts.retries_due + counts.retries_waiting + counts.claiming
    room = n_trials is None or counts.finished + unfinished < n_trials
    if counts.draining:
        return Wait() if counts.running else Done()
    if counts.running + counts.claiming < counts.slots + counts.ahead and not counts.paused:
        if counts.retries_due:
            return StartClaimed()
        if room and counts.enqueued:
            return StartEnqueued()
        if room:
            return StartNew()
    return Wait() if counts.running or unfinished or room else Done()
