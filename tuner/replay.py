"""A recorded study once more: what another pruner or another cluster would have cost.

The trials come in the order of their numbers, with their recorded parameters and reports; nothing
is sampled. Where the other pruner would have let a trial go on that was pruned then, nobody knows how
it goes on: the replay ends it where its record ends, and counts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import BadInput
from tuner.logs import quiet_optuna
from tuner.outcome import Outcome, Reason
from tuner.simulation import Faults, Script, Simulation, play

__all__ = ["Replay", "replay"]

_ENDS = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay found.

    Attributes:
        simulation: its seconds are those of the recorded trials.
        recorded_epochs: reports of the trials that were replayed, as they are recorded.
        recorded_best: the best value of these.
        unknown: trials that the other pruner would have let go on beyond their record.
        left_out: trials without a report or an end.
    """

    simulation: Simulation
    recorded_epochs: int
    recorded_best: float | None
    unknown: int
    left_out: int


def replay(
    study: optuna.Study,
    pruner: BasePruner,
    *,
    max_concurrent: int,
    faults: Faults | None = None,
    seed: int = 0,
) -> Replay:
    """Replay a study's COMPLETE and PRUNED trials that reported.

    Args:
        study: recorded; it is not touched.
        pruner: decides instead of the one that did.
        max_concurrent: workers. A step takes an equal share of the time from its trial's start to its
            end, waits between attempts included.
        faults: of the cluster, as for :func:`tuner.simulate`.

    Raises:
        BadInput: no such trial, or several objectives.
    """
    if len(study.directions) != 1:
        raise BadInput(f"study {study.study_name!r} has {len(study.directions)} objectives: it has no curves")
    trials = study.get_trials(deepcopy=False)
    used = [one for one in trials if one.state in _ENDS and one.intermediate_values]
    if not used:
        raise BadInput(f"study {study.study_name!r} has no finished trial with reports: nothing to replay")
    with quiet_optuna():
        again = optuna.create_study(
            study_name=study.study_name,
            direction=study.direction,
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=pruner,
        )
    unknown: set[int] = set()

    def script(trial: FrozenTrial) -> Script:
        record = used[trial.number]

        def end(value: float | None) -> Outcome:
            if record.state is TrialState.COMPLETE:
                return Outcome(reason=Reason.COMPLETE, values=tuple(record.values))
            unknown.add(trial.number)
            return Outcome(reason=Reason.PRUNED)

        seconds = _seconds(record) / len(record.intermediate_values)
        reports = sorted(record.intermediate_values.items())
        return Script(steps=[(step, value, seconds) for step, value in reports], end=end)

    found = play(
        again, None, script, max_concurrent=max_concurrent, n_trials=len(used), faults=faults, seed=seed
    )
    complete = [one.values[0] for one in used if one.state is TrialState.COMPLETE]
    better = max if study.direction == StudyDirection.MAXIMIZE else min
    return Replay(
        simulation=found,
        recorded_epochs=sum(len(one.intermediate_values) for one in used),
        recorded_best=better(complete) if complete else None,
        unknown=len(unknown),
        left_out=len(trials) - len(used),
    )


def _seconds(trial: FrozenTrial) -> float:
    """From a trial's start to its end; 0 where another program noted none."""
    duration = trial.duration
    return 0.0 if duration is None else max(0.0, duration.total_seconds())
