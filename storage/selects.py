"""The queries behind :mod:`storage.reads`, on an open connection: each a fixed number of statements."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from storage import tables
from storage.floats import unstored
from storage.rows import distribution
from storage.tables import UID_KEY, optuna_tables
from storage.views import AttemptRow, CheckpointPart, CurvePoint, EventRow, StudyRow, TrialRow

__all__ = [
    "PARAMS",
    "REPORTS",
    "TRIALS",
    "VALUES",
    "attempt_rows",
    "attempt_summaries",
    "best_of",
    "checkpoint_parts",
    "curves_of",
    "directions",
    "event_rows",
    "from_json",
    "have_ours",
    "last_reports",
    "metrics",
    "params_of",
    "study_id",
    "study_rows",
    "superseded",
    "trial_id",
    "trial_rows",
    "uid",
]

TRIALS = optuna_tables["trials"]
VALUES = optuna_tables["trial_values"]
PARAMS = optuna_tables["trial_params"]
REPORTS = optuna_tables["trial_intermediate_values"]


def from_json(text: str | None) -> Any:
    return json.loads(text) if text else None


def have_ours(connection: Connection) -> bool:
    return bool(sa.inspect(connection).has_table(tables.attempts.name))


def study_id(connection: Connection, name: str) -> int | None:
    table = optuna_tables["studies"]
    return connection.execute(sa.select(table.c.study_id).where(table.c.study_name == name)).scalar()


def uid(connection: Connection, name: str) -> str:
    attrs, names = optuna_tables["study_system_attributes"], optuna_tables["studies"]
    query = sa.select(attrs.c.value_json).join(names, names.c.study_id == attrs.c.study_id)
    text = connection.execute(query.where(names.c.study_name == name, attrs.c.key == UID_KEY)).scalar()
    return json.loads(text) if text else ""


def trial_id(connection: Connection, name: str, number: int) -> int | None:
    query = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id(connection, name), TRIALS.c.number == number
    )
    return connection.execute(query).scalar()


def directions(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    table = optuna_tables["study_directions"]
    query = sa.select(table.c.study_id, table.c.direction).where(table.c.study_id.in_(list(ids)))
    found: dict[int, tuple[str, ...]] = {}
    for study_id, direction in connection.execute(query.order_by(table.c.objective)):
        found[study_id] = (*found.get(study_id, ()), direction.name.lower())
    return found


def study_rows(connection: Connection, names: Mapping[int, str]) -> list[StudyRow]:
    ids = list(names)
    states: dict[int, dict[str, int]] = {study_id: {} for study_id in ids}
    moments: dict[int, list[dt.datetime]] = {study_id: [] for study_id in ids}
    query = sa.select(
        TRIALS.c.study_id,
        TRIALS.c.state,
        sa.func.count(),
        sa.func.max(TRIALS.c.datetime_start),
        sa.func.max(TRIALS.c.datetime_complete),
    ).where(TRIALS.c.study_id.in_(ids))
    for study_id, state, count, *times in connection.execute(
        query.group_by(TRIALS.c.study_id, TRIALS.c.state)
    ):
        states[study_id][state.name] = count
        moments[study_id] += [moment for moment in times if moment is not None]
    ways_of = directions(connection, ids)
    attrs = optuna_tables["study_system_attributes"]
    known = sa.select(attrs.c.study_id, attrs.c.value_json).where(
        attrs.c.key == UID_KEY, attrs.c.study_id.in_(ids)
    )
    uids = {study_id: json.loads(text) for study_id, text in connection.execute(known)}
    rows: dict[str, Row[Any]] = {}
    leases: dict[str, Row[Any]] = {}
    if uids and have_ours(connection):
        for table, into in ((tables.studies, rows), (tables.leases, leases)):
            chosen = sa.select(table).where(table.c.study_uid.in_(list(uids.values())))
            into.update({row.study_uid: row for row in connection.execute(chosen)})
    found = []
    for study_id, name in names.items():
        uid = uids.get(study_id, "")
        row, lease = rows.get(uid), leases.get(uid)
        ways = ways_of.get(study_id, ())
        best = best_of(connection, study_id, ways) if len(ways) == 1 else None
        times = [*moments[study_id], *([lease.renewed_at] if lease is not None and lease.owner else [])]
        settings = from_json(row.settings) if row is not None else {}
        found.append(
            StudyRow(
                name=name,
                study_id=study_id,
                uid=uid,
                directions=ways,
                states=states[study_id],
                best=best[1] if best else None,
                best_number=best[0] if best else None,
                n_trials=settings.get("n_trials"),
                owner=from_json(lease.owner) if lease is not None else None,
                renewed_at=lease.renewed_at if lease is not None else None,
                created_at=row.created_at if row is not None else None,
                last_activity=max(times, default=None),
                stop_reason=row.stop_reason if row is not None else None,
            )
        )
    return found


def best_of(connection: Connection, study_id: int, directions: Sequence[str]) -> tuple[int, float] | None:
    order = VALUES.c.value.asc() if directions[0] == "minimize" else VALUES.c.value.desc()
    query = (
        sa.select(TRIALS.c.number, VALUES.c.value)
        .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
        .where(VALUES.c.value.is_not(None))
        .order_by(order, TRIALS.c.number)
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else (row.number, row.value)


def params_of(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    query = sa.select(
        PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json
    ).where(PARAMS.c.trial_id.in_(list(ids)))
    found: dict[int, dict[str, Any]] = {}
    for trial_id, name, value, text in connection.execute(query.order_by(PARAMS.c.param_id)):
        found.setdefault(trial_id, {})[name] = distribution(text).to_external_repr(value)
    return found


def curves_of(connection: Connection, ids: Sequence[int]) -> dict[int, list[CurvePoint]]:
    query = sa.select(
        REPORTS.c.trial_id,
        REPORTS.c.step,
        REPORTS.c.intermediate_value,
        REPORTS.c.intermediate_value_type,
    ).where(REPORTS.c.trial_id.in_(list(ids)))
    found: dict[int, list[CurvePoint]] = {}
    for trial_id, step, value, kind in connection.execute(query.order_by(REPORTS.c.step)):
        found.setdefault(trial_id, []).append((step, unstored(value, kind.name)))
    return found


def trial_rows(connection: Connection, ids: Sequence[int]) -> list[TrialRow]:
    """The trials of these ids, in their order."""
    rows = {
        row.trial_id: row for row in connection.execute(sa.select(TRIALS).where(TRIALS.c.trial_id.in_(ids)))
    }
    values: dict[int, list[float]] = {}
    query = sa.select(VALUES).where(VALUES.c.trial_id.in_(ids)).order_by(VALUES.c.objective)
    for row in connection.execute(query):
        values.setdefault(row.trial_id, []).append(unstored(row.value, row.value_type.name))
    params = params_of(connection, ids)
    lasts = last_reports(connection, ids)
    attempts = attempt_summaries(connection, ids)
    found = []
    for trial_id in ids:
        row = rows[trial_id]
        begin, end = row.datetime_start, row.datetime_complete
        count, live, reason, message = attempts.get(trial_id, (0, "", "", ""))
        step, value = lasts.get(trial_id, (None, None))
        found.append(
            TrialRow(
                number=row.number,
                trial_id=trial_id,
                state=row.state.name,
                values=tuple(values.get(trial_id, ())),
                params=params.get(trial_id, {}),
                started_at=begin,
                completed_at=end,
                duration=(end - begin).total_seconds() if begin and end else None,
                attempts=count,
                live=live if row.state == TrialState.RUNNING else "",
                reason=reason,
                message=message,
                last_step=step,
                last_value=value,
            )
        )
    return found


def last_reports(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[int, float]]:
    newest = (
        sa.select(REPORTS.c.trial_id, sa.func.max(REPORTS.c.step).label("step"))
        .where(REPORTS.c.trial_id.in_(list(ids)))
        .group_by(REPORTS.c.trial_id)
        .subquery()
    )
    same = (newest.c.trial_id == REPORTS.c.trial_id) & (newest.c.step == REPORTS.c.step)
    query = sa.select(
        REPORTS.c.trial_id,
        REPORTS.c.step,
        REPORTS.c.intermediate_value,
        REPORTS.c.intermediate_value_type,
    ).join(newest, same)
    return {
        trial_id: (step, unstored(value, kind.name))
        for trial_id, step, value, kind in connection.execute(query)
    }


def attempt_summaries(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[int, str, str, str]]:
    """By trial: how many attempts, state of an open one, and the newest end's reason and message."""
    if not have_ours(connection):
        return {}
    table = tables.attempts
    names = optuna_tables["study_system_attributes"]
    uid = sa.select(names.c.value_json).join(TRIALS, TRIALS.c.study_id == names.c.study_id)
    uid = uid.where(TRIALS.c.trial_id.in_(list(ids)), names.c.key == UID_KEY).limit(1)
    text = connection.execute(uid).scalar()
    if text is None:
        return {}
    query = sa.select(table.c.trial_id, table.c.state, table.c.reason, table.c.message)
    query = query.where(table.c.trial_id.in_(list(ids)), table.c.study_uid == json.loads(text))
    found: dict[int, tuple[int, str, str, str]] = {}
    for trial_id, state, reason, message in connection.execute(query.order_by(table.c.attempt)):
        count, live, last, said = found.get(trial_id, (0, "", "", ""))
        if state == "ended":
            live, last, said = "", reason or "", message or ""
        else:
            live = state
        found[trial_id] = (count + 1, live, last, said)
    return found


