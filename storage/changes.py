"""What changed in a study since somebody looked, at a cost that does not grow with its reports.

Finished trials do not change, so only those are looked at that were unfinished at the last look,
or are new. Of each the cursor knows how many reports it had and the last one's id.

Ids are given before a commit, so that on PostgreSQL a row may appear behind one with a higher id.
It does not happen within what one lock orders: the trials of a study (whoever creates one holds
the study's row), and the events and reports of a driver (which holds the lease's row from its
first statement). Reports of other programs, and rows written by hand, know no such lock. Hence the
cursor counts: where more rows are there than those with higher ids explain, the trial's curve is
given whole, and for trials and events everything is to be read anew. A retry, which takes back the
reports behind a checkpoint, is known by the trial's attempts and gives the whole curve too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from storage import selects, tables
from storage.curves import REPORTS, curves_of
from storage.expressions import among
from storage.rows import CHUNK
from storage.selects import PARAMS, TRIALS
from storage.views import CurvePoint, EventRow, TrialRow

__all__ = ["Changes", "Cursor", "Mark", "look"]

_OPEN = (TrialState.RUNNING, TrialState.WAITING)
_OPEN_NAMES = {state.name for state in _OPEN}
_REPORTS_OF_A_TRIAL = 100


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was seen of a trial that may still change."""

    trial_id: int
    state: str
    attempts: int = 0
    live: str = ""
    params: int = 0
    reports: int = 0
    last_report: int = 0


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Up to where a study was seen: plain values, which can be pickled or written as JSON.

    Attributes:
        trials, last_trial, last_number: how many, and the last one's id and number.
        events, last_event: of the event log.
        marks: of the trials that were unfinished, or had changed at the last look.
    """

    study_id: int
    uid: str
    trials: int = 0
    last_trial: int = 0
    last_number: int = -1
    last_started: dt.datetime | None = None
    events: int = 0
    last_event: int = 0
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What changed between two looks.

    Attributes:
        cursor: for the next look; None where there is no such study.
        anew: nothing else is given, read everything anew: the first look, another study of the
            same name, or too much to list.
        trials: those that are new, or whose state, attempts, parameters or reports changed; by number.
        reports: new points by number of the trial, by step; a trial without new ones is not in it.
        whole: numbers of those whose points in ``reports`` are all that there are, which replace
            what was seen before.
        events: new lines of the event log, oldest first.
    """

    cursor: Cursor | None
    anew: bool = False
    trials: tuple[TrialRow, ...] = ()
    reports: Mapping[int, tuple[CurvePoint, ...]] = field(default_factory=dict)
    whole: frozenset[int] = frozenset()
    events: tuple[EventRow, ...] = ()


def look(connection: Connection, name: str, since: Cursor | None, limit: int) -> Changes:
    """The changes of a study, on a connection that sees one moment; see :func:`storage.reads.changes`."""
    study_id, uid = selects.study_ids(connection, name)
    if study_id is None:
        return Changes(cursor=None, anew=True)
    cursor = _cursor(connection, study_id, uid)
    if since is None or not _is_same(connection, since, cursor):
        return _anew(connection, cursor)
    states = _states(connection, since)
    new = sum(trial_id > since.last_trial for trial_id in states)
    if since.trials + new != cursor.trials or len(states) - len(since.marks) > limit:
        return _anew(connection, cursor)
    known = {mark.trial_id: mark for mark in since.marks}
    marks = _marks(connection, cursor.uid, states)
    changed = {mark.trial_id: mark for mark in marks if mark != known.get(mark.trial_id)}
    reports = sum(mark.reports for mark in changed.values() if mark.trial_id not in known)
    reports += sum(abs(changed[one].reports - known[one].reports) for one in changed if one in known)
    if len(changed) > limit or max(reports, cursor.events - since.events) > _REPORTS_OF_A_TRIAL * limit:
        return _anew(connection, cursor)
    events = selects.event_rows(
        connection, cursor.uid, None, cursor.events - since.events, after=since.last_event
    )
    if since.events + len(events) != cursor.events:
        return _anew(connection, cursor)
    curves, whole = _new_points(connection, known, changed)
    rows = selects.trial_rows(connection, cursor.uid, sorted(changed))
    # a finished one that changed is looked at once more, for a report that raced with its end
    marks = [mark for mark in marks if mark.state in _OPEN_NAMES or mark.trial_id in changed]
    return Changes(
        cursor=replace(cursor, marks=tuple(marks)),
        trials=tuple(sorted(rows, key=lambda row: row.number)),
        reports={row.number: tuple(curves[row.trial_id]) for row in rows if curves.get(row.trial_id)},
        whole=frozenset(row.number for row in rows if row.trial_id in whole),
        events=tuple(reversed(events)),
    )


def _anew(connection: Connection, cursor: Cursor) -> Changes:
    """A cursor at this moment. Of the trials only the unfinished ones are looked at."""
    states = _states(connection, cursor)
    return Changes(cursor=replace(cursor, marks=tuple(_marks(connection, cursor.uid, states))), anew=True)


