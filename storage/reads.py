"""Column queries for people: the dashboard and the command line. Frozen values, by page.

None of them loads a whole study: what grows with the reports is asked for the visible trials
only. They take a SQLAlchemy engine, change nothing, and read a database that only Optuna has
written (without our tables) as well. The values are in :mod:`storage.views`.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from storage import selects, tables
from storage.selects import TRIALS, VALUES
from storage.tables import optuna_tables
from storage.views import (
    BestPoint,
    CheckpointPart,
    CurvePoint,
    EventRow,
    FailureRow,
    StudyDetail,
    StudyRow,
    TrialDetail,
    TrialPage,
)

__all__ = [
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
        found = selects.study_rows(connection, {row.study_id: row.study_name for row in rows})
    oldest = dt.datetime.min
    return sorted(found, key=lambda row: row.last_activity or row.created_at or oldest, reverse=True)


def study(engine: Engine, name: str) -> StudyDetail | None:
    """The study of that name, or None."""
    with engine.connect() as connection:
        study_id = selects.study_id(connection, name)
        if study_id is None:
            return None
        row = selects.study_rows(connection, {study_id: name})[0]
        ours: dict[str, Any] = {}
        provenance: Mapping[str, Any] = {}
        if row.uid and selects.have_ours(connection):
            table, attempts = tables.studies, tables.attempts
            found = (
                connection.execute(sa.select(table).where(table.c.study_uid == row.uid)).mappings().first()
            )
            ours = dict(found or {})
            newest = sa.select(attempts.c.provenance).where(attempts.c.study_uid == row.uid)
            newest = newest.where(attempts.c.provenance.is_not(None)).order_by(attempts.c.attempt_id.desc())
            provenance = selects.from_json(connection.execute(newest.limit(1)).scalar()) or {}
        attrs = optuna_tables["study_user_attributes"]
        query = sa.select(attrs.c.key, attrs.c.value_json).where(attrs.c.study_id == study_id)
        best_params: Mapping[str, Any] = {}
        if row.best_number is not None:
            chosen = sa.select(TRIALS.c.trial_id).where(
                TRIALS.c.study_id == study_id, TRIALS.c.number == row.best_number
            )
            trial_id = connection.execute(chosen).scalar_one()
            best_params = selects.params_of(connection, [trial_id]).get(trial_id, {})
        return StudyDetail(
            **row.__dict__,
            seed=ours.get("seed"),
            sampler=ours.get("sampler"),
            pruner=ours.get("pruner"),
            settings=selects.from_json(ours.get("settings")) or {},
            objective=selects.from_json(ours.get("objective")),
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
        study_id = selects.study_id(connection, name)
        if study_id is None:
            return TrialPage(rows=(), total=0)
        where = [TRIALS.c.study_id == study_id]
        if states:
            where.append(TRIALS.c.state.in_([TrialState[state] for state in states]))
        count = sa.select(sa.func.count()).select_from(TRIALS).where(*where)
        total = connection.execute(count).scalar_one()
        query = sa.select(TRIALS.c.trial_id).where(*where)
        order: Any = TRIALS.c.number
        if sort == "value":
            first = (VALUES.c.trial_id == TRIALS.c.trial_id) & (VALUES.c.objective == 0)
            query = query.outerjoin(VALUES, first)
            order = VALUES.c.value
        elif sort == "duration":
            seconds = sa.func.julianday if engine.dialect.name == "sqlite" else sa.func.date_part
            end, begin = TRIALS.c.datetime_complete, TRIALS.c.datetime_start
            order = seconds(end) - seconds(begin) if engine.dialect.name == "sqlite" else end - begin
        elif sort == "state":
            order = TRIALS.c.state
        ordered = order.desc().nulls_last() if descending else order.asc().nulls_last()
        query = query.order_by(ordered, TRIALS.c.number.desc()).limit(size).offset((max(1, page) - 1) * size)
        ids = list(connection.execute(query).scalars())
        return TrialPage(rows=tuple(selects.trial_rows(connection, ids)), total=total)


def trial(engine: Engine, name: str, number: int) -> TrialDetail | None:
    """One trial with all that is known of it, or None."""
    with engine.connect() as connection:
        trial_id = selects.trial_id(connection, name, number)
        if trial_id is None:
            return None
        row = selects.trial_rows(connection, [trial_id])[0]
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
        uid = selects.uid(connection, name)
        ours: dict[str, Any] = {}
        if uid and selects.have_ours(connection):
            ours = {
                "superseded": selects.superseded(connection, uid, trial_id),
                "metrics": selects.metrics(connection, uid, trial_id),
                "attempt_rows": selects.attempt_rows(connection, uid, trial_id),
                "checkpoint_parts": tuple(selects.checkpoint_parts(connection, uid, trial_id)),
                "event_rows": tuple(selects.event_rows(connection, uid, trial_id, 200)),
            }
        curve = tuple(selects.curves_of(connection, [trial_id]).get(trial_id, ()))
        return TrialDetail(
            **row.__dict__, user_attrs=attrs["user"], constraints=constraints, curve=curve, **ours
        )


def checkpoints(engine: Engine, name: str, number: int) -> list[CheckpointPart]:
    """The recorded parts of a trial's checkpoints, newest first, ranks in order."""
    with engine.connect() as connection:
        trial_id, uid = selects.trial_id(connection, name, number), selects.uid(connection, name)
        if trial_id is None or not uid or not selects.have_ours(connection):
            return []
        return selects.checkpoint_parts(connection, uid, trial_id)


def curves(engine: Engine, name: str, numbers: Sequence[int]) -> dict[int, list[CurvePoint]]:
    """The reports of some trials, by number."""
    with engine.connect() as connection:
        study_id = selects.study_id(connection, name)
        query = sa.select(TRIALS.c.trial_id, TRIALS.c.number).where(
            TRIALS.c.study_id == study_id, TRIALS.c.number.in_(list(numbers))
        )
        by_id: dict[int, int] = dict(connection.execute(query).all())
        found = selects.curves_of(connection, list(by_id))
    return {number: found.get(trial_id, []) for trial_id, number in by_id.items()}


def best_so_far(engine: Engine, name: str) -> list[BestPoint]:
    """COMPLETE trials of a single objective with finite values, in order of completion."""
    with engine.connect() as connection:
        study_id = selects.study_id(connection, name)
        ways = selects.directions(connection, [study_id]) if study_id is not None else {}
        if study_id is None or len(ways.get(study_id, ())) != 1:
            return []
        query = (
            sa.select(TRIALS.c.number, TRIALS.c.datetime_complete, VALUES.c.value)
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
            .where(VALUES.c.value.is_not(None))
            .order_by(TRIALS.c.datetime_complete, TRIALS.c.number)
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
        uid = selects.uid(connection, name)
        if not uid or not selects.have_ours(connection):
            return []
        return selects.event_rows(connection, uid, None, limit)


def failures(engine: Engine, name: str) -> list[FailureRow]:
    """FAIL trials by the reason and exception of their last attempt, most frequent first."""
    with engine.connect() as connection:
        uid, study_id = selects.uid(connection, name), selects.study_id(connection, name)
        if not uid or not selects.have_ours(connection):
            return []
        table = tables.attempts
        last = (
            sa.select(sa.func.max(table.c.attempt_id))
            .join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
            .where(
                table.c.study_uid == uid,
                TRIALS.c.study_id == study_id,
                TRIALS.c.state == TrialState.FAIL,
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
