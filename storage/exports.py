"""A study for other programs: itself, and its trials page by page, as frozen values.

Trials are read a page at a time, each page in a short transaction of its own, so that a study of
any size needs no memory, and a slow reader holds nothing open. A trial is what counts in the end:
reports that a retry took back are not in it.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from storage import columns, reads, selects
from storage.clock import to_utc
from storage.database import Database
from storage.errors import UnknownStudy
from storage.filters import Filter
from storage.pages import all_ids
from storage.rows import distribution, read_trials
from storage.selects import PARAMS, TRIALS
from storage.tables import optuna_tables
from storage.views import CheckpointPart, CurvePoint, StudyDetail

__all__ = ["ExportedStudy", "ExportedTrial", "marks", "study", "trial_ids", "trials"]

PAGE = 100  # trials in memory at once: each may have many reports

_CONSTRAINT = "constraints:"


@dataclass(frozen=True, kw_only=True)
class ExportedStudy(StudyDetail):
    """A study as an exporter gets it; its best trial is a feasible one, as in Optuna.

    Attributes:
        objectives: a name for each: the metric names, else ``value``, or ``value 0`` and so on.
        space: what each parameter was drawn from so far, by name, sorted; mostly one distribution.
        attr_names: of the trials' user attributes, sorted.
        checkpoint: the newest whole checkpoint of the best trial, a part for each rank; or nothing.
    """

    objectives: tuple[str, ...]
    space: Mapping[str, tuple[BaseDistribution, ...]]
    attr_names: tuple[str, ...]
    checkpoint: tuple[CheckpointPart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportedTrial:
    """A trial as an exporter gets it: whole, each time. Times are naive UTC.

    Attributes:
        values: one for each objective, else empty; they may be infinite.
        seconds: from start to end; None while it runs.
        attempts: how often it was tried; 0 for a trial of another program.
        reason: reason code of the newest attempt that ended, or "".
        reports: (step, value) by step; values may be infinite or NaN, as in ``metrics``.
        metrics: further metrics by name.
    """

    number: int
    trial_id: int
    state: str
    values: tuple[float, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    seconds: float | None = None
    attempts: int = 0
    reason: str = ""
    reports: tuple[CurvePoint, ...] = ()
    metrics: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing of it changes any more."""
        return TrialState[self.state].is_finished()


def study(database: Database, name: str) -> ExportedStudy:
    """The study of that name.

    Raises:
        UnknownStudy: there is none.
    """
    with database.errors():
        found = None if reads.is_empty(database.engine) else reads.study(database.engine, name)
        if found is None:
            raise UnknownStudy(f"there is no study {name!r} in {database}")
        found = replace(found, **_best(columns.values(database.engine, name)))
        checkpoint: tuple[CheckpointPart, ...] = ()
        if found.best_number is not None:
            parts = reads.checkpoints(database.engine, name, found.best_number)
            newest = next((one for one in parts if one.whole), None)
            if newest is not None:
                same = (newest.attempt, newest.step)
                checkpoint = tuple(one for one in parts if (one.attempt, one.step) == same)
        with database.read() as connection:
            best = selects.trial_ids(connection, found.study_id, [found.best_number or 0])
            params = selects.params_of(connection, list(best)) if found.best_number is not None else {}
            found = replace(found, best_params=next(iter(params.values()), {}))
            return ExportedStudy(
                **found.__dict__,
                objectives=columns.objective_names(connection, found.study_id, len(found.directions)),
                space=_space(connection, found.study_id),
                attr_names=_attr_names(connection, found.study_id),
                checkpoint=checkpoint,
            )


def trial_ids(
    database: Database,
    of: StudyDetail,
    *,
    states: Sequence[str] = (),
    where: Sequence[Filter] = (),
    sort: str = "number",
    descending: bool = False,
) -> list[int]:
    """The ids of trials in an order; which ones, as for :func:`storage.reads.trials`.

    Raises:
        Refused: there is no such order.
    """
    with database.errors(), database.read() as connection:
        return all_ids(connection, of.study_id, states=states, where=where, sort=sort, descending=descending)


