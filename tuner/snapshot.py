"""What a person sees of a running study: values that the driver hands to a progress display."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from storage import HeldStudy
from storage.latency import Commits
from tuner.attempts import Running

__all__ = ["Measured", "Progress", "RunningTrial", "Snapshot", "best", "leaders", "pause", "take"]


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial on the workers. ``seconds`` counts from the attempt's start; ``values`` are its reports;
    ``waits`` is what it waits for where it has no place yet; ``note`` is what else there is to say.
    """

    number: int
    attempt: int
    seconds: float
    step: int | None
    values: tuple[float, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    waits: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A study at one moment.

    Attributes:
        states: count by Optuna's state name, of the whole study.
        n_trials: the budget, or None.
        seconds: that this run has worked; ``finished_here`` trials ended in it.
        elapsed: the same over all runs of the study, as :func:`storage.progress.elapsed` has it.
        best: value of the best trial of a single objective, or None; with its number and params.
        leaders: of several objectives, the best (value, number) of each; empty before one is complete.
        reasons: count of failures by reason code, in this run.
        retrying: attempts that wait for their moment.
        slots: attempts that run at once at most; None where only the driver knows.
        phase: "running", "paused", "draining", "interrupting" or "ended"; "" where the driver was killed.
    """

    study: str
    directions: tuple[str, ...]
    states: Mapping[str, int]
    n_trials: int | None
    seconds: float
    elapsed: float
    finished_here: int
    running: tuple[RunningTrial, ...]
    best: float | None
    best_number: int | None
    best_params: Mapping[str, Any]
    reasons: Mapping[str, int]
    retrying: int
    slots: int | None
    cluster: str
    phase: str
    leaders: tuple[tuple[float, int], ...] = ()


EVERY = 0.2  # seconds at least between two moments that are shown
SHARE = 100  # showing one that took t seconds is followed by at least SHARE * t without one,
LONGEST = 10.0  # but by no more than this: a slow terminal is no reason to stand still


def pause(took: float) -> float:
    """Seconds until the next moment is shown, so that showing takes one percent of the driver's time.

    Args:
        took: seconds that the last one took, to look and to draw.

    Example:
        >>> pause(0.0), pause(0.01), pause(5.0)
        (0.2, 1.0, 10.0)
    """
    return max(EVERY, min(LONGEST, SHARE * took))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run in numbers, as a monitoring system takes them; no parameter and no value of a trial but the best.

    Attributes:
        states: count by Optuna's state name, of the whole study.
        n_trials: the budget, or None.
        outcomes: attempts that ended in this run, by reason code.
        reports: received in this run.
        queues: what waits, by name: ``writes`` (rows to be committed), ``retries`` (attempts whose moment
            has not come), ``resources`` (dispatched, and without a place), ``enqueued`` (trials of people).
        slots, busy: attempts that can run at once, and that do.
        ranks, devices: processes of theirs, and GPUs that these hold.
        away: the database cannot be reached.
        began: when the run did, in seconds since 1970; ``at`` is now.
    """

    study: str
    states: Mapping[str, int]
    n_trials: int | None
    outcomes: Mapping[str, int]
    reports: int
    commits: Commits
    queues: Mapping[str, int]
    slots: int
    busy: int
    ranks: int
    devices: int
    away: bool
    best: float | None
    began: float
    at: float


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
    done = image.trials((TrialState.COMPLETE,))
    leader = best(done, directions)
    return Snapshot(
        study=held.record.name,
        directions=directions,
        states={state.name: count for state, count in image.counts.items() if count},
        running=tuple(_running(image.trial(one.trial_id), one, waits, now) for one in running),
        best=leader.value if leader else None,
        best_number=leader.number if leader else None,
        best_params=dict(leader.params) if leader else {},
        leaders=leaders(((trial.number, trial.values) for trial in done), directions),
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


def leaders(
    done: Iterable[tuple[int, Sequence[float]]], directions: Sequence[str]
) -> tuple[tuple[float, int], ...]:
    """Of several objectives, the best value of each, and the number of its trial; empty for a single one.

    Args:
        done: number and values of COMPLETE trials.
    """
    if len(directions) < 2:
        return ()
    rows = [(number, values) for number, values in done if len(values) == len(directions)]
    if not rows:
        return ()
    found = []
    for at, direction in enumerate(directions):
        sign = 1 if direction == "minimize" else -1
        number, values = min(rows, key=lambda row: sign * row[1][at])
        found.append((values[at], number))
    return tuple(found)
