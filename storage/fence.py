"""The fence: transactions of one epoch of a lease, numbered, each applied once.

The first statement of every transaction is ::

    UPDATE tuner_leases SET applied_seq = :n WHERE study_uid = :u AND epoch = :e AND EXISTS (the study)

A driver that was paused past its lease and wakes up updates no row there, changes nothing, and
gets :class:`~storage.errors.LeaseLost`. Neither does one whose study was deleted or renamed: on
SQLite the ids of its trials may be those of another study by now. The same number answers, after
a lost reply to COMMIT, whether the transaction was applied.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storage.database import Database
from storage.errors import LeaseLost, StorageError, Unavailable, UnknownStudy
from storage.execution import execute
from storage.faultpoint import reach
from storage.tables import UID_KEY, leases, optuna_tables
from storage.writes import CreateTrial, PopWaiting, Write

__all__ = ["Fence", "gone"]

log = logging.getLogger(__name__)

LOCK_WAIT = 2.0
"""Seconds for which a transaction waits for SQLite's lock before the database counts as away."""


class Fence:
    """Writes under one epoch of a study's lease. Used by one thread at a time.

    Args:
        database: where the study is.
        study_uid, epoch: of the lease.
        study_name: for messages.
        wait: sleeps for so many seconds between two tries, or less.

    Attributes:
        applied: number of the last transaction that is known to be applied.
    """

    def __init__(
        self,
        database: Database,
        study_uid: str,
        epoch: int,
        *,
        study_name: str,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self.database = database
        self.study_uid = study_uid
        self.epoch = epoch
        self.applied = 0
        self._study_name = study_name
        self._wait = wait
        self._connection: Connection | None = None
        self._study_id: int | None = None

    def commit(self, writes: Sequence[Write], *, seq: int | None = None, patience: float = 60.0) -> list[Any]:
        """Apply the writes as one transaction, once, and return their results in order.

        A guarded write whose trial is finished has the result
        :data:`~storage.execution.DROPPED`.

        Args:
            seq: the transaction's number, where it may have been applied before; default: the next.
            patience: seconds for which it is tried again while the database is away.

        Raises:
            LeaseLost: another driver holds the study; nothing was written.
            UnknownStudy: the study was deleted or renamed; nothing was written.
            Refused: the database cannot hold a value; nothing was written.
            Unavailable: it was away for longer than ``patience``; nothing is known to be written.
        """
        doubtful = seq is not None
        number = self.applied + 1 if seq is None else seq
        deadline = time.monotonic() + patience
        again = patience > 0  # once more even then: this process may have slept past its deadline
        pause = 0.05
        while True:
            try:
                with self.database.errors():
                    if doubtful and self._recorded() >= number:
                        results = self._found(writes)
                    else:
                        results = self._apply(number, writes)
                self.applied = number
                return results
            except Unavailable as error:
                self.close()
                if not error.passing or (time.monotonic() >= deadline and not again):
                    raise
                again = False
                log.debug("%s; trying again", error)
                doubtful = True
                self._wait(pause)
                pause = min(2.0, pause * 2)

    def close(self) -> None:
        """Let go of the connection; the next transaction opens another."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.invalidate()
            connection.close()

    def _apply(self, seq: int, writes: Sequence[Write]) -> list[Any]:
        connection = self._connected()
        with self._transaction(connection):
            reach("begun")
            if not self._pass(connection, seq, writes):
                raise self._lost(connection)
            reach("fenced")
            results = execute(connection, writes)
            reach("written")
        reach("committed")
        return results

    @contextlib.contextmanager
    def _transaction(self, connection: Connection) -> Iterator[None]:
        """On PostgreSQL the connection is in autocommit and BEGIN travels with the fence."""
        if self.database.is_sqlite:
            with connection.begin():
                yield
            self.database.check_file()
            return
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            if not connection.invalidated:
                with contextlib.suppress(sa.exc.DBAPIError):
                    connection.exec_driver_sql("ROLLBACK")
            raise

    def _pass(self, connection: Connection, seq: int, writes: Sequence[Write]) -> bool:
        """The fence's UPDATE; False when it let nothing through.

        On PostgreSQL one round trip begins the transaction, passes the fence, and takes the lock of
        the study where new trials need it. Everything in the text is a number, or our own uid.
        """
        if self._study_id is None:
            self._study_id = self._find_study()
        uid = self.study_uid
        fence = (
            f"UPDATE tuner_leases SET applied_seq = {seq:d} "  # noqa: S608 - numbers, and our own uid
            f"WHERE study_uid = '{uid}' AND epoch = {self.epoch:d} AND EXISTS ("
            f"SELECT 1 FROM study_system_attributes WHERE study_id = {self._study_id:d} "
            f"AND key = '{UID_KEY}' AND value_json = '\"{uid}\"')"
        )
        if self.database.is_sqlite:
            return connection.exec_driver_sql(fence).rowcount == 1
        if any(isinstance(write, CreateTrial) for write in writes):
            fence += f"; SELECT 1 FROM studies WHERE study_id = {self._study_id:d} FOR UPDATE"  # noqa: S608
        cursor = connection.connection.cursor()
        try:
            cursor.execute(f"BEGIN; {fence}")
            cursor.nextset()
            return cursor.rowcount == 1
        finally:
            cursor.close()

    def _find_study(self) -> int:
        """The id of the study, which a deleted or renamed one has no more; -1 then."""
        if not self.study_uid.isalnum():
            raise ValueError(f"{self.study_uid!r} is no uid of ours")
        table = optuna_tables["study_system_attributes"]
        names = optuna_tables["studies"]
        query = (
            sa.select(table.c.study_id)
            .join(names, names.c.study_id == table.c.study_id)
            .where(names.c.study_name == self._study_name, table.c.key == UID_KEY)
            .where(table.c.value_json == json.dumps(self.study_uid))
        )
        with self.database.read() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return -1 if found is None else int(found)

    def _connected(self) -> Connection:
        """The connection of our transactions: kept, since opening one costs more than a transaction."""
        if self._connection is None:
            level = {} if self.database.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
            connection = self.database.engine.connect().execution_options(tuner_write=True, **level)
            connection.detach()
            if self.database.is_sqlite:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={int(LOCK_WAIT * 1000)}")
                connection.rollback()
            self._connection = connection
        return self._connection

    def _recorded(self) -> int:
        """The number of the last transaction that was applied under this epoch."""
        query = sa.select(leases.c.applied_seq).where(
            leases.c.study_uid == self.study_uid, leases.c.epoch == self.epoch
        )
        with self.database.read() as connection:
            found = connection.execute(query).scalar_one_or_none()
            if found is None:
                raise self._lost(connection)
            return int(found)

    def _lost(self, connection: Connection) -> StorageError:
        """Why the fence let nothing through."""
        mine = (leases.c.study_uid == self.study_uid) & (leases.c.epoch == self.epoch)
        if connection.execute(sa.select(leases.c.epoch).where(mine)).first() is None:
            return LeaseLost(
                f"study {self._study_name!r} was taken over by another driver; this one changes nothing more"
            )
        return UnknownStudy(gone(self._study_name))

    def _found(self, writes: Sequence[Write]) -> list[Any]:
        """The results of a transaction that was applied although its reply was lost."""
        trials = optuna_tables["trials"]
        results: list[Any] = []
        taken: set[int] = set()
        with self.database.read() as connection:
            for write in writes:
                result: Any = None
                if isinstance(write, CreateTrial | PopWaiting):
                    query = sa.select(trials.c.trial_id, trials.c.number)
                    query = query.where(trials.c.datetime_start.is_not_distinct_from(write.started))
                    if isinstance(write, CreateTrial):
                        query = query.where(trials.c.study_id == write.study_id)
                        rows = connection.execute(query.order_by(trials.c.trial_id)).all()
                        result = next(tuple(row) for row in rows if row.trial_id not in taken)
                        taken.add(result[0])
                    else:
                        query = query.where(trials.c.trial_id == write.trial_id)
                        result = connection.execute(query).first() is not None
                results.append(result)
        return results


def gone(study_name: str) -> str:
    """The line for a study that went away under its holder."""
    return (
        f"study {study_name!r} was deleted or renamed by another program while it ran; "
        "nothing more was written"
    )
