"""The one loop that drives a study: it admits trials, carries messages, and records what happened.

Decisions are made by pure functions (:mod:`tuner.scheduler`, :mod:`tuner.retry`,
:mod:`tuner.retention`); this module carries them out. Nothing leaves it before the commit that
it depends on: a dispatch waits for the claim and the attempt, a True verdict, a saved
checkpoint, a callback and the end of a trial for theirs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

import storage
from storage.held import AttemptRecord
from storage.writes import AddCheckpoint, Claim, DropCheckpoints, EndAttempt, SetStudyRow, StartAttempt, attributes_json
from tuner import checkpoint, retention, retry, scheduler
from tuner.assignment import Assignment, Draw, ObjectiveRef
from tuner.dispatch.base import Cluster, Executor
from tuner.errors import StudyHeld, StudyStopped
from tuner.messages import Answer, Ask, Call, Ended, Envelope, Question, Released, Report, Sample, Saved, Started
from tuner.outcome import Outcome, Reason
from tuner.retry import PastAttempt
from tuner.seeds import trial_seed
from tuner.settings import Settings
from tuner.signals import Signals
from tuner.snapshot import Progress, RunningTrial, Snapshot
from tuner.study import DrivenStudy, Space

__all__ = ["Callback", "Driver", "Job"]

log = logging.getLogger(__name__)

Callback = Callable[[optuna.Study, FrozenTrial], object]

FLUSH_EVERY = 0.25  # seconds: reports are durable within half a second
REFRESH_EVERY = 0.5  # seconds between looks at what other programs did
DRAW_EVERY = 0.2  # seconds between frames of the progress display


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a driver is to do, apart from the study itself.

    Attributes:
        run: mark of this run on every process that it starts.
        environment: variables for the ranks, values included.
        checkpoints: folder or URI of the study's checkpoints.
        provenance: plain data, recorded with every attempt.
        grace: seconds that a trial which is asked to stop has to checkpoint.
    """

    run: str
    objective: ObjectiveRef
    settings: Settings
    space: Space = None
    environment: dict[str, str] = field(default_factory=dict)
    checkpoints: str
    provenance: dict[str, object] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    grace: float = 10.0


@dataclass(kw_only=True)
class _Live:
    """A trial on the workers, from its dispatch until its processes are gone."""

    trial_id: int
    number: int
    attempt: int
    history: list[PastAttempt]
    began: float
    reported: float
    ended: bool = False
    killed: bool = False


@dataclass(frozen=True, kw_only=True)
class _Due:
    """A claimed attempt that waits for its moment and a slot."""

    trial_id: int
    number: int
    attempt: int
    due: float
    history: tuple[PastAttempt, ...]
    resume: retention.Whole | None = None


