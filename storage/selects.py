"""The queries behind :mod:`storage.reads`, on an open connection: each a fixed number of statements."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine, Row

from storage import tables
from storage.curves import last_reports
from storage.expressions import among, is_sqlite
from storage.floats import unstored
from storage.rows import distribution
from storage.tables import UID_KEY, optuna_tables
from storage.views import AttemptRow, CheckpointPart, CurvePoint, Driving, EventRow, StudyRow, TrialRow

__all__ = [
    "PARAMS",
    "TRIALS",
    "VALUES",
    "attempt_rows",
    "attempt_summaries",
    "bests_of",
    "can_be_stored",
    "checkpoint_parts",
    "directions",
    "event_rows",
    "from_json",
    "have_ours",
    "metrics_of",
    "params_of",
    "study_ids",
    "study_rows",
    "superseded",
    "trial_id",
    "trial_ids",
    "trial_rows",
    "view",
]

TRIALS = optuna_tables["trials"]
VALUES = optuna_tables["trial_values"]
PARAMS = optuna_tables["trial_params"]


@contextlib.contextmanager
def view(engine: Engine) -> Iterator[Connection]:
    """A connection whose statements all see the database at one moment."""
    options = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        if engine.dialect.name == "sqlite":
            raw = connection.connection.dbapi_connection
            if raw is not None and not raw.in_transaction:  # an engine that is not of storage.database
                connection.exec_driver_sql("BEGIN")
        yield connection


def from_json(text: str | None) -> Any:
    return json.loads(text) if text else None


def have_ours(connection: Connection) -> bool:
    """Whether our tables are there."""
    if is_sqlite(connection):
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = ?"
    else:
        query = "SELECT to_regclass(%s)::text"
    return connection.exec_driver_sql(query, (tables.attempts.name,)).scalar() is not None


def can_be_stored(text: str) -> bool:
    """False for a text with a NUL or a lone surrogate: PostgreSQL refuses to look for one."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def study_ids(connection: Connection, name: str) -> tuple[int | None, str]:
    """Optuna's id of the study of that name, None for none; and our uid, "" where we have none."""
    if not can_be_stored(name):
        return None, ""
    attrs, names = optuna_tables["study_system_attributes"], optuna_tables["studies"]
    ours = (attrs.c.study_id == names.c.study_id) & (attrs.c.key == UID_KEY)
    query = sa.select(names.c.study_id, attrs.c.value_json).outerjoin_from(names, attrs, ours)
    row = connection.execute(query.where(names.c.study_name == name)).first()
    return (row[0], from_json(row[1]) or "") if row is not None else (None, "")


def trial_id(connection: Connection, study_id: int | None, number: int) -> int | None:
    return next(iter(trial_ids(connection, study_id, [number])), None)


def trial_ids(connection: Connection, study_id: int | None, numbers: Sequence[int]) -> dict[int, int]:
    """The numbers of those trials that there are, by trial id."""
    numbers = [number for number in numbers if 0 <= number < 2**31]
    if study_id is None or not numbers:
        return {}
    of_study = TRIALS.c.study_id == study_id
    query = sa.select(TRIALS.c.trial_id, TRIALS.c.number)
    query = query.where(of_study, among(connection, TRIALS.c.number, numbers))
    if is_sqlite(connection):  # its index on the study is sorted by id, and numbers grow with it
        first = sa.select(sa.func.min(TRIALS.c.trial_id)).where(of_study)
        query = query.where(TRIALS.c.trial_id >= first.scalar_subquery() + min(numbers))
    return {row[0]: row[1] for row in connection.execute(query)}


def directions(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    table = optuna_tables["study_directions"]
    query = sa.select(table.c.study_id, table.c.direction).where(among(connection, table.c.study_id, ids))
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
    ).where(among(connection, TRIALS.c.study_id, ids))
    for study_id, state, count, *times in connection.execute(
        query.group_by(TRIALS.c.study_id, TRIALS.c.state)
    ):
        states[study_id][state.name] = count
        moments[study_id] += [moment for moment in times if moment is not None]
    ways_of = directions(connection, ids)
    attrs = optuna_tables["study_system_attributes"]
    known = sa.select(attrs.c.study_id, attrs.c.value_json).where(
        attrs.c.key == UID_KEY, among(connection, attrs.c.study_id, ids)
    )
    uids = {study_id: json.loads(text) for study_id, text in connection.execute(known)}
    rows: dict[str, Row[Any]] = {}
    leases: dict[str, Row[Any]] = {}
    if uids and have_ours(connection):
        for table, into in ((tables.studies, rows), (tables.leases, leases)):
            chosen = sa.select(table).where(table.c.study_uid.in_(list(uids.values())))
            into.update({row.study_uid: row for row in connection.execute(chosen)})
    single = [study_id for study_id in ids if len(ways_of.get(study_id, ())) == 1]
    bests = bests_of(connection, single) if single else {}
    found = []
    for study_id, name in names.items():
        uid = uids.get(study_id, "")
        row, lease = rows.get(uid), leases.get(uid)
        ways = ways_of.get(study_id, ())
        best = bests.get(study_id)
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
                driving=_driving(row, lease),
            )
        )
    return found