def attempt_rows(connection: Connection, uid: str, trial_id: int) -> tuple[AttemptRow, ...]:
    table = tables.attempts
    query = sa.select(table).where(table.c.study_uid == uid, table.c.trial_id == trial_id)
    return tuple(
        AttemptRow(
            attempt=row.attempt,
            state=row.state,
            reason=row.reason or "",
            charged=bool(row.charged),
            message=row.message or "",
            exception=row.exception or "",
            traceback=row.traceback or "",
            log_tail=row.log_tail or "",
            created_at=row.created_at,
            started_at=row.started_at,
            ended_at=row.ended_at,
            resumed_step=row.resumed_step,
            ranks=tuple(from_json(row.ranks) or ()),
            provenance=from_json(row.provenance) or {},
        )
        for row in connection.execute(query.order_by(table.c.attempt))
    )


def checkpoint_parts(connection: Connection, uid: str, trial_id: int) -> list[CheckpointPart]:
    table = tables.checkpoints
    query = sa.select(table).where(table.c.study_uid == uid, table.c.trial_id == trial_id)
    rows = connection.execute(query.order_by(table.c.attempt.desc(), table.c.step.desc(), table.c.rank)).all()
    parts: dict[tuple[int, int], int] = {}
    for row in rows:
        parts[row.attempt, row.step] = parts.get((row.attempt, row.step), 0) + 1
    names = ("attempt", "step", "rank", "world_size", "path", "digest", "size", "created_at")
    return [
        CheckpointPart(
            **{name: getattr(row, name) for name in names},
            whole=parts[row.attempt, row.step] == row.world_size,
        )
        for row in rows
    ]


