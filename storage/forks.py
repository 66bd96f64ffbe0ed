"""A study's finished trials under a new name and in a changed space."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from storage import studies, tables
from storage.clock import to_utc, utcnow
from storage.database import Database
from storage.errors import Refused, UnknownStudy
from storage.execution import execute
from storage.rows import read_trials
from storage.writes import CreateTrial

__all__ = ["Forked", "Space", "fitted", "fork"]

Space = Mapping[str, BaseDistribution] | Callable[[Any], object] | None
"""Distributions by name, a function that suggests them, or None for whatever the trials have."""


@dataclass(frozen=True, kw_only=True)
class Forked:
    """What a fork holds, and what it does not.

    Attributes:
        trials: how many were taken.
        left: number of a trial in the old study, and why it was left out.
    """

    name: str
    trials: int
    left: Mapping[int, str]


def fork(database: Database, name: str, new_name: str, space: Space = None) -> Forked:
    """A new study with the finished trials of another that fit a space, in one transaction.

    Directions, attributes of the study, sampler, pruner, seed and settings are the old one's, and
    the event ``forked_from`` says whose they were. Numbers start from 0. RUNNING and WAITING trials
    stay where they are. Nothing is written to the old study.

    Raises:
        UnknownStudy: there is no study of that name.
        Refused: there is one of the new name already.
    """
    record = studies.find(database, name)
    if record is None:
        raise UnknownStudy(f"there is no study {name!r} in {database}")
    studies.check_name(new_name)
    with database.errors(), database.read() as connection:
        found = read_trials(connection, record.study_id)
    taken: list[FrozenTrial] = []
    left: dict[int, str] = {}
    for trial in found:
        fit = fitted(trial, space)
        if isinstance(fit, FrozenTrial):
            taken.append(fit)
        else:
            left[trial.number] = fit
    try:
        _write(database, record, new_name, taken)
    except sa.exc.IntegrityError:
        raise Refused(f"{database} has a study {new_name!r} already; give another name") from None
    return Forked(name=new_name, trials=len(taken), left=left)


def fitted(trial: FrozenTrial, space: Space) -> FrozenTrial | str:
    """The trial with the distributions of a space, or why it does not fit.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> trial = optuna.trial.create_trial(
        ...     params={"x": 5.0}, distributions={"x": FloatDistribution(0, 9)}, value=1.0
        ... )
        >>> fitted(trial, {"x": FloatDistribution(0, 1)})
        'x=5.0 is outside FloatDistribution(high=1.0, log=False, low=0.0, step=None)'
    """
    if not trial.state.is_finished():
        return f"is {trial.state.name}"
    if space is None:
        return trial
    given = _suggested(trial, space) if callable(space) else space
    if isinstance(given, str):
        return given
    for name, dist in given.items():
        if name not in trial.params:
            return f"has no {name}"
        value = trial.params[name]
        try:
            inside = dist._contains(dist.to_internal_repr(value))
        except (ValueError, TypeError):  # another kind of value, or no such choice
            inside = False
        if not inside:
            return f"{name}={value!r} is outside {dist}"
    for name in trial.params:
        if name not in given:
            return f"has {name}, which the space has no more"
    kept = optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params={name: trial.params[name] for name in given},
        distributions=dict(given),
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
    kept.datetime_start, kept.datetime_complete = trial.datetime_start, trial.datetime_complete
    return kept


def _suggested(trial: FrozenTrial, space: Callable[[Any], object]) -> Mapping[str, BaseDistribution] | str:
    """What a function suggests when it is given the trial's parameters."""
    replay = optuna.trial.FixedTrial(trial.params)
    try:
        space(replay)
    except ValueError as error:
        return str(error)
    return replay.distributions


def _write(database: Database, record: studies.StudyRecord, name: str, trials: list[FrozenTrial]) -> None:
    ways = [optuna.study.StudyDirection[way.upper()] for way in record.directions]
    with database.errors(), database.write() as connection:
        studies.lock(connection, record.study_id)
        studies.check_there(connection, record)
        study_id = studies.insert(connection, name, ways)
        studies.copy_attributes(connection, connection, record.study_id, study_id)
        uid = studies.inherit(connection, connection, record.uid, study_id) if record.uid else ""
        writes = [
            CreateTrial(
                study_id=study_id, study_uid="", epoch=0, started=to_utc(one.datetime_start), template=one
            )
            for one in trials
        ]
        if writes:
            execute(connection, writes)
        if uid:
            event = {
                "study_uid": uid,
                "epoch": 0,
                "kind": "forked_from",
                "detail": json.dumps({"study": record.name, "trials": len(trials)}),
            }
            connection.execute(tables.events.insert().values({**event, "created_at": utcnow()}))
