"""The lease of a study: one driver at a time, by counters and never by a wall clock.

The row holds the owner, an epoch, a counter of renewals, and the number of the last transaction.
Expiry only *permits* a take-over; the epoch decides, in every transaction (:mod:`storage.fence`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from typing import Any

import sqlalchemy as sa

from storage import owner as owners
from storage.clock import utcnow
from storage.database import Database
from storage.errors import Displaced, Held, LeaseLost, Unavailable, UnknownStudy
from storage.fence import Fence
from storage.journal import replay
from storage.shell import quoted
from storage.tables import leases, studies

__all__ = ["Lease"]

log = logging.getLogger(__name__)


_AT_ONCE = 1.0  # seconds; a write that takes longer has waited for another program's


class Lease:
    """The right to drive one study. Use :meth:`acquire`, then :attr:`fence`, then :meth:`release`.

    Args:
        database: where the study is.
        study_uid: our uid of the study.
        study_name: for messages.
        run: mark of this driver's run, kept with the owner.
        duration: seconds after which a counter that did not move permits a take-over.

    Example:
        >>> optuna_storage = storage.SqlStorage("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="leased", storage=optuna_storage)
        >>> from storage import studies
        >>> database = storage.Database("sqlite:///tuner.db")
        >>> record = studies.register(database, "leased", seed=1, sampler=None, pruner=None)
        >>> lease = storage.Lease(database, record.uid, study_name="leased", run="mine")
        >>> lease.acquire()
        >>> lease.epoch, lease.lost
        (1, False)
        >>> lease.release()
    """

    def __init__(
        self,
        database: Database,
        study_uid: str,
        *,
        study_name: str,
        run: str,
        duration: float = 15.0,
    ) -> None:
        self.database = database
        self.study_uid = study_uid
        self.study_name = study_name
        self.duration = duration
        self.epoch = 0
        self.previous_owner: dict[str, Any] | None = None
        self._identity = json.dumps(owners.identity(run))
        self._lost = threading.Event()
        self._released = threading.Event()
        self.fence = self._fence_of(0)
        self._heartbeat = threading.Thread(target=self._renew, name="tuner-lease", daemon=True)

    @property
    def lost(self) -> bool:
        """True once another driver is known to have taken the lease."""
        return self._lost.is_set()

    def lose(self) -> None:
        """The fence said that another driver has it."""
        self._lost.set()

    def acquire(self) -> None:
        """Take the lease: at once when it is free or its owner is dead on this host, after one
        lease of an unmoved counter otherwise.

        Afterwards :attr:`previous_owner` is the owner that let go without releasing, or None.

        Raises:
            Held: the owner renewed it while we watched.
            UnknownStudy: the study was deleted.
            Unavailable: the database cannot be written to.
        """
        with self.database.errors():
            self._take_in_turn()
        self.fence = self._fence_of(self.epoch)
        self.database.holders += 1
        self._heartbeat.start()

    def _take_in_turn(self) -> None:
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
                stop = f"tuner stop {quoted(self.study_name)} {self.database.option}"
                raise Held(
                    f"study {self.study_name!r} is held by a live driver, {owners.shown(owner)}; "
                    f"wait for it, or end it with: {stop}"
                )
            if seen != counters:
                seen, since = counters, time.monotonic()
            stale = time.monotonic() - since >= self.duration
            if stale and owner and living and not owners.is_stopped(owner) and not self._is_writable():
                seen = None  # its owner, too, waited for who locks the database: it has another lease
                continue
            if living is False or stale:
                if owner and living:
                    owners.end(owner)  # it must not wake up in the middle of a call to a worker
                with contextlib.suppress(LeaseLost):  # somebody was first, and the row says so
                    replay(self._fence_of(row.epoch))
                if self._take(row):
                    self.previous_owner = owner
                    break
                seen = None
                continue
            time.sleep(0.1)

    def release(self) -> None:
        """Let go of the lease, so that the next driver need not wait. Safe to call twice."""
        if self._released.is_set():
            return
        self._released.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join(timeout=5)
        self.fence.close()
        self.database.holders -= 1
        mine = (leases.c.study_uid == self.study_uid) & (leases.c.epoch == self.epoch)
        with (
            contextlib.suppress(Displaced, Unavailable),
            self.database.errors(),
            self.database.write() as connection,
        ):
            connection.execute(leases.update().where(mine).values(owner=None))

    def _fence_of(self, epoch: int) -> Fence:
        return Fence(
            self.database, self.study_uid, epoch, study_name=self.study_name, wait=self._released.wait
        )

    def _row(self) -> Any:
        with self.database.read() as connection:
            query = sa.select(leases).where(leases.c.study_uid == self.study_uid)
            return connection.execute(query).one_or_none()

    def _is_writable(self) -> bool:
        """Whether nobody had to be waited for. One that is stopped within a transaction is not waited for."""
        began = time.monotonic()
        with self.database.write():
            return time.monotonic() - began < _AT_ONCE

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
                known = sa.select(studies.c.study_uid).where(studies.c.study_uid == self.study_uid)
                if connection.execute(known.with_for_update()).first() is None:
                    raise UnknownStudy(f"study {self.study_name!r} was deleted by another program meanwhile")
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
        """Move the counter until the lease is released. A database that is away is tried again; one
        whose file went away has nobody who looks at the counter, and says so to whoever uses it.
        """
        fields = {"renewals": leases.c.renewals + 1, "renewed_at": sa.bindparam("now")}
        mine = (leases.c.study_uid == self.study_uid) & (leases.c.epoch == self.epoch)
        update = leases.update().where(mine).values(fields)
        while not self._released.wait(self.duration / 15):
            try:
                with self.database.errors(), self.database.write() as connection:
                    if connection.execute(update, {"now": utcnow()}).rowcount != 1:
                        self._lost.set()
                        return
            except Displaced:
                return
            except Unavailable as error:
                log.debug("%s; renewing again", error)
