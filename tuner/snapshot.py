"""What a person sees of a running study: values that the driver hands to a progress display."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from storage import HeldStudy
from tuner.attempts import Running

__all__ = ["Progress", "RunningTrial", "Snapshot", "best", "take"]


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial on the workers. ``seconds`` counts from the attempt's start; ``values`` are its reports;
    ``waits`` is what it waits for where it has no place yet.
    """

    number: int
    attempt: int
    seconds: float
    step: int | None
    values: tuple[float, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    waits: str = ""


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
        phase: "running", "paused", "draining" or "interrupting".
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


def take(held: HeldStudy, running: Iterable[Running], waits: Mapping[int, str], **known: Any) -> Snapshot:
    """The study now.

    Args:
        waits: what trials without a place wait for.
        known: the fields of which only the driver knows.
    """
    now = time.monotonic()
    image, directions = held.image, held.record.directions
    leader = best(image.trials(), directions)
    return Snapshot(
        study=held.record.name,
        directions=directions,
        states={state.name: count for state, count in image.counts.items() if count},
        running=tuple(_running(image.trial(one.trial_id), one, waits, now) for one in running),
        best=leader.value if leader else None,
        best_number=leader.number if leader else None,
        best_params=dict(leader.params) if leader else {},
        **known,
    )


def _running(trial: FrozenTrial, running: Running, waits: Mapping[int, str], now: float) -> RunningTrial:
    return RunningTrial(
        number=running.number,
        attempt=running.attempt,
        seconds=now - (running.began or running.reported),
        step=trial.last_step,
        values=tuple(trial.intermediate_values.values()),
        params=dict(trial.params),
        waits=waits.get(running.number, "") if running.began is None else "",
    )


def best(trials: Iterable[FrozenTrial], directions: Sequence[str]) -> FrozenTrial | None:
    """The best COMPLETE trial of a single objective; None without one."""
    if len(directions) != 1:
        return None
    sign = 1 if directions[0] == "minimize" else -1
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.values]
    return min(done, key=lambda trial: sign * trial.values[0], default=None)
