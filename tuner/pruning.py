"""What a pruner compared when it said True: the inputs of the decision, for people."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = ["compared", "plain"]

_RUNG = "completed_rung_"


def compared(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """The inputs of a True verdict, as plain data; only the direction for a pruner we do not know.

    Pruners keep no record of them, so they are found again from the same trials, before another
    report is taken in.

    Args:
        study: with the trials that the pruner compares with: for Hyperband those of the bracket.

    Returns:
        ``direction``, and of a median or percentile ``best`` (of the trial so far), ``threshold``,
        ``percentile`` and ``trials`` (the COMPLETE ones with a report at the step); of successive
        halving ``rung``, ``at_rung`` (the trial's value there), ``place`` (1 is the best),
        ``trials`` (which came to the rung, itself among them) and ``leader`` (the best's value); of
        a threshold ``lower`` and ``upper``.
    """
    maximize = study.direction == StudyDirection.MAXIMIZE
    found: dict[str, Any] = {"direction": study.direction.name.lower()}
    values = [value for value in trial.intermediate_values.values() if not math.isnan(value)]
    if isinstance(pruner, PercentilePruner) and values:  # the median pruner is one of them
        percentile = float(vars(pruner)["_percentile"])
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        reports = [one.intermediate_values.get(trial.last_step or 0, math.nan) for one in complete]
        reports = [value for value in reports if not math.isnan(value)]
        found |= {"best": plain(max(values) if maximize else min(values)), "trials": len(reports)}
        if reports:
            cut = float(np.percentile(reports, 100 - percentile if maximize else percentile))
            found |= {"threshold": plain(cut), "percentile": percentile}
    elif isinstance(pruner, SuccessiveHalvingPruner | HyperbandPruner):
        found |= _halving(study, trial, maximize)
    elif isinstance(pruner, ThresholdPruner):
        found |= {name: plain(float(vars(pruner)[f"_{name}"])) for name in ("lower", "upper")}
    return found


def plain(value: float) -> float | str:
    """A number as JSON holds it: text for an infinity or NaN."""
    return value if math.isfinite(value) else str(value)


def _halving(study: optuna.Study, trial: FrozenTrial, maximize: bool) -> dict[str, Any]:
    rungs = [int(key.removeprefix(_RUNG)) for key in trial.system_attrs if key.startswith(_RUNG)]
    if not rungs or math.isnan(trial.intermediate_values.get(trial.last_step or 0, math.nan)):
        return {}
    key = f"{_RUNG}{max(rungs)}"
    mine = trial.system_attrs[key]
    there = [one.system_attrs[key] for one in study.get_trials(deepcopy=False) if key in one.system_attrs]
    better = sum(value > mine if maximize else value < mine for value in there)
    return {
        "rung": max(rungs),
        "at_rung": plain(mine),
        "place": better + 1,
        "trials": len(there),
        "leader": plain(max(there) if maximize else min(there)),
    }
