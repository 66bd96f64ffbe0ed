"""What the writes of a trial do to Optuna's tables, on an open transaction, many at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from storage import attempt_writes, bulk, tables
from storage.clock import to_utc
from storage.floats import stored
from storage.limits import distribution_text
from storage.tables import optuna_tables
from storage.writes import (
    AddMetric,
    AddReport,
    Claim,
    CreateTrial,
    FinishTrial,
    PopWaiting,
    SetParam,
    SetStudyAttr,
    SetTrialAttr,
    Supersede,
    attributes_json,
)

__all__ = [
    "IS_OPEN",
    "add_metrics",
    "add_outcomes",
    "add_reports",
    "create_trials",
    "finish",
    "new_ids",
    "pop_waiting",
    "set_params",
    "set_study_attrs",
    "set_trial_attrs",
    "supersede",
]

# ---------------------------------------------------------------------- trials


def create_trials(connection: Connection, writes: Sequence[CreateTrial]) -> list[tuple[int, int]]:
    study_id = writes[0].study_id
    ids, number = _next(connection, study_id, len(writes))
    rows, params, attrs, reports, values, claims = [], [], [], [], [], []
    results = []
    for at, (write, trial_id) in enumerate(zip(writes, ids, strict=True), start=number):
        template = write.template
        state = TrialState.RUNNING if template is None else template.state
        completed = None if template is None else to_utc(template.datetime_complete)
        rows.append((trial_id, study_id, at, state.name, write.started, completed))
        results.append((trial_id, at))
        if template is not None:
            for name, value in template._params.items():
                dist = template._distributions[name]
                internal = float(dist.to_internal_repr(value))
                params.append(
                    SetParam(
                        trial_id=trial_id, name=name, value=internal, distribution=distribution_text(dist)
                    )
                )
            for kind, given in (("user", template._user_attrs), ("system", template._system_attrs)):
                attrs += [
                    SetTrialAttr(trial_id=trial_id, kind=kind, key=key, value_json=json.dumps(value))
                    for key, value in given.items()
                ]
            reports += [(trial_id, step, value) for step, value in template.intermediate_values.items()]
            values += [(trial_id, k, *stored(value)) for k, value in enumerate(template._values or ())]
        if state == TrialState.RUNNING and write.study_uid:
            claims.append(
                Claim(
                    study_uid=write.study_uid,
                    trial_id=trial_id,
                    number=at,
                    attempt=1,
                    epoch=write.epoch,
                    attributes=attributes_json(template),
                )
            )
    columns = ("trial_id", "study_id", "number", "state", "datetime_start", "datetime_complete")
    bulk.insert(connection, optuna_tables["trials"], columns, rows)
    set_params(connection, params)
    set_trial_attrs(connection, attrs)
    _insert_reports(connection, reports)
    _insert_values(connection, values)
    attempt_writes.claims(connection, claims)
    return results


def _next(connection: Connection, study_id: int, count: int) -> tuple[Sequence[int], int]:
    """Ids of new trials and the first of their numbers, under the study's lock.

    The study's row lock serialises numbers over all programs, as in Optuna; the transaction took
    it before. On SQLite the transaction's own lock does. Numbers are dense and grow with the ids,
    as in Optuna.
    """
    if connection.dialect.name == "sqlite":
        ((first, last),) = bulk.rows(connection, _LAST, {"b_id": study_id})
        ids: Sequence[int] = range((first or 0) + 1, (first or 0) + 1 + count)
    else:
        rows = connection.execute(_NEXT, {"b_id": study_id, "b_count": count}).all()
        ids, last = [row[0] for row in rows], rows[0][1]
    return ids, 0 if last is None else int(last) + 1


def new_ids(connection: Connection, count: int) -> Sequence[int]:
    """Trial ids as the database would give them: on PostgreSQL of the sequence, so that other
    programs get others; on SQLite the next ones, under the lock of the write transaction.
    """
    if connection.dialect.name == "sqlite":
        first = (connection.execute(sa.select(sa.func.max(_TRIALS.c.trial_id))).scalar() or 0) + 1
        return range(first, first + count)
    return [row[0] for row in connection.execute(_NEXT, {"b_id": -1, "b_count": count})]


_TRIALS = optuna_tables["trials"]
_LAST_NUMBER = (
    sa.select(_TRIALS.c.number)
    .where(_TRIALS.c.study_id == sa.bindparam("b_id"))
    .order_by(_TRIALS.c.trial_id.desc())
    .limit(1)
    .scalar_subquery()
)
_LAST = sa.select(sa.select(sa.func.max(_TRIALS.c.trial_id)).scalar_subquery(), _LAST_NUMBER)
_NEXT = sa.select(
    sa.func.nextval(sa.func.pg_get_serial_sequence("trials", "trial_id")), _LAST_NUMBER
).select_from(sa.func.generate_series(1, sa.bindparam("b_count", type_=sa.Integer)).alias("new"))
"""On PostgreSQL: a row with an id for each new trial, and the study's last number."""


