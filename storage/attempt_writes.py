"""What the writes about attempts do to our own tables, on an open transaction, many at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storage import bulk, tables
from storage.clock import utcnow
from storage.writes import (
    AddCheckpoint,
    AddEvent,
    Claim,
    DoneCommand,
    DropCheckpoints,
    EndAttempt,
    SetStudyRow,
    StartAttempt,
)

__all__ = [
    "add_checkpoints",
    "add_events",
    "claims",
    "done_commands",
    "drop_checkpoints",
    "end_attempt",
    "set_study_row",
    "start_attempt",
]


def set_study_row(connection: Connection, writes: Sequence[SetStudyRow]) -> None:
    for write in writes:
        table = tables.studies
        mine = table.c.study_uid == write.study_uid
        connection.execute(table.update().where(mine).values(write.columns))


def claims(connection: Connection, writes: Sequence[Claim]) -> None:
    columns = ("study_uid", "trial_id", "number", "attempt", "epoch", "attributes", "resumed_step")
    rows = [(*(getattr(write, name) for name in columns), "claimed", utcnow()) for write in writes]
    bulk.insert(connection, tables.attempts, (*columns, "state", "created_at"), rows)


def _this_attempt() -> sa.ColumnElement[bool]:
    table = tables.attempts
    mine = (table.c.study_uid == sa.bindparam("b_uid")) & (table.c.trial_id == sa.bindparam("b_id"))
    return mine & (table.c.attempt == sa.bindparam("b_attempt")) & (table.c.state != "ended")


def _key(write: StartAttempt | EndAttempt) -> dict[str, Any]:
    return {"b_uid": write.study_uid, "b_id": write.trial_id, "b_attempt": write.attempt}


@functools.cache
def _start(optional: tuple[str, ...]) -> sa.Update:
    table = tables.attempts
    fields: dict[str, Any] = {name: sa.bindparam(f"b_{name}") for name in optional}
    fields["started_at"] = sa.func.coalesce(table.c.started_at, sa.bindparam("b_now", type_=sa.DateTime()))
    fields["epoch"] = sa.bindparam("b_epoch")
    return table.update().where(_this_attempt()).values(state="running", **fields)


def start_attempt(connection: Connection, writes: Sequence[StartAttempt]) -> None:
    names, now = ("attributes", "relative", "provenance", "ranks", "resumed_step", "log_tail"), utcnow()
    for optional, alike in itertools.groupby(
        writes, key=lambda write: tuple(name for name in names if getattr(write, name) is not None)
    ):
        fields = [
            {
                **_key(write),
                **{f"b_{name}": getattr(write, name) for name in optional},
                "b_epoch": write.epoch,
                "b_now": now,
            }
            for write in alike
        ]
        bulk.updates(connection, _start(optional), fields)


_ENDING = ("reason", "charged", "message", "exception", "traceback", "log_tail", "epoch")
_END = (
    tables.attempts.update()
    .where(_this_attempt())
    .values(
        state="ended",
        ended_at=sa.bindparam("b_now"),
        **{name: sa.bindparam(f"b_{name}") for name in _ENDING},
    )
)


def end_attempt(connection: Connection, writes: Sequence[EndAttempt]) -> list[bool]:
    now = utcnow()
    fields = [
        {**_key(write), **{f"b_{name}": getattr(write, name) for name in _ENDING}, "b_now": now}
        for write in writes
    ]
    return [changed == 1 for changed in bulk.updates(connection, _END, fields)]


def add_checkpoints(connection: Connection, writes: Sequence[AddCheckpoint]) -> None:
    key = ("study_uid", "trial_id", "attempt", "step", "rank")
    replaced = ("path", "digest", "size", "attributes", "created_at")
    columns = (*key, "world_size", *replaced)
    last = {
        tuple(getattr(write, name) for name in key): (
            *(getattr(write, name) for name in (*key, "world_size", "path", "digest", "size", "attributes")),
            utcnow(),
        )
        for write in writes
    }
    bulk.insert(connection, tables.checkpoints, columns, list(last.values()), key=key, replace=replaced)


def drop_checkpoints(connection: Connection, writes: Sequence[DropCheckpoints]) -> None:
    table = tables.checkpoints
    for write in writes:
        mine = (table.c.study_uid == write.study_uid) & (table.c.trial_id == write.trial_id)
        this = (table.c.attempt == write.attempt) & (table.c.step == write.step)
        connection.execute(table.delete().where(mine & this))


def add_events(connection: Connection, writes: Sequence[AddEvent]) -> None:
    columns = ("study_uid", "trial_id", "attempt", "epoch", "kind", "detail")
    rows = [(*(getattr(write, name) for name in columns), write.at or utcnow()) for write in writes]
    bulk.insert(connection, tables.events, (*columns, "created_at"), rows)


def done_commands(connection: Connection, writes: Sequence[DoneCommand]) -> list[bool]:
    table, results = tables.commands, []
    for write in writes:
        waits = (table.c.command_id == write.command_id) & table.c.done_at.is_(None)
        update = table.update().where(waits).values(done_at=utcnow(), result=write.result)
        results.append(connection.execute(update).rowcount == 1)
    return results
