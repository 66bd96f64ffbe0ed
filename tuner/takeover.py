"""What a new driver does with the attempts of the one before it.

A claim that never started is started first. An attempt that runs on, on a cluster that outlives its
drivers, is adopted: no step of it is lost or run twice. Any other has ended, or is ended here, and its
trial goes on from its newest checkpoint; where it may still run out of reach, that waits until its
group must have ended itself. What its ranks said without a driver counts in each case.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from dataclasses import dataclass, field

from optuna.exceptions import UpdateFinishedTrialError

import storage
from storage import owner
from storage.held import AttemptRecord
from storage.writes import StartAttempt
from tuner import checkpoint, last_words
from tuner.assignment import Assignment, Shard
from tuner.attempts import Attempts, Due, Running
from tuner.dispatch.base import Adopted, Executor
from tuner.dispatch.group import RankEnding, decide
from tuner.dispatch.shell import WITHOUT_DRIVER
from tuner.job import Job
from tuner.messages import Finished, Message, Param, Question, RankInfo, Saved
from tuner.outcome import Outcome, Reason
from tuner.processes import sweep
from tuner.resources import alternatives
from tuner.retry import PastAttempt
from tuner.study import DrivenStudy

__all__ = ["OUT_OF_REACH", "Recovered", "TakeOver"]

log = logging.getLogger(__name__)

OUT_OF_REACH = WITHOUT_DRIVER + 5.0
"""Seconds after which a group that no driver reaches has ended itself, with a margin."""


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What there is to go on with: attempts that wait, that run, and that have ended, with how."""

    due: list[Due] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    endings: list[tuple[Running, Outcome]] = field(default_factory=list)


