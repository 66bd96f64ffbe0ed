"""The one loop that drives a study: it admits trials, carries messages, and records what happened.

Decisions are made by pure functions (:mod:`tuner.scheduler`, :mod:`tuner.retry`,
:mod:`tuner.retention`); this module carries them out. Nothing leaves it before the commit that
it depends on: a dispatch waits for the claim and the attempt, a True verdict, a saved
checkpoint, a callback and the end of a trial for theirs.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import shlex
import time
from collections.abc import Callable, Sequence

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

import storage
from storage.clock import utcnow
from storage.progress import Run, elapsed, runs
from storage.writes import SetStudyRow
from tuner import blind, exhaustive, failures, retry, scheduler, snapshot
from tuner.answers import Answers
from tuner.assignment import Assignment, Draw
from tuner.attempts import Attempts, Committed, Due, Running
from tuner.commands import Commands
from tuner.dispatch.base import Cluster, Executor
from tuner.errors import BadInput, BadObjective, ClusterUnavailable, StudyHeld, StudyStopped
from tuner.garbage import seldom_collected
from tuner.job import Job, assignment, wanted
from tuner.messages import (
    Ended,
    Envelope,
    Output,
    Question,
    Released,
    Report,
    Reports,
    Started,
)
from tuner.outcome import Outcome, Reason
from tuner.pace import Pace
from tuner.resources import Resources, alternatives
from tuner.signals import Signals
from tuner.snapshot import Measured, Progress, Snapshot
from tuner.study import DrivenStudy
from tuner.takeover import TakeOver

__all__ = ["Driver"]

log = logging.getLogger(__name__)

FLUSH_EVERY = 0.25  # seconds: reports are durable within half a second
REFRESH_EVERY = 0.5  # seconds between looks at what other programs did
FRESH = 0.05  # seconds for which the last look counts as new
GIVE_UP = 600.0  # seconds without a database and without a running trial
SAY_WAIT = 15.0  # seconds that all wait for resources before we say so
LOGGED = 10  # failures of a class that are logged, each in a line


_BROKEN = "ended by an error"


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
        self._study = study
        self._held = study.held
        self._executor = executor
        self._job = job
        self._settings = job.settings
        self._progress = progress
        self._stop_requested = stop_requested
        self._attempts = Attempts(study, job.settings.retry, job.space, job.provenance, job.checkpoints)
        self._answers = Answers(study, self._attempts)
        self._takeover = TakeOver(study, self._attempts, executor, job)
        self._running: dict[int, Running] = {}
        self._due: list[Due] = []
        self._ending: dict[int, Running] = {}  # by trial: their ends are in no commit yet
        self._ended: collections.deque[Committed] = collections.deque()  # by whichever thread committed them
        self._claimed: collections.deque[Due] = collections.deque()  # by whichever thread committed them
        self._claiming = 0
        self._ahead: set[int] = set()  # numbers of trials that were claimed before there was a place
        self._staged: dict[int, Assignment] = {}  # by trial: their starts are in no commit yet
        self._launchable: collections.deque[int] = collections.deque()
        self._pace = Pace()
        self._commands = Commands(study, executor, self._running, job.grace, self._say_what_it_does)
        self._unacknowledged: dict[tuple[int, int], int] = {}
        self._said = ""  # what the readers of the database were told that this driver does
        self._interrupting = False
        self._failure = ""  # why the study stops without what was asked
        self._reasons: collections.Counter[str] = collections.Counter()
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._reports = 0
        self._started_at = time.time()
        self._best: tuple[int, float | None] = (-1, None)  # of so many COMPLETE trials
        self._failures_in_a_row: list[Outcome] = []
        self._finished_here = 0
        self._returns = 0
        self._without_place: float | None = None  # since when nothing of ours has one
        self._said_to_wait = False
        self._away_since: float | None = None
        self._began = time.monotonic()
        self._runs_before: Sequence[Run] = ()
        self._next_flush = self._next_refresh = self._next_draw = 0.0
        self._signals = Signals()
        self._cluster = Cluster(slots=1, description="")

    def run(self) -> str:
        """Drive the study to its end and return why it ended.

        Raises:
            StudyHeld: another driver took over.
            StudyStopped: the study stopped on failures.
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; everything is resumable.
            Infeasible, ClusterUnavailable, StoreUnavailable: see there.
        """
        reason = _BROKEN
        try:
            with self._signals, contextlib.ExitStack() as stack:
                epoch = self._held.lease.epoch
                if self._progress is not None and epoch > 1:
                    database = self._held.lease.database
                    with database.errors():
                        self._runs_before = runs(database.engine, self._study.study_name)
                self._commands.discard_old()
                if self._is_anything_left():
                    stack.callback(self._executor.close)
                    self._open(epoch)
                    self._recover()
                    self._record({"stop_reason": None, "driving": self._driving()})
                    stack.enter_context(seldom_collected(alone=self._settings.executor != "inline"))
                    try:
                        self._loop()
                    except ClusterUnavailable as error:
                        self._abandon(error)
                        self._settle()
                        if not self._interrupting:
                            raise
                elif self._progress is None:
                    log.warning("%s: %s; nothing is started", self._study.study_name, self._why())
                reason = self._why()
                self._record({"stop_reason": reason, "driving": None})
        finally:
            if self._signals.count and not self._interrupting:
                reason = f"interrupted by {self._signals.name}"
            event = "study_stopped" if self._failure or reason == _BROKEN else "study_finished"
            if not self._signals.count:
                self._job.alerts.send(event, reason, reason=reason, message=self._failure)
            self._job.alerts.close()
            if self._progress is not None:
                self._progress.close(self._snapshot(is_over=True), reason)
        if self._interrupting:
            name = shlex.quote(self._study.study_name)
            raise KeyboardInterrupt(f"{reason}; 'tuner resume {name}' goes on where it was")
        if self._failure:
            raise StudyStopped(self._failure)
        return reason

    def _is_anything_left(self) -> bool:
        """Whether to take over an attempt, or to start one: known before Ray is, which takes seconds."""
        if self._held.attempts():
            return True
        states = self._held.image.counts
        finished = sum(count for state, count in states.items() if state.is_finished())
        counts = scheduler.Counts(finished=finished, enqueued=states[TrialState.WAITING])
        match scheduler.decide(counts, self._settings.n_trials):
            case scheduler.Done():
                return False
            case scheduler.StartNew():
                return self._has_a_point()
        return True

    def _open(self, epoch: int) -> None:
        """Open the executor, and see that it is able to do what is asked."""
        usual = alternatives(self._settings.resources)
        self._cluster = self._executor.open(self._job.run, epoch, usual, self._receive, self._held.uid)
        self._signals.count_only()
        self._probe()
        self._job.provenance["cluster"] = self._cluster.home

    def _probe(self) -> None:
        """Whether every node has the objective and the folder of the checkpoints, before anything is written.

        Raises:
            BadObjective: one has not the objective's file, or another one.
            BadInput: one does not reach the folder, and it was named by the user.
        """
        if lacking := self._executor.lacking(self._job.objective):
            where = "; ".join(f"{host}: {why}" for host, why in sorted(lacking.items()))
            raise BadObjective(
                f"not every node has the objective ({where}); send its folder with --working-dir DIR or "
                "runtime_env={'working_dir': DIR}, or put it where all nodes see it under one path"
            )
        wrong = self._executor.probe(self._job.checkpoints)
        if not wrong:
            return
        where = "; ".join(f"{host}: {why}" for host, why in sorted(wrong.items()))
        if self._settings.checkpoints is not None:
            raise BadInput(
                f"checkpoints={self._job.checkpoints!r} cannot be used on every node ({where}); "
                "name a folder or URI that all nodes share and may write to"
            )
        log.warning(
            "checkpoints in %s cannot be used on every node (%s): a trial that saves one there will fail; "
            "name a folder or URI that all nodes share as checkpoints",
            self._job.checkpoints,
            where,
        )

    def _recover(self) -> None:
        """Go on with what the driver before this one has left."""
        found = self._takeover.recover()
        self._due += found.due
        self._running.update({running.number: running for running in found.running})
        for running, outcome in found.endings:
            self._end_lost(running, outcome)

    def _end_lost(self, running: Running, outcome: Outcome) -> None:
        self._end(running, outcome)
        self._settle()
        self._takeover.forget(running)

    # ------------------------------------------------------------------ the loop

    def _loop(self) -> None:
        while True:
            self._settle()
            self._obey()
            try:
                self._admit()
            except storage.Unavailable as error:
                log.debug("nothing starts while the database is away: %s", error)
            self._launch()
            idle = not self._running and not self._ending and not self._waits_for_database()
            if idle and (self._draining or not self._is_work_left()):
                return
            now = time.monotonic()
            # one that is due and did not start waits for a slot, or for a person: poll says when
            soonest = min((due.due for due in self._due if due.due > now), default=now + FLUSH_EVERY)
            self._executor.poll(min(FLUSH_EVERY, max(0.0, soonest - now)))
            self._tick()

    def _waits_for_database(self) -> bool:
        """Whether to stay only until what the spill keeps is in the database.

        Raises:
            Unavailable: it has been away for too long.
        """
        if not self._held.away:
            self._away_since = None
            return False
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > GIVE_UP:
            raise storage.Unavailable(
                f"the database {self._held.lease.database} has been away for {GIVE_UP / 60:g} minutes; "
                "what was recorded meanwhile is kept on this host, and the next run here puts it in"
            )
        return not self._interrupting

    def _tick(self) -> None:
        now = time.monotonic()
        if self._held.lease.lost:
            name = self._study.study_name
            raise StudyHeld(f"study {name!r} was taken over by another driver; this one ends")
        if now >= self._next_flush:
            self._flush()
            self._next_flush = now + FLUSH_EVERY
            if self._job.publish is not None:
                self._job.publish(self._measured())
        self._say_what_it_does()
        if now >= self._next_refresh:
            try:
                self._look_around()
            except storage.Unavailable as error:  # training goes on; the next commit waits for it
                log.warning("%s; looking again", error)
            self._next_refresh = time.monotonic() + REFRESH_EVERY
        self._watch(now)
        if self._progress is not None and now >= self._next_draw:
            began = time.monotonic()
            self._progress.update(self._snapshot())
            ended = time.monotonic()
            self._next_draw = ended + snapshot.pause(ended - began)

    def _look_around(self) -> None:
        """What other programs did and asked for."""
        self._held.refresh()
        self._launch()  # all that was staged: a command finds it at the executor
        self._drop_finished_elsewhere()
        self._commands.carry_out()

    def _flush(self) -> None:
        """Commit what is queued, then let the shells forget what is durable."""
        self._held.flush()
        self._launch()
        for (number, rank), seq in self._unacknowledged.items():
            self._executor.committed(number, rank, seq)
        self._unacknowledged.clear()
        for trial_id, error in list(self._held.refused.items()):
            del self._held.refused[trial_id]
            pending = {end.running.trial_id for end in self._ended}
            if trial_id in self._ending and trial_id not in pending:
                self._refuse_end(self._ending.pop(trial_id), error)
                continue
            for running in list(self._running.values()):
                if running.trial_id != trial_id:
                    continue
                if self._staged.pop(running.number, None) is not None:
                    del self._running[running.number]
                    self._end(running, Outcome(reason=Reason.REFUSED, message=str(error)))
                else:
                    self._refuse(running, error)

    def _obey(self) -> None:
        """The first signal lets running trials checkpoint and go, the second ends them."""
        signals = self._signals
        if signals.count and not self._interrupting:
            self._interrupting = True
            self._flush()
            for number in list(self._staged):  # the database is away: it starts with the next driver
                del self._staged[number], self._running[number]
            self._commands.drain(f"interrupted by {signals.name}")
            log.warning("%s: running trials may checkpoint; a second one ends them at once", signals.name)
            self._commands.stop_all(Reason.INTERRUPTED)
        if signals.count > 1:
            for running in list(self._running.values()):
                self._kill(running, Reason.INTERRUPTED, "the driver was told twice to stop")
        if (self._study.stop_requested or self._stop_requested()) and not self._draining:
            self._commands.drain("stopped by study.stop()")
        timeout = self._settings.timeout
        if timeout is not None and time.monotonic() - self._began >= timeout and not self._draining:
            self._commands.drain(f"timeout of {timeout:g} s reached")

    # ------------------------------------------------------------------ admission

    def _admit(self) -> None:
        """Fill the free slots: a claimed attempt that is due, then an enqueued trial, then a new one."""
        if self._held.returned > self._returns:
            self._take_claimed()
            self._due += self._attempts.unstarted({*self._running, *(due.number for due in self._due)})
            self._returns = self._held.returned
        if self._draining and not self._interrupting:
            self._start_what_is_ahead()
        while not self._held.away:
            self._take_claimed()
            counts = self._counts()
            match scheduler.decide(counts, self._settings.n_trials):
                case scheduler.StartClaimed():
                    self._start(min(self._due, key=lambda one: one.due))
                case scheduler.StartNew() if not self._has_a_point():
                    return
                case scheduler.StartNew() if self._must_look_first(counts):
                    self._held.refresh()
                case scheduler.StartNew() if counts.running >= counts.slots:  # ahead of its place
                    self._claiming += 1
                    self._attempts.claim_soon(self._claimed.append)
                case scheduler.StartEnqueued() | scheduler.StartNew():
                    self._due.append(self._attempts.claim())
                case _:
                    return

    def _must_look_first(self, counts: scheduler.Counts) -> bool:
        """Whether a trial that was just enqueued may be unknown yet: it comes before a new one that takes a
        free place. Where trials are so short that looking would cost, the next one is soon enough.
        """
        stale = time.monotonic() - self._held.refreshed > FRESH
        return stale and counts.running < counts.slots and not self._pace.is_shortest

    def _take_claimed(self) -> None:
        while self._claimed:
            self._due.append(self._claimed.popleft())
            self._ahead.add(self._due[-1].number)
            self._claiming -= 1

    def _start_what_is_ahead(self) -> None:
        """Trials that were claimed ahead count as begun when nothing new is to start."""
        if self._claiming:
            self._flush()
            self._take_claimed()
        for due in [due for due in self._due if due.attempt == 1 and due.number in self._ahead]:
            self._start(due)

    def _has_a_point(self) -> bool:
        """Whether the sampler has something left for a new trial; where it has not, the study ends with those
        that run.
        """
        left = exhaustive.points(self._study)
        if not left.unfinished:
            self._study.stop()
            self._obey()
        # what another program runs may never end: its point is tried again, as Optuna does
        mine = any(not running.ended for running in self._running.values()) or bool(self._due)
        return left.unfinished and (left.unstarted or not mine)

    def _counts(self) -> scheduler.Counts:
        now = time.monotonic()
        states = self._held.image.counts
        due = sum(1 for one in self._due if one.due <= now)
        slots = self._slots()
        ended = [running.ended for running in self._running.values()]
        return scheduler.Counts(
            finished=len(self._held.image) - states[TrialState.RUNNING] - states[TrialState.WAITING],
            running=len(self._running),
            running_unfinished=len(self._ending) + ended.count(False),
            retries_due=due,
            retries_waiting=len(self._due) - due,
            claiming=self._claiming,
            enqueued=states[TrialState.WAITING],
            slots=slots,
            ahead=self._ahead_of(slots),
            draining=bool(self._draining),
            paused=self._commands.orders.paused,
        )

    def _slots(self) -> int:
        most, there = self._most, self._executor.slots() - (self._executor.queued() or 0)
        return there if most is None else min(most, there)

    def _ahead_of(self, slots: int) -> int:
        """How many trials are claimed and sent before there is a place for them: where they are so short that
        a place would wait for each, and it makes no difference to the sampler.
        """
        queued, alike = self._executor.queued(), not callable(self._settings.resources)
        if queued is None or self._executor.slots() - queued > slots:
            return 0  # they would be begun at once
        if slots > 1 and alike and blind.is_blind(self._study.sampler):
            return self._pace.ahead * slots
        return 0

    @property
    def _most(self) -> int | None:
        """Trials at once at most: as a person ordered, else as the run was started."""
        ordered = self._commands.orders.most
        return self._settings.max_concurrent if ordered is None else ordered

    @property
    def _draining(self) -> str:
        return self._commands.orders.draining

    def _is_work_left(self) -> bool:
        done = isinstance(scheduler.decide(self._counts(), self._settings.n_trials), scheduler.Done)
        return bool(self._due) or not done

    def _start(self, due: Due) -> None:
        """Draw for a claimed attempt and dispatch it. A sampler or a space that fails, fails the trial."""
        if due.lost is not None:  # it has ended by now; another one follows, or none
            self._due.remove(due)
            self._end_lost(*self._takeover.ending(due))
            return
        try:
            planned = self._attempts.plan(due)
            for key, value in planned.plan.hint.items():
                self._held.storage.set_trial_user_attr(due.trial_id, key, value)
            draw = self._attempts.draw(due)
            resources = wanted(self._job, self._study, planned, draw)
        except UpdateFinishedTrialError:
            self._held.finished_elsewhere.add(due.trial_id)
            self._drop_finished_elsewhere()
        except Exception as error:
            if isinstance(error, storage.StorageError) and not isinstance(error, storage.Refused):
                raise
            self._due.remove(due)
            self._end(self._attempts.start(due, {}, 0), failures.raised(error))
            self._settle()  # it may be one too many
        else:
            self._due.remove(due)
            self._dispatch(planned, draw, resources)

    def _dispatch(self, due: Due, draw: dict[str, Draw], resources: Sequence[Resources]) -> None:
        """Commit the attempt, then hand it to the executor: at once, or with the next commit where no place
        waits for it.
        """
        number, ranks = due.number, max(one.count for one in resources)
        short = self._pace.is_shortest
        self._staged[number] = assignment(self._job, self._study, due, draw, resources, short=short)
        waits = len(self._running) < self._slots()
        ready = self._launchable.append
        self._running[number] = self._attempts.start(due, draw, ranks, then=lambda results: ready(number))
        if waits:
            self._flush()

    def _launch(self) -> None:
        """Hand attempts to the executor whose start is committed."""
        while self._launchable:
            staged = self._staged.pop(self._launchable.popleft(), None)
            if staged is not None:
                self._executor.start(staged)

    # ------------------------------------------------------------------ messages

    def _receive(self, envelope: Envelope) -> None:
        """What the executor delivers: the sink of :meth:`Executor.open`."""
        if self._signals.count:
            self._obey()  # an objective in this process leaves no other moment
        running = self._running.get(envelope.number)
        if running is None or running.attempt != envelope.attempt:
            return
        if isinstance(envelope.message, Released):
            del self._running[running.number]
            if not running.ended:
                self._end(running, Outcome(reason=Reason.RANK_LOST, message="the attempt left no outcome"))
            return
        if running.ended:
            return
        self._unacknowledged[envelope.number, envelope.rank] = envelope.seq
        try:
            self._handle(running, envelope)
        except storage.Refused as error:
            self._refuse(running, error)
        except UpdateFinishedTrialError:
            self._held.finished_elsewhere.add(running.trial_id)
            self._drop_finished_elsewhere()

    def _handle(self, running: Running, envelope: Envelope) -> None:
        match envelope.message:
            case Started(ranks=ranks):
                self._attempts.place(running, ranks)
                running.ranks = len(ranks)
                running.devices = frozenset(f"{one.host}/{gpu}" for one in ranks for gpu in one.devices)
                running.began = running.reported = time.monotonic()
                self._without_place = None
            case Output(text=text):
                self._attempts.follow(running, text)
            case Question() as question:
                answer = self._answers.to(running, envelope.rank, question)
                self._executor.answer(running.number, envelope.rank, answer)
            case Ended() as end:
                if end.outcome.reason in (Reason.COMPLETE, Reason.PRUNED):
                    self._pace.add(end.seconds)
                self._end(running, running.refused or end.outcome, end.may_live)
            case message:
                if isinstance(message, Report | Reports):
                    running.reported = time.monotonic()
                    self._reports += len(message.values) if isinstance(message, Reports) else 1
                self._study.apply(running.trial_id, running.attempt, message)

    def _end(self, running: Running, outcome: Outcome, may_live: float = 0.0) -> None:
        """An attempt has its outcome: record it, and what follows."""
        running.ended = True
        if may_live:
            self._due.append(self._attempts.out_of_reach(running, outcome, may_live))
            return
        self._outcomes[outcome.reason] += 1
        try:
            result = self._attempts.end_soon(running, outcome, self._ended.append)
        except storage.Refused as error:
            self._refuse_end(running, error)
            return
        if isinstance(result, Due):
            self._due.append(result)
        elif result is not None:
            self._ending[running.trial_id] = running

    def _refuse(self, running: Running, error: storage.Refused) -> None:
        """The database cannot hold what an attempt has said: so it ends, also if it has just ended well."""
        running.refused = running.refused or Outcome(reason=Reason.REFUSED, message=str(error))
        self._kill(running, running.refused.reason, running.refused.message)

    def _refuse_end(self, running: Running, error: storage.Refused) -> None:
        """The database cannot hold what a trial ended with: it must not stay open for it."""
        text = f"its end could not be stored: {error}"
        self._end(running, Outcome(reason=Reason.REFUSED, message=text))

    def _settle(self) -> None:
        """Commit the ends of trials that have gathered, then do what waits for them."""
        while self._ending:
            self._flush()
            if not self._ended and not self._held.queued:
                return  # the database is away
            while self._ended:
                end = self._ended.popleft()
                self._ending.pop(end.running.trial_id, None)
                if self._attempts.ended(end):
                    self._follow_up(end.running, end.outcome, end.state)

    def _follow_up(self, running: Running, outcome: Outcome, result: TrialState) -> None:
        """A trial's end is in the database."""
        self._finished_here += 1
        self._tell_of(running, result, outcome)
        if result is TrialState.FAIL:
            self._reasons[outcome.reason] += 1
            self._failures_in_a_row.append(outcome)
            why = retry.should_stop_study(self._failures_in_a_row, self._settings.retry)
            if why and not self._failure:
                self._failure = why
                self._commands.drain(why.splitlines()[0])
        else:
            self._failures_in_a_row.clear()
        for callback in self._job.callbacks:
            callback(self._study, self._held.storage.get_trial(running.trial_id))

    def _tell_of(self, running: Running, state: TrialState, outcome: Outcome) -> None:
        """Alert those who want to know: of a trial that failed for good, and of a new best."""
        alerts, number = self._job.alerts, running.number
        if state is TrialState.FAIL:
            text = f"trial {number} failed: {outcome.reason}: {outcome.message}"
            if self._progress is None and self._reasons[outcome.reason] < LOGGED:
                known = {"event": "trial_failed", "trial": number, "attempt": running.attempt}
                log.warning("%s", text, extra=known)  # a display shows them itself
            alerts.send("trial_failed", text, trial=number, reason=outcome.reason, message=outcome.message)
        if not alerts or state is not TrialState.COMPLETE or len(outcome.values) != 1:
            return
        trials = self._held.image.trials((TrialState.COMPLETE,))
        best = snapshot.best(trials, self._held.record.directions)
        if best is not None and best.number == number:
            text = f"trial {number} is the new best: {outcome.values[0]:.6g}"
            params = self._held.image.trial(running.trial_id).params
            alerts.send("new_best", text, trial=number, value=outcome.values[0], params=dict(params))

    def _abandon(self, error: ClusterUnavailable) -> None:
        """The cluster is gone and every attempt with it: they go on when the study is resumed."""
        for running in list(self._running.values()):
            if not running.ended:
                self._end(running, Outcome(reason=Reason.NODE_LOST, message=str(error)))

    # ------------------------------------------------------------------ watching

    def _watch(self, now: float) -> None:
        """End attempts that are too long, or silent."""
        total, silence = self._settings.trial_timeout, self._settings.stall_timeout
        self._bound_wait(now)
        for running in list(self._running.values()):
            if running.began is None:
                continue  # it waits for a place
            if total is not None and now - running.began > total:
                self._kill(running, Reason.TIMEOUT, f"ran longer than trial_timeout={total:g} s")
            elif silence is not None and now - running.reported > silence:
                self._kill(running, Reason.STALLED, f"no report within stall_timeout={silence:g} s")

    def _bound_wait(self, now: float) -> None:
        """Say that nothing of ours has the resources it needs, and end the run when that is too long."""
        here = [running for running in self._running.values() if not running.ended]
        waits = self._executor.waits()
        paused = self._commands.orders.paused
        if paused or any(running.began is not None for running in here) or not (waits or not self._slots()):
            self._without_place = None
            return
        if self._without_place is None:
            self._without_place, self._said_to_wait = now, False
        waited, bound = now - self._without_place, self._settings.resource_timeout
        what = next(iter(waits.values()), "resources: the cluster holds no trial now")
        if waited > SAY_WAIT and not self._said_to_wait:
            self._said_to_wait = True
            log.warning("nothing runs: trials wait for %s", what)
        if bound is not None and waited > bound and not self._failure:
            self._failure = (
                f"trials waited {bound:g} s for {what}, and got none; run again to resume, or give a longer "
                "resource_timeout"
            )
            self._commands.drain("no resources came free")
            self._commands.stop_all(Reason.INTERRUPTED)

    def _kill(self, running: Running, reason: Reason, message: str) -> None:
        if not running.killed and not running.ended:
            running.killed = True
            self._executor.kill(running.number, reason, message)

    def _drop_finished_elsewhere(self) -> None:
        """Another program told trials of ours: its word stands, ours ends."""
        for trial_id in [] if self._held.away else list(self._held.finished_elsewhere):
            self._due = [due for due in self._due if due.trial_id != trial_id]
            for running in list(self._running.values()):
                if running.trial_id == trial_id and not running.ended:
                    running.ended = True
                    message = "another program told this trial"
                    self._executor.kill(running.number, Reason.FINISHED_ELSEWHERE, message)
            self._attempts.close_elsewhere(trial_id)

    # ------------------------------------------------------------------ what a person sees

    def _why(self) -> str:
        reason = self._draining or f"budget of {self._settings.n_trials} trials spent"
        waiting = self._held.image.counts[TrialState.WAITING]
        if waiting:
            reason += f"; {waiting} enqueued trial{'s' if waiting > 1 else ''} still waiting"
        self._study.event("stopped", {"reason": reason})
        return reason

    def _record(self, columns: dict[str, object]) -> None:
        self._held.queue(SetStudyRow(study_uid=self._held.uid, columns=columns))
        self._flush()

    @property
    def _phase(self) -> str:
        return "interrupting" if self._interrupting else self._commands.orders.phase

    def _driving(self) -> str:
        """As :class:`storage.views.Driving` is stored."""
        return json.dumps({"phase": self._phase, "why": self._draining, "most": self._most})

    def _say_what_it_does(self) -> None:
        driving = self._driving()
        if driving != self._said:
            self._said = driving
            self._held.queue(SetStudyRow(study_uid=self._held.uid, columns={"driving": driving}))

    def _snapshot(self, *, is_over: bool = False) -> Snapshot:
        mine = [self._study.run] if self._study.run else []
        now = None if is_over or not mine else utcnow()
        return snapshot.take(
            self._held,
            self._running.values(),
            self._executor.waits(),
            n_trials=self._settings.n_trials,
            seconds=elapsed(mine, now),
            elapsed=elapsed([*self._runs_before, *mine], now),
            finished_here=self._finished_here,
            reasons=dict(self._reasons),
            retrying=len(self._due),
            slots=self._slots() or None,
            cluster=self._cluster.description,
            phase=self._phase,
        )

    def _measured(self) -> Measured:
        states = self._held.image.counts
        if self._best[0] != states[TrialState.COMPLETE]:
            trials = self._held.image.trials((TrialState.COMPLETE,))
            leader = snapshot.best(trials, self._held.record.directions)
            self._best = states[TrialState.COMPLETE], leader.value if leader else None
        here = [running for running in self._running.values() if not running.ended]
        placed = [running for running in here if running.began is not None]
        return Measured(
            study=self._study.study_name,
            states={state.name: states[state] for state in TrialState},
            n_trials=self._settings.n_trials,
            outcomes=dict(self._outcomes),
            reports=self._reports,
            commits=self._held.commits,
            queues={
                "writes": self._held.queued,
                "retries": len(self._due),
                "resources": len(here) - len(placed),
                "enqueued": states[TrialState.WAITING],
            },
            slots=self._slots(),
            busy=len(placed),
            ranks=sum(running.ranks for running in placed),
            devices=len(frozenset().union(*(running.devices for running in placed))),
            away=self._held.away,
            best=self._best[1],
            began=self._started_at,
            at=time.time(),
        )
