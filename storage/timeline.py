"""Which attempts ran where and when, and how busy that kept the hosts.

Hosts are known from the attempts that ran there; one that never had any is not seen here.
"""

from __future__ import annotations

import datetime as dt
import heapq
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from storage import selects, tables

__all__ = ["HostUse", "Span", "Timeline", "lanes", "timeline"]

SHOWN = 500
"""Attempts that a page draws at most, the newest ones."""

_STATES: Mapping[str, str] = {
    "complete": "COMPLETE",
    "pruned": "PRUNED",
    "interrupted": "WAITING",
    "preempted": "WAITING",
}

MOST = 10_000
"""Attempts, the newest ones, from which the use of the hosts is counted."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """An attempt on one host.

    Attributes:
        lane: from 0; attempts that were there at once have different ones.
        end: of an attempt that has not ended, the newest that its driver was seen.
        reason: "" of one that has not ended.
        state: as a trial's state: COMPLETE, PRUNED, FAIL (also where the trial went on), RUNNING,
            or WAITING for one that was cut off to go on later.
    """

    number: int
    attempt: int
    host: str
    lane: int
    begin: dt.datetime
    end: dt.datetime
    reason: str
    state: str
    ranks: int
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HostUse:
    """One host over the window.

    Attributes:
        nodes: Ray's ids of it, the newest first.
        attempts: that ran there in the window.
        busy: share of the window in which at least one did, from 0 to 1.
        at_once: how many did, as a mean over the window.
        newest_at: end of the newest.
    """

    host: str
    nodes: tuple[str, ...]
    devices: tuple[str, ...]
    attempts: int
    busy: float
    at_once: float
    newest_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The attempts of a window, which ends with the newest sign of life.

    Attributes:
        spans: of the newest :data:`SHOWN` attempts.
        attempts: in the window; some of them may be without a known place, or lost with their
            driver, so that nobody knows when they ended: those are in no span and keep no host busy.
        begin: later than was asked for where the study is younger, or has more than :data:`MOST`.
    """

    spans: tuple[Span, ...] = ()
    hosts: tuple[HostUse, ...] = ()
    attempts: int = 0
    begin: dt.datetime | None = None
    end: dt.datetime | None = None


def timeline(engine: Engine, name: str, seconds: float | None = None) -> Timeline:
    """The attempts of the last so many seconds before the newest sign of life; of all time for None."""
    table, leases = tables.attempts, tables.leases
    with selects.view(engine) as connection:
        _, uid = selects.study_ids(connection, name)
        if not uid or not selects.have_ours(connection):
            return Timeline()
        query = sa.select(leases.c.renewed_at).where(leases.c.study_uid == uid)
        renewed = connection.execute(query).scalar()
        begun = (table.c.study_uid == uid) & table.c.started_at.is_not(None)
        newest = connection.execute(
            sa.select(sa.func.max(table.c.ended_at), sa.func.max(table.c.started_at)).where(begun)
        ).one()
        is_open = connection.execute(
            sa.select(table.c.attempt_id).where(begun, table.c.state == "running").limit(1)
        ).first()
        signs = [moment for moment in (*newest, renewed if is_open else None) if moment is not None]
        if not signs:
            return Timeline()
        end = max(signs)
        wanted = begun
        if seconds is not None:
            since = end - dt.timedelta(seconds=seconds)
            wanted = wanted & (table.c.ended_at.is_(None) | (table.c.ended_at > since))
        names = ("number", "attempt", "state", "reason", "started_at", "ended_at", "ranks")
        chosen = sa.select(*(table.c[name] for name in names)).where(wanted)
        rows = connection.execute(chosen.order_by(table.c.attempt_id.desc()).limit(MOST)).all()
    begin = min((row.started_at for row in rows), default=end)
    if seconds is not None:
        begin = max(begin, end - dt.timedelta(seconds=seconds))
    stays = _stays(rows, begin, end)
    window = max((end - begin).total_seconds(), 1e-6)
    return Timeline(
        spans=tuple(_spans(stays, {(row.number, row.attempt) for row in rows[:SHOWN]})),
        hosts=tuple(_use(host, stays[host], window) for host in sorted(stays)),
        attempts=len(rows),
        begin=begin,
        end=end,
    )


