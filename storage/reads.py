"""Column queries for people: the dashboard and the command line. Frozen values, by page.

None of them loads a whole study: what grows with the reports is asked for the visible trials
only. They take a SQLAlchemy engine, change nothing, and read a database that only Optuna has
written (without our tables) as well.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine, Row

from storage import tables
from storage.floats import unstored
from storage.rows import distribution
from storage.tables import UID_KEY, optuna_tables

__all__ = [
    "AttemptRow",
    "BestPoint",
    "CheckpointPart",
    "CurvePoint",
    "EventRow",
    "FailureRow",
    "StudyDetail",
    "StudyRow",
    "TrialDetail",
    "TrialPage",
    "TrialRow",
    "best_so_far",
    "checkpoints",
    "curves",
    "events",
    "failures",
    "is_empty",
    "studies",
    "study",
    "trial",
    "trials",
]

CurvePoint = tuple[int, float]
"""(step, value)."""

_TRIALS = optuna_tables["trials"]
_VALUES = optuna_tables["trial_values"]
_PARAMS = optuna_tables["trial_params"]
_REPORTS = optuna_tables["trial_intermediate_values"]


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A study in a list. Times are naive UTC.

    Attributes:
        uid: ours, or "" for a study that only Optuna knows.
        states: count of trials by state name; a state without trials is not in it.
        best: of the COMPLETE trials of a single objective, finite values only; None otherwise.
        n_trials: the budget that was last asked for, or None.
        owner: process of the driver that holds the lease, as in :mod:`storage.owner`, or None.
        last_activity: the newest start, end or renewal.
        stop_reason: why the last run ended; None while one runs.
    """

    name: str
    study_id: int
    uid: str
    directions: tuple[str, ...]
    states: Mapping[str, int]
    best: float | None
    best_number: int | None
    n_trials: int | None
    owner: Mapping[str, Any] | None
    renewed_at: dt.datetime | None
    created_at: dt.datetime | None
    last_activity: dt.datetime | None
    stop_reason: str | None


