"""What a person sees of studies and trials: frozen values that :mod:`storage.reads` returns."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "AttemptRow",
    "BestPoint",
    "CheckpointPart",
    "CommandRow",
    "CurvePoint",
    "Driving",
    "EventRow",
    "ParamRange",
    "StudyDetail",
    "StudyRow",
    "TrialDetail",
    "TrialPage",
    "TrialRow",
]

CurvePoint = tuple[int, float]
"""(step, value)."""


@dataclass(frozen=True, kw_only=True)
class Driving:
    """What a driver does now, as it said last.

    Attributes:
        phase: ``"running"``, ``"paused"`` (nothing new starts until it is told to resume),
            ``"draining"`` (it ends once the running trials have) or ``"interrupting"``.
        why: why it drains, or "".
        most: trials at once at most, as it is in force; None: as many as the cluster holds.
    """

    phase: str
    why: str = ""
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A study in a list. Times are naive UTC.

    Attributes:
        uid: ours, or "" for a study that only Optuna knows.
        states: count of trials by state name; a state without trials is not in it.
        best: of the COMPLETE trials of a single objective, finite values only; None otherwise.
        n_trials: the budget that was last asked for, or None.
        owner: process of the driver that holds the lease, as in :mod:`storage.owner`, or None.
        last_activity: the newest start, end or renewal.
        stop_reason: why the last run ended; None while one runs.
        driving: what the driver that holds the lease does; None where there is none, or it said nothing.
    """

    name: str
    study_id: int
    uid: str
    directions: tuple[str, ...]
    states: Mapping[str, int]
    best: float | None
    best_number: int | None
    n_trials: int | None
    owner: Mapping[str, Any] | None
    renewed_at: dt.datetime | None
    created_at: dt.datetime | None
    last_activity: dt.datetime | None
    stop_reason: str | None
    driving: Driving | None = None

    @property
    def finished(self) -> int:
        """Trials that count against the budget."""
        return sum(self.states.get(state, 0) for state in ("COMPLETE", "PRUNED", "FAIL"))


@dataclass(frozen=True, kw_only=True)
class StudyDetail(StudyRow):
    """A study on its own page: the row, and how it is set up.

    Attributes:
        settings: what ``optimize`` was last called with.
        objective: module, name, file and digest; None where it was sent by value.
        provenance: of the newest attempt.
    """

    seed: int | None
    sampler: str | None
    pruner: str | None
    settings: Mapping[str, Any]
    objective: Mapping[str, Any] | None
    user_attrs: Mapping[str, Any]
    provenance: Mapping[str, Any]
    best_params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial in a list.

    Attributes:
        live: ``"running"``, ``"claimed"`` (waits for a slot or a retry), or "" when none of ours.
        reason: reason code of the newest attempt that ended, or "".
        duration: seconds from start to end; None while it runs.
        last_step, last_value: of the newest report.
    """

    number: int
    trial_id: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    started_at: dt.datetime | None
    completed_at: dt.datetime | None
    duration: float | None
    attempts: int
    live: str
    reason: str
    message: str
    last_step: int | None
    last_value: float | None


@dataclass(frozen=True, kw_only=True)
class TrialPage:
    """One page of trials, and how many there are in all."""

    rows: tuple[TrialRow, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """One attempt of a trial; see ``tuner_attempts``. ``ranks``: rank, host, node, pid, devices."""

    attempt: int
    state: str
    reason: str
    charged: bool
    message: str
    exception: str
    traceback: str
    log_tail: str
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    resumed_step: int | None
    ranks: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckpointPart:
    """One rank's part of a checkpoint; ``whole`` when every rank's is there."""

    attempt: int
    step: int
    rank: int
    world_size: int
    path: str
    digest: str
    size: int
    whole: bool
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """A line of the study's event log."""

    event_id: int
    number: int | None
    attempt: int | None
    kind: str
    detail: Mapping[str, Any]
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class ParamRange:
    """What a parameter is drawn from: one of ``choices``, else a number from ``low`` to ``high``."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrialDetail(TrialRow):
    """A trial on its own page.

    Attributes:
        ranges: of the parameters, by name.
        given: parameters that it was enqueued with, and will be asked for.
        retry_of: number of the trial that this one tries again, or None.
        curve: reports of the effective series, by step.
        superseded: reports that a later attempt replaced: (attempt, step, value).
        metrics: further metrics by name.
    """

    ranges: Mapping[str, ParamRange] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    retry_of: int | None = None
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    superseded: tuple[tuple[int, int, float], ...] = ()
    metrics: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)
    attempt_rows: tuple[AttemptRow, ...] = ()
    checkpoint_parts: tuple[CheckpointPart, ...] = ()
    event_rows: tuple[EventRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BestPoint:
    """A COMPLETE trial, and the best value up to it."""

    number: int
    completed_at: dt.datetime | None
    value: float
    best: float


@dataclass(frozen=True, kw_only=True)
class CommandRow:
    """What was asked of a study, and what came of it; see :mod:`storage.commands`.

    Attributes:
        author: ``host:pid`` of a command line, or the user of the dashboard.
        done_at: None as long as no driver has answered; then ``result`` is "".
        result: ``"done"``, what was done, or why it was not.
    """

    command_id: int
    name: str
    arguments: Mapping[str, Any]
    author: str
    created_at: dt.datetime
    done_at: dt.datetime | None
    result: str
