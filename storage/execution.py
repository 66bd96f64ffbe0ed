"""What each write does to the tables, on an open transaction."""

from __future__ import annotations

import functools
import json
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from storage import tables
from storage.clock import to_utc, utcnow
from storage.floats import stored
from storage.tables import optuna_tables
from storage.writes import (
    AddCheckpoint,
    AddEvent,
    AddMetric,
    AddReport,
    Claim,
    CreateTrial,
    DoneCommand,
    DropCheckpoints,
    EndAttempt,
    FinishTrial,
    PopWaiting,
    SetParam,
    SetStudyAttr,
    SetStudyRow,
    SetTrialAttr,
    StartAttempt,
    Supersede,
    Write,
    attributes_json,
)

__all__ = ["execute"]


@functools.singledispatch
def execute(write: Write, connection: Connection) -> Any:
    """Carry out one write on an open transaction and return its result, if it has one."""
    raise TypeError(f"no such write: {write!r}")


def _insert(connection: Connection, table: sa.Table) -> Any:
    """A dialect's INSERT, which has ON CONFLICT."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


@execute.register
def _create_trial(write: CreateTrial, connection: Connection) -> tuple[int, int]:
    studies, trials = optuna_tables["studies"], optuna_tables["trials"]
    # The study's row lock serialises numbers over all programs, as in Optuna; on SQLite the
    # transaction's own lock does. The number is a count, as in Optuna: dense without gaps.
    lock = sa.select(studies.c.study_id).where(studies.c.study_id == write.study_id)
    connection.execute(lock.with_for_update())
    count = sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == write.study_id)
    number = connection.execute(count).scalar_one()
    template = write.template
    state = TrialState.RUNNING if template is None else template.state
    fields = {
        "study_id": write.study_id,
        "number": number,
        "state": state,
        "datetime_start": write.started,
        "datetime_complete": None if template is None else to_utc(template.datetime_complete),
    }
    result = connection.execute(trials.insert().values(fields))
    trial_id = int(result.inserted_primary_key[0])  # type: ignore[index]
    if template is not None:
        _fill(connection, trial_id, template)
    if state == TrialState.RUNNING:
        claim = Claim(
            study_uid=write.study_uid,
            trial_id=trial_id,
            number=number,
            attempt=1,
            epoch=write.epoch,
            attributes=attributes_json(template),
        )
        _claim(claim, connection)
    return trial_id, number


def _fill(connection: Connection, trial_id: int, template: FrozenTrial) -> None:
    """What a template brings with it: an enqueued or an added trial."""
    for name, value in template.params.items():
        dist = template.distributions[name]
        text = distribution_to_json(dist)
        param = SetParam(trial_id=trial_id, name=name, value=dist.to_internal_repr(value), distribution=text)
        _set_param(param, connection)
    for kind, attrs in (("user", template.user_attrs), ("system", template.system_attrs)):
        for key, value in attrs.items():
            _set_trial_attr(
                SetTrialAttr(trial_id=trial_id, kind=kind, key=key, value_json=json.dumps(value)), connection
            )
    for step, value in template.intermediate_values.items():
        _add_report(AddReport(trial_id=trial_id, step=step, value=value), connection)
    _add_values(connection, trial_id, tuple(template.values or ()))


def _add_values(connection: Connection, trial_id: int, numbers: tuple[float, ...]) -> None:
    for objective, number in enumerate(numbers):
        value, kind = stored(number)
        row = {"trial_id": trial_id, "objective": objective, "value": value, "value_type": kind}
        connection.execute(optuna_tables["trial_values"].insert().values(row))


@execute.register
def _pop_waiting(write: PopWaiting, connection: Connection) -> bool:
    trials = optuna_tables["trials"]
    mine = (trials.c.trial_id == write.trial_id) & (trials.c.state == TrialState.WAITING)
    fields = {"state": TrialState.RUNNING, "datetime_start": write.started}
    if connection.execute(trials.update().where(mine).values(fields)).rowcount != 1:
        return False
    claim = Claim(
        study_uid=write.study_uid,
        trial_id=write.trial_id,
        number=write.number,
        attempt=1,
        epoch=write.epoch,
        attributes=write.attributes,
    )
    _claim(claim, connection)
    return True


@execute.register
def _set_param(write: SetParam, connection: Connection) -> None:
    fields = {
        "trial_id": write.trial_id,
        "param_name": write.name,
        "param_value": write.value,
        "distribution_json": write.distribution,
    }
    insert = _insert(connection, optuna_tables["trial_params"]).values(fields)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["trial_id", "param_name"]))


@execute.register
def _add_report(write: AddReport, connection: Connection) -> None:
    value, kind = stored(write.value)
    fields = {
        "trial_id": write.trial_id,
        "step": write.step,
        "intermediate_value": value,
        "intermediate_value_type": kind,
    }
    insert = _insert(connection, optuna_tables["trial_intermediate_values"]).values(fields)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["trial_id", "step"]))


@execute.register
def _add_metric(write: AddMetric, connection: Connection) -> None:
    value, kind = stored(write.value)
    fields = {**write.__dict__, "value": value, "value_type": kind}
    connection.execute(tables.metrics.insert().values(fields))


@execute.register
def _set_trial_attr(write: SetTrialAttr, connection: Connection) -> None:
    table = optuna_tables[f"trial_{write.kind}_attributes"]
    fields = {"trial_id": write.trial_id, "key": write.key, "value_json": write.value_json}
    insert = _insert(connection, table).values(fields)
    update = {"value_json": insert.excluded.value_json}
    connection.execute(insert.on_conflict_do_update(index_elements=["trial_id", "key"], set_=update))


@execute.register
def _set_study_attr(write: SetStudyAttr, connection: Connection) -> None:
    table = optuna_tables[f"study_{write.kind}_attributes"]
    fields = {"study_id": write.study_id, "key": write.key, "value_json": write.value_json}
    insert = _insert(connection, table).values(fields)
    update = {"value_json": insert.excluded.value_json}
    connection.execute(insert.on_conflict_do_update(index_elements=["study_id", "key"], set_=update))


@execute.register
def _set_study_row(write: SetStudyRow, connection: Connection) -> None:
    table = tables.studies
    connection.execute(table.update().where(table.c.study_uid == write.study_uid).values(write.columns))


@execute.register
def _finish_trial(write: FinishTrial, connection: Connection) -> bool:
    trials = optuna_tables["trials"]
    mine = (trials.c.trial_id == write.trial_id) & (trials.c.state == TrialState.RUNNING)
    fields = {"state": write.state, "datetime_complete": write.completed}
    if connection.execute(trials.update().where(mine).values(fields)).rowcount != 1:
        return False
    _add_values(connection, write.trial_id, write.values or ())
    if write.end is not None:
        _end_attempt(write.end, connection)
    return True


@execute.register
def _claim(write: Claim, connection: Connection) -> None:
    fields = {**write.__dict__, "state": "claimed", "created_at": utcnow()}
    connection.execute(tables.attempts.insert().values(fields))


def _this_attempt(write: StartAttempt | EndAttempt) -> sa.ColumnElement[bool]:
    table = tables.attempts
    mine = (table.c.study_uid == write.study_uid) & (table.c.trial_id == write.trial_id)
    return mine & (table.c.attempt == write.attempt) & (table.c.state != "ended")


@execute.register
def _start_attempt(write: StartAttempt, connection: Connection) -> None:
    table = tables.attempts
    optional = {
        name: getattr(write, name)
        for name in ("relative", "provenance", "ranks", "resumed_step")
        if getattr(write, name) is not None
    }
    started = sa.func.coalesce(table.c.started_at, utcnow())
    fields = {"state": "running", "epoch": write.epoch, "started_at": started, **optional}
    connection.execute(table.update().where(_this_attempt(write)).values(fields))


@execute.register
def _end_attempt(write: EndAttempt, connection: Connection) -> bool:
    names = ("reason", "charged", "message", "exception", "traceback", "log_tail", "epoch")
    fields = {name: getattr(write, name) for name in names}
    update = tables.attempts.update().where(_this_attempt(write))
    result = connection.execute(update.values(state="ended", ended_at=utcnow(), **fields))
    return result.rowcount == 1


@execute.register
def _supersede(write: Supersede, connection: Connection) -> None:
    reports = optuna_tables["trial_intermediate_values"]
    beyond = (reports.c.trial_id == write.trial_id) & (reports.c.step > write.after_step)
    moved = sa.select(
        sa.literal(write.study_uid),
        reports.c.trial_id,
        sa.literal(write.attempt),
        reports.c.step,
        reports.c.intermediate_value,
        sa.cast(reports.c.intermediate_value_type, sa.String),
    ).where(beyond)
    columns = ["study_uid", "trial_id", "attempt", "step", "value", "value_type"]
    connection.execute(tables.superseded.insert().from_select(columns, moved))
    connection.execute(reports.delete().where(beyond))
    for kind, attrs in (("user", write.user_attrs), ("system", write.system_attrs)):
        table = optuna_tables[f"trial_{kind}_attributes"]
        connection.execute(table.delete().where(table.c.trial_id == write.trial_id))
        rows = [{"trial_id": write.trial_id, "key": key, "value_json": text} for key, text in attrs.items()]
        if rows:
            connection.execute(table.insert(), rows)


@execute.register
def _add_checkpoint(write: AddCheckpoint, connection: Connection) -> None:
    fields = {**write.__dict__, "created_at": utcnow()}
    key = ["study_uid", "trial_id", "attempt", "step", "rank"]
    insert = _insert(connection, tables.checkpoints).values(fields)
    update = {name: insert.excluded[name] for name in ("path", "digest", "size", "attributes", "created_at")}
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=update))


@execute.register
def _drop_checkpoints(write: DropCheckpoints, connection: Connection) -> None:
    table = tables.checkpoints
    mine = (table.c.study_uid == write.study_uid) & (table.c.trial_id == write.trial_id)
    this = (table.c.attempt == write.attempt) & (table.c.step == write.step)
    connection.execute(table.delete().where(mine & this))


@execute.register
def _add_event(write: AddEvent, connection: Connection) -> None:
    connection.execute(tables.events.insert().values({**write.__dict__, "created_at": utcnow()}))


@execute.register
def _done_command(write: DoneCommand, connection: Connection) -> None:
    table = tables.commands
    update = table.update().where(table.c.command_id == write.command_id)
    connection.execute(update.values(done_at=utcnow(), result=write.result))