@dataclass(frozen=True, kw_only=True)
class StudyDetail(StudyRow):
    """A study on its own page: the row, and how it is set up.

    Attributes:
        settings: what ``optimize`` was last called with.
        objective: module, name, file and digest; None where it was sent by value.
        provenance: of the newest attempt.
    """

    seed: int | None
    sampler: str | None
    pruner: str | None
    settings: Mapping[str, Any]
    objective: Mapping[str, Any] | None
    user_attrs: Mapping[str, Any]
    provenance: Mapping[str, Any]
    best_params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial in a list.

    Attributes:
        live: ``"running"``, ``"claimed"`` (waits for a slot or a retry), or "" when none of ours.
        reason: reason code of the newest attempt that ended, or "".
        duration: seconds from start to end; None while it runs.
        last_step, last_value: of the newest report.
    """

    number: int
    trial_id: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    started_at: dt.datetime | None
    completed_at: dt.datetime | None
    duration: float | None
    attempts: int
    live: str
    reason: str
    message: str
    last_step: int | None
    last_value: float | None


@dataclass(frozen=True, kw_only=True)
class TrialPage:
    """One page of trials, and how many there are in all."""

    rows: tuple[TrialRow, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """One attempt of a trial; see ``tuner_attempts``. ``ranks``: rank, host, node, pid, devices."""

    attempt: int
    state: str
    reason: str
    charged: bool
    message: str
    exception: str
    traceback: str
    log_tail: str
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    resumed_step: int | None
    ranks: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckpointPart:
    """One rank's part of a checkpoint; ``whole`` when every rank's is there."""

    attempt: int
    step: int
    rank: int
    world_size: int
    path: str
    digest: str
    size: int
    whole: bool
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """A line of the study's event log."""

    event_id: int
    number: int | None
    attempt: int | None
    kind: str
    detail: Mapping[str, Any]
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class TrialDetail(TrialRow):
    """A trial on its own page.

    Attributes:
        curve: reports of the effective series, by step.
        superseded: reports that a later attempt replaced: (attempt, step, value).
        metrics: further metrics by name.
    """

    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    superseded: tuple[tuple[int, int, float], ...] = ()
    metrics: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)
    attempt_rows: tuple[AttemptRow, ...] = ()
    checkpoint_parts: tuple[CheckpointPart, ...] = ()
    event_rows: tuple[EventRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BestPoint:
    """A COMPLETE trial, and the best value up to it."""

    number: int
    completed_at: dt.datetime | None
    value: float
    best: float


@dataclass(frozen=True, kw_only=True)
class FailureRow:
    """Failures of one kind: how many trials, and the newest of them."""

    reason: str
    exception: str
    count: int
    newest: int
    message: str


def is_empty(engine: Engine) -> bool:
    """Whether a database has no tables of Optuna's yet, so that the other functions would fail."""
    with engine.connect() as connection:
        return not sa.inspect(connection).has_table("studies")


def studies(engine: Engine, search: str = "") -> list[StudyRow]:
    """The studies whose name contains ``search``, newest activity first."""
    with engine.connect() as connection:
        names = optuna_tables["studies"]
        query = sa.select(names.c.study_id, names.c.study_name).order_by(names.c.study_id)
        if search:
            query = query.where(names.c.study_name.contains(search, autoescape=True))
        rows = connection.execute(query).all()
        found = _study_rows(connection, {row.study_id: row.study_name for row in rows})
    oldest = dt.datetime.min
    return sorted(found, key=lambda row: row.last_activity or row.created_at or oldest, reverse=True)


def study(engine: Engine, name: str) -> StudyDetail | None:
    """The study of that name, or None."""
    with engine.connect() as connection:
        study_id = _study_id(connection, name)
        if study_id is None:
            return None
        row = _study_rows(connection, {study_id: name})[0]
        ours: dict[str, Any] = {}
        provenance: Mapping[str, Any] = {}
        if row.uid and _have_ours(connection):
            table, attempts = tables.studies, tables.attempts
            found = (
                connection.execute(sa.select(table).where(table.c.study_uid == row.uid)).mappings().first()
            )
            ours = dict(found or {})
            newest = sa.select(attempts.c.provenance).where(attempts.c.study_uid == row.uid)
            newest = newest.where(attempts.c.provenance.is_not(None)).order_by(attempts.c.attempt_id.desc())
            provenance = _json(connection.execute(newest.limit(1)).scalar()) or {}
        attrs = optuna_tables["study_user_attributes"]
        query = sa.select(attrs.c.key, attrs.c.value_json).where(attrs.c.study_id == study_id)
        best_params: Mapping[str, Any] = {}
        if row.best_number is not None:
            chosen = sa.select(_TRIALS.c.trial_id).where(
                _TRIALS.c.study_id == study_id, _TRIALS.c.number == row.best_number
            )
            trial_id = connection.execute(chosen).scalar_one()
            best_params = _params(connection, [trial_id]).get(trial_id, {})
        return StudyDetail(
            **row.__dict__,
            seed=ours.get("seed"),
            sampler=ours.get("sampler"),
            pruner=ours.get("pruner"),
            settings=_json(ours.get("settings")) or {},
            objective=_json(ours.get("objective")),
            user_attrs={key: json.loads(text) for key, text in connection.execute(query)},
            provenance=provenance,
            best_params=best_params,
        )


def trials(
    engine: Engine,
    name: str,
    *,
    page: int = 1,
    size: int = 50,
    states: Sequence[str] = (),
    sort: str = "number",
    descending: bool = True,
) -> TrialPage:
    """One page of a study's trials; empty for an unknown study.

    Args:
        page: from 1.
        states: names of Optuna's states; empty for all.
        sort: ``number``, ``value`` (first objective; trials without one come last), ``duration``
            or ``state``.
    """
    with engine.connect() as connection:
        study_id = _study_id(connection, name)
        if study_id is None:
            return TrialPage(rows=(), total=0)
        where = [_TRIALS.c.study_id == study_id]
        if states:
            where.append(_TRIALS.c.state.in_([TrialState[state] for state in states]))
        count = sa.select(sa.func.count()).select_from(_TRIALS).where(*where)
        total = connection.execute(count).scalar_one()
        query = sa.select(_TRIALS.c.trial_id).where(*where)
        order: Any = _TRIALS.c.number
        if sort == "value":
            first = (_VALUES.c.trial_id == _TRIALS.c.trial_id) & (_VALUES.c.objective == 0)
            query = query.outerjoin(_VALUES, first)
            order = _VALUES.c.value
        elif sort == "duration":
            seconds = sa.func.julianday if engine.dialect.name == "sqlite" else sa.func.date_part
            end, begin = _TRIALS.c.datetime_complete, _TRIALS.c.datetime_start
            order = seconds(end) - seconds(begin) if engine.dialect.name == "sqlite" else end - begin
        elif sort == "state":
            order = _TRIALS.c.state
        ordered = order.desc().nulls_last() if descending else order.asc().nulls_last()
        query = query.order_by(ordered, _TRIALS.c.number.desc()).limit(size).offset((max(1, page) - 1) * size)
        ids = list(connection.execute(query).scalars())
        return TrialPage(rows=tuple(_trial_rows(connection, ids)), total=total)


def trial(engine: Engine, name: str, number: int) -> TrialDetail | None:
    """One trial with all that is known of it, or None."""
    with engine.connect() as connection:
        trial_id = _trial_id(connection, name, number)
        if trial_id is None:
            return None
        row = _trial_rows(connection, [trial_id])[0]
        attrs = {}
        for kind in ("user", "system"):
            table = optuna_tables[f"trial_{kind}_attributes"]
            query = sa.select(table.c.key, table.c.value_json).where(table.c.trial_id == trial_id)
            attrs[kind] = {key: json.loads(text) for key, text in connection.execute(query)}
        constraints = {
            key.removeprefix("constraints:"): value
            for key, value in attrs["system"].items()
            if key.startswith("constraints:")
        }
        uid = _uid(connection, name)
        ours: dict[str, Any] = {}
        if uid and _have_ours(connection):
            ours = {
                "superseded": _superseded(connection, uid, trial_id),
                "metrics": _metrics(connection, uid, trial_id),
                "attempt_rows": _attempts(connection, uid, trial_id),
                "checkpoint_parts": tuple(_checkpoints(connection, uid, trial_id)),
                "event_rows": tuple(_events(connection, uid, trial_id, 200)),
            }
        curve = tuple(_curves(connection, [trial_id]).get(trial_id, ()))
        return TrialDetail(
            **row.__dict__, user_attrs=attrs["user"], constraints=constraints, curve=curve, **ours
        )


def checkpoints(engine: Engine, name: str, number: int) -> list[CheckpointPart]:
    """The recorded parts of a trial's checkpoints, newest first, ranks in order."""
    with engine.connect() as connection:
        trial_id, uid = _trial_id(connection, name, number), _uid(connection, name)
        if trial_id is None or not uid or not _have_ours(connection):
            return []
        return _checkpoints(connection, uid, trial_id)


def curves(engine: Engine, name: str, numbers: Sequence[int]) -> dict[int, list[CurvePoint]]:
    """The reports of some trials, by number."""
    with engine.connect() as connection:
        study_id = _study_id(connection, name)
        query = sa.select(_TRIALS.c.trial_id, _TRIALS.c.number).where(
            _TRIALS.c.study_id == study_id, _TRIALS.c.number.in_(list(numbers))
        )
        by_id: dict[int, int] = dict(connection.execute(query).all())
        found = _curves(connection, list(by_id))
    return {number: found.get(trial_id, []) for trial_id, number in by_id.items()}


def best_so_far(engine: Engine, name: str) -> list[BestPoint]:
    """COMPLETE trials of a single objective with finite values, in order of completion."""
    with engine.connect() as connection:
        study_id = _study_id(connection, name)
        ways = _directions(connection, [study_id]) if study_id is not None else {}
        if study_id is None or len(ways.get(study_id, ())) != 1:
            return []
        query = (
            sa.select(_TRIALS.c.number, _TRIALS.c.datetime_complete, _VALUES.c.value)
            .join(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
            .where(_TRIALS.c.study_id == study_id, _TRIALS.c.state == TrialState.COMPLETE)
            .where(_VALUES.c.value.is_not(None))
            .order_by(_TRIALS.c.datetime_complete, _TRIALS.c.number)
        )
        better = min if ways[study_id][0] == "minimize" else max
        points: list[BestPoint] = []
        for number, moment, value in connection.execute(query):
            best = better(points[-1].best, value) if points else value
            points.append(BestPoint(number=number, completed_at=moment, value=value, best=best))
        return points


def events(engine: Engine, name: str, limit: int = 100) -> list[EventRow]:
    """The newest lines of the event log, newest first."""
    with engine.connect() as connection:
        uid = _uid(connection, name)
        if not uid or not _have_ours(connection):
            return []
        return _events(connection, uid, None, limit)


def failures(engine: Engine, name: str) -> list[FailureRow]:
    """FAIL trials by the reason and exception of their last attempt, most frequent first."""
    with engine.connect() as connection:
        uid, study_id = _uid(connection, name), _study_id(connection, name)
        if not uid or not _have_ours(connection):
            return []
        table = tables.attempts
        last = (
            sa.select(sa.func.max(table.c.attempt_id))
            .join(_TRIALS, _TRIALS.c.trial_id == table.c.trial_id)
            .where(
                table.c.study_uid == uid, _TRIALS.c.study_id == study_id, _TRIALS.c.state == TrialState.FAIL
            )
            .group_by(table.c.trial_id)
        )
        query = (
            sa.select(
                table.c.reason,
                table.c.exception,
                sa.func.count().label("trials"),
                sa.func.max(table.c.number).label("newest"),
                sa.func.max(table.c.message).label("message"),
            )
            .where(table.c.attempt_id.in_(last))
            .group_by(table.c.reason, table.c.exception)
            .order_by(sa.desc("trials"))
        )
        return [
            FailureRow(
                reason=row.reason or "",
                exception=row.exception or "",
                count=row.trials,
                newest=row.newest,
                message=row.message or "",
            )
            for row in connection.execute(query)
        ]


# ---------------------------------------------------------------------- parts


def _json(text: str | None) -> Any:
    return json.loads(text) if text else None


def _have_ours(connection: Connection) -> bool:
    return bool(sa.inspect(connection).has_table(tables.attempts.name))


def _study_id(connection: Connection, name: str) -> int | None:
    table = optuna_tables["studies"]
    return connection.execute(sa.select(table.c.study_id).where(table.c.study_name == name)).scalar()


def _uid(connection: Connection, name: str) -> str:
    attrs, names = optuna_tables["study_system_attributes"], optuna_tables["studies"]
    query = sa.select(attrs.c.value_json).join(names, names.c.study_id == attrs.c.study_id)
    text = connection.execute(query.where(names.c.study_name == name, attrs.c.key == UID_KEY)).scalar()
    return json.loads(text) if text else ""


def _trial_id(connection: Connection, name: str, number: int) -> int | None:
    query = sa.select(_TRIALS.c.trial_id).where(
        _TRIALS.c.study_id == _study_id(connection, name), _TRIALS.c.number == number
    )
    return connection.execute(query).scalar()


def _directions(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    table = optuna_tables["study_directions"]
    query = sa.select(table.c.study_id, table.c.direction).where(table.c.study_id.in_(list(ids)))
    found: dict[int, tuple[str, ...]] = {}
    for study_id, direction in connection.execute(query.order_by(table.c.objective)):
        found[study_id] = (*found.get(study_id, ()), direction.name.lower())
    return found


def _study_rows(connection: Connection, names: Mapping[int, str]) -> list[StudyRow]:
    ids = list(names)
    states: dict[int, dict[str, int]] = {study_id: {} for study_id in ids}
    moments: dict[int, list[dt.datetime]] = {study_id: [] for study_id in ids}
    query = sa.select(
        _TRIALS.c.study_id,
        _TRIALS.c.state,
        sa.func.count(),
        sa.func.max(_TRIALS.c.datetime_start),
        sa.func.max(_TRIALS.c.datetime_complete),
    ).where(_TRIALS.c.study_id.in_(ids))
    for study_id, state, count, *times in connection.execute(
        query.group_by(_TRIALS.c.study_id, _TRIALS.c.state)
    ):
        states[study_id][state.name] = count
        moments[study_id] += [moment for moment in times if moment is not None]
    directions = _directions(connection, ids)
    attrs = optuna_tables["study_system_attributes"]
    known = sa.select(attrs.c.study_id, attrs.c.value_json).where(
        attrs.c.key == UID_KEY, attrs.c.study_id.in_(ids)
    )
    uids = {study_id: json.loads(text) for study_id, text in connection.execute(known)}
    rows: dict[str, Row[Any]] = {}
    leases: dict[str, Row[Any]] = {}
    if uids and _have_ours(connection):
        for table, into in ((tables.studies, rows), (tables.leases, leases)):
            chosen = sa.select(table).where(table.c.study_uid.in_(list(uids.values())))
            into.update({row.study_uid: row for row in connection.execute(chosen)})
    found = []
    for study_id, name in names.items():
        uid = uids.get(study_id, "")
        row, lease = rows.get(uid), leases.get(uid)
        ways = directions.get(study_id, ())
        best = _best(connection, study_id, ways) if len(ways) == 1 else None
        times = [*moments[study_id], *([lease.renewed_at] if lease is not None and lease.owner else [])]
        settings = _json(row.settings) if row is not None else {}
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
                owner=_json(lease.owner) if lease is not None else None,
                renewed_at=lease.renewed_at if lease is not None else None,
                created_at=row.created_at if row is not None else None,
                last_activity=max(times, default=None),
                stop_reason=row.stop_reason if row is not None else None,
            )
        )
    return found


def _best(connection: Connection, study_id: int, directions: Sequence[str]) -> tuple[int, float] | None:
    order = _VALUES.c.value.asc() if directions[0] == "minimize" else _VALUES.c.value.desc()
    query = (
        sa.select(_TRIALS.c.number, _VALUES.c.value)
        .join(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
        .where(_TRIALS.c.study_id == study_id, _TRIALS.c.state == TrialState.COMPLETE)
        .where(_VALUES.c.value.is_not(None))
        .order_by(order, _TRIALS.c.number)
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else (row.number, row.value)


def _params(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    query = sa.select(
        _PARAMS.c.trial_id, _PARAMS.c.param_name, _PARAMS.c.param_value, _PARAMS.c.distribution_json
    ).where(_PARAMS.c.trial_id.in_(list(ids)))
    found: dict[int, dict[str, Any]] = {}
    for trial_id, name, value, text in connection.execute(query.order_by(_PARAMS.c.param_id)):
        found.setdefault(trial_id, {})[name] = distribution(text).to_external_repr(value)
    return found


def _curves(connection: Connection, ids: Sequence[int]) -> dict[int, list[CurvePoint]]:
    query = sa.select(
        _REPORTS.c.trial_id,
        _REPORTS.c.step,
        _REPORTS.c.intermediate_value,
        _REPORTS.c.intermediate_value_type,
    ).where(_REPORTS.c.trial_id.in_(list(ids)))
    found: dict[int, list[CurvePoint]] = {}
    for trial_id, step, value, kind in connection.execute(query.order_by(_REPORTS.c.step)):
        found.setdefault(trial_id, []).append((step, unstored(value, kind.name)))
    return found


def _trial_rows(connection: Connection, ids: Sequence[int]) -> list[TrialRow]:
    """The trials of these ids, in their order."""
    rows = {
        row.trial_id: row for row in connection.execute(sa.select(_TRIALS).where(_TRIALS.c.trial_id.in_(ids)))
    }
    values: dict[int, list[float]] = {}
    query = sa.select(_VALUES).where(_VALUES.c.trial_id.in_(ids)).order_by(_VALUES.c.objective)
    for row in connection.execute(query):
        values.setdefault(row.trial_id, []).append(unstored(row.value, row.value_type.name))
    params = _params(connection, ids)
    lasts = _last_reports(connection, ids)
    attempts = _attempt_summaries(connection, ids)
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


def _last_reports(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[int, float]]:
    newest = (
        sa.select(_REPORTS.c.trial_id, sa.func.max(_REPORTS.c.step).label("step"))
        .where(_REPORTS.c.trial_id.in_(list(ids)))
        .group_by(_REPORTS.c.trial_id)
        .subquery()
    )
    same = (newest.c.trial_id == _REPORTS.c.trial_id) & (newest.c.step == _REPORTS.c.step)
    query = sa.select(
        _REPORTS.c.trial_id,
        _REPORTS.c.step,
        _REPORTS.c.intermediate_value,
        _REPORTS.c.intermediate_value_type,
    ).join(newest, same)
    return {
        trial_id: (step, unstored(value, kind.name))
        for trial_id, step, value, kind in connection.execute(query)
    }


def _attempt_summaries(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[int, str, str, str]]:
    """By trial: how many attempts, state of an open one, and the newest end's reason and message."""
    if not _have_ours(connection):
        return {}
    table = tables.attempts
    names = optuna_tables["study_system_attributes"]
    uid = sa.select(names.c.value_json).join(_TRIALS, _TRIALS.c.study_id == names.c.study_id)
    uid = uid.where(_TRIALS.c.trial_id.in_(list(ids)), names.c.key == UID_KEY).limit(1)
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


def _attempts(connection: Connection, uid: str, trial_id: int) -> tuple[AttemptRow, ...]:
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
            ranks=tuple(_json(row.ranks) or ()),
            provenance=_json(row.provenance) or {},
        )
        for row in connection.execute(query.order_by(table.c.attempt))
    )


def _checkpoints(connection: Connection, uid: str, trial_id: int) -> list[CheckpointPart]:
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


def _superseded(connection: Connection, uid: str, trial_id: int) -> tuple[tuple[int, int, float], ...]:
    table = tables.superseded
    query = sa.select(table).where(table.c.study_uid == uid, table.c.trial_id == trial_id)
    rows = connection.execute(query.order_by(table.c.attempt, table.c.step))
    return tuple((row.attempt, row.step, unstored(row.value, row.value_type)) for row in rows)


def _metrics(connection: Connection, uid: str, trial_id: int) -> dict[str, tuple[CurvePoint, ...]]:
    """Further metrics; of a step that several attempts logged, the last one's value."""
    table = tables.metrics
    query = sa.select(table).where(table.c.study_uid == uid, table.c.trial_id == trial_id)
    found: dict[str, dict[int, float]] = {}
    for row in connection.execute(query.order_by(table.c.id)):
        found.setdefault(row.name, {})[row.step] = unstored(row.value, row.value_type)
    return {name: tuple(sorted(points.items())) for name, points in found.items()}


def _events(connection: Connection, uid: str, trial_id: int | None, limit: int) -> list[EventRow]:
    table = tables.events
    query = sa.select(table, _TRIALS.c.number).outerjoin(_TRIALS, _TRIALS.c.trial_id == table.c.trial_id)
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
