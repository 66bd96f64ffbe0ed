"""The store of a study's lease holder: reads from memory, writes in order, one transaction a flush.

:class:`HeldStudy` is what the driver uses; :class:`HeldStorage` is its face towards Optuna's
samplers and pruners. Used from one thread.

What is durable when:

- creating a trial, popping a waiting one, and a change of state flush at once, with everything
  queued before them, as one transaction;
- everything else is queued, and durable when :meth:`HeldStudy.flush` returns.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from storage import tables
from storage.clock import to_local, to_utc, utcnow
from storage.errors import UnknownStudy
from storage.image import StudyImage
from storage.lease import DROPPED, Lease
from storage.limits import check_key, check_step, to_json
from storage.rows import read_trials
from storage.studies import StudyRecord
from storage.tables import optuna_tables
from storage.writes import (
    AddReport,
    CreateTrial,
    EndAttempt,
    FinishTrial,
    PopWaiting,
    SetParam,
    SetStudyAttr,
    SetTrialAttr,
    Supersede,
    Write,
    attributes_json,
)

__all__ = ["AttemptRecord", "CheckpointRecord", "CommandRecord", "HeldStorage", "HeldStudy"]


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """An attempt as the database has it; see ``tuner_attempts``."""

    trial_id: int
    number: int
    attempt: int
    state: str
    reason: str | None
    charged: bool
    resumed_step: int | None
    relative: str | None
    attributes: str | None
    ranks: str | None


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """One rank's part of a checkpoint; see ``tuner_checkpoints``."""

    attempt: int
    step: int
    rank: int
    world_size: int
    path: str
    digest: str
    size: int
    attributes: str | None


@dataclass(frozen=True, kw_only=True)
class CommandRecord:
    """A command that waits to be carried out; ``arguments`` is plain data."""

    command_id: int
    name: str
    arguments: dict[str, Any]