def lanes(intervals: Sequence[tuple[dt.datetime, dt.datetime]]) -> list[int]:
    """For each interval the lowest lane that is free when it begins, as if they were taken in turn.

    Example:
        >>> at = dt.datetime(2026, 1, 1).replace
        >>> lanes([(at(hour=1), at(hour=3)), (at(hour=2), at(hour=4)), (at(hour=3), at(hour=5))])
        [0, 1, 0]
    """
    found = [0] * len(intervals)
    free: list[int] = []
    taken: list[tuple[dt.datetime, int]] = []
    count = 0
    for at in sorted(range(len(intervals)), key=lambda one: intervals[one]):
        begin, end = intervals[at]
        while taken and taken[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(taken)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = count, count + 1
        heapq.heappush(taken, (end, lane))
        found[at] = lane
    return found


@dataclass(frozen=True, slots=True)
class _Stay:
    """An attempt on one host, cut to the window."""

    row: sa.Row[Any]
    begin: dt.datetime
    end: dt.datetime
    ranks: Sequence[Mapping[str, Any]]


def _stays(rows: Sequence[sa.Row[Any]], begin: dt.datetime, end: dt.datetime) -> dict[str, list[_Stay]]:
    """By host, those of which it is known where they were, and until when; the newest first."""
    found: dict[str, list[_Stay]] = {}
    for row in rows:
        if row.reason == "driver_lost" or row.ranks is None:  # its end is the next driver's beginning
            continue
        here: dict[str, list[Mapping[str, Any]]] = {}
        for rank in json.loads(row.ranks):
            here.setdefault(str(rank["host"]), []).append(rank)
        first = max(row.started_at, begin)
        last = max(first, min(row.ended_at or end, end))
        for host, ranks in here.items():
            found.setdefault(host, []).append(_Stay(row, first, last, ranks))
    return found


def _spans(stays: Mapping[str, Sequence[_Stay]], shown: Container[tuple[int, int]]) -> Iterator[Span]:
    for host, here in stays.items():
        members = [stay for stay in here if (stay.row.number, stay.row.attempt) in shown]
        places = lanes([(stay.begin, stay.end) for stay in members])
        for stay, lane in zip(members, places, strict=True):
            row = stay.row
            yield Span(
                number=row.number,
                attempt=row.attempt,
                host=host,
                lane=lane,
                begin=stay.begin,
                end=stay.end,
                reason=row.reason or "",
                state=_STATES.get(row.reason or "", "FAIL") if row.state == "ended" else "RUNNING",
                ranks=len(stay.ranks),
                devices=tuple(str(device) for rank in stay.ranks for device in rank.get("devices", ())),
            )


def _use(host: str, stays: Sequence[_Stay], seconds: float) -> HostUse:
    ranks = [rank for stay in stays for rank in stay.ranks]
    return HostUse(
        host=host,
        nodes=tuple(dict.fromkeys(str(rank["node"]) for rank in ranks if rank.get("node"))),
        devices=tuple(sorted({str(device) for rank in ranks for device in rank.get("devices", ())})),
        attempts=len(stays),
        busy=min(1.0, _covered(stays) / seconds),
        at_once=sum((stay.end - stay.begin).total_seconds() for stay in stays) / seconds,
        newest_at=max(stay.end for stay in stays),
    )


def _covered(stays: Iterable[_Stay]) -> float:
    """Seconds in which at least one of them was."""
    seconds, reached = 0.0, dt.datetime.min
    for stay in sorted(stays, key=lambda one: one.begin):
        if stay.end > reached:
            seconds += (stay.end - max(stay.begin, reached)).total_seconds()
            reached = stay.end
    return seconds
