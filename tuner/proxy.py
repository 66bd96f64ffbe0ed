"""What stands for the study and the storage inside a rank: messages instead of a database.

Optuna's own :class:`optuna.trial.Trial` runs over these, so its logic of suggesting,
reporting and setting attributes is Optuna's, unchanged.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Container, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner import blind, frozen
from tuner.assignment import Assignment, Draw
from tuner.channel import Channel
from tuner.messages import Call, Constraint, Param, Report, Sample, SystemAttr, UserAttr
from tuner.plain import checked

__all__ = ["RankStorage", "RankStudy", "frozen_trial", "relative_draw"]

_MEMBERS = (
    "best_params, best_trial, best_trials, best_value, best_values, direction, directions, "
    "get_trials, stop, study_name, system_attrs, trials, user_attrs"
)


class RankStorage:
    """The storage that Optuna's trial sees; on ranks other than 0 it is silent but for parameters.

    Args:
        trial: kept up to date by Optuna's trial itself.
        rank: 0 speaks for its trial.
    """

    def __init__(self, trial: FrozenTrial, channel: Channel, rank: int) -> None:
        self._trial = trial
        self._parameters = channel
        self._channel = channel if rank == 0 else None

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """This rank's trial."""
        return self._trial

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """The trial's system attributes, as far as they were there when the attempt began, or set here."""
        return self._trial.system_attrs

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        """The trial's user attributes."""
        return self._trial.user_attrs

    def set_trial_param(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        """Send a parameter that was fixed or drawn here: rank 0 may never come to suggest it, and the trial
        has run with it.
        """
        self._parameters.send(
            Param(name=name, value=float(value), distribution=distribution_to_json(distribution))
        )

    def set_trial_intermediate_value(self, trial_id: int, step: int, value: float) -> None:
        """Send a report."""
        if self._channel is not None:
            self._channel.send(Report(step=step, value=value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Send a user attribute."""
        if self._channel is not None:
            self._channel.send(UserAttr(key=key, value=value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Send a constraint, or what a library notes: the link of an artifact, the id of an MLflow run.

        Raises:
            TypeError, BadInput: as for a user attribute.
        """
        value = self._trial.system_attrs[key] = checked("system attribute", key, value)
        if self._channel is None:
            return
        if key.startswith("constraints:"):
            self._channel.send(Constraint(key=key.removeprefix("constraints:"), value=value))
        else:
            self._channel.send(SystemAttr(key=key, value=value))


class _RankSampler:
    """Asks the driver for what did not travel with the trial."""

    def __init__(self, channel: Channel, assignment: Assignment) -> None:
        self._channel = channel
        self._assignment = assignment

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        seed = self._assignment.study_seed
        if seed is not None:
            return blind.random_draw(seed, self._assignment.number, name, distribution)
        text, drawn = distribution_to_json(distribution), self._assignment.ahead.get(name)
        if drawn is not None and drawn.distribution == text:
            value = drawn.value
        else:
            value = self._channel.ask(Sample, name=name, distribution=text)
        return distribution.to_external_repr(float(value))


class RankStudy:
    """``trial.study`` on a worker: what the contract names, answered by the driver."""

    def __init__(self, assignment: Assignment, channel: Channel, storage: RankStorage) -> None:
        self.study_name = assignment.study
        self.directions = [StudyDirection[one.upper()] for one in assignment.directions]
        self.pruner = optuna.pruners.NopPruner()  # for Optuna's trial; the driver decides
        self.sampler = _RankSampler(channel, assignment)
        self._storage = storage
        self._channel = channel

    @property
    def direction(self) -> StudyDirection:
        """The direction of a single objective."""
        if len(self.directions) > 1:
            raise RuntimeError("A single direction cannot be retrieved from a multi-objective study.")
        return self.directions[0]

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The study's user attributes."""
        return dict(self._call("user_attrs"))

    @property
    def system_attrs(self) -> dict[str, Any]:
        """The study's system attributes."""
        return dict(self._call("system_attrs"))

    @property
    def best_trial(self) -> FrozenTrial:
        """The best trial of a single objective.

        Raises:
            ValueError: no trial is complete yet.
        """
        return frozen.trials_from_json(self._call("best_trial"))[0]

    @property
    def best_trials(self) -> list[FrozenTrial]:
        """The trials of the Pareto front."""
        return frozen.trials_from_json(self._call("best_trials"))

    @property
    def best_params(self) -> dict[str, Any]:
        """Parameters of the best trial."""
        return self.best_trial.params

    @property
    def best_value(self) -> float | None:
        """Value of the best trial."""
        return self.best_trial.value

    @property
    def best_values(self) -> list[float]:
        """Values of the best trial."""
        return list(self.best_trial.values)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials."""
        return self.get_trials()

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials, or those of some states."""
        names = None if states is None else [state.name for state in TrialState if state in states]
        return frozen.trials_from_json(self._call("get_trials", states=names))

    def stop(self) -> None:
        """Start no new trials; running ones finish."""
        self._call("stop")

    def _call(self, method: str, **arguments: Any) -> Any:
        try:
            return self._channel.ask(Call, method=method, arguments=arguments)
        except RuntimeError as error:
            kind, _, text = str(error).partition(": ")
            raise (ValueError if kind == "ValueError" else RuntimeError)(text or str(error)) from None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trial.study.{name} is not available on a worker; it has: {_MEMBERS}")


def frozen_trial(assignment: Assignment) -> FrozenTrial:
    """The trial as it stands when its attempt begins."""
    params, distributions = _external(assignment.params)
    fixed = {"fixed_params": dict(assignment.fixed)} if assignment.fixed else {}
    return FrozenTrial(
        number=assignment.number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=dt.datetime.fromisoformat(assignment.started) if assignment.started else None,
        datetime_complete=None,
        params=params,
        distributions=distributions,
        user_attrs=dict(assignment.user_attrs),
        system_attrs={**assignment.system_attrs, **fixed},
        intermediate_values={int(step): value for step, value in assignment.reports.items()},
        trial_id=assignment.number,
    )


def relative_draw(assignment: Assignment) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """The joint draw that travelled with the trial: values and their search space."""
    return _external(assignment.relative)


def _distribution(text: str) -> BaseDistribution:
    return _unchangeable(text) or json_to_distribution(text)


@functools.lru_cache(maxsize=1024)
def _unchangeable(text: str) -> BaseDistribution | None:
    """The same one for all attempts of a process; None where one of them might change a choice of it."""
    found = json_to_distribution(text)
    if isinstance(found, CategoricalDistribution):
        return None if any(isinstance(choice, list | dict) for choice in found.choices) else found
    return found


def _external(draws: Mapping[str, Draw]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    space = {name: _distribution(draw.distribution) for name, draw in draws.items()}
    return {name: space[name].to_external_repr(draw.value) for name, draw in draws.items()}, space
