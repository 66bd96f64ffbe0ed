"""Optuna's side of a driven study: ask, sample, report, prune, tell, over the held store.

Sampling is reproducible: before each question the sampler's generators are seeded from (study
seed, trial number, parameter), so a resumed study repeats no draw and a rerun repeats all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study._tell import _tell_with_warning
from optuna.trial import FrozenTrial, TrialState

import storage
from storage import HeldStudy
from storage.clock import utcnow
from storage.held import Ending
from storage.limits import distribution_text
from storage.progress import Run
from storage.writes import AddEvent, AddMetric, EndAttempt, SetStudyRow
from tuner import blind, frozen, optimizer_state, pruning, samplers
from tuner.assignment import Draw
from tuner.errors import BadInput
from tuner.messages import Constraint, Log, Message, Param, Report, Reports, SystemAttr, Unanswered, UserAttr
from tuner.outcome import Outcome
from tuner.seeds import derived_seed

__all__ = ["DrivenStudy", "Space", "check_space", "joint_draw"]

log = logging.getLogger(__name__)

_ENCODE = json.JSONEncoder(default=str).encode

Space = Mapping[str, BaseDistribution] | Callable[[optuna.Trial], object] | None
"""Distributions by name, or a function that suggests; evaluated in the driver."""


class DrivenStudy(optuna.Study):
    """An ``optuna.Study`` whose lease this process holds; callbacks and samplers receive it.

    Args:
        held: the store.
        sampler, pruner: Optuna's objects.

    Attributes:
        logged: by id of a trial whose messages may come again after a take-over: names and steps
            of the metrics that are in the store.
        run: the time of this run so far; None before its first event.
    """

    def __init__(
        self,
        held: HeldStudy,
        sampler: optuna.samplers.BaseSampler,
        pruner: optuna.pruners.BasePruner,
    ) -> None:
        super().__init__(held.record.name, held.storage, sampler=samplers.kept(sampler), pruner=pruner)
        assert held.record.seed is not None
        self.held = held
        self.seed = held.record.seed
        optimizer_state.guard(sampler)
        self.stop_requested = False
        self.logged: dict[int, set[tuple[str, int]]] = {}
        self.run: Run | None = None
        self._draws: tuple[Space, blind.Draws] | None = None  # of the space that was drawn from last
        self._space: Mapping[str, BaseDistribution] = {}  # of the trial that ended last
        self._pruning = pruning.Pruning(self, held)
        self._go_on()

    def stop(self) -> None:
        """Start nothing new; running trials finish. Works in callbacks, samplers and objectives."""
        self.stop_requested = True

    def claim_trial(self) -> FrozenTrial:
        """Claim a waiting trial, else create one: committed on return."""
        waiting = self.held.image.counts[TrialState.WAITING]
        for trial in self.held.image.trials((TrialState.WAITING,)) if waiting else ():
            if self.held.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return self.held.image.trial(trial._trial_id)
        return self.held.image.trial(self.held.storage.create_new_trial(self._study_id))

    def draw(self, trial_id: int, number: int, space: Space) -> dict[str, Draw]:
        """The joint draw of a claimed trial, and with a ``space`` all its parameters at once.

        Whatever the sampler or the space raises comes out as it is.
        """
        self._thread_local.cached_all_trials = None
        self._reseed(number)
        if isinstance(space, Mapping) and blind.is_blind(self.sampler) and self._is_blank(trial_id):
            if self._draws is None or self._draws[0] is not space:
                self._draws = space, blind.Draws(self.sampler, space)
            self.held.storage.set_trial_params(trial_id, self._draws[1])
            return {}
        trial = optuna.Trial(self, trial_id)
        drawn = joint_draw(trial)
        if callable(space):
            space(trial)
        elif space is not None:
            for name, dist in space.items():
                trial._suggest(name, dist)
        return drawn

    def _is_blank(self, trial_id: int) -> bool:
        """Nobody has said anything about a trial's parameters."""
        trial = self.held.image.trial(trial_id)
        return not trial._params and "fixed_params" not in trial._system_attrs

    def sample(self, trial_id: int, name: str, distribution: str) -> float:
        """A parameter that did not travel with its trial, in internal representation.

        The same name has the same value for every rank of a trial.
        """
        trial = self.held.image.trial(trial_id)
        if name in trial.params:
            return float(trial.distributions[name].to_internal_repr(trial.params[name]))
        dist = json_to_distribution(distribution)
        internal = self._independent(trial, name, dist)
        self.held.storage.set_trial_param(trial_id, name, internal, dist)
        return internal

    def ahead(self, trial_id: int, drawn: Container[str]) -> dict[str, Draw]:
        """What a trial will probably ask for, drawn before it does: the parameters of the trial that ended
        last. They are its own only once it suggests them.

        Args:
            drawn: names that travel with it anyway.
        """
        if blind.is_blind(self.sampler) or not samplers.draws_alone(self.sampler):
            return {}  # of a blind one the rank draws itself
        trial = self.held.image.trial(trial_id)
        known = {*trial.params, *trial.system_attrs.get("fixed_params", ())}
        found = {}
        for name, dist in self._space.items():
            if name in known or name in drawn or dist.single():
                continue
            try:
                value = self._independent(trial, name, dist)
                found[name] = Draw(value=value, distribution=distribution_text(dist))
            except Exception as error:  # the trial hears of it, if it asks
                log.debug("%s is not drawn ahead: %s", name, error)
        return found

    def _independent(self, trial: FrozenTrial, name: str, dist: BaseDistribution) -> float:
        """A draw of one parameter, which follows from the history, the trial's number and the name alone."""
        self._thread_local.cached_all_trials = None
        self._reseed(trial.number, name)
        filtered = optuna.pruners._filter_study(self, trial)
        value = self.sampler.sample_independent(filtered, trial, name, dist)
        return float(dist.to_internal_repr(value))

    def apply(self, trial_id: int, attempt: int, message: Message) -> None:
        """Take in what an objective said: a parameter, a report, a metric, an attribute.

        Raises:
            storage.Refused: a value that cannot be stored; nothing of the message was.
        """
        store = self.held.storage
        match message:
            case Param(name=name, value=value, distribution=text):
                if name not in self.held.image.trial(trial_id).params:
                    self._set_param(trial_id, name, value, json_to_distribution(text))
            case Report(step=step, value=value):
                self._report(trial_id, ((step, value),))
            case Reports(values=values):
                self._report(trial_id, values)
            case Log(step=step, metrics=metrics):
                for name, value in metrics.items():
                    if (name, step) in self.logged.get(trial_id, ()):
                        continue
                    metric = AddMetric(
                        study_uid=self.held.uid,
                        trial_id=trial_id,
                        attempt=attempt,
                        name=name,
                        step=step,
                        value=value,
                    )
                    self.held.queue(metric)
            case UserAttr(key=key, value=value):
                store.set_trial_user_attr(trial_id, key, value)
            case SystemAttr(key=key, value=value):
                store.set_trial_system_attr(trial_id, key, value)
            case Constraint(key=key, value=value):
                store.set_trial_system_attr(trial_id, f"constraints:{key}", value)
            case Unanswered(ordinal=ordinal):
                self.event(
                    "should_prune_unanswered", {"ordinal": ordinal}, trial_id=trial_id, attempt=attempt
                )
            case _:
                raise TypeError(f"an objective does not send {message!r}")

    def _report(self, trial_id: int, values: Sequence[tuple[int, float]]) -> None:
        known = self.held.image.trial(trial_id).intermediate_values
        fresh: dict[int, float] = {}
        for step, value in values:
            if step not in known:
                fresh.setdefault(step, value)  # the first stands
        self.held.storage.set_trial_intermediate_values(trial_id, fresh)

    def verdict(self, trial_id: int, attempt: int) -> bool:
        """``should_prune`` for every report so far. A True is committed, with its reason, on return."""
        trial = self.held.image.trial(trial_id)
        self._thread_local.cached_all_trials = None
        resources = samplers.resources(self.pruner)
        prune = self._pruning.prune(trial)
        if samplers.resources(self.pruner) != resources:  # decided now, and once for all drivers
            columns = {"pruner": samplers.text_of(self.pruner)}
            self.held.queue(SetStudyRow(study_uid=self.held.uid, columns=columns))
        if not prune:
            return False
        if self.held.keeps_events:
            self.event("should_prune", self._inputs(trial_id), trial_id=trial_id, attempt=attempt)
        self.held.flush()
        return True

    def _inputs(self, trial_id: int) -> dict[str, Any]:
        """What a True verdict came from."""
        trial = self.held.image.trial(trial_id)  # with the rung that the pruner has just noted
        step = trial.last_step
        return {
            "pruner": type(self.pruner).__name__,
            **self._pruning.compared(trial),
            "step": step,
            "value": None if step is None else pruning.plain(trial.intermediate_values[step]),
            "seq": len(trial.intermediate_values),
            "finished": sum(count for state, count in self.held.image.counts.items() if state.is_finished()),
        }

    def finish(
        self,
        number: int,
        outcome: Outcome,
        state: TrialState,
        end: EndAttempt,
        then: Callable[[bool], object],
    ) -> None:
        """Queue a trial's outcome as a state, and the end of its attempt, as one transaction.

        Args:
            then: called after the commit, from any thread: whether the state is this one.

        Raises:
            optuna.exceptions.UpdateFinishedTrialError: another program told it first, and that is known.
        """
        self.held.endings[end.trial_id] = Ending(write=end, then=then)
        detail = {"reason": outcome.reason, "state": state.name, "message": outcome.message}
        self.event("finished", detail, trial_id=end.trial_id, attempt=end.attempt)
        values = list(outcome.values) if state is TrialState.COMPLETE else None
        self._space = self.held.image.trial(end.trial_id)._distributions or self._space
        try:
            _tell_with_warning(self, number, values, state)  # tell() would copy the trial for its caller
        except (storage.StorageError, UpdateFinishedTrialError):
            self.held.endings.pop(end.trial_id, None)
            raise
        except Exception as error:  # of the sampler's own look back: Optuna has told the trial all the same
            if end.trial_id in self.held.endings:
                raise
            text = (
                f"{type(self.sampler).__name__} failed after trial {number}: {type(error).__name__}: {error}"
            )
            log.warning("%s", text)
            self.event("sampler_failed", {"message": text}, trial_id=end.trial_id, attempt=end.attempt)

    def event(self, kind: str, detail: Mapping[str, Any], **fields: Any) -> None:
        """Queue a line of the study's event log."""
        if not self.held.keeps_events:
            return
        text = _ENCODE(detail)
        epoch, now = self.held.lease.epoch, utcnow()
        self.run = Run(epoch=epoch, began=self.run.began if self.run else now, last=now)
        event = AddEvent(study_uid=self.held.uid, epoch=epoch, kind=kind, detail=text, at=now, **fields)
        self.held.queue(event)
        if log.isEnabledFor(logging.INFO):
            trial_id = fields.get("trial_id")
            known = {
                "event": kind,
                "trial": None if trial_id is None else self.held.image.trial(trial_id).number,
                "attempt": fields.get("attempt"),
                "detail": detail,
            }
            log.info("%s %s", kind, text, extra=known)

    def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Answer a member of ``trial.study`` in JSON form.

        Raises:
            ValueError: no such member, or no trial that it could name yet.
        """
        if method == "stop":
            return self.stop()
        if method in ("user_attrs", "system_attrs"):
            return getattr(self, method)
        if method in ("best_trial", "best_params", "best_value", "best_values"):
            return frozen.trials_to_json([self.best_trial])
        if method == "best_trials":
            return frozen.trials_to_json(self.best_trials)
        if method in ("get_trials", "trials"):
            names = arguments.get("states")
            states = None if names is None else tuple(TrialState[name] for name in names)
            return frozen.trials_to_json(self.held.image.trials(states))
        raise ValueError(f"trial.study has no {method!r} on a worker")

    def _go_on(self) -> None:
        """Hyperband gives each trial a bracket from its first verdict on, and the sampler sees only those of
        the same one: a driver that goes on with a study begins where the one before it was.
        """
        trials = self.held.image.trials()
        if isinstance(self.pruner, optuna.pruners.HyperbandPruner) and any(
            trial.intermediate_values for trial in trials
        ):
            self.pruner.prune(self, optuna.trial.create_trial(state=TrialState.RUNNING))

    def _set_param(self, trial_id: int, name: str, value: float, dist: BaseDistribution) -> None:
        try:
            self.held.storage.set_trial_param(trial_id, name, value, dist)
        except UpdateFinishedTrialError:
            raise
        except (ValueError, RuntimeError) as error:  # Optuna's: not the distribution of other trials
            raise storage.Refused(f"parameter {name!r}: {error}") from error

    def _reseed(self, number: int, *labels: str) -> None:
        samplers.reseed(self.sampler, derived_seed(self.seed, number, *labels))


def joint_draw(trial: optuna.Trial) -> dict[str, Draw]:
    """What the sampler draws for a trial before it asks."""
    params = trial.relative_params  # to read them is what makes the sampler draw, and say from what
    space = trial.relative_search_space or {}
    return {
        name: Draw(
            value=float(space[name].to_internal_repr(value)), distribution=distribution_text(space[name])
        )
        for name, value in params.items()
    }


def check_space(space: Any) -> Space:
    """Refuse a space that is neither distributions by name nor a function.

    Raises:
        BadInput: names what was given.
    """
    if space is None:
        return None
    if callable(space):
        chosen: Callable[[optuna.Trial], object] = space
        return chosen
    if isinstance(space, Mapping) and all(isinstance(dist, BaseDistribution) for dist in space.values()):
        return dict(space)
    raise BadInput(
        f"space={space!r}: give a dict of Optuna distributions, such as "
        '{"lr": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)}, or a function of the trial'
    )