def marks(database: Database, of: StudyDetail, after: int) -> dict[int, bool]:
    """Of the trials with an id above ``after``, and of all unfinished ones: id and whether it is finished.

    Enqueued trials, which nobody has begun, are not in it.
    """
    fresh = (TRIALS.c.trial_id > after) | (TRIALS.c.state == TrialState.RUNNING)
    query = sa.select(TRIALS.c.trial_id, TRIALS.c.state)
    query = query.where(TRIALS.c.study_id == of.study_id, fresh, TRIALS.c.state != TrialState.WAITING)
    with database.errors(), database.read() as connection:
        rows = connection.execute(query.order_by(TRIALS.c.trial_id))
        return {trial_id: state.is_finished() for trial_id, state in rows}


def trials(database: Database, of: StudyDetail, ids: Sequence[int]) -> Iterator[ExportedTrial]:
    """The trials of these ids in their order; those that are gone meanwhile are left out."""
    for start in range(0, len(ids), PAGE):
        chosen = list(ids[start : start + PAGE])
        with database.errors(), database.read() as connection:
            page = _page(connection, of, chosen)
        yield from page


def _page(connection: Connection, of: StudyDetail, ids: Sequence[int]) -> list[ExportedTrial]:
    read = {trial._trial_id: trial for trial in read_trials(connection, of.study_id, ids)}
    attempts = selects.attempt_summaries(connection, of.uid, ids)
    metrics = selects.metrics_of(connection, of.uid, ids)
    found = []
    for trial_id in ids:
        if trial_id in read:
            count, _, reason, _ = attempts.get(trial_id, (0, "", "", ""))
            found.append(_exported(read[trial_id], count, reason, metrics.get(trial_id, {})))
    return found


def _exported(
    trial: FrozenTrial, attempts: int, reason: str, metrics: Mapping[str, tuple[CurvePoint, ...]]
) -> ExportedTrial:
    return ExportedTrial(
        number=trial.number,
        trial_id=trial._trial_id,
        state=trial.state.name,
        values=tuple(trial.values or ()),
        params=trial.params,
        distributions=trial.distributions,
        started_at=to_utc(trial.datetime_start),
        completed_at=to_utc(trial.datetime_complete),
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
        attempts=attempts,
        reason=reason,
        reports=tuple(sorted(trial.intermediate_values.items())),
        metrics=metrics,
        user_attrs=trial.user_attrs,
        constraints={
            key.removeprefix(_CONSTRAINT): value
            for key, value in trial.system_attrs.items()
            if key.startswith(_CONSTRAINT)
        },
    )


def _best(of: columns.ValueColumns) -> dict[str, Any]:
    """The best feasible trial of a single objective, as Optuna's ``best_trial``; the first of equal ones."""
    if len(of.directions) != 1:
        return {
            "best": None,
            "best_number": None,
        }
    sign = 1 if of.directions[0] == "minimize" else -1
    rows = zip(of.numbers, of.values[0], of.feasible, strict=True)
    finite = [(sign * value, number) for number, value, kept in rows if kept and math.isfinite(value)]
    loss, number = min(finite, default=(math.nan, None))
    return {"best": None if number is None else sign * loss, "best_number": number}


def _space(connection: Connection, study_id: int) -> dict[str, tuple[BaseDistribution, ...]]:
    query = (
        sa.select(PARAMS.c.param_name, PARAMS.c.distribution_json)
        .join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
        .where(TRIALS.c.study_id == study_id)
        .distinct()
    )
    found: dict[str, list[str]] = {}
    for name, text in connection.execute(query):
        found.setdefault(name, []).append(text)
    return {name: tuple(map(distribution, sorted(found[name]))) for name in sorted(found)}


def _attr_names(connection: Connection, study_id: int) -> tuple[str, ...]:
    table = optuna_tables["trial_user_attributes"]
    query = sa.select(table.c.key).distinct().join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
    return tuple(sorted(connection.execute(query.where(TRIALS.c.study_id == study_id)).scalars()))
