"""The writes of a driver, as values; what each does is in :mod:`storage.execution`.

A batch of them is one transaction (:mod:`storage.lease`). Those with a ``trial_id`` in
:data:`GUARDED` change a trial and are dropped when the trial is no longer RUNNING: another
program told it first, and its word stands.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

__all__ = [
    "GUARDED",
    "AddCheckpoint",
    "AddEvent",
    "AddMetric",
    "AddReport",
    "Claim",
    "CreateTrial",
    "DoneCommand",
    "DropCheckpoints",
    "EndAttempt",
    "FinishTrial",
    "PopWaiting",
    "SetParam",
    "SetStudyAttr",
    "SetStudyRow",
    "SetTrialAttr",
    "StartAttempt",
    "Supersede",
    "Write",
    "attributes_json",
]


@dataclass(frozen=True, kw_only=True)
class Write:
    """The base of all writes."""


@dataclass(frozen=True, kw_only=True)
class Claim(Write):
    """The next attempt of a trial, not yet on a worker. ``attributes`` is the JSON of the trial's
    attributes at this moment: a retry that has no checkpoint goes back to them.
    """

    study_uid: str
    trial_id: int
    number: int
    attempt: int
    epoch: int
    attributes: str
    resumed_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class CreateTrial(Write):
    """A new trial, from a template where there is one, claimed in the same transaction when it
    is RUNNING: no crash leaves a trial of ours without its attempt. Result: (trial_id, number).
    """

    study_id: int
    study_uid: str
    epoch: int
    started: dt.datetime | None
    template: FrozenTrial | None = None


@dataclass(frozen=True, kw_only=True)
class PopWaiting(Write):
    """WAITING to RUNNING, and its first attempt claimed. Result: True when this write did it,
    False when another program did.
    """

    study_uid: str
    trial_id: int
    number: int
    epoch: int
    started: dt.datetime
    attributes: str


@dataclass(frozen=True, kw_only=True)
class SetParam(Write):
    """A parameter; the first value stands."""

    trial_id: int
    name: str
    value: float
    distribution: str


@dataclass(frozen=True, kw_only=True)
class AddReport(Write):
    """An intermediate value; the last of a step stands, as in Optuna's storages."""

    trial_id: int
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class AddMetric(Write):
    """A further metric of a step."""

    study_uid: str
    trial_id: int
    attempt: int
    name: str
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class SetTrialAttr(Write):
    """A user (``kind="user"``) or system attribute of a trial, as JSON."""

    trial_id: int
    kind: str
    key: str
    value_json: str


@dataclass(frozen=True, kw_only=True)
class SetStudyAttr(Write):
    """A user or system attribute of a study, as JSON."""

    study_id: int
    kind: str
    key: str
    value_json: str


@dataclass(frozen=True, kw_only=True)
class SetStudyRow(Write):
    """Columns of the study's row in ``tuner_studies``."""

    study_uid: str
    columns: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FinishTrial(Write):
    """RUNNING to a terminal state, and with it the end of its attempt. Result: True when this
    write did it; otherwise nothing changed.
    """

    trial_id: int
    state: TrialState
    values: tuple[float, ...] | None
    completed: dt.datetime
    end: EndAttempt | None = None


@dataclass(frozen=True, kw_only=True)
class StartAttempt(Write):
    """A claimed attempt goes to the workers, its ranks are known, or it printed; None leaves a column."""

    study_uid: str
    trial_id: int
    attempt: int
    epoch: int
    attributes: str | None = None
    relative: str | None = None
    provenance: str | None = None
    ranks: str | None = None
    resumed_step: int | None = None
    log_tail: str | None = None


@dataclass(frozen=True, kw_only=True)
class EndAttempt(Write):
    """An attempt is over. Result: True when it was still open."""

    study_uid: str
    trial_id: int
    attempt: int
    epoch: int
    reason: str
    charged: bool
    message: str = ""
    exception: str = ""
    traceback: str = ""
    log_tail: str = ""


@dataclass(frozen=True, kw_only=True)
class Supersede(Write):
    """Before another attempt: reports above ``after_step`` move to the superseded ones, and the
    attributes go back to ``user_attrs`` and ``system_attrs`` (key to JSON).
    """

    study_uid: str
    trial_id: int
    attempt: int
    after_step: int
    user_attrs: dict[str, str]
    system_attrs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class AddCheckpoint(Write):
    """One rank's part of a checkpoint."""

    study_uid: str
    trial_id: int
    attempt: int
    step: int
    rank: int
    world_size: int
    path: str
    digest: str
    size: int
    attributes: str | None = None


@dataclass(frozen=True, kw_only=True)
class DropCheckpoints(Write):
    """Forget a checkpoint, all its parts; its files are deleted after the commit."""

    study_uid: str
    trial_id: int
    attempt: int
    step: int


@dataclass(frozen=True, kw_only=True)
class AddEvent(Write):
    """A line of the append-only log; ``detail`` is JSON, ``at`` naive UTC (default: when it is written)."""

    study_uid: str
    epoch: int
    kind: str
    detail: str = "{}"
    trial_id: int | None = None
    attempt: int | None = None
    at: dt.datetime | None = None


@dataclass(frozen=True, kw_only=True)
class DoneCommand(Write):
    """The answer to a person's command. Result: True when it was there, unanswered."""

    command_id: int
    result: str


GUARDED = (SetParam, AddReport, AddMetric, SetTrialAttr, FinishTrial, Supersede, AddCheckpoint)
"""Writes that only a RUNNING trial takes."""


_NO_ATTRIBUTES = json.dumps({"user": {}, "system": {}})


def attributes_json(trial: FrozenTrial | None) -> str:
    """A trial's attributes as the JSON that a claim or a checkpoint keeps."""
    if trial is None or not (trial._user_attrs or trial._system_attrs):
        return _NO_ATTRIBUTES
    return json.dumps({"user": trial.user_attrs, "system": trial.system_attrs})
