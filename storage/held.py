"""A study whose lease this process holds: reads from memory, writes in order by group commit.

What is durable when:

- what is queued (reports, parameters, attributes, events, added finished trials): in order,
  within half a second, and whenever :meth:`HeldStudy.flush` returns;
- a new trial, a popped one, a change of state: when the call returns, with everything before it.

While the database is away what runs goes on: a local file stands for the commit
(:mod:`storage.journal`), and only what needs an id or a number from the database has to wait.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from storage import tables
from storage.commands import arguments_of
from storage.errors import LeaseLost, Refused, StorageError, UnknownStudy
from storage.execution import DROPPED
from storage.fence import gone
from storage.held_storage import HeldStorage
from storage.image import StudyImage
from storage.journal import Journal
from storage.latency import Commits
from storage.lease import Lease
from storage.rows import read_trials
from storage.studies import StudyRecord
from storage.tables import optuna_tables
from storage.writer import Ticket, Writer
from storage.writes import (
    AddCheckpoint,
    DropCheckpoints,
    EndAttempt,
    Supersede,
    Write,
    attributes_json,
)

__all__ = ["AttemptRecord", "CheckpointRecord", "CommandRecord", "Ending", "HeldStudy"]


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """An attempt as the database has it; see ``tuner_attempts``."""

    trial_id: int
    number: int
    attempt: int
    state: str
    reason: str | None
    charged: bool
    resumed_step: int | None
    relative: str | None
    attributes: str | None
    ranks: str | None
    provenance: str | None
    epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """One rank's part of a checkpoint; see ``tuner_checkpoints``."""

    attempt: int
    step: int
    rank: int
    world_size: int
    path: str
    digest: str
    size: int
    attributes: str | None