def _insert_values(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = ("trial_id", "objective", "value", "value_type")
    bulk.insert(connection, optuna_tables["trial_values"], columns, rows)


_POP = (
    _TRIALS.update()
    .where(_TRIALS.c.trial_id == sa.bindparam("b_id"), _TRIALS.c.state == TrialState.WAITING)
    .values(state=TrialState.RUNNING, datetime_start=sa.bindparam("b_started"))
)


def pop_waiting(connection: Connection, writes: Sequence[PopWaiting]) -> list[bool]:
    (write,) = writes
    if connection.execute(_POP, {"b_id": write.trial_id, "b_started": write.started}).rowcount != 1:
        return [False]
    if write.study_uid:
        claim = Claim(
            study_uid=write.study_uid,
            trial_id=write.trial_id,
            number=write.number,
            attempt=1,
            epoch=write.epoch,
            attributes=write.attributes,
        )
        attempt_writes.claims(connection, [claim])
    return [True]


IS_OPEN = (_TRIALS.c.state == TrialState.RUNNING) | (_TRIALS.c.state == TrialState.WAITING)
"""A trial takes writes. Not IN, whose text depends on its values."""
_FINISH = (
    _TRIALS.update()
    .where(_TRIALS.c.trial_id == sa.bindparam("b_id"), IS_OPEN)
    .values(state=sa.bindparam("b_state"), datetime_complete=sa.bindparam("b_completed"))
)


def finish(connection: Connection, writes: Sequence[FinishTrial]) -> list[bool]:
    """Change the states of trials that are not finished and add their values; which of the writes did it."""
    fields = [
        {"b_id": write.trial_id, "b_state": write.state, "b_completed": write.completed} for write in writes
    ]
    values = [[stored(value) for value in write.values or ()] for write in writes]
    if connection.dialect.name == "postgresql":  # one round trip for each instead of two
        return [
            bool(connection.execute(_FINISH_WITH_VALUES, {**one, **_by_column(given)}).scalar() == 1)
            for one, given in zip(fields, values, strict=True)
        ]
    done = [changed == 1 for changed in bulk.updates(connection, _FINISH, fields)]
    rows = [
        (write.trial_id, at, *value)
        for write, given, changed in zip(writes, values, done, strict=True)
        for at, value in enumerate(given if changed else ())
    ]
    _insert_values(connection, rows)
    return done


def _by_column(values: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {"b_values": [one[0] for one in values], "b_types": [one[1] for one in values]}


def _finish_with_values() -> sa.Select[Any]:
    """PostgreSQL's UPDATE of the trial and INSERT of its values as one statement."""
    table = optuna_tables["trial_values"]
    done = _FINISH.returning(_TRIALS.c.trial_id).cte("done")
    values = (
        sa.func.unnest(
            sa.bindparam("b_values", type_=postgresql.ARRAY(table.c.value.type)),
            sa.bindparam("b_types", type_=postgresql.ARRAY(sa.Text)),
        )
        .table_valued("value", "value_type", with_ordinality="objective")
        .render_derived(name="given")
    )
    rows = sa.select(
        done.c.trial_id,
        values.c.objective - 1,
        values.c.value,
        sa.cast(values.c.value_type, table.c.value_type.type),
    ).select_from(done.join(values, sa.true()))
    names = ["trial_id", "objective", "value", "value_type"]
    added = table.insert().from_select(names, rows).cte("added")
    return sa.select(sa.func.count()).select_from(done).add_cte(added)


_FINISH_WITH_VALUES = _finish_with_values()


def add_outcomes(connection: Connection, writes: Sequence[FinishTrial]) -> list[bool]:
    """The ends of the attempts of finished trials."""
    attempt_writes.end_attempt(connection, [write.end for write in writes if write.end is not None])
    return [True] * len(writes)


# ---------------------------------------------------------------------- what a trial says


def set_params(connection: Connection, writes: Sequence[SetParam]) -> None:
    columns = ("trial_id", "param_name", "param_value", "distribution_json")
    rows = [(write.trial_id, write.name, write.value, write.distribution) for write in writes]
    bulk.insert(connection, optuna_tables["trial_params"], columns, rows, key=("trial_id", "param_name"))


def add_reports(connection: Connection, writes: Sequence[AddReport]) -> None:
    _insert_reports(connection, [(write.trial_id, write.step, write.value) for write in writes])


def _insert_reports(connection: Connection, reports: Sequence[tuple[int, int, float]]) -> None:
    columns = ("trial_id", "step", "intermediate_value", "intermediate_value_type")
    last = {(trial_id, step): value for trial_id, step, value in reports}
    rows = [(trial_id, step, *stored(value)) for (trial_id, step), value in last.items()]
    bulk.insert(
        connection,
        optuna_tables["trial_intermediate_values"],
        columns,
        rows,
        key=("trial_id", "step"),
        replace=columns[2:],
    )


def add_metrics(connection: Connection, writes: Sequence[AddMetric]) -> None:
    columns = ("study_uid", "trial_id", "attempt", "name", "step", "value", "value_type")
    rows = [
        (one.study_uid, one.trial_id, one.attempt, one.name, one.step, *stored(one.value)) for one in writes
    ]
    bulk.insert(connection, tables.metrics, columns, rows)


def set_trial_attrs(connection: Connection, writes: Sequence[SetTrialAttr]) -> None:
    for kind in ("user", "system"):
        last = {(one.trial_id, one.key): one.value_json for one in writes if one.kind == kind}
        table = optuna_tables[f"trial_{kind}_attributes"]
        _set_attrs(connection, table, "trial_id", last)


def set_study_attrs(connection: Connection, writes: Sequence[SetStudyAttr]) -> None:
    for kind in ("user", "system"):
        last = {(one.study_id, one.key): one.value_json for one in writes if one.kind == kind}
        table = optuna_tables[f"study_{kind}_attributes"]
        _set_attrs(connection, table, "study_id", last)


def _set_attrs(connection: Connection, table: sa.Table, owner: str, last: dict[tuple[int, str], str]) -> None:
    rows = [(of, key, text) for (of, key), text in last.items()]
    columns, key = (owner, "key", "value_json"), (owner, "key")
    bulk.insert(connection, table, columns, rows, key=key, replace=("value_json",))


def supersede(connection: Connection, writes: Sequence[Supersede]) -> None:
    (write,) = writes
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
