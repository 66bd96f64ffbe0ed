"""The loop of a simulation: the driver's decisions on a virtual clock.

Sampling, pruning, claims, retries and what starts next are the driver's own code
(:class:`~tuner.study.DrivenStudy`, :class:`~tuner.attempts.Attempts`, :mod:`tuner.scheduler`,
:mod:`tuner.retry`) over the store's double in memory. Only its loop is another one: here the next
event is the virtual clock's.
"""

from __future__ import annotations

import collections
import gc
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter

from optuna.trial import FrozenTrial, TrialState

from tuner import retry, scheduler
from tuner.assignment import Draw
from tuner.attempts import Attempts, Due, Running
from tuner.errors import BadInput
from tuner.messages import Report, Saved
from tuner.outcome import Outcome, Reason
from tuner.retry import Retry
from tuner.seeds import derived_seed
from tuner.simulation.clock import VirtualClock
from tuner.simulation.faults import Faults
from tuner.simulation.files import NoFiles
from tuner.simulation.result import Simulation
from tuner.simulation.script import Script
from tuner.study import DrivenStudy, Space

__all__ = ["Simulator"]

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(kw_only=True)
class _Work:
    """An attempt on a worker.

    Attributes:
        steps: the rest of its script.
        end: its outcome, of the last value.
        slow: its seconds are longer by this.
        step: the last one reported; ``before``: the last one that an earlier attempt computed.
        value: of that step.
        asked: when the sampler had drawn it.
        since: when the step under way began; None before the first.
    """

    running: Running
    steps: Iterator[tuple[int, float, float]]
    end: Callable[[float | None], Outcome]
    slow: float
    step: int
    before: int
    value: float | None
    asked: float
    since: float | None = None


