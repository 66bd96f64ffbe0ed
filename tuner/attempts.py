"""The attempts of trials in the store: claimed, started, ended, retried, and taken over.

Each step is one transaction. The decision whether another attempt follows is
:func:`tuner.retry.decide`'s; where it starts from is :func:`tuner.retention.newest_valid`'s.
What a new driver does with the attempts of the one before it is in :mod:`tuner.takeover`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from storage.held import AttemptRecord, CheckpointRecord
from storage.writes import (
    AddCheckpoint,
    Claim,
    DropCheckpoints,
    EndAttempt,
    StartAttempt,
    attributes_json,
)
from tuner import checkpoint, retention, retry
from tuner.assignment import Draw, Resume, Shard
from tuner.failures import storable
from tuner.messages import RankInfo, Saved
from tuner.origin import Origins
from tuner.outcome import Outcome, Reason
from tuner.retry import Again, PastAttempt, Retry
from tuner.seeds import trial_seed
from tuner.study import DrivenStudy, Space

__all__ = ["Attempts", "Committed", "Due", "Running"]

log = logging.getLogger(__name__)

LIVE_CHECKPOINTS = 2  # kept of a trial that runs: the newest may be damaged
LAST_CHECKPOINTS = 1  # kept of a trial that ended

_AS_BEFORE = Again()  # a plan that changes nothing: to make one is to check it


@dataclass(frozen=True, kw_only=True)
class Due:
    """A claimed attempt that waits for its moment and a slot.

    Attributes:
        due: on the monotonic clock.
        history: the attempts before it.
        resume: the checkpoint that it starts from, or None.
        plan: how it differs from the attempt before it.
        lost: it is an attempt that nobody reaches any more, and that may still run; when it is due it
            has ended, and another one follows.
        outcome: how that one ended, if it left no word of its own; None: its driver was lost.
    """

    trial_id: int
    number: int
    attempt: int
    due: float = 0.0
    history: tuple[PastAttempt, ...] = ()
    resume: retention.Whole | None = None
    plan: Again = _AS_BEFORE
    lost: AttemptRecord | None = None
    outcome: Outcome | None = None


@dataclass(kw_only=True)
class Running:
    """An attempt on the workers, from its dispatch until its processes are gone.

    Attributes:
        began, reported: on the monotonic clock: its start, and its last word; ``began`` is None
            while it waits for a place.
        ranks: its processes.
        devices: GPUs that they hold, each with its host.
        resume: the checkpoint that it started from, or None.
        ended: its outcome is recorded; its processes are still leaving.
        killed: its end was ordered.
        refused: how it ends, whatever its own end says: the database could not hold what it had said.
        apart: its ranks do not save the same checkpoints, and a person was told.
    """

    trial_id: int
    number: int
    attempt: int
    history: tuple[PastAttempt, ...]
    began: float | None
    reported: float
    ranks: int = 1
    devices: frozenset[str] = frozenset()
    resume: Resume | None = None
    ended: bool = False
    killed: bool = False
    refused: Outcome | None = None
    apart: bool = False


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A trial's terminal state, committed.

    Attributes:
        is_ours: it is in the database; else another program told the trial first, and its word stands.
    """

    running: Running
    outcome: Outcome
    state: TrialState
    is_ours: bool


class Files(Protocol):
    """The files of checkpoints: the module :mod:`tuner.checkpoint`, or its double."""

    def verify(self, shard: Shard) -> bool: ...

    def delete(self, paths: Iterable[str]) -> None: ...

    def is_folder(self, root: str) -> bool: ...

    def sweep(self, root: str, kept: Iterable[str]) -> None: ...


