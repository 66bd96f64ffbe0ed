"""What a person sees of a running study: values that the driver hands to a progress display."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

__all__ = ["Progress", "RunningTrial", "Snapshot", "best_trial", "count_states"]


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial on the workers. ``seconds`` counts from the attempt's start; ``values`` are its reports."""

    number: int
    attempt: int
    seconds: float
    step: int | None
    values: tuple[float, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A study at one moment.

    Attributes:
        states: count by Optuna's state name, of the whole study.
        n_trials: the budget, or None.
        seconds: since this run began; ``finished_here`` trials ended in it.
        best: value of the best trial of a single objective, or None; with its number and params.
        reasons: count of failures by reason code, in this run.
        retrying: attempts that wait for their moment.
        slots: attempts that run at once at most.
        phase: "running", "draining" or "interrupting".
    """

    study: str
    directions: tuple[str, ...]
    states: Mapping[str, int]
    n_trials: int | None
    seconds: float
    finished_here: int
    running: tuple[RunningTrial, ...]
    best: float | None
    best_number: int | None
    best_params: Mapping[str, Any]
    reasons: Mapping[str, int]
    retrying: int
    slots: int
    cluster: str
    phase: str


class Progress(Protocol):
    """A display of a run. The driver calls it from its own thread, a few times a second."""

    def update(self, snapshot: Snapshot) -> None:
        """Show this moment; must return within milliseconds."""

    def close(self, snapshot: Snapshot | None, message: str) -> None:
        """The run ended; ``message`` says how."""


def count_states(trials: Iterable[FrozenTrial]) -> collections.Counter[str]:
    """How many trials are in each state, by the state's name."""
    return collections.Counter(trial.state.name for trial in trials)


def best_trial(trials: Iterable[FrozenTrial], directions: Sequence[str]) -> FrozenTrial | None:
    """The best COMPLETE trial of a single objective; None without one."""
    if len(directions) != 1:
        return None
    sign = 1 if directions[0] == "minimize" else -1
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.values]
    return min(done, key=lambda trial: sign * trial.values[0], default=None)