def _driving(row: Row[Any] | None, lease: Row[Any] | None) -> Driving | None:
    """What the driver said that holds the lease; of one that was killed the last word stays until then."""
    if row is None or lease is None or not lease.owner or not row.driving:
        return None
    return Driving(**json.loads(row.driving))


def bests_of(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[int, float]]:
    """Number and value of the best COMPLETE trial by study, of the first objective's finite values."""
    ways = optuna_tables["study_directions"]
    loss = sa.case((ways.c.direction == StudyDirection.MAXIMIZE, -VALUES.c.value), else_=VALUES.c.value)
    complete = (TRIALS.c.state == TrialState.COMPLETE) & (VALUES.c.value <= math.inf)  # no NaN

    def of_complete(*columns: Any) -> sa.Select[Any]:
        query = sa.select(TRIALS.c.study_id, *columns).where(
            complete, among(connection, TRIALS.c.study_id, ids)
        )
        query = query.join(VALUES, (VALUES.c.trial_id == TRIALS.c.trial_id) & (VALUES.c.objective == 0))
        return query.join(ways, (ways.c.study_id == TRIALS.c.study_id) & (ways.c.objective == 0))

    least = of_complete(sa.func.min(loss).label("loss")).group_by(TRIALS.c.study_id).subquery()
    query = of_complete(sa.func.min(TRIALS.c.number), VALUES.c.value)
    query = query.join(least, (least.c.study_id == TRIALS.c.study_id) & (least.c.loss == loss))
    rows = connection.execute(query.group_by(TRIALS.c.study_id, VALUES.c.value))
    return {study_id: (number, value) for study_id, number, value in rows}


def params_of(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    query = sa.select(
        PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json
    ).where(among(connection, PARAMS.c.trial_id, ids))
    found: dict[int, dict[str, Any]] = {}
    for trial_id, name, value, text in connection.execute(query.order_by(PARAMS.c.param_id)).all():
        found.setdefault(trial_id, {})[name] = distribution(text).to_external_repr(value)
    return found


def trial_rows(connection: Connection, uid: str, ids: Sequence[int]) -> list[TrialRow]:
    """The trials of these ids, all of the study with this uid ("" for none), in their order."""
    rows = {
        row.trial_id: row
        for row in connection.execute(sa.select(TRIALS).where(among(connection, TRIALS.c.trial_id, ids)))
    }
    values: dict[int, list[float]] = {}
    query = sa.select(VALUES).where(among(connection, VALUES.c.trial_id, ids)).order_by(VALUES.c.objective)
    for row in connection.execute(query):
        values.setdefault(row.trial_id, []).append(unstored(row.value, row.value_type.name))
    params = params_of(connection, ids)
    lasts = last_reports(connection, ids)
    attempts = attempt_summaries(connection, uid, ids)
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


def attempt_summaries(
    connection: Connection, uid: str, ids: Sequence[int]
) -> dict[int, tuple[int, str, str, str]]:
    """By trial: how many attempts, state of an open one, and the newest end's reason and message."""
    if not uid or not have_ours(connection):
        return {}
    table = tables.attempts
    columns = (table.c.study_uid, table.c.trial_id, table.c.state, table.c.reason, table.c.message)
    query = sa.select(*columns).where(among(connection, table.c.trial_id, ids)).order_by(table.c.attempt)
    found: dict[int, tuple[int, str, str, str]] = {}
    for of, trial_id, state, reason, message in connection.execute(query):
        if of != uid:  # of a deleted study; in SQL SQLite would read every attempt of the study
            continue
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


def metrics_of(
    connection: Connection, uid: str, ids: Sequence[int]
) -> dict[int, dict[str, tuple[CurvePoint, ...]]]:
    """Further metrics by trial and name; of a step that several attempts logged, the last one's value."""
    if not uid or not have_ours(connection):
        return {}
    table = tables.metrics
    query = sa.select(table).where(table.c.study_uid == uid, among(connection, table.c.trial_id, ids))
    found: dict[int, dict[str, dict[int, float]]] = {}
    for row in connection.execute(query.order_by(table.c.id)):
        of_trial = found.setdefault(row.trial_id, {})
        of_trial.setdefault(row.name, {})[row.step] = unstored(row.value, row.value_type)
    return {
        trial_id: {name: tuple(sorted(points.items())) for name, points in of_trial.items()}
        for trial_id, of_trial in found.items()
    }


def event_rows(
    connection: Connection, uid: str, trial_id: int | None, limit: int, *, after: int = 0
) -> list[EventRow]:
    """The newest ``limit`` events with an id above ``after``, newest first."""
    if limit <= 0:
        return []
    table = tables.events
    query = sa.select(table, TRIALS.c.number).outerjoin(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
    query = query.where(table.c.study_uid == uid, table.c.event_id > after)
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
