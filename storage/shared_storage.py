"""Optuna's storage interface for studies that this process does not hold: one call, one transaction."""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import uuid
from collections.abc import Container, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from storage import studies
from storage.clock import to_utc, utcnow
from storage.database import Database
from storage.execution import DROPPED, execute
from storage.image import StudyImage, clone
from storage.limits import check_key, check_step, check_template, check_values, to_json
from storage.rows import distribution, read_trials
from storage.tables import optuna_tables
from storage.writes import (
    AddReport,
    CreateTrial,
    FinishTrial,
    PopWaiting,
    SetParam,
    SetStudyAttr,
    SetTrialAttr,
    Write,
)

__all__ = ["SharedStorage"]

_STUDIES, _WAYS, _TRIALS, _PARAMS = (
    optuna_tables[name] for name in ("studies", "study_directions", "trials", "trial_params")
)
_OPEN = (TrialState.RUNNING, TrialState.WAITING)


class SharedStorage(BaseStorage):
    """Every call is a transaction, durable when it returns; every read sees what is committed.

    Finished trials are kept in memory once read: they do not change any more.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._images: dict[int, StudyImage] = {}
        self._names: dict[int, str] = {}

    def forget(self, study_id: int) -> None:
        """Read the study anew next time."""
        with self._lock:
            self._images.pop(study_id, None)

    def study_of(self, trial_id: int) -> int:
        """The id of the trial's study.

        Raises:
            KeyError: there is no such trial.
        """
        with self._database.errors(), self._database.read() as connection:
            return int(self._row(connection, trial_id).study_id)

    # ------------------------------------------------------------------ studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}" if study_name is None else study_name
        if name:
            studies.check_name(name)
        if studies.find(self._database, name) is None:  # a look waits for nobody's lock
            with (
                contextlib.suppress(sa.exc.IntegrityError),
                self._database.errors(),
                self._database.write() as connection,
            ):
                return studies.insert(connection, name, directions)
        raise DuplicatedStudyError(
            f"Another study with name '{name}' already exists. "
            "Please specify a different name, or reuse the existing one by setting "
            "`load_if_exists` (for Python API) or `--skip-if-exists` flag (for CLI)."
        )

    def delete_study(self, study_id: int) -> None:
        if not studies.delete(self._database, self.get_study_name_from_id(study_id)):
            raise KeyError(f"no study {study_id}")
        self.forget(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr(study_id, "user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr(study_id, "system", key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        query = sa.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study_name)
        with self._database.errors(), self._database.read() as connection:
            found = connection.execute(query).scalar_one_or_none()
        if found is None:
            raise KeyError(f"no study {study_name!r}")
        return int(found)

    def get_study_name_from_id(self, study_id: int) -> str:
        with self._database.errors(), self._database.read() as connection:
            return self._name(connection, study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        query = sa.select(_WAYS.c.direction).where(_WAYS.c.study_id == study_id).order_by(_WAYS.c.objective)
        with self._database.errors(), self._database.read() as connection:
            self._name(connection, study_id)
            return list(connection.execute(query).scalars())

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study_attrs("user", study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study_attrs("system", study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        with self._database.errors(), self._database.read() as connection:
            names = connection.execute(sa.select(_STUDIES).order_by(_STUDIES.c.study_id)).all()
            ways: dict[int, list[StudyDirection]] = {}
            for row in connection.execute(sa.select(_WAYS).order_by(_WAYS.c.objective)):
                ways.setdefault(row.study_id, []).append(row.direction)
            attrs: dict[str, dict[int, dict[str, Any]]] = {"user": {}, "system": {}}
            for kind, found in attrs.items():
                for row in connection.execute(sa.select(optuna_tables[f"study_{kind}_attributes"])):
                    found.setdefault(row.study_id, {})[row.key] = json.loads(row.value_json)
        return [
            FrozenStudy(
                study_name=row.study_name,
                direction=None,
                directions=ways[row.study_id],
                user_attrs=attrs["user"].get(row.study_id, {}),
                system_attrs=attrs["system"].get(row.study_id, {}),
                study_id=row.study_id,
            )
            for row in names
        ]

    # ------------------------------------------------------------------ trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        started = utcnow()
        if template_trial is not None:
            check_template(template_trial)
            started = to_utc(template_trial.datetime_start)  # type: ignore[assignment]
        write = CreateTrial(
            study_id=study_id,
            study_uid="",
            epoch=0,
            started=started,
            template=None if template_trial is None else clone(template_trial),
        )
        with self._database.errors(), self._database.write() as connection:
            studies.lock(connection, study_id)
            self._name(connection, study_id)
            for name, dist in ({} if write.template is None else write.template.distributions).items():
                self._check_compatible(connection, study_id, name, dist)
            return int(execute(connection, [write])[0][0])

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        check_key(param_name)
        write = SetParam(
            trial_id=trial_id,
            name=param_name,
            value=float(param_value_internal),
            distribution=distribution_to_json(distribution),
        )
        with self._database.errors(), self._database.write() as connection:
            study_id = self._updatable(connection, trial_id)
            self._check_compatible(connection, study_id, param_name, distribution)
            execute(connection, [write])

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        now = utcnow()
        numbers = None if values is None else tuple(float(value) for value in values)
        check_values(numbers)
        write: Write
        if state == TrialState.RUNNING:
            write = PopWaiting(study_uid="", trial_id=trial_id, number=0, epoch=0, started=now, attributes="")
        elif state.is_finished():
            write = FinishTrial(trial_id=trial_id, state=state, values=numbers, completed=now)
        with self._database.errors(), self._database.write() as connection:
            self._updatable(connection, trial_id)
            if state == TrialState.WAITING:
                update = _TRIALS.update().where(_TRIALS.c.trial_id == trial_id, _TRIALS.c.state.in_(_OPEN))
                return connection.execute(update.values(state=state)).rowcount == 1
            result = execute(connection, [write])[0]
        if result is DROPPED:
            raise UpdateFinishedTrialError(f"trial {trial_id} was finished by another program first")
        return bool(result)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        check_step(step)
        self._write(trial_id, AddReport(trial_id=trial_id, step=step, value=float(intermediate_value)))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        text = to_json(key, value)
        self._write(trial_id, SetTrialAttr(trial_id=trial_id, kind="user", key=key, value_json=text))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        text = to_json(key, value)
        self._write(trial_id, SetTrialAttr(trial_id=trial_id, kind="system", key=key, value_json=text))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        query = sa.select(_TRIALS.c.trial_id).where(
            _TRIALS.c.study_id == study_id, _TRIALS.c.number == trial_number
        )
        with self._database.errors(), self._database.read() as connection:
            found = connection.execute(query).scalar()
        if found is None:
            raise KeyError(f"no trial {trial_number} in study {study_id}")
        return int(found)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._database.errors(), self._database.read() as connection:
            study_id = self._row(connection, trial_id).study_id
            return read_trials(connection, study_id, [trial_id])[0]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._lock:
            trials = self._synced(study_id).trials(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def _synced(self, study_id: int) -> StudyImage:
        """The study's image with everything that is committed by now."""
        with self._database.errors(), self._database.read() as connection:
            name = self._name(connection, study_id)
            image = self._images.get(study_id)
            if image is None or self._names.get(study_id) != name or not self._is_same(connection, image):
                image = self._images[study_id] = StudyImage()
                self._names[study_id] = name
                image.put(read_trials(connection, study_id))
                return image
            known = [trial._trial_id for trial in image.unfinished()]
            last = image.last()
            seen = -1 if last is None else last._trial_id
            fresh = (_TRIALS.c.trial_id > seen) | _TRIALS.c.trial_id.in_(known)
            query = sa.select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id, fresh)
            changed = sorted(connection.execute(query).scalars())
            if changed:
                image.put(read_trials(connection, study_id, changed))
            return image

    def _is_same(self, connection: Connection, image: StudyImage) -> bool:
        """False where SQLite gave the ids of a deleted study to another of the same name."""
        last = image.last()
        if last is None:
            return True
        query = sa.select(_TRIALS.c.datetime_start, _TRIALS.c.number).where(
            _TRIALS.c.trial_id == last._trial_id
        )
        row = connection.execute(query).one_or_none()
        if row is None or row.number != last.number:
            return False
        return row.datetime_start == to_utc(last.datetime_start) or not last.state.is_finished()

    def _row(self, connection: Connection, trial_id: int) -> Any:
        query = sa.select(_TRIALS.c.study_id, _TRIALS.c.number, _TRIALS.c.state)
        row = connection.execute(query.where(_TRIALS.c.trial_id == trial_id)).one_or_none()
        if row is None:
            raise KeyError(f"no trial with id {trial_id}")
        return row

    def _name(self, connection: Connection, study_id: int) -> str:
        query = sa.select(_STUDIES.c.study_name).where(_STUDIES.c.study_id == study_id)
        name = connection.execute(query).scalar_one_or_none()
        if name is None:
            raise KeyError(f"no study with id {study_id}")
        return str(name)

    def _updatable(self, connection: Connection, trial_id: int) -> int:
        """The study's id of a trial that takes writes."""
        row = self._row(connection, trial_id)
        if row.state.is_finished():
            raise UpdateFinishedTrialError(f"Trial#{row.number} has already finished and can not be updated.")
        return int(row.study_id)

    def _write(self, trial_id: int, write: Write) -> None:
        with self._database.errors(), self._database.write() as connection:
            self._updatable(connection, trial_id)
            if execute(connection, [write])[0] is DROPPED:
                raise UpdateFinishedTrialError(f"trial {trial_id} was finished by another program first")

    def _check_compatible(
        self, connection: Connection, study_id: int, name: str, given: BaseDistribution
    ) -> None:
        query = (
            sa.select(_PARAMS.c.distribution_json)
            .join(_TRIALS, _TRIALS.c.trial_id == _PARAMS.c.trial_id)
            .where(_TRIALS.c.study_id == study_id, _PARAMS.c.param_name == name)
            .limit(1)
        )
        known = connection.execute(query).scalar()
        if known is not None:
            check_distribution_compatibility(distribution(known), given)

    def _set_study_attr(self, study_id: int, kind: str, key: str, value: Any) -> None:
        write = SetStudyAttr(study_id=study_id, kind=kind, key=key, value_json=to_json(key, value))
        with self._database.errors(), self._database.write() as connection:
            self._name(connection, study_id)
            execute(connection, [write])

    def _study_attrs(self, kind: str, study_id: int) -> dict[str, Any]:
        table = optuna_tables[f"study_{kind}_attributes"]
        query = sa.select(table.c.key, table.c.value_json).where(table.c.study_id == study_id)
        with self._database.errors(), self._database.read() as connection:
            self._name(connection, study_id)
            return {row.key: json.loads(row.value_json) for row in connection.execute(query)}
