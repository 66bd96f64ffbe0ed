"""Why trials failed: the attempts that ended badly, by class and by the place that raised them.

Two failures are of one kind when their reason, exception and stack agree, and their messages but
for what differs from trial to trial: numbers, addresses, ids, quoted names. As in crash
reporters, the stack is the files' names, lines and functions; the folders above do not count,
since nodes keep the same program in different ones.
"""

from __future__ import annotations

import collections
import datetime as dt
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Engine

from storage import selects, tables
from storage.selects import TRIALS
from storage.views import AttemptRow

__all__ = ["FailureGroup", "attempt", "groups", "of_trials", "signature"]

MOST = 20_000
"""Failed attempts that are looked at, the newest ones."""

_BEGINNING = 16_000  # characters of a traceback: its frames come before its message
_NO_FAILURES = ("complete", "pruned")
_AS_ASKED = ("interrupted", "stopped", "finished_elsewhere")

_FRAME = re.compile(r'^[ |]*File "(.*)", line (\d+), in (.*)$', re.MULTILINE)
_NOISE = re.compile(
    r"""(?<!\w)'[^']*' | (?<!\w)"[^"]*"   # a quoted name
    | 0x[0-9a-fA-F]+                      # an address
    | \b(?=[a-f]*\d)[0-9a-f]{8,}\b        # an id or a digest
    | \d+(?:\.\d+)?(?:e[-+]?\d+)?         # a number""",
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Failures of one kind. Times are naive UTC, at which the attempts ended.

    Attributes:
        key: 12 hexadecimal digits, the same for this kind in every study.
        reason: the attempts' reason code; "" for trials that another program failed, of which
            Optuna keeps nothing more.
        count: FAIL trials whose last attempt ended so.
        retries: other attempts that ended so: their trial went on.
        numbers: of those FAIL trials, the newest end first.
        retried: of the trials that went on, the newest end first; one may be among ``numbers``.
        newest, attempt: the trial of the newest occurrence, and its attempt (0: there is none).
        message: of the newest occurrence.
        hosts, devices: in how many of the attempts, most first; a device is ``HOST: ID``.
    """

    key: str
    reason: str
    exception: str
    message: str
    count: int
    retries: int
    numbers: tuple[int, ...]
    retried: tuple[int, ...]
    newest: int
    attempt: int
    first_at: dt.datetime | None
    newest_at: dt.datetime | None
    hosts: Mapping[str, int]
    devices: Mapping[str, int]


def groups(engine: Engine, name: str) -> list[FailureGroup]:
    """The failures of a study by kind, those that failed most trials first; none for an unknown study.

    An attempt that ended because someone asked for it (interrupted, stopped) counts only where it
    was the last of a FAIL trial.
    """
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        if study_id is None:
            return []
        ours = bool(uid) and selects.have_ours(connection)
        rows = _failed_attempts(connection, study_id, uid) if ours else []
        foreign = _failed_elsewhere(connection, study_id, uid if ours else "")
    kinds: dict[str, list[Any]] = {}
    last: set[int] = set()  # ids of attempts that were the last of a FAIL trial
    seen: set[int] = set()
    for row in rows:  # newest first
        if row.trial_state is TrialState.FAIL and row.trial_id not in seen:
            last.add(row.attempt_id)
        elif row.reason in _AS_ASKED:
            continue
        seen.add(row.trial_id)
        key = signature(row.reason or "", row.exception or "", row.message or "", row.traceback or "")
        kinds.setdefault(key, []).append(row)
    found = [_group(key, members, last) for key, members in kinds.items()]
    if foreign:
        found.append(_elsewhere(foreign))
    return sorted(found, key=lambda group: (-group.count, -group.retries, -group.newest))


def of_trials(engine: Engine, name: str) -> list[FailureGroup]:
    """Those of the :func:`groups` that failed a trial of ours for good."""
    return [group for group in groups(engine, name) if group.count and group.attempt]


def signature(reason: str, exception: str, message: str, traceback: str) -> str:
    """The key of a failure's kind: what differs from trial to trial is left out.

    Example:
        >>> signature("exception", "ValueError", "ValueError: loss 3.2 at step 7", "") == signature(
        ...     "exception", "ValueError", "ValueError: loss 1e9 at step 12", ""
        ... )
        True
    """
    frames = [f"{_file(file)}:{line}:{function}" for file, line, function in _FRAME.findall(traceback)]
    parts = [reason, exception, _NOISE.sub("#", message), *frames]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def _file(path: str) -> str:
    """A file and its folder; ``<ipython-input-3-1a2b3c4d>`` without what counts the cells."""
    return _NOISE.sub("#", path) if path.startswith("<") else "/".join(path.split("/")[-2:])


def attempt(engine: Engine, name: str, number: int, which: int) -> AttemptRow | None:
    """One attempt of a trial with its traceback and last output, or None."""
    with selects.view(engine) as connection:
        study_id, uid = selects.study_ids(connection, name)
        trial_id = selects.trial_id(connection, study_id, number)
        if trial_id is None or not uid or not selects.have_ours(connection):
            return None
        rows = selects.attempt_rows(connection, uid, trial_id)
    return next((row for row in rows if row.attempt == which), None)


def _failed_attempts(connection: Connection, study_id: int, uid: str) -> Sequence[Any]:
    table = tables.attempts
    names = ("attempt_id", "trial_id", "number", "attempt", "reason", "exception", "message", "ended_at")
    query = (
        sa.select(
            *(table.c[name] for name in names),
            table.c.ranks,
            sa.func.substr(table.c.traceback, 1, _BEGINNING).label("traceback"),
            TRIALS.c.state.label("trial_state"),
        )
        .join(TRIALS, (TRIALS.c.trial_id == table.c.trial_id) & (TRIALS.c.study_id == study_id))
        .where(table.c.study_uid == uid, table.c.state == "ended", table.c.reason.not_in(_NO_FAILURES))
        .order_by(table.c.attempt_id.desc())
        .limit(MOST)
    )
    return connection.execute(query).all()


def _failed_elsewhere(connection: Connection, study_id: int, uid: str) -> Sequence[Any]:
    """FAIL trials without an attempt of ours, newest end first."""
    end = TRIALS.c.datetime_complete
    query = sa.select(TRIALS.c.number, end.label("ended_at"))
    query = query.where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.FAIL)
    if uid:
        attempts = tables.attempts
        query = query.where(
            TRIALS.c.trial_id.not_in(sa.select(attempts.c.trial_id).where(attempts.c.study_uid == uid))
        )
    return connection.execute(query.order_by(end.desc().nulls_last(), TRIALS.c.number.desc())).all()


def _group(key: str, members: Sequence[Any], last: set[int]) -> FailureGroup:
    newest = members[0]
    hosts: collections.Counter[str] = collections.Counter()
    devices: collections.Counter[str] = collections.Counter()
    for row in members:
        ranks = selects.from_json(row.ranks) or ()
        hosts.update({str(rank.get("host", "")) for rank in ranks})
        devices.update(
            {f"{rank.get('host')}: {device}" for rank in ranks for device in rank.get("devices", ())}
        )
    numbers = [row.number for row in members if row.attempt_id in last]
    retried = [row.number for row in members if row.attempt_id not in last]
    moments = [row.ended_at for row in members if row.ended_at is not None]
    return FailureGroup(
        key=key,
        reason=newest.reason or "",
        exception=newest.exception or "",
        message=newest.message or "",
        count=len(numbers),
        retries=len(retried),
        numbers=tuple(numbers),
        retried=tuple(dict.fromkeys(retried)),
        newest=newest.number,
        attempt=newest.attempt,
        first_at=min(moments, default=None),
        newest_at=max(moments, default=None),
        hosts=dict(hosts.most_common()),
        devices=dict(devices.most_common()),
    )


def _elsewhere(rows: Sequence[Any]) -> FailureGroup:
    """Trials that another program failed."""
    moments = [row.ended_at for row in rows if row.ended_at is not None]
    return FailureGroup(
        key=signature("", "", "", ""),
        reason="",
        exception="",
        message="",
        count=len(rows),
        retries=0,
        numbers=tuple(row.number for row in rows),
        retried=(),
        newest=rows[0].number,
        attempt=0,
        first_at=min(moments, default=None),
        newest_at=max(moments, default=None),
        hosts={},
        devices={},
    )
