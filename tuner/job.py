"""What a driver is to do, and what the ranks of one attempt of it are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial

from storage.limits import distribution_text
from tuner import blind
from tuner.alerts import Alerts
from tuner.assignment import Assignment, Draw, ObjectiveRef
from tuner.attempts import Due
from tuner.resources import Resources, alternatives, chosen
from tuner.seeds import trial_seed
from tuner.settings import Settings
from tuner.snapshot import Measured
from tuner.study import DrivenStudy, Space

__all__ = ["Callback", "Job", "assignment", "wanted"]

Callback = Callable[[optuna.Study, FrozenTrial], object]
"""Called in the driver with (study, trial) after the commit of a terminal state."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a driver is to do, apart from the study itself.

    Attributes:
        run: mark of this run on every process that it starts.
        environment: variables for the ranks, values included.
        checkpoints: folder or URI of the study's checkpoints.
        provenance: plain data, recorded with every attempt.
        alerts: told of what happens.
        publish: given the run in numbers some times a second; None: nobody asks for them.
        grace: seconds that a trial which is asked to stop has to checkpoint.
    """

    run: str
    objective: ObjectiveRef
    settings: Settings
    checkpoints: str
    space: Space = None
    environment: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, object] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    alerts: Alerts = field(default_factory=lambda: Alerts((), ""))
    publish: Callable[[Measured], None] | None = None
    grace: float = 10.0


def wanted(job: Job, study: DrivenStudy, due: Due, draw: Mapping[str, Draw]) -> tuple[Resources, ...]:
    """What an attempt may be given, in order of preference. What a user's function raises comes out."""
    if due.plan.resources is not None:
        return alternatives(due.plan.resources)
    trial = study.held.image.trial(due.trial_id)
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    for name, one in draw.items():
        distribution = json_to_distribution(one.distribution)
        params.setdefault(name, distribution.to_external_repr(one.value))
    return chosen(job.settings.resources, params)


def assignment(
    job: Job,
    study: DrivenStudy,
    due: Due,
    draw: Mapping[str, Draw],
    wanted: Sequence[Resources],
    *,
    short: bool = False,
) -> Assignment:
    """What the ranks of an attempt receive.

    Args:
        draw: the trial's joint draw.
        wanted: what it may be given, in order of preference.
        short: trials take milliseconds.
    """
    trial = study.held.image.trial(due.trial_id)
    params = {
        name: Draw(
            value=float(dist.to_internal_repr(trial.params[name])),
            distribution=distribution_text(dist),
        )
        for name, dist in trial.distributions.items()
    }
    return Assignment(
        run=job.run,
        epoch=study.held.lease.epoch,
        study=study.study_name,
        directions=study.held.record.directions,
        number=due.number,
        attempt=due.attempt,
        seed=trial_seed(study.seed, due.number),
        started=trial.datetime_start.isoformat() if trial.datetime_start else "",
        objective=job.objective,
        resources=wanted[0],
        alternatives=tuple(wanted),
        params=params,
        fixed=trial.system_attrs.get("fixed_params", {}),
        relative=draw,
        ahead=study.ahead(due.trial_id, draw),
        study_seed=study.seed if blind.is_blind(study.sampler) else None,
        user_attrs=dict(trial.user_attrs),
        system_attrs=dict(trial.system_attrs),
        reports=dict(trial.intermediate_values),
        checkpoints=f"{job.checkpoints}/{study.held.uid[:12]}/{due.number}",
        resume=due.resume.resume if due.resume else None,
        env=job.environment,
        folder=os.getcwd(),
        can_prune=not isinstance(study.pruner, optuna.pruners.NopPruner),
        grace=job.grace,
        alone=due.plan.alone,
        short=short and not due.plan.alone,
        keep=job.settings.isolation == "shared",
    )
