"""What each write does to the tables, on an open transaction; runs of one kind as one statement.

Writes keep their order where it matters: those that change which trials there are, or what they
hold (:data:`_BARRIERS`), are never passed by another; between them, writes on different tables may
change places, and those on one table may not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storage import attempt_writes, bulk, trial_writes
from storage.tables import optuna_tables
from storage.trial_writes import IS_OPEN
from storage.writes import (
    GUARDED,
    AddCheckpoint,
    AddEvent,
    AddMetric,
    AddReport,
    Claim,
    CreateTrial,
    DoneCommand,
    DropCheckpoints,
    EndAttempt,
    FinishTrial,
    PopWaiting,
    SetParam,
    SetStudyAttr,
    SetStudyRow,
    SetTrialAttr,
    StartAttempt,
    Supersede,
    Write,
)

__all__ = ["DROPPED", "execute"]

DROPPED = object()
"""The result of a write whose trial was finished by another program first."""

_BARRIERS = (CreateTrial, PopWaiting, Supersede)


def execute(connection: Connection, writes: Sequence[Write]) -> list[Any]:
    """Carry out the writes and return their results in order, :data:`DROPPED` where a guarded
    write came too late.
    """
    alive = _alive(connection, writes)
    results: list[Any] = [None] * len(writes)
    for run in _runs(writes):
        taken = []
        for at in run:
            write = writes[at]
            if isinstance(write, GUARDED) and write.trial_id not in alive:
                results[at] = DROPPED
            else:
                taken.append(at)
        if taken:
            chosen = [writes[at] for at in taken]
            done = _HANDLERS[type(chosen[0])](connection, chosen)
            for at, result in zip(taken, done or itertools.repeat(None), strict=False):
                results[at] = result
    return results


def _runs(writes: Sequence[Write]) -> Iterator[list[int]]:
    """Positions of writes that are carried out as one, of one kind, in an order that may be kept."""
    kinds = [type(write) for write in writes]
    for barrier, group in itertools.groupby(
        range(len(writes)), key=lambda at: kinds[at] if kinds[at] in _BARRIERS else None
    ):
        if barrier is CreateTrial:
            yield list(group)
        elif barrier is not None:
            yield from ([at] for at in group)
        else:
            tables: dict[object, list[int]] = {}
            for at in group:
                tables.setdefault(_TABLE.get(kinds[at], kinds[at]), []).append(at)
            for positions in tables.values():
                for _, run in itertools.groupby(positions, key=lambda at: kinds[at]):
                    yield list(run)


def _alive(connection: Connection, writes: Sequence[Write]) -> set[int]:
    """Ids of the trials whose guarded writes count, locked until the commit: those that are not
    finished. Those that the batch itself finishes change their state here, which tells the same.
    """
    finishing = [write for write in writes if isinstance(write, FinishTrial)]
    done = trial_writes.finish(connection, finishing)
    alive = {write.trial_id for write, changed in zip(finishing, done, strict=True) if changed}
    others = {write.trial_id for write in writes if isinstance(write, GUARDED)}
    ids = sorted(others - {write.trial_id for write in finishing})
    if not ids:
        return alive
    if connection.dialect.name == "sqlite":
        return alive.union(row[0] for row in bulk.rows(connection, _ALIVE, {"b_ids": json.dumps(ids)}))
    return alive.union(connection.execute(_ALIVE_LOCKED, {"b_ids": ids}).scalars())


def _among_open(each: sa.ColumnElement[Any]) -> sa.Select[Any]:
    trial_id = optuna_tables["trials"].c.trial_id
    return sa.select(trial_id).where(trial_id == each, IS_OPEN)


_IDS: sa.BindParameter[Any] = sa.bindparam("b_ids")
_ALIVE = _among_open(sa.func.json_each(_IDS).table_valued("value").c.value)
_ALIVE_LOCKED = _among_open(sa.any_(sa.cast(_IDS, sa.ARRAY(sa.Integer)))).with_for_update()


_TABLE: dict[type[Write], str] = {
    Claim: "attempts",
    StartAttempt: "attempts",
    EndAttempt: "attempts",
    AddCheckpoint: "checkpoints",
    DropCheckpoints: "checkpoints",
}
"""Kinds that share a table, so that their order is kept."""

_HANDLERS: dict[type[Write], Callable[[Connection, Any], list[Any] | None]] = {
    AddCheckpoint: attempt_writes.add_checkpoints,
    AddEvent: attempt_writes.add_events,
    AddMetric: trial_writes.add_metrics,
    AddReport: trial_writes.add_reports,
    Claim: attempt_writes.claims,
    CreateTrial: trial_writes.create_trials,
    DoneCommand: attempt_writes.done_commands,
    DropCheckpoints: attempt_writes.drop_checkpoints,
    EndAttempt: attempt_writes.end_attempt,
    FinishTrial: trial_writes.add_outcomes,
    PopWaiting: trial_writes.pop_waiting,
    SetParam: trial_writes.set_params,
    SetStudyAttr: trial_writes.set_study_attrs,
    SetStudyRow: attempt_writes.set_study_row,
    SetTrialAttr: trial_writes.set_trial_attrs,
    StartAttempt: attempt_writes.start_attempt,
    Supersede: trial_writes.supersede,
}
