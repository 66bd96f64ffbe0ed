"""Column queries for people: the dashboard and the command line. Frozen values, by page.

None of them loads a whole study: what grows with the reports is asked for the visible trials
only. They take a SQLAlchemy engine, change nothing, and read a database that only Optuna has
written (without our tables) as well. The values are in :mod:`storage.views`.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from storage import selects, tables
from storage.changes import Changes, Cursor, look
from storage.curves import curves_of
from storage.filters import Filter
from storage.pages import page_ids
from storage.ranges import ranges_of
from storage.selects import TRIALS, VALUES
from storage.tables import optuna_tables
from storage.views import (
    BestPoint,
    CheckpointPart,
    CurvePoint,
    EventRow,
    StudyDetail,
    StudyRow,
    TrialDetail,
    TrialPage,
)

__all__ = [
    "best_so_far",
    "changes",
    "checkpoints",
    "curves",
    "events",
    "is_empty",
    "running_on",
    "studies",
    "study",
    "trial",
    "trials",
]


def is_empty(engine: Engine) -> bool:
    """Whether a database has no tables of Optuna's yet, so that the other functions would fail."""
    with selects.view(engine) as connection:
        return not sa.inspect(connection).has_table("studies")


def studies(engine: Engine, search: str = "") -> list[StudyRow]:
    """The studies whose name contains ``search``, newest activity first."""
    with selects.view(engine) as connection:
        if not selects.can_be_stored(search):
            return []
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
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
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
            ids = list(selects.trial_ids(connection, study_id, [row.best_number]))[:1]
            best_params = selects.params_of(connection, ids).get(ids[0], {})
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
    where: Sequence[Filter] = (),
    sort: str = "number",
    descending: bool = True,
) -> TrialPage:
    """One page of a study's trials; empty for an unknown study.

    Args:
        page: from 1.
        states: names of Optuna's states; empty for all.
        where: all of these must hold; see :mod:`storage.filters`.
        sort: ``number``, ``state`` (in Optuna's order, running first), ``value`` or ``value:K`` for
            objective K, ``param:NAME``, ``attr:NAME`` (user attribute), ``duration``, ``started``,
            ``completed``, ``last_step`` or ``last_value``. A trial without it, or with NaN, comes
            last in both directions; trials with equal ones are in order of their number, in the
            same direction. Choices of a categorical parameter that are no numbers come after those
            that are, by their text.

    Raises:
        Refused: there is no such order.

    Example:
        >>> from storage.filters import ParamFilter
        >>> database = storage.Database("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="listed", storage=database.optuna_storage())
        >>> for lr in (0.3, 0.2, 0.1):
        ...     study.enqueue_trial({"lr": lr})
        >>> study.optimize(lambda trial: trial.suggest_float("lr", 0, 1), n_trials=3)
        >>> low = trials(database.engine, "listed", where=[ParamFilter(name="lr", high=0.2)], sort="param:lr",
        ...              descending=False)
        >>> [row.params["lr"] for row in low.rows], low.total
        ([0.1, 0.2], 2)
    """
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        if study_id is None:
            return TrialPage(rows=(), total=0)
        ids, total = page_ids(
            connection,
            study_id,
            states=states,
            where=where,
            sort=sort,
            descending=descending,
            page=page,
            size=size,
        )
        rows = selects.trial_rows(connection, uid, ids)
        return TrialPage(rows=tuple(rows), total=total)


def trial(engine: Engine, name: str, number: int) -> TrialDetail | None:
    """One trial with all that is known of it, or None."""
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        trial_id = selects.trial_id(connection, study_id, number)
        if trial_id is None:
            return None
        row = selects.trial_rows(connection, uid, [trial_id])[0]
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
        ours: dict[str, Any] = {}
        if uid and selects.have_ours(connection):
            ours = {
                "superseded": selects.superseded(connection, uid, trial_id),
                "metrics": selects.metrics_of(connection, uid, [trial_id]).get(trial_id, {}),
                "attempt_rows": selects.attempt_rows(connection, uid, trial_id),
                "checkpoint_parts": tuple(selects.checkpoint_parts(connection, uid, trial_id)),
                "event_rows": tuple(selects.event_rows(connection, uid, trial_id, 200)),
            }
        return TrialDetail(
            **row.__dict__,
            ranges=ranges_of(connection, [trial_id]),
            given=_given(attrs["system"]),
            retry_of=_retry_of(attrs["system"]),
            user_attrs=attrs["user"],
            constraints=constraints,
            curve=tuple(curves_of(connection, [trial_id]).get(trial_id, ())),
            **ours,
        )


