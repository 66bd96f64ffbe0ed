"""Optuna's storage interface over a study that this process holds."""

from __future__ import annotations

import copy
import datetime as dt
import itertools
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from storage.clock import to_local, to_utc, utcnow
from storage.errors import Unavailable
from storage.execution import DROPPED
from storage.image import clone
from storage.limits import (
    check_key,
    check_step,
    check_template,
    check_values,
    distribution_text,
    to_json,
)
from storage.writes import (
    AddReport,
    CreateTrial,
    FinishTrial,
    PopWaiting,
    SetParam,
    SetStudyAttr,
    SetTrialAttr,
    attributes_json,
)

if TYPE_CHECKING:
    from storage.held import HeldStudy

__all__ = ["HeldStorage"]


_provisional = itertools.count(-1, -1)
_SCALARS = frozenset({bool, float, int, str, type(None)})  # JSON gives back the same


class HeldStorage(BaseStorage):
    """Reads from the image, writes through :class:`~storage.held.HeldStudy`: that study, and no other.

    Safe under threads. A finished trial that is added (``study.add_trial``) is queued, and the
    database gives its id later: the negative number that :meth:`create_new_trial` returns for it
    stands for that id in every method here.
    """

    def __init__(self, held: HeldStudy) -> None:
        self._held = held
        self._real: dict[int, int | None] = {}  # of added trials; None: not in the database yet
        self._waiting = 0
        self._distributions: dict[str, BaseDistribution] = {}

    def __getstate__(self) -> NoReturn:
        raise TypeError("a held storage belongs to its driver's process and is never sent elsewhere")

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._held.image or trial_id in self._real

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        raise self._only_this_study()

    def delete_study(self, study_id: int) -> None:
        raise self._only_this_study()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr("user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr("system", key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name != self._held.record.name:
            raise KeyError(f"no study {study_name!r} here")
        return self._held.record.study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._held.record.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [StudyDirection[direction.upper()] for direction in self._held.record.directions]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        with self._held.lock:
            return dict(self._held.image.user_attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        with self._held.lock:
            return dict(self._held.image.system_attrs)

    def get_all_studies(self) -> list[FrozenStudy]:
        record = self._held.record
        return [
            FrozenStudy(
                study_name=record.name,
                direction=None,
                directions=self.get_study_directions(record.study_id),
                user_attrs=self.get_study_user_attrs(record.study_id),
                system_attrs=self.get_study_system_attrs(record.study_id),
                study_id=record.study_id,
            )
        ]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """A new trial; durable on return, unless ``template_trial`` is finished: then it is queued."""
        held = self._held
        if template_trial is not None:
            check_template(template_trial)
            with held.lock:
                for name, dist in template_trial._distributions.items():
                    self._check_compatible(name, dist)
        trial = _empty_trial() if template_trial is None else clone(template_trial)
        started = utcnow() if template_trial is None else to_utc(template_trial.datetime_start)
        write = CreateTrial(
            study_id=study_id,
            study_uid=held.uid if held.claims else "",
            epoch=held.lease.epoch,
            started=started,
            template=None if template_trial is None else trial,
        )
        if trial.state.is_finished():
            return self._add(trial, write)
        return self._created(trial, write, held.flush(write)[0])

    def create_soon(self, then: Callable[[FrozenTrial], None]) -> None:
        """A new trial with the next commit; then ``then`` gets it, from whichever thread commits."""
        held = self._held
        write = CreateTrial(
            study_id=held.record.study_id,
            study_uid=held.uid if held.claims else "",
            epoch=held.lease.epoch,
            started=utcnow(),
        )

        def created(results: Sequence[Any]) -> None:
            then(held.image.trial(self._created(_empty_trial(), write, results[0])))

        held.queue(write, then=created)

    def _created(self, trial: FrozenTrial, write: CreateTrial, result: tuple[int, int]) -> int:
        """The database has given a trial its id and number."""
        held = self._held
        trial._trial_id, trial.number = result
        trial.datetime_start = to_local(write.started)
        with held.lock:
            held.image.put([trial])
            if trial.state == TrialState.RUNNING and held.claims:
                held.own(trial._trial_id, attributes_json(write.template))
        return int(trial._trial_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self.set_trial_params(trial_id, [(param_name, distribution, param_value_internal)])

    def set_trial_params(self, trial_id: int, params: Iterable[tuple[str, BaseDistribution, float]]) -> None:
        """Set parameters that a trial does not have yet: name, distribution, internal representation."""
        held, writes = self._held, []
        with held.lock:
            trial = self._writable(trial_id)
            try:
                for name, distribution, value in params:
                    check_key(name)
                    self._check_compatible(name, distribution)
                    if name in trial._params:
                        continue  # the first value stands
                    text = distribution_text(distribution)
                    write = SetParam(
                        trial_id=trial._trial_id, name=name, value=float(value), distribution=text
                    )
                    trial._params[name] = distribution.to_external_repr(value)
                    trial._distributions[name] = distribution
                    writes.append(write)
            finally:
                held.queue(*writes)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change a trial's state; durable on return, unless its end is among the study's ``endings``.

        Raises:
            UpdateFinishedTrialError: it was finished before, here or by another program.
        """
        held, trial = self._held, self._updatable(trial_id)
        trial_id = trial._trial_id
        if state == TrialState.RUNNING:
            return trial.state == TrialState.WAITING and self._pop(trial)
        if not state.is_finished():
            raise ValueError(
                f"trial {trial.number} is held by this process and does not go back to {state.name}"
            )
        now = utcnow()
        numbers = None if values is None else tuple(float(value) for value in values)
        check_values(numbers)
        ending = held.endings.pop(trial_id, None)
        end = None if ending is None else ending.write
        write = FinishTrial(trial_id=trial_id, state=state, values=numbers, completed=now, end=end)
        if ending is None:
            if not self._finished(write, held.flush(write)):
                raise UpdateFinishedTrialError(f"trial {trial.number} was finished by another program first")
            return True
        then = ending.then
        held.queue(write, then=lambda results: then(self._finished(write, results)))
        return True

    def _finished(self, write: FinishTrial, results: Sequence[Any]) -> bool:
        """The database has answered to the end of a trial; whether it took it."""
        held, trial_id = self._held, write.trial_id
        with held.lock:
            if results[0] is DROPPED or results[0] is False:
                if trial_id in held.owned:
                    held.finished_elsewhere.add(trial_id)
                return False
            completed = to_local(write.completed)
            held.image.transition(trial_id, write.state, values=write.values, completed=completed)
            held.owned.discard(trial_id)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.set_trial_intermediate_values(trial_id, {step: intermediate_value})

    def set_trial_intermediate_values(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Set several at once, by step; those before one that is refused are set."""
        held, writes = self._held, []
        with held.lock:
            trial = self._writable(trial_id)
            try:
                for step, given in values.items():
                    check_step(step)
                    value = trial.intermediate_values[step] = float(given)
                    writes.append(AddReport(trial_id=trial._trial_id, step=step, value=value))
            finally:
                held.queue(*writes)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set_trial_attr("user", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set_trial_attr("system", trial_id, key, value)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        self.settle()
        with self._held.lock:
            return self._held.image.numbered(trial_number)._trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial_id = self._id(trial_id)
        with self._held.lock:
            return self._held.image.lend(self._held.image.trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        self.settle()
        image = self._held.image
        with self._held.lock:
            trials = image.trials(states)
            for trial in image.unfinished():
                image.lend(trial)
        return copy.deepcopy(trials) if deepcopy else trials

    def _add(self, trial: FrozenTrial, write: CreateTrial) -> int:
        """Queue a finished trial; the number that stands for its id."""
        held = self._held

        def then(results: Sequence[Any]) -> None:
            with held.lock:
                trial._trial_id, trial.number = results[0]
                held.image.put([trial])
                self._real[provisional] = trial._trial_id
                self._waiting -= 1

        provisional = next(_provisional)
        with held.lock:
            self._waiting += 1
            self._real[provisional] = None
        held.queue(write, then=then)
        return provisional

    def settle(self) -> None:
        """Have every added trial in the image."""
        if self._waiting:
            self._held.flush()

    def _id(self, trial_id: int) -> int:
        if trial_id >= 0:
            return trial_id
        if self._real[trial_id] is None:
            self._held.flush()
        real = self._real[trial_id]
        if real is None:
            raise Unavailable("the database is away, and the added trial is not in it yet")
        return real

    def _pop(self, trial: FrozenTrial) -> bool:
        """Claim a waiting trial; False when another program was first."""
        held, now = self._held, utcnow()
        write = PopWaiting(
            study_uid=held.uid if held.claims else "",
            trial_id=trial._trial_id,
            number=trial.number,
            epoch=held.lease.epoch,
            started=now,
            attributes=attributes_json(trial),
        )
        if held.flush(write)[0] is False:
            held.refresh()
            return False
        with held.lock:
            held.image.transition(trial._trial_id, TrialState.RUNNING, started=to_local(now))
            if held.claims:
                held.own(trial._trial_id, write.attributes)
        return True

    def _set_trial_attr(self, kind: str, trial_id: int, key: str, value: Any) -> None:
        text = to_json(key, value)
        held = self._held
        with held.lock:
            trial = self._writable(trial_id)
            attrs = trial._user_attrs if kind == "user" else trial._system_attrs
            attrs[key] = value if type(value) in _SCALARS else json.loads(text)
            held.queue(SetTrialAttr(trial_id=trial._trial_id, kind=kind, key=key, value_json=text))

    def _set_study_attr(self, kind: str, key: str, value: Any) -> None:
        text = to_json(key, value)
        held = self._held
        write = SetStudyAttr(study_id=held.record.study_id, kind=kind, key=key, value_json=text)
        with held.lock:
            attrs = held.image.user_attrs if kind == "user" else held.image.system_attrs
            attrs[key] = json.loads(text)
            held.attributes_set += 1
            held.queue(write)

    def _check_compatible(self, name: str, given: BaseDistribution) -> None:
        """Refuse a distribution that Optuna takes for another parameter's.

        Raises:
            ValueError: of another kind, or with other choices, than the study's trials have.
        """
        known = self._distributions.get(name)
        if known is None:
            for other in reversed(self._held.image.trials()):
                if name in other._distributions:
                    known = other._distributions[name]
                    break
        if known is not None and known is not given:
            check_distribution_compatibility(known, given)
        self._distributions[name] = given

    def _updatable(self, trial_id: int) -> FrozenTrial:
        trial_id = self._id(trial_id)
        with self._held.lock:
            trial = self._held.image.trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return trial

    def _writable(self, trial_id: int) -> FrozenTrial:
        trial = self._updatable(trial_id)
        return self._held.image.writable(trial._trial_id)

    def _only_this_study(self) -> RuntimeError:
        return RuntimeError(f"only study {self._held.record.name!r} is open here; use its database's URL")


def _empty_trial() -> FrozenTrial:
    return FrozenTrial(
        number=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=dt.datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=-1,
    )