class TakeOver:
    """The unfinished attempts of the driver before this one.

    Args:
        study: held by this process.
        attempts: of this driver.
        executor: opened.
        job: of this run; attempts of another objective are not adopted.
    """

    def __init__(self, study: DrivenStudy, attempts: Attempts, executor: Executor, job: Job) -> None:
        self._study = study
        self._held = study.held
        self._attempts = attempts
        self._executor = executor
        self._digest = job.objective.digest
        most = [one.count for one in alternatives(job.settings.resources)]
        self._ranks = max(most, default=_MOST)

    def recover(self) -> Recovered:
        """Take on what is unfinished; see above."""
        by_trial: dict[int, list[AttemptRecord]] = {}
        for record in self._held.attempts():
            by_trial.setdefault(record.trial_id, []).append(record)
        last = {records[-1].number: records[-1] for records in by_trial.values()}
        adopted = {
            one.assignment.number: one
            for one in self._executor.adopt(lambda assignment: self._is_wanted(assignment, last))
        }
        found = Recovered()
        for trial_id, records in by_trial.items():
            if not self._attempts.runs(trial_id):
                self._attempts.close_elsewhere(trial_id)
                continue
            self._held.owned.add(trial_id)
            record, history = records[-1], tuple(_past(one) for one in records[:-1])
            if record.state == "claimed":
                found.due.append(self._attempts.claimed(record, history))
            elif record.number in adopted:
                found.running.append(self._adopt(record, history, adopted[record.number]))
            else:
                self._lose(record, history, found)
        if waiting := [str(due.number) for due in found.due if due.lost is not None]:
            log.warning(
                "%s: trials %s may still run where nobody reaches them; they go on in %g s",
                self._study.study_name,
                ", ".join(waiting),
                OUT_OF_REACH,
            )
        if by_trial:
            detail = {"trials": len(by_trial), "adopted": len(found.running)}
            self._study.event("taken_over", detail)
            self._held.flush()
        self._attempts.keep_the_best()
        return found

    def ending(self, due: Due) -> tuple[Running, Outcome]:
        """How an attempt ended that was lost, and that has certainly ended: as its last words say, if
        it came to an end of its own, else as it was seen, or ``driver_lost``. What it said before is
        taken in; a driver that is killed before the end is committed leaves them for the next one: see
        :meth:`forget`.
        """
        record = due.lost
        assert record is not None
        running = self._running(record, due.history, 0.0)
        text = "the driver was lost while this attempt ran"
        seen = due.outcome or Outcome(reason=Reason.DRIVER_LOST, message=text)
        return running, self._listen(record, running) or seen

    def forget(self, running: Running) -> None:
        """The end of a lost attempt is committed, with what it said: its last words may go."""
        last_words.remove(self._attempts.folder(running.number), running.attempt, running.ranks)

    def _is_wanted(self, assignment: Assignment, last: dict[int, AttemptRecord]) -> bool:
        record = last.get(assignment.number)
        return (
            record is not None
            and (record.state, record.attempt) == ("running", assignment.attempt)
            and self._attempts.runs(record.trial_id)
            and assignment.objective.digest == self._digest
        )

    def _is_swept(self, home: str, epoch: int) -> bool:
        """Of a cluster that ends with its driver, nothing is left when that died on this host, or let go of
        the study itself, as one does that a callback of the user's ended.

        Args:
            epoch: of the driver that wrote of the attempt last.
        """
        lease = self._held.lease
        if not home.startswith("local/"):
            return False
        if (before := lease.previous_owner) is None:
            return epoch == lease.epoch - 1  # one that held it later could not speak for the one before
        if not owner.same_host(before):
            return False
        sweep(str(before["run"]))
        return True

    def _adopt(self, record: AttemptRecord, history: tuple[PastAttempt, ...], found: Adopted) -> Running:
        self._study.logged[record.trial_id] = self._held.logged(record.trial_id, record.attempt)
        self._held.queue(
            StartAttempt(
                study_uid=self._held.uid,
                trial_id=record.trial_id,
                attempt=record.attempt,
                epoch=self._held.lease.epoch,
                ranks=json.dumps([rank.__dict__ for rank in found.ranks]),
            )
        )
        detail = {"seconds": round(found.seconds, 1)}
        self._study.event("adopted", detail, trial_id=record.trial_id, attempt=record.attempt)
        running = self._running(record, history, found.seconds)
        running.resume = found.assignment.resume
        running.ranks = found.assignment.resources.count
        return running

    def _lose(self, record: AttemptRecord, history: tuple[PastAttempt, ...], found: Recovered) -> None:
        """An attempt that nobody adopted: it has ended, or will have ended by a moment."""
        due = Due(
            trial_id=record.trial_id,
            number=record.number,
            attempt=record.attempt,
            history=history,
            lost=record,
        )
        home = str(json.loads(record.provenance or "{}").get("cluster", ""))
        if self._is_swept(home, record.epoch) or self._executor.is_gone(home, _ranks(record)):
            found.endings.append(self.ending(due))
            return
        detail = {"seconds": OUT_OF_REACH, "cluster": home}
        self._study.event("waits_for_end", detail, trial_id=record.trial_id, attempt=record.attempt)
        found.due.append(dataclasses.replace(due, due=time.monotonic() + OUT_OF_REACH))

    def _listen(self, record: AttemptRecord, running: Running) -> Outcome | None:
        """Take in the last words of an attempt; its own end, if it came to one."""
        root = self._attempts.folder(record.number)
        objectives = len(self._held.record.directions)
        words = last_words.hear(root, record.attempt, running.ranks, objectives)
        if not words:
            return None
        self._study.logged[record.trial_id] = self._held.logged(record.trial_id, record.attempt)
        endings = []
        for rank, messages in sorted(words.items()):
            for message in messages:
                if isinstance(message, Finished):
                    ending = RankEnding(rank=rank, outcome=message.outcome, collateral=message.collateral)
                    endings.append(ending)
                elif not self._take_in(running, rank, message):
                    break
        detail = {"messages": {rank: len(messages) for rank, messages in words.items()}}
        self._study.event("last_words", detail, trial_id=record.trial_id, attempt=record.attempt)
        self._held.flush()
        outcome = decide(endings, None) if endings else None
        return outcome if outcome is not None and outcome.reason not in _NOT_ITS_OWN else None

    def _take_in(self, running: Running, rank: int, message: Message) -> bool:
        """One message; False where the rest of its rank's is left."""
        try:
            if isinstance(message, Saved):
                shard = Shard(rank=rank, path=message.path, digest=message.digest, size=message.size)
                if checkpoint.verify(shard):
                    self._attempts.save(running, rank, message)
            elif isinstance(message, Param) or (rank == 0 and not isinstance(message, Question)):
                self._study.apply(running.trial_id, running.attempt, message)
        except (storage.Refused, UpdateFinishedTrialError, TypeError, ValueError):
            return False
        return True

    def _running(self, record: AttemptRecord, history: tuple[PastAttempt, ...], seconds: float) -> Running:
        now = time.monotonic()
        return Running(
            trial_id=record.trial_id,
            number=record.number,
            attempt=record.attempt,
            history=history,
            began=now - seconds,
            reported=now,
            ranks=len(_ranks(record)) or self._ranks,
        )


_MOST = 64  # ranks of an attempt of which nothing is known: so many last words are looked for
_NOT_ITS_OWN = (Reason.DRIVER_LOST, Reason.INTERRUPTED, Reason.RANK_LOST, Reason.NODE_LOST)


def _ranks(record: AttemptRecord) -> list[RankInfo]:
    return [_rank(fields) for fields in json.loads(record.ranks or "[]")]


def _rank(fields: dict[str, object]) -> RankInfo:
    known = RankInfo.__dataclass_fields__
    plain = {name: value for name, value in fields.items() if name in known}
    return RankInfo(**{**plain, "devices": tuple(plain.get("devices", ()))})  # type: ignore[arg-type]


def _past(record: AttemptRecord) -> PastAttempt:
    return PastAttempt(reason=Reason(record.reason or Reason.DRIVER_LOST), charged=record.charged)