class Simulator:
    """A study on virtual workers, to be run once.

    Args:
        study: driven here, over a store in memory.
        script: of a trial whose parameters are drawn, for each of its attempts.
        ahead: attempts that may wait for a worker, drawn.
        policy: for retries.
    """

    def __init__(
        self,
        study: DrivenStudy,
        space: Space,
        script: Callable[[FrozenTrial], Script],
        *,
        workers: int,
        ahead: int,
        n_trials: int | None,
        until: float | None,
        faults: Faults,
        policy: Retry,
        charge_sampler: bool,
    ) -> None:
        self._study, self._held, self._script = study, study.held, script
        self._workers, self._n_trials, self._until = workers, n_trials, until
        self._faults, self._charge_sampler = faults, charge_sampler
        self._chance = random.Random(derived_seed(study.seed, 0, "faults"))
        self._clock = VirtualClock()
        self._attempts = Attempts(study, policy, space, {}, clock=lambda: self._clock.now, files=NoFiles())
        self._policy = policy
        self._failures: list[Outcome] = []
        self._asked = 0.0  # until when the sampler is busy
        self._slots, self._ahead = workers, ahead
        self._waiting: collections.deque[_Work] = collections.deque()  # for a worker
        self._changed = True  # whether the scheduler may decide otherwise than it last did
        self._order = itertools.count()
        self._due: list[tuple[float, int, Due]] = []
        self._running = 0
        self._stopped = False
        self._busy = 0.0
        self._epochs = self._repeated = self._started = 0
        self._furthest: dict[int, int] = {}  # of trials that were cut off, the last step that was computed
        self._history: list[tuple[float, float]] = []

    def run(self) -> Simulation:
        """To the end. Trials are kept and hold no cycles: looking for some took a third of the time."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return self._run()
        finally:
            if was_enabled:
                gc.enable()

    def _run(self) -> Simulation:
        while True:
            if self._changed:
                self._changed = False
                if isinstance(self._admit(), scheduler.Done):
                    break
            if not self._clock.step(self._until):
                break
        return self._found()

    def _found(self) -> Simulation:
        image = self._held.image
        total = self._workers * self._clock.now
        return Simulation(
            seconds=self._clock.now,
            history=tuple(self._history),
            best=self._history[-1][1] if self._history else None,
            utilisation=self._busy / total if total else 0.0,
            epochs=self._epochs,
            repeated=self._repeated,
            attempts=self._started,
            states={state.name: count for state, count in sorted(image.counts.items()) if count},
            trials=tuple(image.trials()),
        )

    # ------------------------------------------------------------------ what starts

    def _admit(self) -> scheduler.Action:
        """Fill the free workers; then whether there is something to wait for."""
        while True:
            match scheduler.decide(self._counts(), self._n_trials):
                case scheduler.StartClaimed():
                    self._start(heapq.heappop(self._due)[2])
                case scheduler.StartEnqueued() | scheduler.StartNew():
                    self._wait(self._attempts.claim())
                case action:
                    return action

    def _counts(self) -> scheduler.Counts:
        states = self._held.image.counts
        is_due = bool(self._due) and self._due[0][0] <= self._clock.now
        return scheduler.Counts(
            finished=sum(states[state] for state in _FINISHED),
            running=self._running,
            running_unfinished=self._running,
            retries_due=int(is_due),
            retries_waiting=len(self._due) - is_due,
            enqueued=states[TrialState.WAITING],
            slots=self._slots,
            ahead=self._ahead,
            draining=self._stopped or self._study.stop_requested,
        )

    def _wait(self, due: Due) -> None:
        """An attempt waits for its moment, and a free worker."""
        heapq.heappush(self._due, (due.due, next(self._order), due))
        if due.due > self._clock.now:
            self._clock.at(due.due, self._look)

    def _start(self, due: Due) -> None:
        begin = perf_counter()
        due = self._attempts.plan(due)
        draw: Mapping[str, Draw] = self._attempts.draw(due)
        if self._charge_sampler:
            self._asked = max(self._asked, self._clock.now) + perf_counter() - begin
        running = self._attempts.start(due, draw, 1)
        trial = self._held.image.trial(due.trial_id)
        script, step = self._script(trial), due.resume.step if due.resume else -1
        is_slow = self._faults.stragglers > 0 and self._chance.random() < self._faults.stragglers
        work = _Work(
            running=running,
            steps=itertools.dropwhile(lambda one: one[0] <= step, script.steps),
            end=script.end,
            slow=self._faults.slowdown if is_slow else 1.0,
            step=step,
            before=self._furthest.pop(due.trial_id, -1),
            value=trial.intermediate_values.get(step),
            asked=self._asked,
        )
        self._running += 1
        self._started += 1
        self._waiting.append(work)
        self._seat()

    def _seat(self) -> None:
        """What waits for a worker begins on those that are free."""
        while self._waiting and self._running - len(self._waiting) < self._slots:
            self._begin(self._waiting.popleft())

    def _begin(self, work: _Work) -> None:
        ready = max(self._clock.now, work.asked) + self._faults.start_delay
        self._clock.at(ready, lambda: self._next(work))
        if self._faults.mean_life is not None:
            lost = ready + self._chance.expovariate(1.0 / self._faults.mean_life)
            self._clock.at(lost, lambda: self._lose(work))

    # ------------------------------------------------------------------ what happens

    def _look(self) -> None:
        """A worker, or an attempt that waits for one, is there now."""
        self._changed = True

    def _next(self, work: _Work) -> None:
        """The next step of an attempt begins, or it has come to its end."""
        if work.running.ended:
            return
        found = next(work.steps, None)
        if found is None:
            self._end(work, work.end(work.value))
            return
        step, value, seconds = found
        if not 0 <= seconds < math.inf:
            raise BadInput(f"curve: step {step} takes {seconds!r} seconds; give a number of at least 0")
        work.since = self._clock.now
        self._clock.at(self._clock.now + seconds * work.slow, lambda: self._report(work, step, float(value)))

    def _report(self, work: _Work, step: int, value: float) -> None:
        """A step is computed: its value is reported, and the pruner asked."""
        running = work.running
        if running.ended:
            return
        assert work.since is not None
        work.step, work.value = step, value
        self._epochs += 1
        self._repeated += step <= work.before
        self._busy += self._clock.now - work.since
        self._study.apply(running.trial_id, running.attempt, Report(step=step, value=value))
        if self._study.verdict(running.trial_id, running.attempt):
            self._end(work, Outcome(reason=Reason.PRUNED))
            return
        every = self._faults.checkpoint_every
        if every and work.step % every == 0:
            path = f"simulated/{running.number}/{running.attempt}/{work.step}"
            self._attempts.save(running, 0, Saved(id=0, step=work.step, path=path, digest="", size=0))
        self._next(work)

    def _lose(self, work: _Work) -> None:
        """The worker of an attempt is gone; another one comes for it."""
        if work.running.ended:
            return
        if work.since is not None:
            self._busy += self._clock.now - work.since
        self._furthest[work.running.trial_id] = max(work.step, work.before)
        self._slots -= 1
        self._clock.at(self._clock.now + self._faults.repair, self._repair)
        self._end(work, Outcome(reason=Reason.NODE_LOST, message="the simulated worker was lost"))

    def _repair(self) -> None:
        self._slots += 1
        self._seat()
        self._look()

    def _end(self, work: _Work, outcome: Outcome) -> None:
        work.running.ended = True
        self._running -= 1
        self._look()
        result = self._attempts.end(work.running, outcome)
        self._seat()
        if isinstance(result, Due):
            self._wait(result)
            return
        self._furthest.pop(work.running.trial_id, None)
        if result is TrialState.COMPLETE:
            self._improve(outcome.values[0])
        if result is not TrialState.FAIL:
            self._failures.clear()
            return
        self._failures.append(outcome)
        self._stopped |= retry.should_stop_study(self._failures, self._policy) is not None

    def _improve(self, value: float) -> None:
        sign = -1.0 if self._held.record.directions[0] == "maximize" else 1.0
        if not self._history or sign * value < sign * self._history[-1][1]:
            self._history.append((self._clock.now, value))