class Attempts:
    """The store's side of the attempts of one driven study.

    Args:
        study: held by this process.
        policy: for retries.
        space: evaluated in the driver when a trial is asked; may be None.
        provenance: plain data, recorded with every attempt.
        checkpoints: folder or URI of the study's checkpoints.
        clock: seconds; a retry is due by it.
        files: of the checkpoints.
    """

    def __init__(
        self,
        study: DrivenStudy,
        policy: Retry,
        space: Space,
        provenance: Mapping[str, object],
        checkpoints: str = "",
        clock: Callable[[], float] = time.monotonic,
        files: Files = checkpoint,
    ) -> None:
        self._study = study
        self._held = study.held
        self._policy = policy
        self._space = space
        self._provenance = provenance
        self._checkpoints = checkpoints
        self._clock = clock
        self._files = files
        directions = study.held.record.directions
        # of several objectives no trial is simply better than another: all keep theirs
        self._best = retention.Best(directions[0]) if len(directions) == 1 else None
        self._origins = Origins(study.held)
        self._kept_for_retries: set[int] = set()  # trials whose checkpoints go once no retry needs them

    @functools.cached_property
    def _shared_provenance(self) -> str:
        """What all attempts of the run have in common, as JSON: it is the most of a short trial's rows."""
        return json.dumps({"study_seed": self._study.seed, **self._provenance}, default=str)

    def claim(self) -> Due:
        """Claim a waiting or a new trial: its first attempt."""
        trial = self._study.claim_trial()
        return Due(trial_id=trial._trial_id, number=trial.number, attempt=1)

    def claim_soon(self, then: Callable[[Due], None]) -> None:
        """Claim a new trial with the next commit; ``then`` gets its first attempt, from any thread."""
        self._held.storage.create_soon(
            lambda trial: then(Due(trial_id=trial._trial_id, number=trial.number, attempt=1))
        )

    def start(
        self, due: Due, draw: Mapping[str, Draw], ranks: int, then: Callable[[Any], None] | None = None
    ) -> Running:
        """Queue that an attempt goes to so many workers: it may only once that is committed, when ``then``
        is called, from any thread.
        """
        seed = trial_seed(self._study.seed, due.number)
        provenance = f'{self._shared_provenance[:-1]}, "seed": {seed}}}'
        step = due.resume.step if due.resume else None
        fresh = due.attempt == 1 and due.resume is None
        self._held.queue(
            StartAttempt(
                study_uid=self._held.uid,
                trial_id=due.trial_id,
                attempt=due.attempt,
                epoch=self._held.lease.epoch,
                attributes=self._held.drawn(due.trial_id) if fresh else None,
                relative=json.dumps({name: [one.value, one.distribution] for name, one in draw.items()}),
                provenance=provenance,
                resumed_step=step,
            ),
            then=then,
        )
        self._study.event("started", {"resumed_step": step}, trial_id=due.trial_id, attempt=due.attempt)
        return Running(
            trial_id=due.trial_id,
            number=due.number,
            attempt=due.attempt,
            history=due.history,
            began=None,
            reported=self._clock(),
            ranks=ranks,
            resume=due.resume.resume if due.resume else None,
        )

    def draw(self, due: Due) -> dict[str, Draw]:
        """The joint draw of a trial: that of an earlier attempt, else drawn now."""
        for record in self._held.attempts(due.trial_id) if due.attempt > 1 else ():
            if record.relative is not None:
                pairs = json.loads(record.relative)
                return {name: Draw(value=value, distribution=text) for name, (value, text) in pairs.items()}
        return self._study.draw(due.trial_id, due.number, self._space)

    def place(self, running: Running, ranks: Sequence[RankInfo]) -> None:
        """Queue where an attempt's ranks run."""
        self._held.queue(
            StartAttempt(
                study_uid=self._held.uid,
                trial_id=running.trial_id,
                attempt=running.attempt,
                epoch=self._held.lease.epoch,
                ranks=json.dumps([rank.__dict__ for rank in ranks]),
            )
        )

    def follow(self, running: Running, text: str) -> None:
        """Queue the last of what an attempt has printed so far."""
        self._held.queue(
            StartAttempt(
                study_uid=self._held.uid,
                trial_id=running.trial_id,
                attempt=running.attempt,
                epoch=self._held.lease.epoch,
                log_tail=storable(text),
            )
        )

    def save(self, running: Running, rank: int, saved: Saved) -> None:
        """Make a rank's part of a checkpoint count, then delete what it replaces."""
        trial = self._held.image.trial(running.trial_id)
        self._held.add_checkpoint(
            AddCheckpoint(
                study_uid=self._held.uid,
                trial_id=running.trial_id,
                attempt=running.attempt,
                step=saved.step,
                rank=rank,
                world_size=saved.world_size,
                path=saved.path,
                digest=saved.digest,
                size=saved.size,
                attributes=attributes_json(trial) if rank == 0 else None,
            )
        )
        records = self._held.checkpoints(running.trial_id)
        steps = retention.expendable(records, LIVE_CHECKPOINTS, used=running.resume)
        self._delete(running.trial_id, records, steps)
        why = "" if running.apart else retention.unmatched(records, running.attempt)
        if why:
            running.apart = True
            text = f"{why}; every rank must call save_checkpoint, with the same steps, or none counts"
            log.warning("trial %d: %s", running.number, text)
            self._study.event(
                "checkpoints_apart", {"why": text}, trial_id=running.trial_id, attempt=running.attempt
            )

    def out_of_reach(self, running: Running, outcome: Outcome, seconds: float) -> Due:
        """An attempt that was cut off, and may run for so many seconds more: it ends only then, since it
        may save checkpoints until then that count.
        """
        record = AttemptRecord(
            trial_id=running.trial_id,
            number=running.number,
            attempt=running.attempt,
            state="running",
            reason=None,
            charged=False,
            resumed_step=None,
            relative=None,
            attributes=None,
            ranks=None,
            provenance=None,
        )
        return Due(
            trial_id=running.trial_id,
            number=running.number,
            attempt=running.attempt,
            due=self._clock() + seconds,
            history=running.history,
            lost=record,
            outcome=outcome,
        )

    def end(self, running: Running, outcome: Outcome) -> Due | TrialState | None:
        """Record how an attempt ended; durable on return.

        Returns:
            The next attempt, claimed in the same transaction; or the trial's terminal state; or
            None when another program told the trial first: its word stands.

        Raises:
            storage.Refused: the database cannot hold what it ended with; the trial is as it was.
        """
        heard: list[Committed] = []
        result = self.end_soon(running, outcome, heard.append)
        if not isinstance(result, TrialState):
            return result
        self._held.flush()
        if not heard:
            raise self._held.refused.pop(running.trial_id)
        return result if self.ended(heard[0]) else None

    def end_soon(
        self, running: Running, outcome: Outcome, then: Callable[[Committed], object]
    ) -> Due | TrialState | None:
        """Queue how an attempt ended, where its trial ends with it.

        Args:
            then: called after that commit, from any thread, with what :meth:`ended` takes; never where the
                database refuses what the trial ended with: see ``refused`` of the held study.

        Returns:
            As :meth:`end`; a terminal state is not durable yet, and a next attempt is.
        """
        decision = retry.decide(outcome, running.history, self._policy)
        plan = self._plan(running.trial_id, running.attempt, outcome.reason) if decision.again else _AS_BEFORE
        if plan is None:
            why = "on_oom returned None"
            decision = dataclasses.replace(decision, again=False, why=why)
        end = EndAttempt(
            study_uid=self._held.uid,
            trial_id=running.trial_id,
            attempt=running.attempt,
            epoch=self._held.lease.epoch,
            reason=outcome.reason,
            charged=decision.charged,
            message=storable(outcome.message),
            exception=storable(outcome.exception),
            traceback=storable(outcome.traceback),
            log_tail=storable(outcome.log_tail),  # what a process printed may be anything
        )
        if decision.again:
            past = PastAttempt(reason=outcome.reason, charged=decision.charged)
            history = (*running.history, past)
            due = self.again(end, running.number, history, decision.delay, decision.why)
            return dataclasses.replace(due, plan=plan or _AS_BEFORE)
        state = retry.state_of(outcome, self._policy)
        try:
            self._study.finish(
                running.number,
                outcome,
                state,
                end,
                lambda ours: then(Committed(running=running, outcome=outcome, state=state, is_ours=ours)),
            )
        except UpdateFinishedTrialError:
            self.close_elsewhere(running.trial_id)
            return None
        return state

    def ended(self, end: Committed) -> bool:
        """Let go of what a trial needs no more whose end is committed; whether that is its end."""
        if end.is_ours:
            self._study.logged.pop(end.running.trial_id, None)
            self._tidy(end.running, end.state, end.outcome)
        else:
            self.close_elsewhere(end.running.trial_id)
        return end.is_ours

    def _plan(self, trial_id: int, attempt: int, reason: Reason) -> Again | None:
        """How the attempt after an end differs from it; None: there is none."""
        policy = self._policy.on_oom
        if reason is not Reason.OOM or policy == "fail":
            return _AS_BEFORE
        if not callable(policy):
            return Again(alone=True)
        try:
            answer = policy(self._held.storage.get_trial(trial_id), attempt)
            if answer is not None and not isinstance(answer, Again):
                raise TypeError(f"it returned {answer!r}; return tuner.Again(...) or None")
        except Exception as error:  # the user's own: it fails the trial, and no other
            log.warning("retry: on_oom failed (%s: %s); the trial fails", type(error).__name__, error)
            return None
        return answer

    def plan(self, due: Due) -> Due:
        """With where a retry of another trial starts, and with what its driver had planned for it, which a
        take-over forgets.
        """
        if due.resume is None and self._origins.of(due.trial_id) is not None:
            due = self._from_origin(due)
        charged = [past for past in due.history if past.charged]
        if due.plan != _AS_BEFORE or not charged or charged[-1].reason is not Reason.OOM:
            return due
        plan = self._plan(due.trial_id, due.attempt - 1, Reason.OOM)
        return dataclasses.replace(due, plan=plan or _AS_BEFORE)

    def _from_origin(self, due: Due) -> Due:
        """A retry that has no checkpoint of its own, from that of the trial that it repeats."""
        origin = self._origins.of(due.trial_id)
        assert origin is not None
        start = self._origins.start(due.trial_id)
        detail = {"of": origin.number, "step": start.step if start else None}
        self._study.event("retry_of", detail, trial_id=due.trial_id, attempt=due.attempt)
        if start is None:
            log.warning(
                "trial %d is a retry of trial %d, of which no valid checkpoint is left: from nothing",
                due.number,
                origin.number,
            )
            return due
        self._origins.bring(due.trial_id, start)
        return dataclasses.replace(due, resume=start)

    def _tidy(self, running: Running, state: TrialState, outcome: Outcome) -> None:
        """Delete the checkpoints that nobody needs after a trial's end: see :data:`retention.BEST`."""
        records = self._held.checkpoints(running.trial_id)
        keep = LAST_CHECKPOINTS if state is not TrialState.PRUNED else 0
        self._delete(running.trial_id, records, retention.expendable(records, keep, over=True))
        root = self.folder(running.number)
        if records or self._files.is_folder(root):
            left = self._held.checkpoints(running.trial_id)
            self._files.sweep(root, [one.path for one in left])
        if records and state is TrialState.COMPLETE and self._best is not None:
            self._drop(self._best.offer(running.trial_id, outcome.values[0]))
        for trial_id in list(self._kept_for_retries):
            self._drop(trial_id)

    def folder(self, number: int) -> str:
        """Folder or URI of a trial's checkpoints."""
        return f"{self._checkpoints}/{self._held.uid[:12]}/{number}"

    def _drop(self, trial_id: int | None) -> None:
        """Delete every checkpoint of a trial, once no retry may start from it."""
        if trial_id is not None and self._origins.needed(trial_id):
            self._kept_for_retries.add(trial_id)
        elif trial_id is not None:
            self._kept_for_retries.discard(trial_id)
            records = self._held.checkpoints(trial_id)
            self._delete(trial_id, records, retention.expendable(records, 0, over=True))

    def keep_the_best(self) -> None:
        """Take in what is kept of trials that ended before; a crash may have left more than that."""
        for trial_id in sorted(self._held.checkpointed()):
            try:
                trial = self._held.image.trial(trial_id)
            except KeyError:
                continue
            if trial.state is TrialState.PRUNED:
                self._drop(trial_id)
            elif trial.state is TrialState.COMPLETE and self._best is not None:
                self._drop(self._best.offer(trial_id, trial.values[0]))

    def close_elsewhere(self, trial_id: int) -> None:
        """Another program told a trial of ours: end its open attempt, and drop what is ours."""
        records = self._held.attempts(trial_id)
        self._held.finished_elsewhere.discard(trial_id)
        self._held.owned.discard(trial_id)
        for record in records:
            if record.state != "ended":
                message = "another program told this trial first; its word stands"
                self._held.queue(self.ending(record, Reason.FINISHED_ELSEWHERE, message))
                self._study.event("finished_elsewhere", {}, trial_id=trial_id, attempt=record.attempt)
        self._held.flush()
        self._held.refresh()

    def unstarted(self, known: Container[int]) -> list[Due]:
        """Claims of ours that were applied although the database was away: trials that nobody started.

        Args:
            known: numbers of the trials that run or wait to be retried.
        """
        self._held.refresh()
        found = []
        for record in self._held.attempts():
            if record.state == "claimed" and record.number not in known and self.runs(record.trial_id):
                self._held.owned.add(record.trial_id)
                found.append(self.claimed(record, ()))
        return found

    def claimed(self, record: AttemptRecord, history: tuple[PastAttempt, ...]) -> Due:
        """A claim that never started."""
        start = None
        if record.resumed_step is not None:
            start = retention.newest_valid(self._held.checkpoints(record.trial_id), self._files.verify)[0]
        return Due(
            trial_id=record.trial_id,
            number=record.number,
            attempt=record.attempt,
            history=history,
            resume=start,
        )

    def again(
        self, end: EndAttempt, number: int, history: tuple[PastAttempt, ...], delay: float, why: str
    ) -> Due:
        """End an attempt and claim the next, from the newest valid checkpoint: one transaction."""
        start, damaged = retention.newest_valid(self._held.checkpoints(end.trial_id), self._files.verify)
        for one in damaged:
            lost = {"attempt": one.attempt, "step": one.step, "path": one.shards[0].path}
            self._study.event("checkpoint_damaged", lost, trial_id=end.trial_id, attempt=end.attempt)
        start = start or self._origins.start(end.trial_id)
        attributes = start.attributes if start else self._held.first_attributes(end.trial_id)
        step = start.step if start else -1
        detail = {"reason": end.reason, "message": end.message, "why": why, "from_step": step, "delay": delay}
        self._study.event("retry", detail, trial_id=end.trial_id, attempt=end.attempt)
        claim = Claim(
            study_uid=self._held.uid,
            trial_id=end.trial_id,
            number=number,
            attempt=end.attempt + 1,
            epoch=self._held.lease.epoch,
            attributes=attributes,
            resumed_step=start.step if start else None,
        )
        self._held.flush(end, self._held.supersede(end.trial_id, end.attempt, step, attributes), claim)
        return Due(
            trial_id=end.trial_id,
            number=number,
            attempt=end.attempt + 1,
            due=self._clock() + delay,
            history=history,
            resume=start,
        )

    def _delete(
        self, trial_id: int, records: Sequence[CheckpointRecord], steps: Sequence[tuple[int, int]]
    ) -> None:
        for attempt, step in steps:
            paths = [one.path for one in records if (one.attempt, one.step) == (attempt, step)]
            drop = DropCheckpoints(study_uid=self._held.uid, trial_id=trial_id, attempt=attempt, step=step)
            self._held.drop_checkpoint(drop)
            self._files.delete(paths)

    def runs(self, trial_id: int) -> bool:
        """Whether a trial is there, and RUNNING."""
        try:
            trial: FrozenTrial = self._held.image.trial(trial_id)
        except KeyError:
            return False
        return trial.state is TrialState.RUNNING

    def ending(self, record: AttemptRecord, reason: Reason, message: str) -> EndAttempt:
        """The end of an attempt that is not the trial's doing."""
        return EndAttempt(
            study_uid=self._held.uid,
            trial_id=record.trial_id,
            attempt=record.attempt,
            epoch=self._held.lease.epoch,
            reason=reason,
            charged=False,
            message=message,
        )
