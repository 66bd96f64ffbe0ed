"""The lease of a study: one driver at a time, by counters and never by a wall clock.

The row holds the owner, an epoch, a counter of renewals, and ``applied_seq``. Expiry only
*permits* a take-over; the epoch decides. The first statement of every transaction of a driver
(:meth:`Lease.commit`) is the fence::

    UPDATE tuner_leases SET applied_seq = :n WHERE study_uid = :u AND epoch = :e

A driver that was paused past its lease and wakes up updates no row there, changes nothing, and
gets :class:`~storage.errors.LeaseLost`. The same number answers, after a lost reply to COMMIT,
whether the transaction was applied, so that it is applied once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from storage import owner as owners
from storage.clock import utcnow
from storage.database import Database
from storage.errors import Held, LeaseLost, Unavailable
from storage.execution import execute
from storage.rows import CHUNK
from storage.tables import leases, optuna_tables
from storage.writes import GUARDED, CreateTrial, FinishTrial, PopWaiting, Write

__all__ = ["DROPPED", "Lease"]

log = logging.getLogger(__name__)

DROPPED = object()
"""The result of a write whose trial was finished by another program first."""


class Lease:
    """The right to drive one study. Use :meth:`acquire`, then :meth:`commit`, then :meth:`release`.

    Args:
        database: where the study is.
        study_uid: our uid of the study.
        study_name: for messages.
        run: mark of this driver's run, kept with the owner.
        duration: seconds after which a counter that did not move permits a take-over.
        outage: seconds for which :meth:`commit` waits for a database that is away.
    """

    def __init__(
        self,
        database: Database,
        study_uid: str,
        *,
        study_name: str,
        run: str,
        duration: float = 15.0,
        outage: float = 60.0,
    ) -> None:
        self.database = database
        self.study_uid = study_uid
        self.study_name = study_name
        self.duration = duration
        self.epoch = 0
        self.previous_owner: dict[str, Any] | None = None
        self._outage = outage
        self._identity = json.dumps(owners.identity(run))
        self._seq = 0
        self._lost = threading.Event()
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._renew, name="tuner-lease", daemon=True)

    @property
    def lost(self) -> bool:
        """True once another driver is known to have taken the lease."""
        return self._lost.is_set()

    def acquire(self) -> None:
        """Take the lease: at once when it is free or its owner is dead on this host, after one
        lease of an unmoved counter otherwise.

        Afterwards :attr:`previous_owner` is the owner that let go without releasing, or None.

        Raises:
            Held: the owner renewed it while we watched.
        """
        seen: tuple[int, int] | None = None
        since = 0.0
        while True:
            row = self._row()
            if row is None:
                if self._insert():
                    break
                continue
            owner = json.loads(row.owner) if row.owner else None
            living = owners.alive(owner) if owner else False
            counters = (row.epoch, row.renewals)
            if seen is not None and counters != seen and living is not False:
                raise Held(
                    f"study {self.study_name!r} is held by a live driver, {owners.shown(owner)}; "
                    f"wait for it, or end it with 'tuner stop {self.study_name}'"
                )
            if seen != counters:
                seen, since = counters, time.monotonic()
            stale = time.monotonic() - since >= self.duration
            if living is False or stale:
                if owner and living:
                    owners.end(owner)  # it must not wake up in the middle of a call to a worker
                if self._take(row):
                    self.previous_owner = owner
                    break
                seen = None
                continue
            time.sleep(0.1)
        self._heartbeat.start()

    def commit(self, writes: Sequence[Write]) -> list[Any]:
        """Apply the writes as one transaction, once, and return their results in order.

        A guarded write whose trial is not RUNNING any more has the result :data:`DROPPED`.

        Raises:
            LeaseLost: another driver holds the study; nothing was written.
            Unavailable: the database was away for longer than ``outage``; nothing is known to
                be written.
        """
        seq = self._seq + 1
        deadline = time.monotonic() + self._outage
        pause = 0.05
        unknown = False
        while True:
            try:
                with self.database.errors():
                    if unknown and self._applied() >= seq:
                        self._seq = seq
                        return [None] * len(writes)
                    results = self._apply(seq, writes)
                self._seq = seq
                return results
            except Unavailable as error:
                if time.monotonic() > deadline or not _passing(error):
                    raise
                log.warning("%s; trying again", error)
                unknown = True
                self._released.wait(pause)
                pause = min(2.0, pause * 2)

    def release(self) -> None:
        """Let go of the lease, so that the next driver need not wait. Safe to call twice."""
        if self._released.is_set():
            return
        self._released.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join(timeout=5)
        mine = (leases.c.study_uid == self.study_uid) & (leases.c.epoch == self.epoch)
        with contextlib.suppress(Unavailable), self.database.errors(), self.database.write() as connection:
            connection.execute(leases.update().where(mine).values(owner=None))

    def _apply(self, seq: int, writes: Sequence[Write]) -> list[Any]:
        with self.database.write() as connection:
            self._fence(connection, seq)
            running = _running(connection, writes)
            results: list[Any] = []
            for write in writes:
                if isinstance(write, GUARDED) and write.trial_id not in running:
                    results.append(DROPPED)
                    continue
                result = execute(write, connection)
                results.append(result)
                if isinstance(write, CreateTrial):
                    running.add(result[0])
                elif isinstance(write, PopWaiting) and result:
                    running.add(write.trial_id)
                elif isinstance(write, FinishTrial):
                    running.discard(write.trial_id)
            return results

    def _fence(self, connection: Connection, seq: int) -> None:
        mine = (leases.c.study_uid == self.study_uid) & (leases.c.epoch == self.epoch)
        if connection.execute(leases.update().where(mine).values(applied_seq=seq)).rowcount != 1:
            self._lost.set()
            raise LeaseLost(
                f"study {self.study_name!r} was taken over by another driver; this one changes nothing more"
            )

    def _applied(self) -> int:
        row = self._row()
        if row is None or row.epoch != self.epoch:
            self._lost.set()
            raise LeaseLost(f"study {self.study_name!r} was taken over by another driver")
        return int(row.applied_seq)

    def _row(self) -> Any:
        with self.database.read() as connection:
            query = sa.select(leases).where(leases.c.study_uid == self.study_uid)
            return connection.execute(query).one_or_none()

    def _insert(self) -> bool:
        fields = {
            "study_uid": self.study_uid,
            "epoch": 1,
            "owner": self._identity,
            "renewals": 0,
            "applied_seq": 0,
            "renewed_at": utcnow(),
        }
        try:
            with self.database.write() as connection:
                connection.execute(leases.insert().values(fields))
        except sa.exc.IntegrityError:
            return False
        self.epoch = 1
        return True

    def _take(self, row: Any) -> bool:
        unchanged = (leases.c.epoch == row.epoch) & (leases.c.renewals == row.renewals)
        same = leases.c.owner == row.owner if row.owner else leases.c.owner.is_(None)
        fields = {
            "epoch": row.epoch + 1,
            "owner": self._identity,
            "renewals": row.renewals + 1,
            "applied_seq": 0,
            "renewed_at": utcnow(),
        }
        with self.database.write() as connection:
            mine = (leases.c.study_uid == self.study_uid) & unchanged & same
            won = connection.execute(leases.update().where(mine).values(fields)).rowcount == 1
        if won:
            self.epoch = row.epoch + 1
        return won

    def _renew(self) -> None:
        """Move the counter until the lease is released. A database that is away is tried again."""
        fields = {"renewals": leases.c.renewals + 1, "renewed_at": sa.bindparam("now")}
        mine = (leases.c.study_uid == self.study_uid) & (leases.c.epoch == self.epoch)
        update = leases.update().where(mine).values(fields)
        while not self._released.wait(self.duration / 15):
            with (
                contextlib.suppress(Unavailable),
                self.database.errors(),
                self.database.write() as connection,
            ):
                if connection.execute(update, {"now": utcnow()}).rowcount != 1:
                    self._lost.set()
                    return


def _running(connection: Connection, writes: Sequence[Write]) -> set[int]:
    """Of the trials that the batch changes, those that are still RUNNING; locked until the commit."""
    ids = sorted({write.trial_id for write in writes if isinstance(write, GUARDED)})
    trials = optuna_tables["trials"]
    running: set[int] = set()
    for start in range(0, len(ids), CHUNK):
        chosen = trials.c.trial_id.in_(ids[start : start + CHUNK])
        query = sa.select(trials.c.trial_id).where(chosen, trials.c.state == TrialState.RUNNING)
        running.update(connection.execute(query.with_for_update()).scalars())
    return running


def _passing(error: Unavailable) -> bool:
    """Whether trying again can help: the connection or a lock, not a fault of the data."""
    return isinstance(error.__cause__, sa.exc.OperationalError | sa.exc.InterfaceError)