def _cursor(connection: Connection, study_id: int, uid: str) -> Cursor:
    """How many trials and events there are now; without marks."""
    query = sa.select(sa.func.count(), sa.func.max(TRIALS.c.trial_id)).where(TRIALS.c.study_id == study_id)
    trials, last_trial = connection.execute(query).one()
    last = sa.select(TRIALS.c.number, TRIALS.c.datetime_start).where(TRIALS.c.trial_id == last_trial)
    number, started = tuple(connection.execute(last).one()) if trials else (-1, None)
    events, last_event = 0, 0
    if uid and selects.have_ours(connection):
        table = tables.events
        count = sa.select(sa.func.count(), sa.func.max(table.c.event_id)).where(table.c.study_uid == uid)
        events, last_event = connection.execute(count).one()
    return Cursor(
        study_id=study_id,
        uid=uid,
        trials=trials,
        last_trial=last_trial or 0,
        last_number=number,
        last_started=started,
        events=events,
        last_event=last_event or 0,
    )


def _is_same(connection: Connection, since: Cursor, now: Cursor) -> bool:
    """False for another study of that name; SQLite gives the ids of a deleted one again."""
    if (since.study_id, since.uid) != (now.study_id, now.uid):
        return False
    query = sa.select(TRIALS.c.number, TRIALS.c.datetime_start).where(
        TRIALS.c.trial_id == since.last_trial, TRIALS.c.study_id == since.study_id
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return since.trials == 0
    return row.number == since.last_number and since.last_started in (None, row.datetime_start)


def _states(connection: Connection, since: Cursor) -> dict[int, str]:
    """States by trial id: of new trials, of all unfinished ones, and of those with a mark."""
    columns = sa.select(TRIALS.c.trial_id, TRIALS.c.state).where(TRIALS.c.study_id == since.study_id)
    fresh = (TRIALS.c.trial_id > since.last_trial) | TRIALS.c.state.in_(_OPEN)
    rows = list(connection.execute(columns.where(fresh)).all())
    found = {row.trial_id for row in rows}
    rest = [mark.trial_id for mark in since.marks if mark.trial_id not in found]
    for ids in _chunks(rest):
        rows += connection.execute(columns.where(among(connection, TRIALS.c.trial_id, ids))).all()
    return {row.trial_id: row.state.name for row in rows}


def _marks(connection: Connection, uid: str, states: Mapping[int, str]) -> list[Mark]:
    params: dict[int, int] = {}
    reports: dict[int, tuple[int, int]] = {}
    attempts: dict[int, tuple[int, str, str, str]] = {}
    # a waiting trial says nothing yet; there may be thousands
    for ids in _chunks([trial_id for trial_id, state in states.items() if state != "WAITING"]):
        count = sa.func.count()
        query = sa.select(PARAMS.c.trial_id, count).where(among(connection, PARAMS.c.trial_id, ids))
        params |= {row[0]: row[1] for row in connection.execute(query.group_by(PARAMS.c.trial_id))}
        last = sa.func.max(REPORTS.c.trial_intermediate_value_id)
        of = sa.select(REPORTS.c.trial_id, count, last).where(among(connection, REPORTS.c.trial_id, ids))
        for trial_id, reported, newest in connection.execute(of.group_by(REPORTS.c.trial_id)):
            reports[trial_id] = reported, newest
        attempts |= selects.attempt_summaries(connection, uid, ids)
    return [
        Mark(
            trial_id=trial_id,
            state=state,
            attempts=attempts.get(trial_id, (0, ""))[0],
            live=attempts.get(trial_id, (0, ""))[1],
            params=params.get(trial_id, 0),
            reports=reports.get(trial_id, (0, 0))[0],
            last_report=reports.get(trial_id, (0, 0))[1],
        )
        for trial_id, state in states.items()
    ]


def _new_points(
    connection: Connection, known: Mapping[int, Mark], changed: Mapping[int, Mark]
) -> tuple[dict[int, list[CurvePoint]], set[int]]:
    """The new points of the trials that changed, and the trials of which they are all points."""
    whole = {one for one in changed if one not in known or known[one].attempts != changed[one].attempts}
    points: dict[int, list[CurvePoint]] = {}
    grown = [
        one for one in changed if one not in whole and known[one].last_report != changed[one].last_report
    ]
    for ids in _chunks(grown, 100):
        after = {trial_id: known[trial_id].last_report for trial_id in ids}
        points |= curves_of(connection, ids, after=after)
    for one in changed.keys() - whole:
        if known[one].reports + len(points.get(one, ())) != changed[one].reports:
            whole.add(one)
    for ids in _chunks(sorted(whole)):
        points |= curves_of(connection, ids)
    return points, whole


def _chunks(ids: Sequence[int], size: int = CHUNK) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
