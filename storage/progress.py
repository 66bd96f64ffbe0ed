"""How far a study is, for people: its runs, the newest ends, the best so far, what runs now.

Column queries like those of :mod:`storage.reads`: a fixed number of statements, results of a bounded
size, whatever the number of trials and reports; also on a database that only Optuna has written.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine

from storage import selects, tables
from storage.curves import curves_of
from storage.expressions import among
from storage.selects import TRIALS, VALUES
from storage.views import CurvePoint

__all__ = [
    "FINISHED",
    "End",
    "History",
    "Progress",
    "Run",
    "Running",
    "RunningRow",
    "elapsed",
    "history",
    "leaders",
    "progress",
    "running",
    "runs",
]

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
"""The states that count against the budget."""

_T = TypeVar("_T")

_FINISHES = 50  # the newest ends: enough for a rate, few enough to be recent
_SPARKS = 60  # points of a sparkline


@dataclass(frozen=True, kw_only=True)
class Run:
    """One driver's time with a study, by its lines in the event log. Times are naive UTC.

    Attributes:
        began: its first word: of a trial that it starts, or of what a driver before it has left.
        last: its newest word, such as a start, an end, or that it stops.
    """

    epoch: int
    began: dt.datetime
    last: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a study is. Times are naive UTC.

    Attributes:
        runs: by epoch; empty for a study that only Optuna ran.
        first_start, last_end: of any trial, or None.
        finishes: when the newest trials of the newest run ended, at most 50, in order; of the study
            where only Optuna ran it. Empty while a newer driver has claimed nothing yet.
        finished: how many trials ended in the newest run, or in all.
        claimed, retrying: RUNNING trials that wait for a slot: for their first attempt, for another one.
        retried: trials with more than one attempt.
    """

    runs: tuple[Run, ...]
    first_start: dt.datetime | None
    last_end: dt.datetime | None
    finishes: tuple[dt.datetime, ...]
    finished: int
    claimed: int
    retrying: int
    retried: int

    @property
    def worked(self) -> tuple[Run, ...]:
        """The runs; a study that only Optuna ran has one, from its first start to its last end."""
        if self.runs or self.first_start is None or self.last_end is None:
            return self.runs
        return (Run(epoch=0, began=self.first_start, last=self.last_end),)


End = tuple[int, dt.datetime | None, float]
"""(number, when it was complete, value) of a COMPLETE trial."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The values of a study's COMPLETE trials in an order; finite values of a single objective only.

    Attributes:
        shown: the trials, or evenly chosen ones where there are many, with the first and the last.
        best: those that were better than all before them; none is left out.
        total: how many there are.
    """

    shown: tuple[End, ...]
    best: tuple[End, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class RunningRow:
    """A trial that runs now.

    Attributes:
        attempt: None where another program runs it.
        params: those that it has asked for so far.
        hosts, devices: of all its ranks, each once, in order.
        curve: its reports by step, at most 60 of them, the newest among them.
    """

    number: int
    attempt: int | None
    started_at: dt.datetime | None
    params: Mapping[str, Any]
    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True, kw_only=True)
class Running:
    """The trials that run now, newest first, and how many there are in all."""

    rows: tuple[RunningRow, ...]
    total: int


