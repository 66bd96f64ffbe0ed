"""Trials that a person asks for: a finished one once more, or one with given parameters.

Each is a WAITING trial exactly as Optuna's ``enqueue_trial`` makes it, so any program may run it,
and the study's driver, now or later, starts it before it asks the sampler. A retry names the trial
that it repeats in :data:`storage.tables.RETRY_KEY`, and for people in the user attribute
``retry_of``: a driver of ours lets it start from that trial's newest valid checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from storage import limits, selects, studies
from storage.clock import utcnow
from storage.database import Database
from storage.errors import Refused, UnknownStudy
from storage.execution import execute
from storage.rows import read_trials
from storage.selects import TRIALS
from storage.tables import RETRY_KEY, commands
from storage.writes import AddEvent, CreateTrial

__all__ = ["Enqueued", "again", "with_params"]

_NAMED = 10  # trials that an error names


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """Trials that wait now, and what the budget of the study leaves for them.

    Attributes:
        numbers: of the new trials, in the order in which they were asked for.
        n_trials: the budget that was last asked for, or None.
        needed: the budget that lets everything end that is finished, runs or waits now.
    """

    numbers: tuple[int, ...]
    n_trials: int | None
    needed: int

    @property
    def over_budget(self) -> bool:
        """Whether some of what waits would not start within the budget."""
        return self.n_trials is not None and self.needed > self.n_trials


def again(
    database: Database,
    name: str,
    numbers: Sequence[int],
    *,
    from_checkpoint: bool,
    author: str,
    uid: str | None = None,
) -> Enqueued:
    """Let finished trials run once more as new trials with the same parameters; all of them or none.

    Args:
        numbers: each once, in the order in which they are to start.
        from_checkpoint: retry: go on from what the old trial saved; else from nothing.
        author: ``host:pid`` of a command line, or the user of the dashboard.
        uid: of the study that was seen: another one of the same name is not meant. None: any.

    Raises:
        UnknownStudy: there is no study of that name, or not the one that was seen.
        Refused: names the trials that are not there, or not finished; nothing was written.
    """
    asked = list(dict.fromkeys(numbers))
    if not asked:
        raise Refused("name at least one trial")
    record = _record(database, name)
    if uid is not None and record.uid != uid:
        raise UnknownStudy(f"the study {name!r} was deleted meanwhile, and another one has its name")
    with database.errors(), database.write() as connection:
        studies.lock(connection, record.study_id)
        studies.check_there(connection, record)
        old = _finished(connection, record, asked)
        trials = [_repeated(one, from_checkpoint) for one in old]
        detail = [{"retry_of" if from_checkpoint else "again_of": one.number} for one in old]
        verb = "retry" if from_checkpoint else "enqueue"
        return _add(connection, record, trials, detail, verb, {"numbers": asked}, author)


def with_params(database: Database, name: str, params: Mapping[str, Any], author: str) -> Enqueued:
    """Add a trial with these parameters; those that are left out are sampled.

    Raises:
        UnknownStudy: there is no study of that name.
        Refused: a value that cannot be stored; nothing was written.
    """
    record = _record(database, name)
    with database.errors(), database.write() as connection:
        studies.lock(connection, record.study_id)
        studies.check_there(connection, record)
        arguments = {"params": dict(params)}
        return _add(connection, record, [_waiting(params)], [{}], "enqueue", arguments, author)


def _record(database: Database, name: str) -> studies.StudyRecord:
    record = studies.find(database, name)
    if record is None:
        raise UnknownStudy(f"there is no study {name!r} in {database}")
    return record


def _finished(
    connection: Connection, record: studies.StudyRecord, numbers: Sequence[int]
) -> list[FrozenTrial]:
    study_id = record.study_id
    ids = selects.trial_ids(connection, study_id, numbers)
    found = {trial.number: trial for trial in read_trials(connection, study_id, list(ids))}
    missing = [number for number in numbers if number not in found]
    if missing:
        raise Refused(f"study {record.name!r} has no {_names(missing)}")
    running = [trial.number for trial in found.values() if not trial.state.is_finished()]
    if running:
        state = found[running[0]].state.name
        raise Refused(
            f"{_names(running)} of study {record.name!r} did not end yet ({state}): "
            "only a finished trial runs once more"
        )
    return [found[number] for number in numbers]


def _names(numbers: Sequence[int]) -> str:
    """Trials for a person, such as ``trials 3, 5 and 12 more``."""
    text = ", ".join(map(str, numbers[:_NAMED]))
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"trial{'s' if len(numbers) > 1 else ''} {text}{more}"


def _repeated(trial: FrozenTrial, from_checkpoint: bool) -> FrozenTrial:
    """A WAITING trial with the parameters of a finished one, those that it never came to ask for included."""
    new = _waiting({**trial.system_attrs.get("fixed_params", {}), **trial.params})
    if from_checkpoint:
        new._user_attrs["retry_of"] = new._system_attrs[RETRY_KEY] = trial.number
    return new


def _waiting(params: Mapping[str, Any]) -> FrozenTrial:
    """As Optuna's ``enqueue_trial`` makes it."""
    return optuna.trial.create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": dict(params)})


def _add(
    connection: Connection,
    record: studies.StudyRecord,
    trials: Sequence[FrozenTrial],
    details: Sequence[Mapping[str, Any]],
    verb: str,
    arguments: Mapping[str, Any],
    author: str,
) -> Enqueued:
    """Write the trials, who asked for them, and what came of it."""
    for trial in trials:
        limits.check_template(trial)
    writes = [
        CreateTrial(study_id=record.study_id, study_uid="", epoch=0, started=None, template=trial)
        for trial in trials
    ]
    made = execute(connection, writes)
    numbers = tuple(number for _, number in made)
    if record.uid:  # else no driver of ours has seen this study, and our tables may not be there
        events = [
            AddEvent(
                study_uid=record.uid,
                epoch=0,
                kind="enqueued",
                detail=json.dumps({**detail, "author": author}),
                trial_id=trial_id,
            )
            for (trial_id, _), detail in zip(made, details, strict=True)
        ]
        execute(connection, events)
        many = len(numbers) > 1
        now = utcnow()
        row = {
            "study_uid": record.uid,
            "name": verb,
            "arguments": json.dumps(dict(arguments)),
            "author": author,
            "created_at": now,
            "done_at": now,
            "result": f"trials {numbers[0]} to {numbers[-1]} wait" if many else f"trial {numbers[0]} waits",
        }
        connection.execute(commands.insert().values(row))
    count = sa.select(sa.func.count()).where(TRIALS.c.study_id == record.study_id)
    return Enqueued(
        numbers=numbers,
        n_trials=record.settings.get("n_trials"),
        needed=connection.execute(count).scalar_one(),
    )