def _given(system_attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What Optuna keeps of the parameters of an enqueued trial."""
    found = system_attrs.get("fixed_params")
    return found if isinstance(found, dict) else {}


def _retry_of(system_attrs: Mapping[str, Any]) -> int | None:
    """The number that a retry of ours, or of Optuna's callback, keeps of the trial before it."""
    found = system_attrs.get("tuner:retry_of", system_attrs.get("failed_trial"))
    return found if isinstance(found, int) else None


def checkpoints(engine: Engine, name: str, number: int) -> list[CheckpointPart]:
    """The recorded parts of a trial's checkpoints, newest first, ranks in order."""
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        trial_id = selects.trial_id(connection, study_id, number)
        if trial_id is None or not uid or not selects.have_ours(connection):
            return []
        return selects.checkpoint_parts(connection, uid, trial_id)


def curves(engine: Engine, name: str, numbers: Sequence[int]) -> dict[int, list[CurvePoint]]:
    """The reports of some trials, by number."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        by_id = selects.trial_ids(connection, study_id, numbers)
        found = curves_of(connection, list(by_id))
    return {number: found.get(trial_id, []) for trial_id, number in by_id.items()}


def changes(engine: Engine, name: str, since: Cursor | None = None, *, limit: int = 500) -> Changes:
    """What changed in a study since the cursor of an earlier call; nothing is missed, nothing twice.

    The first call, with None, gives a cursor only: ask for it before the page is read, so that a
    change in between is given again rather than missed. It costs the same for any number of
    reports: finished trials are not looked at again.

    Args:
        limit: where more trials changed, or 100 times as many reports or events are new, the
            answer is ``anew``: to read the page again is cheaper.

    Example:
        >>> database = storage.Database("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="watched", storage=database.optuna_storage())
        >>> cursor = changes(database.engine, "watched").cursor
        >>> page = trials(database.engine, "watched")
        >>> trial = study.ask()
        >>> trial.report(0.42, step=0)
        >>> later = changes(database.engine, "watched", cursor)
        >>> [(row.number, row.state) for row in later.trials], later.reports
        ([(0, 'RUNNING')], {0: ((0, 0.42),)})
    """
    with selects.view(engine) as connection:
        return look(connection, name, since, limit)


def best_so_far(engine: Engine, name: str) -> list[BestPoint]:
    """COMPLETE trials of a single objective with finite values, in order of completion."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        ways = selects.directions(connection, [study_id]) if study_id is not None else {}
        if study_id is None or len(ways.get(study_id, ())) != 1:
            return []
        query = (
            sa.select(TRIALS.c.number, TRIALS.c.datetime_complete, VALUES.c.value)
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
            .where(VALUES.c.value <= math.inf)  # no NaN
            .order_by(TRIALS.c.datetime_complete, TRIALS.c.number)
        )
        better = min if ways[study_id][0] == "minimize" else max
        points: list[BestPoint] = []
        for number, moment, value in connection.execute(query).all():
            best = better(points[-1].best, value) if points else value
            points.append(BestPoint(number=number, completed_at=moment, value=value, best=best))
        return points


def events(engine: Engine, name: str, limit: int = 100) -> list[EventRow]:
    """The newest lines of the event log, newest first."""
    with selects.view(engine) as connection:
        _, uid = selects.study_ids(connection, name)
        if not uid or not selects.have_ours(connection):
            return []
        return selects.event_rows(connection, uid, None, limit)


def running_on(engine: Engine, name: str, kind: str) -> int:
    """How many attempts of a study have begun, and not ended, on a cluster of a kind.

    Args:
        kind: ``"local"`` (it ends with its driver) or ``"standing"``, as the provenance has it.
    """
    with selects.view(engine) as connection:
        _, uid = selects.study_ids(connection, name)
        if not uid or not selects.have_ours(connection):
            return 0
        table = tables.attempts
        there = table.c.provenance.contains(f'"cluster": "{kind}/', autoescape=True)
        query = sa.select(sa.func.count()).where(table.c.study_uid == uid, table.c.state == "running", there)
        return int(connection.execute(query).scalar_one())