class HeldStudy:
    """A study whose lease this process holds.

    Args:
        lease: acquired; its commit is the only way in which this object writes.
        record: the study's rows.

    Attributes:
        image: the study in memory.
        storage: the same for Optuna.
        owned: ids of the trials that this driver, or one before it, dispatched.
        endings: by trial id, the end of the attempt that goes into the transaction of the next
            terminal state.
        finished_elsewhere: ids of trials of ours that another program told; the driver takes them out.
    """

    def __init__(self, lease: Lease, record: StudyRecord) -> None:
        self.lease = lease
        self.record = record
        self.image = StudyImage()
        self.owned: set[int] = set()
        self.endings: dict[int, EndAttempt] = {}
        self.finished_elsewhere: set[int] = set()
        self._queue: list[Write] = []
        with lease.database.errors(), lease.database.read() as connection:
            self.image.put(read_trials(connection, record.study_id))
        self._seen = max((trial._trial_id for trial in self.image.trials()), default=0)
        self._read_attributes()
        self.storage = HeldStorage(self)

    @property
    def uid(self) -> str:
        """Our uid of the study."""
        return self.record.uid

    def queue(self, *writes: Write) -> None:
        """Add writes that are durable with the next :meth:`flush`."""
        self._queue += writes

    def flush(self, *writes: Write) -> list[Any]:
        """Commit what is queued and then ``writes``, as one transaction; the results of ``writes``.

        Raises:
            LeaseLost, Unavailable: see :meth:`storage.lease.Lease.commit`.
        """
        batch = [*self._queue, *writes]
        if not batch:
            return []
        results = self.lease.commit(batch)
        self._queue.clear()
        for write, result in zip(batch, results, strict=True):
            if result is DROPPED and write.trial_id in self.owned:  # type: ignore[attr-defined]
                self.finished_elsewhere.add(write.trial_id)  # type: ignore[attr-defined]
        return results[len(results) - len(writes) :]

    def refresh(self) -> None:
        """Take in what other programs did: new and changed trials, attributes, a deleted study.

        Raises:
            UnknownStudy: the study was deleted, or renamed, under us.
        """
        self._read_attributes()
        trials = optuna_tables["trials"]
        open_states = (TrialState.RUNNING, TrialState.WAITING)
        with self.lease.database.errors(), self.lease.database.read() as connection:
            fresh = (trials.c.trial_id > self._seen) | trials.c.state.in_(open_states)
            query = sa.select(trials.c.trial_id, trials.c.state).where(
                trials.c.study_id == self.record.study_id, fresh
            )
            found: dict[int, TrialState] = dict(connection.execute(query).all())
            known = {trial._trial_id: trial.state for trial in self.image.trials(open_states)}
            gone = {trial_id for trial_id in known if found.get(trial_id) not in open_states}
            self.finished_elsewhere |= gone & self.owned
            done = {trial._trial_id for trial in self.image.trials() if trial.state.is_finished()}
            changed = (set(found) - self.owned - done) | gone
            reread = read_trials(connection, self.record.study_id, sorted(changed))
        self._seen = max([self._seen, *found])
        self.image.put(reread)
        for trial_id in changed - {trial._trial_id for trial in reread}:
            self.image.drop(trial_id)

    def attempts(self, trial_id: int | None = None) -> list[AttemptRecord]:
        """The attempts of one trial, or of every trial that has an open attempt, in order."""
        table = tables.attempts
        mine = table.c.study_uid == self.uid
        if trial_id is None:
            opened = sa.select(table.c.trial_id).where(mine, table.c.state != "ended")
            where = mine & table.c.trial_id.in_(opened)
        else:
            where = mine & (table.c.trial_id == trial_id)
        names = AttemptRecord.__dataclass_fields__
        query = sa.select(*(table.c[name] for name in names)).where(where)
        with self.lease.database.errors(), self.lease.database.read() as connection:
            rows = connection.execute(query.order_by(table.c.number, table.c.attempt)).mappings()
            return [AttemptRecord(**{**row, "charged": bool(row["charged"])}) for row in rows]

    def checkpoints(self, trial_id: int) -> list[CheckpointRecord]:
        """Every recorded part of the trial's checkpoints, newest first, ranks in order."""
        table = tables.checkpoints
        query = sa.select(*(table.c[name] for name in CheckpointRecord.__dataclass_fields__))
        query = query.where(table.c.study_uid == self.uid, table.c.trial_id == trial_id)
        order = (table.c.attempt.desc(), table.c.step.desc(), table.c.rank)
        with self.lease.database.errors(), self.lease.database.read() as connection:
            return [CheckpointRecord(**row) for row in connection.execute(query.order_by(*order)).mappings()]

    def commands(self) -> list[CommandRecord]:
        """Commands of the dashboard and the command line that wait, oldest first."""
        table = tables.commands
        query = sa.select(table.c.command_id, table.c.name, table.c.arguments)
        query = query.where(table.c.study_uid == self.uid, table.c.done_at.is_(None))
        with self.lease.database.errors(), self.lease.database.read() as connection:
            return [
                CommandRecord(command_id=row.command_id, name=row.name, arguments=json.loads(row.arguments))
                for row in connection.execute(query.order_by(table.c.command_id))
            ]

    def supersede(self, trial_id: int, attempt: int, after_step: int, attributes: str) -> Supersede:
        """Take a trial back, in memory, to a checkpoint; the write that does it in the database.

        Args:
            after_step: reports above this step are superseded; -1 for all.
            attributes: JSON of the attributes at that moment, as
                :func:`~storage.writes.attributes_json` gives it.
        """
        trial = self.image.trial(trial_id)
        kept = json.loads(attributes)
        steps = {step: value for step, value in trial.intermediate_values.items() if step <= after_step}
        trial.intermediate_values = steps
        trial._user_attrs = dict(kept["user"])
        trial._system_attrs = dict(kept["system"])
        return Supersede(
            study_uid=self.uid,
            trial_id=trial_id,
            attempt=attempt,
            after_step=after_step,
            user_attrs={key: json.dumps(value) for key, value in kept["user"].items()},
            system_attrs={key: json.dumps(value) for key, value in kept["system"].items()},
        )

    def _read_attributes(self) -> None:
        with self.lease.database.errors(), self.lease.database.read() as connection:
            found: dict[str, dict[str, Any]] = {}
            for kind in ("user", "system"):
                table = optuna_tables[f"study_{kind}_attributes"]
                query = sa.select(table.c.key, table.c.value_json).where(
                    table.c.study_id == self.record.study_id
                )
                found[kind] = {key: json.loads(text) for key, text in connection.execute(query)}
        if found["system"].get(tables.UID_KEY) != self.uid:
            raise UnknownStudy(
                f"study {self.record.name!r} was deleted or renamed by another program while it ran; "
                "nothing more was written"
            )
        if not self._queue:  # our own queued attributes are newer than the database
            self.image.user_attrs, self.image.system_attrs = found["user"], found["system"]


