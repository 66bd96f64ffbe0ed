"""The pruner's verdict, and what it compared: Optuna's decisions, from standings that are kept.

Successive halving, Hyperband, the median and the percentile are decided here as Optuna's classes
decide them, with the same attributes written; a patient pruner asks these in turn. Any other
pruner, a subclass among them, is asked itself.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from storage import HeldStudy
from tuner.samplers import TESTED
from tuner.standings import RUNG, Rungs, Steps, Values

__all__ = ["Pruning", "plain"]


class Pruning:
    """Decides for a study that this process holds.

    Args:
        study: whose pruner it is.
        held: the same study.

    Example:
        >>> Pruning(driven, driven.held).prune(trial)  # doctest: +SKIP
        False
    """

    def __init__(self, study: optuna.Study, held: HeldStudy) -> None:
        self._study = study
        self._held = held
        self._tested = optuna.__version__.startswith(TESTED)
        self._maximize = study.directions[0] == StudyDirection.MAXIMIZE
        self._steps: Steps | None = None
        self._rungs: Rungs | None = None

    def prune(self, trial: FrozenTrial) -> bool:
        """What ``study.pruner.prune(study, trial)`` says."""
        return self._decide(self._study.pruner, trial)

    def compared(self, trial: FrozenTrial) -> dict[str, Any]:
        """The inputs of a True verdict, as plain data; only the direction for a pruner we do not know.

        Pruners keep no record of them, so they are found again from the same trials, before another
        report is taken in.

        Args:
            trial: as it is after the verdict, with the rung that the pruner has noted.

        Returns:
            ``direction``, and of a median or percentile ``best`` (of the trial so far), ``threshold``,
            ``percentile`` and ``trials`` (the COMPLETE ones with a report at the step); of successive
            halving ``rung``, ``at_rung`` (the trial's value there), ``place`` (1 is the best),
            ``trials`` (which came to the rung, itself among them) and ``leader`` (the best's value); of
            a threshold ``lower`` and ``upper``.
        """
        pruner, maximize = self._study.pruner, self._maximize
        found: dict[str, Any] = {"direction": self._study.direction.name.lower()}
        values = _numbers(trial)
        if isinstance(pruner, PercentilePruner) and values:  # the median pruner is one of them
            percentile = float(vars(pruner)["_percentile"])
            with self._held.lock:
                reports = self._at_step(trial.last_step or 0)
                found |= {"best": plain(max(values) if maximize else min(values))}
                found |= {"trials": len(reports.ordered)}
                if reports.ordered:
                    cut = reports.percentile(100 - percentile if maximize else percentile)
                    found |= {"threshold": plain(cut), "percentile": percentile}
        elif isinstance(pruner, SuccessiveHalvingPruner | HyperbandPruner):
            found |= self._compared_rung(pruner, trial)
        elif isinstance(pruner, ThresholdPruner):
            found |= {name: plain(float(vars(pruner)[f"_{name}"])) for name in ("lower", "upper")}
        return found

    def _decide(self, pruner: BasePruner, trial: FrozenTrial) -> bool:
        if not self._tested:
            return bool(pruner.prune(self._study, trial))
        kind = type(pruner)
        if kind is PatientPruner:
            patient: Any = copy.copy(pruner)
            if patient._wrapped_pruner is not None:
                patient._wrapped_pruner = _Within(self, patient._wrapped_pruner)
            return bool(patient.prune(self._study, trial))
        self._held.storage.settle()
        if kind is MedianPruner or kind is PercentilePruner:
            return self._by_percentile(pruner, trial)
        if kind is HyperbandPruner:
            return self._by_bracket(pruner, trial)
        if kind is SuccessiveHalvingPruner:
            return self._by_rung(pruner, trial)
        return bool(pruner.prune(self._study, trial))

    def _by_percentile(self, pruner: Any, trial: FrozenTrial) -> bool:
        complete = self._held.image.counts[TrialState.COMPLETE]
        step = trial.last_step
        if complete == 0 or complete < pruner._n_startup_trials:
            return False
        if step is None or step < pruner._n_warmup_steps:
            return False
        warmup, interval = pruner._n_warmup_steps, pruner._interval_steps
        due = warmup + (step - warmup) // interval * interval
        if interval > 1 and max((one for one in trial.intermediate_values if one != step), default=-1) >= due:
            return False
        values = _numbers(trial)
        if not values:
            return True
        with self._held.lock:
            reports = self._at_step(step)
            if len(reports.ordered) + reports.others < pruner._n_min_trials:
                return False
            maximize = self._maximize
            cut = reports.percentile(100 - pruner._percentile if maximize else pruner._percentile)
        if math.isnan(cut):
            return False
        return max(values) < cut if maximize else min(values) > cut

    def _by_bracket(self, pruner: Any, trial: FrozenTrial) -> bool:
        if not pruner._pruners:
            if pruner._max_resource == "auto" and not self._held.image.counts[TrialState.COMPLETE]:
                return False
            pruner._try_initialization(self._study)
            if not pruner._pruners:
                return False
        bracket = pruner._get_bracket_id(self._study, trial)
        return self._by_rung(pruner._pruners[bracket], trial, bracket, pruner)

    def _by_rung(
        self, pruner: Any, trial: FrozenTrial, bracket: int = 0, hyperband: HyperbandPruner | None = None
    ) -> bool:
        step = trial.last_step
        if step is None:
            return False
        if pruner._min_resource is None:  # "auto": Optuna's path finds it out, with the first COMPLETE trial
            complete = self._held.image.counts[TrialState.COMPLETE]
            return bool(complete and pruner.prune(self._study, trial))
        value, maximize = trial.intermediate_values[step], self._maximize
        rung = 0
        while f"{RUNG}{rung}" in trial.system_attrs:
            rung += 1
        while True:
            exponent = pruner._min_early_stopping_rate + rung
            if step < pruner._min_resource * pruner._reduction_factor**exponent:
                return False
            if math.isnan(value):
                return True
            key = f"{RUNG}{rung}"
            with self._held.lock:
                others = self._at_rung(bracket, key)
                count, better = len(others.ordered) + 1, others.better(value, maximize=maximize)
                is_odd = others.others > 0
            if is_odd:  # by another program: what a sort makes of it is Optuna's affair
                trial = self._held.image.trial(trial._trial_id)  # with the rungs noted so far
                study = hyperband._create_bracket_study(self._study, bracket) if hyperband else self._study
                return bool(pruner.prune(study, trial))
            self._held.storage.set_trial_system_attr(trial._trial_id, key, value)
            if count <= pruner._bootstrap_count:
                return True
            if better > max(0, count // pruner._reduction_factor - 1):
                return True
            rung += 1

    def _compared_rung(self, pruner: Any, trial: FrozenTrial) -> dict[str, Any]:
        rungs = [int(key.removeprefix(RUNG)) for key in trial.system_attrs if key.startswith(RUNG)]
        if not rungs or math.isnan(trial.intermediate_values.get(trial.last_step or 0, math.nan)):
            return {}
        key = f"{RUNG}{max(rungs)}"
        mine = trial.system_attrs[key]
        bracket = pruner._get_bracket_id(self._study, trial) if isinstance(pruner, HyperbandPruner) else 0
        with self._held.lock:
            there, maximize = self._at_rung(bracket, key), self._maximize
            return {
                "rung": max(rungs),
                "at_rung": plain(mine),
                "place": there.better(mine, maximize=maximize) + 1,
                "trials": len(there.ordered) + there.others,
                "leader": plain(there.ordered[-1 if maximize else 0] if there.ordered else mine),
            }

    def _at_step(self, step: int) -> Values:
        if self._steps is None:
            self._steps = Steps(self._held.image)
        return self._steps.at(step)

    def _at_rung(self, bracket: int, key: str) -> Values:
        if self._rungs is None:
            self._rungs = Rungs(self._held.image, self._bracket)
        return self._rungs.at(bracket, key)

    def _bracket(self, trial: FrozenTrial) -> int:
        """The Hyperband bracket of a trial; 0 where there are none."""
        pruner: Any = self._study.pruner
        while type(pruner) is PatientPruner:
            pruner = pruner._wrapped_pruner
        return int(pruner._get_bracket_id(self._study, trial)) if isinstance(pruner, HyperbandPruner) else 0


class _Within(BasePruner):
    """The pruner inside a patient one."""

    def __init__(self, pruning: Pruning, pruner: BasePruner) -> None:
        self._pruning, self._pruner = pruning, pruner

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return self._pruning._decide(self._pruner, trial)


def plain(value: float) -> float | str:
    """A number as JSON holds it: text for an infinity or NaN."""
    return value if math.isfinite(value) else str(value)


def _numbers(trial: FrozenTrial) -> list[float]:
    """A trial's reports without NaN."""
    return [value for value in trial.intermediate_values.values() if value == value]