@dataclass(frozen=True, kw_only=True)
class CommandRecord:
    """A command that waits to be carried out; ``arguments`` is plain data, None where it is no JSON."""

    command_id: int
    name: str
    arguments: Any
    author: str


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of an attempt, for the transaction of its trial's terminal state.

    Attributes:
        then: called after that commit, by whichever thread commits: whether the state is this one, or
            another program told the trial first.
    """

    write: EndAttempt
    then: Callable[[bool], object]


class HeldStudy:
    """A study whose lease this process holds. Safe under threads.

    Args:
        lease: acquired; its commit is the only way in which this object writes.
        record: the study's rows.
        claims: write an attempt with each trial that is created or popped, so that the next
            driver takes on what this one leaves; without it the trials are like any program's.
        patience: seconds for which a new trial waits for a database that is away.

    Attributes:
        image: the study in memory; hold ``lock`` to change it.
        storage: the same for Optuna.
        owned: ids of the trials that this driver, or one before it, dispatched.
        endings: by trial id, the end of the attempt that goes into the transaction of the next
            terminal state, which is then queued like a report: nobody waits for its commit.
        finished_elsewhere: ids of trials of ours that another program told; the driver takes them out.
        keeps_events: False where the event log goes nowhere.
        refreshed: when :meth:`refresh` was last through, on the monotonic clock.
        attributes_set: counts the attributes of the study that were set here.
        refused: what the database refused although nobody waited for it: trial id and why.

    Example:
        >>> optuna_storage = storage.SqlStorage("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="flushed", storage=optuna_storage)
        >>> with optuna_storage.lease("flushed") as held:
        ...     study.set_user_attr("note", "durable within half a second")
        ...     done = held.flush()  # now
    """

    keeps_events = True

    def __init__(
        self, lease: Lease, record: StudyRecord, *, claims: bool = True, patience: float = 60.0
    ) -> None:
        self._begin(lease, record, claims)
        self.patience = patience
        with lease.database.errors(), lease.database.read() as connection:
            self.image.put(read_trials(connection, record.study_id))
        self._seen = max((trial._trial_id for trial in self.image.trials()), default=0)
        self._read_attributes()
        self._journal = Journal(lease.fence)
        self._writer = Writer(
            self._commit, tend=self._tend, refused=self._refuse, gap=lease.database.is_sqlite
        )
        self.storage = HeldStorage(self)

    def _begin(self, lease: Lease, record: StudyRecord, claims: bool) -> None:
        """What of a study is in memory; its double has the same."""
        self.lease = lease
        self.record = record
        self.claims = claims
        self.lock = threading.RLock()
        self.image = StudyImage()
        self.owned: set[int] = set()
        self.endings: dict[int, Ending] = {}
        self.finished_elsewhere: set[int] = set()
        self.refused: dict[int, Refused] = {}
        self.refreshed = time.monotonic()
        self.attributes_set = 0
        self._checkpoints: dict[int, list[CheckpointRecord]] = {}
        self._first_attributes: dict[int, str] = {}

    @property
    def uid(self) -> str:
        """Our uid of the study."""
        return self.record.uid

    @property
    def away(self) -> bool:
        """True while the database cannot be reached: start nothing new."""
        return self._journal.away

    @property
    def returned(self) -> int:
        """How often the database came back: a claim of a trial may have been applied meanwhile."""
        return self._journal.returned

    @property
    def commits(self) -> Commits:
        """How long commits took so far."""
        return self._writer.latencies.taken()

    @property
    def queued(self) -> int:
        """Rows that wait to be committed."""
        return self._writer.queued

    def queue(self, *writes: Write, then: Any = None) -> None:
        """Add writes that are durable within half a second, and with the next :meth:`flush`.

        Args:
            then: called with their results after the commit, by whichever thread commits.
        """
        self._writer.add(writes, then)

    def flush(self, *writes: Write) -> Sequence[Any]:
        """Commit what is queued and then ``writes``, as one transaction; the results of ``writes``.

        Raises:
            LeaseLost: another driver holds the study; nothing was written.
            Refused: the database cannot hold a value of ``writes``; none of them was written.
            Unavailable: the database is away, and ``writes`` need it or cannot be kept elsewhere.
        """
        return self._writer.flush(writes, self.patience)

    def close(self) -> None:
        """Flush, and end the writing; the lease stays. Safe to call twice.

        Raises:
            StorageError: something that was queued could not be written.
        """
        self._writer.close()

    def end(self) -> None:
        """End the writing, whatever becomes of what is queued; :meth:`close` says what did."""
        with contextlib.suppress(StorageError):
            self._writer.close()

    def refresh(self) -> None:
        """Take in what other programs did: new and changed trials, attributes, a deleted study.

        Raises:
            UnknownStudy: the study was deleted, or renamed, under us.
            Unavailable: the database is away; nothing has changed.
        """
        version = self.attributes_set
        self.flush()
        self._read_attributes(version)
        trials = optuna_tables["trials"]
        open_states = (TrialState.RUNNING, TrialState.WAITING)
        with self.lock, self.lease.database.errors(), self.lease.database.read() as connection:
            known = [trial._trial_id for trial in self.image.unfinished()]
            fresh = (trials.c.trial_id > self._seen) | trials.c.trial_id.in_(known)
            query = sa.select(trials.c.trial_id, trials.c.state).where(
                trials.c.study_id == self.record.study_id, fresh
            )
            found: dict[int, TrialState] = {row.trial_id: row.state for row in connection.execute(query)}
            gone = {trial_id for trial_id in known if found.get(trial_id) not in open_states}
            self.finished_elsewhere |= gone & self.owned
            changed = {one for one in found if one not in self.owned and one not in self.image}
            changed |= gone | (set(known) - self.owned)
            reread = read_trials(connection, self.record.study_id, sorted(changed)) if changed else []
            self._seen = max([self._seen, *found])
            self.image.put(reread)
            for trial_id in changed - {trial._trial_id for trial in reread}:
                self.image.drop(trial_id)
        self.refreshed = time.monotonic()

    def own(self, trial_id: int, attributes: str) -> None:
        """A trial is claimed for its first attempt; ``attributes`` as the claim keeps them."""
        self.owned.add(trial_id)
        self._checkpoints[trial_id] = []
        self._first_attributes[trial_id] = attributes

    def drawn(self, trial_id: int) -> str | None:
        """A trial has its draw: what the sampler noted on it stays with it, whatever becomes of its attempts.

        Returns:
            Its attributes, if they are no longer those of the claim, for :class:`StartAttempt`.
        """
        with self.lock:
            attributes = attributes_json(self.image.trial(trial_id))
        if attributes == self.first_attributes(trial_id):
            return None
        self._first_attributes[trial_id] = attributes
        return attributes

    def first_attributes(self, trial_id: int) -> str:
        """The trial's attributes before its first attempt said anything: JSON."""
        if trial_id not in self._first_attributes:
            found = [one.attributes for one in self.attempts(trial_id) if one.attributes is not None]
            self._first_attributes[trial_id] = found[0] if found else attributes_json(None)
        return self._first_attributes[trial_id]

    def attempts(self, trial_id: int | None = None) -> list[AttemptRecord]:
        """The attempts of one trial, or of every trial that has an open attempt, in order."""
        table = tables.attempts
        mine = table.c.study_uid == self.uid
        if trial_id is None:
            opened = sa.select(table.c.trial_id).where(mine, table.c.state != "ended")
            where = mine & table.c.trial_id.in_(opened)
        else:
            where = mine & (table.c.trial_id == trial_id)
        names = AttemptRecord.__dataclass_fields__
        query = sa.select(*(table.c[name] for name in names)).where(where)
        with self.lease.database.errors(), self.lease.database.read() as connection:
            rows = connection.execute(query.order_by(table.c.number, table.c.attempt)).mappings()
            return [AttemptRecord(**{**row, "charged": bool(row["charged"])}) for row in rows]

    def checkpoints(self, trial_id: int) -> list[CheckpointRecord]:
        """Every recorded part of the trial's checkpoints, newest first, ranks in order.

        Read from the database once for each trial, so that a database that is away stops no retry.
        """
        if trial_id not in self._checkpoints:
            table = tables.checkpoints
            query = sa.select(*(table.c[name] for name in CheckpointRecord.__dataclass_fields__))
            query = query.where(table.c.study_uid == self.uid, table.c.trial_id == trial_id)
            with self.lease.database.errors(), self.lease.database.read() as connection:
                rows = connection.execute(query).mappings()
                self._checkpoints[trial_id] = [CheckpointRecord(**row) for row in rows]
        return sorted(self._checkpoints[trial_id], key=lambda one: (-one.attempt, -one.step, one.rank))

    def checkpointed(self) -> set[int]:
        """Ids of the trials that have a checkpoint."""
        table = tables.checkpoints
        query = sa.select(table.c.trial_id).distinct().where(table.c.study_uid == self.uid)
        with self.lease.database.errors(), self.lease.database.read() as connection:
            return set(connection.execute(query).scalars())

    def logged(self, trial_id: int, attempt: int) -> set[tuple[str, int]]:
        """Names and steps of the further metrics of an attempt."""
        table = tables.metrics
        query = sa.select(table.c.name, table.c.step).where(
            table.c.study_uid == self.uid, table.c.trial_id == trial_id, table.c.attempt == attempt
        )
        with self.lease.database.errors(), self.lease.database.read() as connection:
            return {(row.name, row.step) for row in connection.execute(query)}

    def add_checkpoint(self, write: AddCheckpoint) -> None:
        """Make one rank's part of a checkpoint count; durable on return."""
        self.checkpoints(write.trial_id)
        self.flush(write)
        part = CheckpointRecord(
            **{name: getattr(write, name) for name in CheckpointRecord.__dataclass_fields__}
        )
        parts = self._checkpoints[write.trial_id]
        same = (part.attempt, part.step, part.rank)
        parts[:] = [one for one in parts if (one.attempt, one.step, one.rank) != same] + [part]

    def drop_checkpoint(self, write: DropCheckpoints) -> None:
        """Forget a checkpoint; durable on return, so that its files may go."""
        self.flush(write)
        parts = self._checkpoints.get(write.trial_id, [])
        parts[:] = [one for one in parts if (one.attempt, one.step) != (write.attempt, write.step)]

    def commands(self) -> list[CommandRecord]:
        """Commands of the dashboard and the command line that wait, oldest first."""
        table = tables.commands
        query = sa.select(*(table.c[name] for name in CommandRecord.__dataclass_fields__))
        query = query.where(table.c.study_uid == self.uid, table.c.done_at.is_(None))
        with self.lease.database.errors(), self.lease.database.read() as connection:
            rows = connection.execute(query.order_by(table.c.command_id)).mappings()
            return [CommandRecord(**{**row, "arguments": arguments_of(row["arguments"])}) for row in rows]

    def supersede(self, trial_id: int, attempt: int, after_step: int, attributes: str) -> Supersede:
        """Take a trial back, in memory, to a checkpoint; the write that does it in the database.

        Args:
            after_step: reports above this step are superseded; -1 for all.
            attributes: JSON of the attributes at that moment, as
                :func:`~storage.writes.attributes_json` gives it.
        """
        kept = json.loads(attributes)
        with self.lock:
            trial: FrozenTrial = self.image.writable(trial_id)
            steps = {step: value for step, value in trial.intermediate_values.items() if step <= after_step}
            trial.intermediate_values = steps
            trial._user_attrs = dict(kept["user"])
            trial._system_attrs = dict(kept["system"])
        return Supersede(
            study_uid=self.uid,
            trial_id=trial_id,
            attempt=attempt,
            after_step=after_step,
            user_attrs={key: json.dumps(value) for key, value in kept["user"].items()},
            system_attrs={key: json.dumps(value) for key, value in kept["system"].items()},
        )

    def _commit(self, writes: Sequence[Write], tickets: Sequence[Ticket]) -> list[Any]:
        try:
            results = self._journal.commit(writes, tickets)
        except LeaseLost:
            self.lease.lose()
            raise
        for write, result in zip(writes, results, strict=True):
            if result is DROPPED and write.trial_id in self.owned:  # type: ignore[attr-defined]
                self.finished_elsewhere.add(write.trial_id)  # type: ignore[attr-defined]
        return results

    def _tend(self, alone: contextlib.AbstractContextManager[Any]) -> None:
        try:
            self._journal.tend(alone)
        except LeaseLost:
            self.lease.lose()
            raise

    def _refuse(self, write: Write, error: Refused) -> None:
        trial_id = getattr(write, "trial_id", None)
        if trial_id is not None:
            self.refused[trial_id] = error

    def _read_attributes(self, version: int = 0) -> None:
        with self.lock, self.lease.database.errors(), self.lease.database.read() as connection:
            found: dict[str, dict[str, Any]] = {}
            for kind in ("user", "system"):
                table = optuna_tables[f"study_{kind}_attributes"]
                query = sa.select(table.c.key, table.c.value_json).where(
                    table.c.study_id == self.record.study_id
                )
                found[kind] = {key: json.loads(text) for key, text in connection.execute(query)}
            if found["system"].get(tables.UID_KEY) != self.uid:
                raise UnknownStudy(gone(self.record.name))
            if version == self.attributes_set:  # else what is queued is newer than the database
                self.image.user_attrs, self.image.system_attrs = found["user"], found["system"]