class Driver:
    """Runs one study until its budget is spent, it is stopped, or it fails.

    Args:
        study: held by this process.
        executor: where attempts run; opened and closed here.
        job: what to do.
        progress: a display, or None.
        stop_requested: also asked at each turn, for a ``stop()`` on the user's own study object.
    """

    def __init__(
        self,
        study: DrivenStudy,
        executor: Executor,
        job: Job,
        progress: Progress | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.study = study
        self.held = study.held
        self.executor = executor
        self.job = job
        self.settings = job.settings
        self.progress = progress
        self._stop_requested = stop_requested
        self._live: dict[int, _Live] = {}
        self._due: list[_Due] = []
        self._unacknowledged: dict[tuple[int, int], int] = {}
        self._draining = ""  # why nothing new starts, as it is recorded
        self._interrupting = False
        self._failure = ""  # a reason to end with StudyStopped
        self._failures: collections.Counter[str] = collections.Counter()
        self._last_failures: collections.deque[Outcome] = collections.deque(maxlen=50)
        self._finished_here = 0
        self._began = time.monotonic()
        self._next_flush = self._next_refresh = self._next_draw = 0.0
        self._cluster = Cluster(slots=1, gpus=0, description="")

    def run(self) -> str:
        """Drive the study to its end and return why it ended.

        Raises:
            StudyHeld: another driver took over.
            StudyStopped: the study stopped on failures.
            KeyboardInterrupt: SIGINT or SIGTERM; everything is resumable.
            Infeasible, ClusterUnavailable, StoreUnavailable: see there.
        """
        with Signals() as signals, contextlib.ExitStack() as stack:
            stack.callback(self.executor.close)
            epoch = self.held.lease.epoch
            self._cluster = self.executor.open(self.job.run, epoch, self.settings.resources, self._receive)
            signals.install()  # after Ray, which installs handlers of its own
            self._recover()
            try:
                self._loop(signals)
            finally:
                with contextlib.suppress(storage.StorageError):
                    self._flush()
            reason = self._why()
        if self.progress is not None:
            self.progress.close(self._snapshot(), reason)
        if self._interrupting:
            raise KeyboardInterrupt(reason)
        if self._failure:
            raise StudyStopped(self._failure)
        return reason

    # ------------------------------------------------------------------ the loop

    def _loop(self, signals: Signals) -> None:
        while True:
            self._obey(signals)
            self._admit()
            if not self._live and (self._draining or not self._work_left()):
                return
            self.executor.poll(self._patience())
            self._tick()

    def _patience(self) -> float:
        """Seconds that a poll may wait for the first message."""
        now = time.monotonic()
        moments = [now + FLUSH_EVERY, *(due.due for due in self._due)]
        return min(FLUSH_EVERY, max(0.0, min(moments) - now))

    def _tick(self) -> None:
        now = time.monotonic()
        if self.held.lease.lost:
            raise StudyHeld(f"study {self.study.study_name!r} was taken over by another driver; this one ends")
        if now >= self._next_flush:
            self._flush()
            self._next_flush = now + FLUSH_EVERY
        if now >= self._next_refresh:
            self.held.refresh()
            self._drop_finished_elsewhere()
            self._carry_out_commands()
            self._next_refresh = now + REFRESH_EVERY
        self._watch(now)
        if self.progress is not None and now >= self._next_draw:
            self.progress.update(self._snapshot())
            self._next_draw = now + DRAW_EVERY

    def _flush(self) -> None:
        """Commit what is queued, then let the shells forget what is durable."""
        self.held.flush()
        for (number, rank), seq in self._unacknowledged.items():
            self.executor.committed(number, rank, seq)
        self._unacknowledged.clear()

    def _obey(self, signals: Signals) -> None:
        """The first signal lets running trials checkpoint and go, the second ends them."""
        if signals.count and not self._interrupting:
            self._interrupting = True
            self._draining = f"interrupted by {signals.name}"
            log.warning("%s: letting running trials checkpoint; press again to end them at once", signals.name)
            for live in self._live.values():
                self.executor.stop(live.number, Reason.INTERRUPTED, self.job.grace)
        if signals.count > 1:
            for live in self._live.values():
                self._kill(live, Reason.INTERRUPTED, "the driver was told twice to stop")
        if (self.study.stop_requested or self._stop_requested()) and not self._draining:
            self._draining = "stopped by study.stop()"
        timeout = self.settings.timeout
        if timeout is not None and time.monotonic() - self._began >= timeout and not self._draining:
            self._draining = f"timeout of {timeout:g} s reached"

    # ------------------------------------------------------------------ admission

    def _admit(self) -> None:
        """Fill the free slots: a due retry, then an enqueued trial, then a new one."""
        while True:
            action = scheduler.decide(self._counts(), self.settings.n_trials)
            match action:
                case scheduler.StartRetry():
                    due = min(self._due, key=lambda one: one.due)
                    self._due.remove(due)
                    self._dispatch(due, retried=True)
                case scheduler.StartEnqueued() | scheduler.StartNew():
                    self._start_new()
                case _:
                    return

    def _counts(self) -> scheduler.Counts:
        now = time.monotonic()
        states = self._states()
        due = sum(1 for one in self._due if one.due <= now)
        return scheduler.Counts(
            finished=states["COMPLETE"] + states["PRUNED"] + states["FAIL"],
            running=len(self._live),
            running_unfinished=sum(1 for live in self._live.values() if not live.ended),
            retries_due=due,
            retries_waiting=len(self._due) - due,
            enqueued=states["WAITING"],
            slots=self._slots(),
            draining=bool(self._draining),
        )

    def _slots(self) -> int:
        most = self.settings.max_concurrent
        return self._cluster.slots if most is None else min(most, self._cluster.slots)

    def _states(self) -> collections.Counter[str]:
        return collections.Counter(trial.state.name for trial in self.held.image.trials())

    def _work_left(self) -> bool:
        if self._due:
            return True
        return not isinstance(scheduler.decide(self._counts(), self.settings.n_trials), scheduler.Done)

    def _start_new(self) -> None:
        trial, relative = self.study.ask_trial(self.job.space)
        due = _Due(trial_id=trial._trial_id, number=trial.number, attempt=1, due=0.0, history=())
        self._dispatch(due, retried=False, relative=relative)

    def _dispatch(self, due: _Due, *, retried: bool, relative: dict[str, Draw] | None = None) -> None:
        """Commit the attempt, then hand it to the executor."""
        if relative is None:
            relative = self._recorded_draw(due)
        provenance = {**self.job.provenance, "seed": trial_seed(self.study.seed, due.number)}
        start = StartAttempt(
            study_uid=self.held.uid,
            trial_id=due.trial_id,
            attempt=due.attempt,
            epoch=self.held.lease.epoch,
            relative=json.dumps({name: [draw.value, draw.distribution] for name, draw in relative.items()}),
            provenance=json.dumps(provenance, default=str),
            resumed_step=due.resume.step if due.resume else None,
        )
        resumed = {"resumed_step": due.resume.step if due.resume else None}
        self.held.queue(start)
        self.study.event("started", resumed, trial_id=due.trial_id, attempt=due.attempt)
        self._flush()
        now = time.monotonic()
        self._live[due.number] = _Live(
            trial_id=due.trial_id,
            number=due.number,
            attempt=due.attempt,
            history=list(due.history),
            began=now,
            reported=now,
        )
        self.executor.start(self._assignment(due, relative))

    def _assignment(self, due: _Due, relative: dict[str, Draw]) -> Assignment:
        trial = self.held.image.trial(due.trial_id)
        constraints = {
            key.removeprefix("constraints:"): value
            for key, value in trial.system_attrs.items()
            if key.startswith("constraints:")
        }
        params = {
            name: Draw(
                value=float(dist.to_internal_repr(trial.params[name])),
                distribution=optuna.distributions.distribution_to_json(dist),
            )
            for name, dist in trial.distributions.items()
        }
        return Assignment(
            run=self.job.run,
            epoch=self.held.lease.epoch,
            study=self.study.study_name,
            directions=self.held.record.directions,
            number=due.number,
            attempt=due.attempt,
            seed=trial_seed(self.study.seed, due.number),
            started=trial.datetime_start.isoformat() if trial.datetime_start else "",
            objective=self.job.objective,
            resources=self.settings.resources,
            gpus=self._cluster.gpus,
            params=params,
            fixed=trial.system_attrs.get("fixed_params", {}),
            relative=relative,
            user_attrs=dict(trial.user_attrs),
            constraints=constraints,
            reports=dict(trial.intermediate_values),
            checkpoints=f"{self.job.checkpoints}/{self.held.uid[:12]}/{due.number}",
            resume=due.resume.resume if due.resume else None,
            env=self.job.environment,
            folder=os.getcwd(),
            can_prune=not isinstance(self.study.pruner, optuna.pruners.NopPruner),
            grace=self.job.grace,
        )

    def _recorded_draw(self, due: _Due) -> dict[str, Draw]:
        """The joint draw of an earlier attempt; drawn now for a claim that never started."""
        for record in self.held.attempts(due.trial_id):
            if record.relative is not None:
                pairs = json.loads(record.relative)
                return {name: Draw(value=value, distribution=text) for name, (value, text) in pairs.items()}
        return self.study.draw(due.trial_id, due.number, self.job.space)

    # ------------------------------------------------------------------ messages

    def _receive(self, envelope: Envelope) -> None:
        """What the executor delivers: the sink of :meth:`Executor.open`."""
        live = self._live.get(envelope.number)
        if live is None or live.attempt != envelope.attempt:
            return
        message = envelope.message
        if isinstance(message, Released):
            del self._live[live.number]
            if not live.ended:
                self._end(live, Outcome(reason=Reason.RANK_LOST, message="the attempt ended without an outcome"))
            return
        if live.ended:
            return
        self._unacknowledged[envelope.number, envelope.rank] = envelope.seq
        try:
            self._handle(live, envelope)
        except storage.Refused as error:
            self._kill(live, Reason.REFUSED, str(error))
        except UpdateFinishedTrialError:
            self.held.finished_elsewhere.add(live.trial_id)
            self._drop_finished_elsewhere()

    def _handle(self, live: _Live, envelope: Envelope) -> None:
        message = envelope.message
        match message:
            case Started(ranks=ranks):
                text = json.dumps([dataclasses.asdict(rank) for rank in ranks])
                self.held.queue(
                    StartAttempt(
                        study_uid=self.held.uid,
                        trial_id=live.trial_id,
                        attempt=live.attempt,
                        epoch=self.held.lease.epoch,
                        ranks=text,
                    )
                )
                live.began = live.reported = time.monotonic()
            case Question():
                self._reply(live, envelope.rank, message)
            case Ended(outcome=outcome):
                self._end(live, outcome)
            case _:
                if isinstance(message, Report):
                    live.reported = time.monotonic()
                self.study.apply(live.trial_id, live.attempt, message)

    def _reply(self, live: _Live, rank: int, question: Question) -> None:
        try:
            value = self._answer(live, rank, question)
            answer = Answer(id=question.id, value=value)
        except (ValueError, RuntimeError, KeyError) as error:
            if isinstance(error, storage.Refused | UpdateFinishedTrialError):
                raise
            answer = Answer(id=question.id, error=f"{type(error).__name__}: {error}")
        self.executor.answer(live.number, rank, answer)

    def _answer(self, live: _Live, rank: int, question: Question) -> object:
        match question:
            case Sample(name=name, distribution=text):
                return self.study.sample(live.trial_id, name, text)
            case Ask():
                live.reported = time.monotonic()
                return self.study.verdict(live.trial_id, live.attempt)
            case Saved():
                return self._record_checkpoint(live, rank, question)
            case Call(method=method, arguments=arguments):
                return self.study.call(method, arguments)
        raise ValueError(f"no answer to {question!r}")

    def _record_checkpoint(self, live: _Live, rank: int, saved: Saved) -> None:
        """Make a rank's part of a checkpoint count, then delete what it replaces."""
        trial = self.held.image.trial(live.trial_id)
        self.held.queue(
            AddCheckpoint(
                study_uid=self.held.uid,
                trial_id=live.trial_id,
                attempt=live.attempt,
                step=saved.step,
                rank=rank,
                world_size=self.settings.resources.ranks,
                path=saved.path,
                digest=saved.digest,
                size=saved.size,
                attributes=attributes_json(trial) if rank == 0 else None,
            )
        )
        self._flush()
        self._sweep_checkpoints(live.trial_id, keep=2)

    def _sweep_checkpoints(self, trial_id: int, keep: int) -> None:
        records = self.held.checkpoints(trial_id)
        for attempt, step in retention.expendable(records, keep):
            paths = [one.path for one in records if (one.attempt, one.step) == (attempt, step)]
            drop = DropCheckpoints(study_uid=self.held.uid, trial_id=trial_id, attempt=attempt, step=step)
            self.held.flush(drop)
            checkpoint.delete(paths)

    # ------------------------------------------------------------------ the end of an attempt

    def _end(self, live: _Live, outcome: Outcome) -> None:
        live.ended = True
        decision = retry.decide(outcome, live.history, self.settings.retry)
        end = EndAttempt(
            study_uid=self.held.uid,
            trial_id=live.trial_id,
            attempt=live.attempt,
            epoch=self.held.lease.epoch,
            reason=outcome.reason,
            charged=decision.charged,
            message=outcome.message,
            exception=outcome.exception,
            traceback=outcome.traceback,
            log_tail=outcome.log_tail,
        )
        if decision.again:
            past = PastAttempt(reason=outcome.reason, charged=decision.charged)
            self._again(end, live.number, [*live.history, past], decision.delay, decision.why)
            return
        try:
            state = self.study.finish(live.number, outcome, end)
        except UpdateFinishedTrialError:
            self.held.finished_elsewhere.add(live.trial_id)
            self._close_elsewhere(end)
            return
        self._finished_here += 1
        self._flush()
        self._sweep_checkpoints(live.trial_id, keep=1)
        if state is TrialState.FAIL:
            self._count_failure(outcome)
        else:
            self._last_failures.clear()
        self._call_back(live.trial_id)

    def _again(
        self, end: EndAttempt, number: int, history: list[PastAttempt], delay: float, why: str
    ) -> None:
        """End an attempt and claim the next one, from the newest valid checkpoint: one transaction."""
        start, damaged = retention.newest_valid(self.held.checkpoints(end.trial_id), checkpoint.verify)
        for one in damaged:
            lost = {"attempt": one.attempt, "step": one.step, "path": one.shards[0].path}
            self.study.event("checkpoint_damaged", lost, trial_id=end.trial_id, attempt=end.attempt)
        attributes = start.attributes if start else self._first_attributes(end.trial_id)
        claim = Claim(
            study_uid=self.held.uid,
            trial_id=end.trial_id,
            number=number,
            attempt=end.attempt + 1,
            epoch=self.held.lease.epoch,
            attributes=attributes,
            resumed_step=start.step if start else None,
        )
        step = start.step if start else -1
        detail = {"reason": end.reason, "message": end.message, "why": why, "from_step": step, "delay": delay}
        self.study.event("retry", detail, trial_id=end.trial_id, attempt=end.attempt)
        self.held.queue(end, self.held.supersede(end.trial_id, end.attempt, step, attributes), claim)
        self._flush()
        self._due.append(
            _Due(
                trial_id=end.trial_id,
                number=number,
                attempt=end.attempt + 1,
                due=time.monotonic() + delay,
                history=tuple(history),
                resume=start,
            )
        )

    def _first_attributes(self, trial_id: int) -> str:
        for record in self.held.attempts(trial_id):
            if record.attributes is not None:
                return record.attributes
        return attributes_json(None)

    def _count_failure(self, outcome: Outcome) -> None:
        self._failures[outcome.reason] += 1
        self._last_failures.append(outcome)
        why = retry.should_stop_study(list(self._last_failures), self.settings.retry)
        if why and not self._failure:
            self._failure = why
            self._draining = why.splitlines()[0]

    def _call_back(self, trial_id: int) -> None:
        for callback in self.job.callbacks:
            callback(self.study, self.held.storage.get_trial(trial_id))

    # ------------------------------------------------------------------ watching

    def _watch(self, now: float) -> None:
        """End attempts that are too long, or silent."""
        total, silence = self.settings.trial_timeout, self.settings.stall_timeout
        for live in list(self._live.values()):
            if live.ended or live.killed:
                continue
            if total is not None and now - live.began > total:
                self._kill(live, Reason.TIMEOUT, f"ran longer than trial_timeout={total:g} s")
            elif silence is not None and now - live.reported > silence:
                self._kill(live, Reason.STALLED, f"no report within stall_timeout={silence:g} s")

    def _kill(self, live: _Live, reason: Reason, message: str) -> None:
        if not live.killed and not live.ended:
            live.killed = True
            self.executor.kill(live.number, reason, message)

    def _drop_finished_elsewhere(self) -> None:
        """Another program told trials of ours: its word stands, ours ends."""
        for trial_id in list(self.held.finished_elsewhere):
            self.held.finished_elsewhere.discard(trial_id)
            self.held.owned.discard(trial_id)
            live = next((one for one in self._live.values() if one.trial_id == trial_id), None)
            self._due = [due for due in self._due if due.trial_id != trial_id]
            for record in self.held.attempts(trial_id):
                if record.state != "ended":
                    self._close_elsewhere(self._ending(record, Reason.FINISHED_ELSEWHERE, charged=False))
            if live is not None and not live.ended:
                self.executor.kill(live.number, Reason.FINISHED_ELSEWHERE, "another program told this trial")
                live.ended = True

    def _close_elsewhere(self, end: EndAttempt) -> None:
        message = "another program told this trial first; its word stands"
        end = dataclasses.replace(end, reason=Reason.FINISHED_ELSEWHERE, charged=False, message=message)
        self.study.event("finished_elsewhere", {}, trial_id=end.trial_id, attempt=end.attempt)
        self.held.queue(end)
        self._flush()
        self.held.refresh()

    def _carry_out_commands(self) -> None:
        for command in self.held.commands():
            result = "done"
            if command.name == "stop":
                self._draining = self._draining or "stopped by 'tuner stop'"
                if command.arguments.get("now"):
                    for live in self._live.values():
                        self.executor.stop(live.number, Reason.INTERRUPTED, self.job.grace)
            elif command.name == "stop_trial":
                live = self._live.get(int(command.arguments["number"]))
                if live is None or live.ended:
                    result = f"trial {command.arguments['number']} is not running"
                else:
                    self.executor.stop(live.number, Reason.STOPPED, self.job.grace)
            else:
                result = f"this driver does not know the command {command.name!r}"
            self.study.event("command", {"name": command.name, **command.arguments, "result": result})
            self.held.queue(storage.writes.DoneCommand(command_id=command.command_id, result=result))
            self._flush()

    # ------------------------------------------------------------------ take-over, and the end

    def _recover(self) -> None:
        """Take on the unfinished attempts of the driver before this one."""
        by_trial: dict[int, list[AttemptRecord]] = {}
        for record in self.held.attempts():
            by_trial.setdefault(record.trial_id, []).append(record)
        for trial_id, records in by_trial.items():
            last = records[-1]
            history = [_past(record) for record in records[:-1]]
            trial = self._find(trial_id)
            if trial is None or trial.state is not TrialState.RUNNING:
                self._close_elsewhere(self._ending(last, Reason.FINISHED_ELSEWHERE, charged=False))
                continue
            self.held.owned.add(trial_id)
            if last.state == "claimed":
                start = retention.newest_valid(self.held.checkpoints(trial_id), checkpoint.verify)[0]
                self._due.append(
                    _Due(
                        trial_id=trial_id,
                        number=last.number,
                        attempt=last.attempt,
                        due=0.0,
                        history=tuple(history),
                        resume=start if last.resumed_step is not None else None,
                    )
                )
                continue
            end = self._ending(last, Reason.DRIVER_LOST, charged=False)
            past = PastAttempt(reason=Reason.DRIVER_LOST, charged=False)
            self._again(end, last.number, [*history, past], 0.0, "its driver was lost")
        if by_trial:
            self.study.event("taken_over", {"trials": len(by_trial)})
        self.held.queue(SetStudyRow(study_uid=self.held.uid, columns={"stop_reason": None}))
        self._flush()

    def _find(self, trial_id: int) -> FrozenTrial | None:
        try:
            return self.held.image.trial(trial_id)
        except KeyError:
            return None

    def _ending(self, record: AttemptRecord, reason: Reason, *, charged: bool) -> EndAttempt:
        return EndAttempt(
            study_uid=self.held.uid,
            trial_id=record.trial_id,
            attempt=record.attempt,
            epoch=self.held.lease.epoch,
            reason=reason,
            charged=charged,
            message="the driver was lost while this attempt ran" if reason is Reason.DRIVER_LOST else "",
        )

    def _why(self) -> str:
        """Record why the run ended."""
        if self._draining:
            reason = self._draining
        else:
            reason = f"budget of {self.settings.n_trials} trials spent"
        waiting = self._states()["WAITING"]
        if waiting:
            reason += f"; {waiting} enqueued trial{'s' if waiting > 1 else ''} still waiting"
        self.study.event("stopped", {"reason": reason})
        self.held.queue(SetStudyRow(study_uid=self.held.uid, columns={"stop_reason": reason}))
        self._flush()
        return reason

    def _snapshot(self) -> Snapshot:
        now = time.monotonic()
        best = _best(self.held.image.trials((TrialState.COMPLETE,)), self.held.record.directions)
        running = []
        for live in self._live.values():
            trial = self.held.image.trial(live.trial_id)
            running.append(
                RunningTrial(
                    number=live.number,
                    attempt=live.attempt,
                    seconds=now - live.began,
                    step=trial.last_step,
                    values=tuple(trial.intermediate_values.values()),
                    params=dict(trial.params),
                )
            )
        return Snapshot(
            study=self.study.study_name,
            directions=self.held.record.directions,
            states=self._states(),
            n_trials=self.settings.n_trials,
            seconds=now - self._began,
            finished_here=self._finished_here,
            running=tuple(running),
            best=best.value if best else None,
            best_number=best.number if best else None,
            best_params=dict(best.params) if best else {},
            reasons=dict(self._failures),
            retrying=len(self._due),
            slots=self._slots(),
            cluster=self._cluster.description,
            phase="interrupting" if self._interrupting else "draining" if self._draining else "running",
        )


def _past(record: AttemptRecord) -> PastAttempt:
    return PastAttempt(reason=Reason(record.reason), charged=record.charged)


def _best(trials: Iterable[FrozenTrial], directions: Sequence[str]) -> FrozenTrial | None:
    if len(directions) != 1:
        return None
    sign = 1 if directions[0] == "minimize" else -1
    return min(trials, key=lambda trial: sign * trial.values[0], default=None)