def progress(engine: Engine, name: str) -> Progress | None:
    """How far the study of that name is, or None."""
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        if study_id is None:
            return None
        of_study = TRIALS.c.study_id == study_id
        query = sa.select(sa.func.min(TRIALS.c.datetime_start), sa.func.max(TRIALS.c.datetime_complete))
        first, last = connection.execute(query.where(of_study)).one()
        found: list[Run] = []
        waiting: dict[bool, int] = {}
        retried, since = 0, None
        if uid and selects.have_ours(connection):
            found, epoch = _runs(connection, uid)
            waiting, retried = _waiting(connection, uid)
            if epoch is not None:
                since = found[-1].began if found and found[-1].epoch == epoch else dt.datetime.max
        at = TRIALS.c.datetime_complete
        ended = [of_study, TRIALS.c.state.in_(FINISHED), at.is_not(None)]
        if since is not None:
            ended.append(at >= since)
        newest = connection.execute(sa.select(at).where(*ended).order_by(at.desc()).limit(_FINISHES))
        count = sa.select(sa.func.count()).select_from(TRIALS).where(*ended)
        return Progress(
            runs=tuple(found),
            first_start=first,
            last_end=last,
            finishes=tuple(reversed(list(newest.scalars()))),
            finished=connection.execute(count).scalar_one(),
            claimed=waiting.get(False, 0),
            retrying=waiting.get(True, 0),
            retried=retried,
        )


def runs(engine: Engine, name: str) -> tuple[Run, ...]:
    """The runs of the study of that name so far, by epoch."""
    with selects.view(engine) as connection:
        _, uid = selects.study_ids(connection, name)
        found = _runs(connection, uid)[0] if uid and selects.have_ours(connection) else []
    return tuple(found)


def elapsed(runs: Sequence[Run], now: dt.datetime | None) -> float:
    """Seconds that a driver worked on a study: the sum over its runs, without what lies between them.

    Args:
        now: the newest run goes on, and counts up to this moment; None: nobody drives the study.

    Example:
        >>> noon, minute = dt.datetime(2026, 1, 1, 12), dt.timedelta(minutes=1)
        >>> done = Run(epoch=1, began=noon, last=noon + minute)
        >>> elapsed([done], None), elapsed([done], noon + 3 * minute), elapsed([], noon)
        (60.0, 180.0, 0.0)
    """
    ends = [run.last for run in runs]
    if runs and now is not None:
        ends[-1] = max(now, runs[-1].last)
    spans = [max(0.0, (end - run.began).total_seconds()) for run, end in zip(runs, ends, strict=True)]
    return sum(spans, 0.0)


def _runs(connection: Connection, uid: str) -> tuple[list[Run], int | None]:
    """The runs by epoch, and the epoch of the lease.

    Attempts do not tell: one that a lost driver left counts with the driver that ended it.
    """
    table, leases = tables.events, tables.leases
    at = table.c.created_at
    query = sa.select(table.c.epoch, sa.func.min(at), sa.func.max(at))
    query = query.where(table.c.study_uid == uid, table.c.epoch > 0)  # 0: written by no driver
    query = query.group_by(table.c.epoch).order_by(table.c.epoch)
    found = [Run(epoch=epoch, began=began, last=last) for epoch, began, last in connection.execute(query)]
    lease = sa.select(leases.c.epoch).where(leases.c.study_uid == uid)
    return found, connection.execute(lease).scalar()


def _waiting(connection: Connection, uid: str) -> tuple[dict[bool, int], int]:
    """Claimed attempts that are not the trial's first (True) or are (False); trials that had others."""
    table = tables.attempts
    again = table.c.attempt > 1
    query = sa.select(again, sa.func.count()).where(table.c.study_uid == uid, table.c.state == "claimed")
    waiting = {bool(flag): count for flag, count in connection.execute(query.group_by(again))}
    retried = sa.select(sa.func.count(table.c.trial_id.distinct())).where(table.c.study_uid == uid, again)
    return waiting, int(connection.execute(retried).scalar_one())