class HeldStorage(BaseStorage):
    """Optuna's storage interface over a :class:`HeldStudy`: that study, and no other."""

    def __init__(self, held: HeldStudy) -> None:
        self._held = held

    def __getstate__(self) -> NoReturn:
        raise TypeError("a held storage belongs to its driver's process and is never sent elsewhere")

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        raise self._only_this_study()

    def delete_study(self, study_id: int) -> None:
        raise self._only_this_study()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr("user", key, value)
        self._held.image.user_attrs[key] = value

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr("system", key, value)
        self._held.image.system_attrs[key] = value

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name != self._held.record.name:
            raise KeyError(f"no study {study_name!r} here")
        return self._held.record.study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._held.record.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [StudyDirection[direction.upper()] for direction in self._held.record.directions]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._held.image.user_attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
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
        held = self._held
        started = utcnow() if template_trial is None else to_utc(template_trial.datetime_start)
        write = CreateTrial(
            study_id=study_id,
            study_uid=held.uid,
            epoch=held.lease.epoch,
            started=started,
            template=template_trial,
        )
        trial_id, number = held.flush(write)[0] or self._find_created()
        trial = copy.deepcopy(template_trial) or _empty_trial()
        trial.number, trial._trial_id, trial.datetime_start = number, trial_id, to_local(started)
        held.image.put([trial])
        if trial.state == TrialState.RUNNING:
            held.owned.add(trial_id)
        return int(trial_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._updatable(trial_id)
        check_key(param_name)
        for other in reversed(self._held.image.trials()):
            if param_name in other.distributions:
                check_distribution_compatibility(other.distributions[param_name], distribution)
                break
        text = distribution_to_json(distribution)
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution
        self._held.queue(
            SetParam(trial_id=trial_id, name=param_name, value=float(param_value_internal), distribution=text)
        )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        held, trial = self._held, self._updatable(trial_id)
        if state == TrialState.RUNNING:
            return self._pop(trial)
        if not state.is_finished():
            raise ValueError(f"a trial of a live driver does not go back to {state.name}")
        now = utcnow()
        numbers = None if values is None else tuple(float(value) for value in values)
        end = held.endings.pop(trial_id, None)
        write = FinishTrial(trial_id=trial_id, state=state, values=numbers, completed=now, end=end)
        won = held.flush(write)[0]
        if won is DROPPED or won is False:
            held.finished_elsewhere.add(trial_id)
            raise UpdateFinishedTrialError(f"trial {trial.number} was finished by another program first")
        trial.state, trial.values, trial.datetime_complete = state, values, to_local(now)
        held.owned.discard(trial_id)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        trial = self._updatable(trial_id)
        check_step(step)
        if step not in trial.intermediate_values:
            trial.intermediate_values[step] = float(intermediate_value)
            self._held.queue(AddReport(trial_id=trial_id, step=step, value=float(intermediate_value)))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._updatable(trial_id)
        text = to_json(key, value)
        trial.user_attrs[key] = value
        self._held.queue(SetTrialAttr(trial_id=trial_id, kind="user", key=key, value_json=text))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._updatable(trial_id)
        text = to_json(key, value)
        trial.system_attrs[key] = json.loads(text)
        self._held.queue(SetTrialAttr(trial_id=trial_id, kind="system", key=key, value_json=text))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._held.image.numbered(trial_number)._trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._held.image.trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._held.image.trials(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def _pop(self, trial: FrozenTrial) -> bool:
        """Claim a waiting trial; False when another program was first."""
        held, now = self._held, utcnow()
        write = PopWaiting(
            study_uid=held.uid,
            trial_id=trial._trial_id,
            number=trial.number,
            epoch=held.lease.epoch,
            started=now,
            attributes=attributes_json(trial),
        )
        if held.flush(write)[0] is False:
            held.refresh()
            return False
        trial.state, trial.datetime_start = TrialState.RUNNING, to_local(now)
        held.owned.add(trial._trial_id)
        return True

    def _find_created(self) -> tuple[int, int]:
        """The trial of a transaction that was applied although its reply was lost."""
        known = {trial._trial_id for trial in self._held.image.trials()}
        created = [attempt for attempt in self._held.attempts() if attempt.trial_id not in known]
        return created[-1].trial_id, created[-1].number

    def _set_study_attr(self, kind: str, key: str, value: Any) -> None:
        text = to_json(key, value)
        study_id = self._held.record.study_id
        self._held.queue(SetStudyAttr(study_id=study_id, kind=kind, key=key, value_json=text))

    def _updatable(self, trial_id: int) -> FrozenTrial:
        trial = self._held.image.trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return trial

    def _only_this_study(self) -> RuntimeError:
        return RuntimeError(f"only study {self._held.record.name!r} is open here; use its database's URL")


def _empty_trial() -> FrozenTrial:
    now = dt.datetime.now()
    return FrozenTrial(
        number=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=now,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=-1,
    )
