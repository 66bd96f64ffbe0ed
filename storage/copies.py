"""Whole studies from one database to another, with everything of ours, row by row.

A copy is one transaction in the target: nothing of it is there until all is. Rows go through in
portions, so that a study of millions of reports needs no memory. The ids are the target's own,
taken from its sequences; numbers, times and our uid are kept.
"""

from __future__ import annotations

import contextlib
import enum
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storage import bulk, sqlite_file, studies, tables, trial_writes
from storage.database import Database, normalise_url
from storage.errors import Refused, UnknownStudy
from storage.lease import Lease
from storage.tables import optuna_tables

__all__ = ["Copied", "arriving", "copy", "undriven"]

PORTION = 5_000
"""Rows in memory at once."""

_CHILDREN = (
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "trial_system_attributes",
)
_OURS = (tables.attempts, tables.superseded, tables.checkpoints, tables.metrics, tables.events)


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What a copy holds."""

    name: str
    trials: int
    reports: int


@contextlib.contextmanager
def undriven(database: Database, record: studies.StudyRecord) -> Iterator[None]:
    """Nobody drives the study in the block: we hold its lease.

    Raises:
        Held: a live driver holds it.
    """
    if not record.uid:  # plain Optuna's: there is no lease, and nothing of ours to protect
        yield
        return
    lease = Lease(database, record.uid, study_name=record.name, run=f"copy-{uuid.uuid4().hex}")
    lease.acquire()
    try:
        yield
    finally:
        lease.release()


@contextlib.contextmanager
def arriving(url: str) -> Iterator[Database]:
    """The database that copies go to, closed after the block.

    A SQLite file that is not there yet is made under another name, and has its own when the block is
    through: one that fails or is killed leaves nothing in its way.

    Raises:
        Unavailable: it cannot be made or used.
        Refused: another program has made a file of that name meanwhile.
    """
    parsed = normalise_url(url)
    file = sqlite_file.path_of(parsed) if parsed.get_backend_name() == "sqlite" else None
    if file is None or file.exists():
        target = Database(url)
        try:
            yield target
        finally:
            target.dispose()
        return
    sqlite_file.check(file, create=True)
    partial = file.with_name(f"{file.name}.partial")
    sqlite_file.remove(partial)  # of one that was killed
    try:
        target = Database(parsed.set(database=str(partial), query={}))
        try:
            yield target
            with target.errors(), target.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            target.dispose()
        os.link(partial, file)
    except FileExistsError:
        raise Refused(f"{file} was made by another program meanwhile; copy again") from None
    finally:
        sqlite_file.remove(partial)


def copy(source: Database, target: Database, name: str, new_name: str | None = None) -> Copied:
    """Copy one study.

    Unfinished trials are copied as they are, with their attempts: a driver of the copy goes on
    with them. The lease and waiting commands stay behind, as do the files of checkpoints, whose
    paths are kept.

    Args:
        new_name: in the target; default: the same.

    Raises:
        UnknownStudy: not in the source, or deleted before its copy began.
        Refused: the target has a study of that name; nothing was written.
        Held: a live driver holds the study in the source.
    """
    record = studies.find(source, name)
    if record is None:
        raise UnknownStudy(f"there is no study {name!r} in {source}")
    wanted = new_name or name
    studies.check_name(wanted)
    try:
        with (
            undriven(source, record),
            source.errors(),
            source.read() as reading,
            target.errors(),
            target.write() as writing,
        ):
            studies.check_there(reading, record)
            return _Copy(reading, writing, record, wanted).run()
    except sa.exc.IntegrityError as error:
        if "studies" not in str(error.orig):
            raise
        raise Refused(f"{target} has a study {wanted!r} already; give another name") from None


class _Copy:
    """One study on its way."""

    def __init__(
        self, reading: Connection, writing: Connection, record: studies.StudyRecord, name: str
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._record = record
        self._name = name
        self._ids: dict[int, int] = {}

    def run(self) -> Copied:
        study_id = self._copy_study()
        self._copy_trials(study_id)
        counts = {name: self._copy_children(optuna_tables[name]) for name in _CHILDREN}
        if self._record.uid:
            self._copy_ours(study_id)
        return Copied(name=self._name, trials=len(self._ids), reports=counts["trial_intermediate_values"])

    def _copy_study(self) -> int:
        ways, mine = optuna_tables["study_directions"], self._record.study_id
        query = sa.select(ways.c.direction).where(ways.c.study_id == mine).order_by(ways.c.objective)
        study_id = studies.insert(self._writing, self._name, list(self._reading.execute(query).scalars()))
        studies.copy_attributes(self._reading, self._writing, mine, study_id)
        return study_id

    def _copy_trials(self, study_id: int) -> None:
        trials = optuna_tables["trials"]
        columns = ("number", "state", "datetime_start", "datetime_complete")
        query = sa.select(trials.c.trial_id, *(trials.c[name] for name in columns))
        query = query.where(trials.c.study_id == self._record.study_id).order_by(trials.c.trial_id)
        for rows in self._portions(query):
            ids = trial_writes.new_ids(self._writing, len(rows))
            self._ids.update(zip((row.trial_id for row in rows), ids, strict=True))
            moved = [
                (new, study_id, row.number, row.state.name, row.datetime_start, row.datetime_complete)
                for new, row in zip(ids, rows, strict=True)
            ]
            bulk.insert(self._writing, trials, ("trial_id", "study_id", *columns), moved)

    def _copy_children(self, table: sa.Table) -> int:
        """Rows of one of Optuna's tables that hang on a trial; their number."""
        trials = optuna_tables["trials"]
        names = tuple(
            column.name for column in table.c if not column.primary_key and column.name != "trial_id"
        )
        query = sa.select(table.c.trial_id, *(table.c[name] for name in names)).join(
            trials, trials.c.trial_id == table.c.trial_id
        )
        query = query.where(trials.c.study_id == self._record.study_id)
        (key,) = table.primary_key.columns
        return self._move(table, ("trial_id", *names), query.order_by(key))

    def _copy_ours(self, study_id: int) -> None:
        """Our rows, under the same uid unless the target knows it already."""
        uid = self._record.uid
        new_uid = studies.inherit(self._reading, self._writing, uid, study_id)
        for ours in _OURS:
            (key,) = ours.primary_key.columns
            names = tuple(column.name for column in ours.c if not column.primary_key)
            query = sa.select(*(ours.c[name] for name in names)).where(ours.c.study_uid == uid)
            self._move(ours, names, query.order_by(key), uid=new_uid)

    def _move(
        self, table: sa.Table, names: tuple[str, ...], query: sa.Select[Any], uid: str | None = None
    ) -> int:
        """Insert what a query gives, with the ids of the target."""
        count = 0
        for rows in self._portions(query):
            moved = []
            for row in rows:
                fields = dict(zip(names, row, strict=True))
                if fields["trial_id"] is not None:
                    new = self._ids.get(fields["trial_id"])
                    if new is None:  # a trial that is no longer there
                        continue
                    fields["trial_id"] = new
                if uid is not None:
                    fields["study_uid"] = uid
                moved.append(
                    tuple(value.name if isinstance(value, enum.Enum) else value for value in fields.values())
                )
            bulk.insert(self._writing, table, names, moved)
            count += len(moved)
        return count

    def _portions(self, query: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        result = self._reading.execution_options(yield_per=PORTION).execute(query)
        yield from result.partitions(PORTION)
