"""Where a study's attempts run now, and what waits; see :mod:`storage.timeline` for what was before."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine

from storage import selects, tables
from storage.curves import last_reports
from storage.selects import TRIALS

__all__ = ["SHOWN", "Aside", "Now", "OpenAttempt", "Rank", "now"]

SHOWN = 500
"""Open attempts that are read at most, the newest ones."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Where one process of an attempt runs; see ``tuner.messages.RankInfo``."""

    rank: int
    host: str
    node: str
    pid: int
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OpenAttempt:
    """An attempt that has begun and not ended. Times are naive UTC.

    Attributes:
        began_at: when it was handed to the executor.
        ranks: () while it waits for a place.
        step, value: its trial's newest report; None before the first.
        saved_at, saved_step: its newest checkpoint; None before the first.
    """

    number: int
    attempt: int
    began_at: dt.datetime | None
    ranks: tuple[Rank, ...]
    step: int | None
    value: float | None
    saved_at: dt.datetime | None
    saved_step: int | None


@dataclass(frozen=True, kw_only=True)
class Aside:
    """An attempt of this run that found a device broken: the device is set aside until the run ends."""

    number: int
    attempt: int
    ended_at: dt.datetime | None
    message: str
    ranks: tuple[Rank, ...]


@dataclass(frozen=True, kw_only=True)
class Now:
    """What is there at this moment.

    Attributes:
        open: the newest :data:`SHOWN` of the open attempts, in order of their trials.
        total: all open attempts.
        claimed: trials that have the driver's word for an attempt: they wait for a slot, or to be
            tried again.
        foreign: RUNNING trials of other programs.
    """

    open: tuple[OpenAttempt, ...] = ()
    total: int = 0
    claimed: int = 0
    foreign: int = 0
    aside: tuple[Aside, ...] = ()


def now(engine: Engine, name: str) -> Now:
    """What runs and what waits; nothing of an unknown study."""
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        if study_id is None:
            return Now()
        running = sa.select(sa.func.count()).where(
            TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING
        )
        if not uid or not selects.have_ours(connection):
            return Now(foreign=connection.execute(running).scalar_one())
        table = tables.attempts
        live = sa.select(table.c.state, sa.func.count()).where(
            table.c.study_uid == uid, table.c.state.in_(("claimed", "running"))
        )
        rows = connection.execute(live.group_by(table.c.state))
        counts: dict[str, int] = {row[0]: row[1] for row in rows}
        mine = sa.select(table.c.trial_id).where(table.c.study_uid == uid, table.c.state != "ended")
        others = running.where(TRIALS.c.trial_id.not_in(mine))
        return Now(
            open=_open(connection, uid),
            total=counts.get("running", 0),
            claimed=counts.get("claimed", 0),
            foreign=connection.execute(others).scalar_one(),
            aside=_aside(connection, uid),
        )


def _open(connection: Connection, uid: str) -> tuple[OpenAttempt, ...]:
    table, saved = tables.attempts, tables.checkpoints
    query = sa.select(
        table.c.trial_id, table.c.number, table.c.attempt, table.c.started_at, table.c.ranks
    ).where(table.c.study_uid == uid, table.c.state == "running")
    rows = connection.execute(query.order_by(table.c.attempt_id.desc()).limit(SHOWN)).all()
    ids = [row.trial_id for row in rows]
    reports = last_reports(connection, ids) if ids else {}
    newest = sa.select(
        saved.c.trial_id, saved.c.attempt, sa.func.max(saved.c.created_at), sa.func.max(saved.c.step)
    ).where(saved.c.study_uid == uid, saved.c.trial_id.in_(ids))
    kept = {
        (trial_id, attempt): (moment, step)
        for trial_id, attempt, moment, step in (
            connection.execute(newest.group_by(saved.c.trial_id, saved.c.attempt)) if ids else ()
        )
    }
    found = []
    for row in rows:
        step, value = reports.get(row.trial_id, (None, None))
        saved_at, saved_step = kept.get((row.trial_id, row.attempt), (None, None))
        found.append(
            OpenAttempt(
                number=row.number,
                attempt=row.attempt,
                began_at=row.started_at,
                ranks=_ranks(row.ranks),
                step=step,
                value=value,
                saved_at=saved_at,
                saved_step=saved_step,
            )
        )
    return tuple(sorted(found, key=lambda one: one.number))


def _aside(connection: Connection, uid: str) -> tuple[Aside, ...]:
    """Of the newest driver only: the one after it tries every device again."""
    table, leases = tables.attempts, tables.leases
    epoch = sa.select(leases.c.epoch).where(leases.c.study_uid == uid).scalar_subquery()
    query = sa.select(table.c.number, table.c.attempt, table.c.ended_at, table.c.message, table.c.ranks)
    query = query.where(table.c.study_uid == uid, table.c.reason == "device_failed", table.c.epoch == epoch)
    return tuple(
        Aside(
            number=row.number,
            attempt=row.attempt,
            ended_at=row.ended_at,
            message=row.message or "",
            ranks=_ranks(row.ranks),
        )
        for row in connection.execute(query.order_by(table.c.attempt_id.desc()).limit(20))
    )


def _ranks(text: str | None) -> tuple[Rank, ...]:
    return tuple(
        Rank(
            rank=int(one["rank"]),
            host=str(one["host"]),
            node=str(one.get("node", "")),
            pid=int(one["pid"]),
            devices=tuple(map(str, one.get("devices", ()))),
        )
        for one in selects.from_json(text) or ()
    )