def superseded(connection: Connection, uid: str, trial_id: int) -> tuple[tuple[int, int, float], ...]:
    table = tables.superseded
    query = sa.select(table).where(table.c.study_uid == uid, table.c.trial_id == trial_id)
    rows = connection.execute(query.order_by(table.c.attempt, table.c.step))
    return tuple((row.attempt, row.step, unstored(row.value, row.value_type)) for row in rows)


def metrics(connection: Connection, uid: str, trial_id: int) -> dict[str, tuple[CurvePoint, ...]]:
    """Further metrics; of a step that several attempts logged, the last one's value."""
    table = tables.metrics
    query = sa.select(table).where(table.c.study_uid == uid, table.c.trial_id == trial_id)
    found: dict[str, dict[int, float]] = {}
    for row in connection.execute(query.order_by(table.c.id)):
        found.setdefault(row.name, {})[row.step] = unstored(row.value, row.value_type)
    return {name: tuple(sorted(points.items())) for name, points in found.items()}


def event_rows(connection: Connection, uid: str, trial_id: int | None, limit: int) -> list[EventRow]:
    table = tables.events
    query = sa.select(table, TRIALS.c.number).outerjoin(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
    query = query.where(table.c.study_uid == uid)
    if trial_id is not None:
        query = query.where(table.c.trial_id == trial_id)
    return [
        EventRow(
            event_id=row.event_id,
            number=row.number,
            attempt=row.attempt,
            kind=row.kind,
            detail=json.loads(row.detail),
            created_at=row.created_at,
        )
        for row in connection.execute(query.order_by(table.c.event_id.desc()).limit(limit))
    ]
