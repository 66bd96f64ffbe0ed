"""The reports of trials as curves. A page shows thousands of points: what each costs counts here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.engine import Connection

from storage.expressions import among, is_sqlite, number
from storage.tables import optuna_tables
from storage.views import CurvePoint

__all__ = ["REPORTS", "curves_of", "last_reports"]

REPORTS = optuna_tables["trial_intermediate_values"]

_VALUE = number(REPORTS.c.intermediate_value, REPORTS.c.intermediate_value_type)

_SQLITE_POINTS = """
SELECT step, CASE intermediate_value_type WHEN 'INF_POS' THEN 9e999 WHEN 'INF_NEG' THEN -9e999
ELSE intermediate_value END FROM trial_intermediate_values
WHERE trial_id = ? AND trial_intermediate_value_id > ? ORDER BY step
"""


def curves_of(
    connection: Connection, ids: Sequence[int], *, after: Mapping[int, int] | None = None
) -> dict[int, list[CurvePoint]]:
    """Reports by trial, by step; with ``after`` only those with an id above the trial's one there."""
    read = _from_sqlite if is_sqlite(connection) else _from_postgres
    return {trial_id: [] for trial_id in ids} | read(connection, ids, after or {})


def _from_sqlite(
    connection: Connection, ids: Sequence[int], after: Mapping[int, int]
) -> dict[int, list[CurvePoint]]:
    """A statement for each trial, since there is no server to go to: its rows are the points already."""
    cursor = connection.connection.cursor()
    found = {}
    for trial_id in ids:
        cursor.execute(_SQLITE_POINTS, (trial_id, after.get(trial_id, 0)))
        found[trial_id] = _without_null(cursor.fetchall())
    cursor.close()
    return found


def _from_postgres(
    connection: Connection, ids: Sequence[int], after: Mapping[int, int]
) -> dict[int, list[CurvePoint]]:
    """One statement with a row for each trial, of two arrays: half the time of a row for each point."""
    steps, values = (
        sa.type_coerce(sa.func.array_agg(aggregate_order_by(column, REPORTS.c.step)), sa.types.NullType())
        for column in (REPORTS.c.step, _VALUE)
    )
    trial_id, newest = REPORTS.c.trial_id, REPORTS.c.trial_intermediate_value_id
    if after:
        wanted = sa.or_(*((trial_id == one) & (newest > after[one]) for one in ids))
    else:
        wanted = among(connection, trial_id, ids)
    rows = connection.execute(sa.select(trial_id, steps, values).where(wanted).group_by(trial_id))
    return {one: _without_null(zip(at, reported, strict=True)) for one, at, reported in rows}


def _without_null(points: Iterable[tuple[int, float | None]]) -> list[CurvePoint]:
    """NULL is NaN."""
    return [(step, math.nan if value is None else value) for step, value in points]


def last_reports(connection: Connection, ids: Sequence[int]) -> dict[int, CurvePoint]:
    """The newest report by trial."""
    trials, others = optuna_tables["trials"], REPORTS.alias()
    newest = sa.select(sa.func.max(others.c.step)).where(others.c.trial_id == trials.c.trial_id)
    newest = newest.correlate(trials)
    last = (REPORTS.c.trial_id == trials.c.trial_id) & (REPORTS.c.step == newest.scalar_subquery())
    query = sa.select(REPORTS.c.trial_id, REPORTS.c.step, _VALUE)
    query = query.select_from(sa.join(trials, REPORTS, last))
    return {
        trial_id: (step, math.nan if value is None else value)
        for trial_id, step, value in connection.execute(
            query.where(among(connection, trials.c.trial_id, ids))
        )
    }