def history(
    engine: Engine, name: str, *, by: Literal["trial", "time"] = "trial", most: int = 1000
) -> History:
    """The values of the COMPLETE trials of a single objective.

    Args:
        by: in order of the trials' numbers, or of when they were complete.
        most: trials that are shown, besides the best ones.
    """
    nothing = History(shown=(), best=(), total=0)
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        ways = selects.directions(connection, [study_id]).get(study_id, ()) if study_id is not None else ()
        if len(ways) != 1:
            return nothing
        order = [TRIALS.c.number] if by == "trial" else [TRIALS.c.datetime_complete, TRIALS.c.number]
        query = (
            sa.select(TRIALS.c.number, TRIALS.c.datetime_complete, VALUES.c.value)
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
            .where(VALUES.c.value <= math.inf)  # no NaN
            .order_by(*order)
        )
        rows: list[End] = [(number, at, value) for number, at, value in connection.execute(query)]
    sign = 1.0 if ways[0] == "minimize" else -1.0
    best: list[End] = []
    for row in rows:
        if not best or sign * row[2] < sign * best[-1][2]:
            best.append(row)
    return History(shown=tuple(_evenly(rows, most)), best=tuple(best), total=len(rows))


def leaders(engine: Engine, name: str) -> tuple[tuple[float, int], ...]:
    """Of several objectives, the best finite value of each and its trial's number; empty for a single one."""
    with selects.view(engine) as connection:
        study_id, _ = selects.study_ids(connection, name)
        ways = selects.directions(connection, [study_id]).get(study_id, ()) if study_id is not None else ()
        if len(ways) < 2:
            return ()
        found = []
        for at, way in enumerate(ways):
            query = sa.select(VALUES.c.value, TRIALS.c.number).join(
                TRIALS, TRIALS.c.trial_id == VALUES.c.trial_id
            )
            query = query.where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
            query = query.where(VALUES.c.objective == at, VALUES.c.value <= math.inf)  # no NaN
            order = VALUES.c.value if way == "minimize" else VALUES.c.value.desc()
            row = connection.execute(query.order_by(order, TRIALS.c.number).limit(1)).first()
            if row is None:
                return ()
            found.append((row.value, row.number))
        return tuple(found)


def running(engine: Engine, name: str, *, limit: int = 12) -> Running:
    """The trials that run now; those that wait for a slot are not among them."""
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        if study_id is None:
            return Running(rows=(), total=0)
        query = sa.select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.datetime_start)
        query = query.where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
        trials = connection.execute(query.order_by(TRIALS.c.trial_id.desc())).all()
        attempts = _open_attempts(connection, uid, [trial.trial_id for trial in trials])
        there = [trial for trial in trials if getattr(attempts.get(trial.trial_id), "state", "") != "claimed"]
        shown = there[:limit]
        ids = [trial.trial_id for trial in shown]
        curves, params = curves_of(connection, ids), selects.params_of(connection, ids)
    rows = []
    for trial in shown:
        attempt = attempts.get(trial.trial_id)
        ranks = (selects.from_json(attempt.ranks) or []) if attempt is not None else []
        rows.append(
            RunningRow(
                number=trial.number,
                attempt=attempt.attempt if attempt is not None else None,
                started_at=attempt.started_at if attempt is not None else trial.datetime_start,
                params=params.get(trial.trial_id, {}),
                hosts=tuple(dict.fromkeys(str(rank.get("host", "")) for rank in ranks)),
                devices=tuple(dict.fromkeys(str(one) for rank in ranks for one in rank.get("devices", ()))),
                curve=tuple(_evenly(curves[trial.trial_id], _SPARKS)),
            )
        )
    return Running(rows=tuple(rows), total=len(there))


def _open_attempts(connection: Connection, uid: str, ids: Sequence[int]) -> dict[int, Any]:
    if not uid or not ids or not selects.have_ours(connection):
        return {}
    table = tables.attempts
    columns = ("study_uid", "trial_id", "attempt", "state", "started_at", "ranks")
    query = sa.select(*(table.c[name] for name in columns)).where(
        among(connection, table.c.trial_id, ids), table.c.state != "ended"
    )
    # the uid of a deleted study is told apart here: in SQL SQLite would read every attempt of the study
    return {row.trial_id: row for row in connection.execute(query) if row.study_uid == uid}


def _evenly(rows: Sequence[_T], most: int) -> Sequence[_T]:
    """At most ``most`` of the rows at even distances, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[index * (len(rows) - 1) // (most - 1)] for index in range(most)]
