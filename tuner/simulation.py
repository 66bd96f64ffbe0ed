"""A study on a virtual clock: what a strategy would do on a cluster that nobody has paid for yet.

Sampling, pruning, claims, retries and what starts next are the driver's own code
(:class:`~tuner.study.DrivenStudy`, :class:`~tuner.attempts.Attempts`, :mod:`tuner.scheduler`,
:mod:`tuner.retry`) over the store's double in memory. Only its loop is another one: here the next
event is taken from a heap, and time passes at once.
"""

from __future__ import annotations

import copy
import gc
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from storage import StudyRecord
from storage.memory import MemoryStudy
from tuner import retry, scheduler
from tuner.assignment import Draw
from tuner.attempts import Attempts, Due, Running
from tuner.errors import BadInput
from tuner.messages import Report, Saved
from tuner.outcome import Outcome, Reason, classify_return
from tuner.retry import Retry
from tuner.seeds import derived_seed
from tuner.study import DrivenStudy, Space, check_space

__all__ = ["Curve", "Faults", "Script", "Simulation", "play", "simulate"]

Curve = Callable[[Mapping[str, Any]], Iterable[tuple[float, float]]]
"""Of a trial's parameters: (value, seconds) of each step, the first of which is step 1."""

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong in a simulated cluster.

    Args:
        mean_life: seconds that a worker lives on average while it trains; None: for ever.
        repair: seconds until another worker is there for one that was lost.
        stragglers: share of the attempts that are slow, 0 to 1.
        slowdown: by how much.
        start_delay: seconds from a dispatch to the first step: processes, imports, data.
        checkpoint_every: steps between checkpoints, from which a lost attempt goes on; 0: it starts over.

    Raises:
        BadInput: a value is out of range.

    Example:
        >>> Faults(mean_life=3600.0, checkpoint_every=1).repair
        0.0
    """

    mean_life: float | None = None
    repair: float = 0.0
    stragglers: float = 0.0
    slowdown: float = 3.0
    start_delay: float = 0.0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        least = {"repair": 0, "start_delay": 0, "slowdown": 1, "checkpoint_every": 0, "stragglers": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise BadInput(f"faults: {name}={value!r}: give a number of at least {low}")
        if self.stragglers > 1:
            raise BadInput(f"faults: stragglers={self.stragglers!r}: give a share of 0 to 1")
        if self.mean_life is not None and not self.mean_life > 0:
            raise BadInput(f"faults: mean_life={self.mean_life!r}: give seconds, or None")


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a simulated trial does if nobody stops it.

    Attributes:
        steps: (step, value, seconds) of each report, steps ascending.
        end: its outcome, of the last value reported; None where nothing was.
    """

    steps: Iterable[tuple[int, float, float]]
    end: Callable[[float | None], Outcome]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a simulation found. Seconds are virtual ones.

    Attributes:
        seconds: until its end.
        history: (seconds, best value of the COMPLETE trials) at each improvement.
        best: the last of these values, or None.
        utilisation: share of the workers' seconds that went into steps.
        epochs: steps computed, those that were computed again included; ``repeated`` of these.
        attempts: that were started.
        states: number of trials by state, such as ``{"COMPLETE": 30, "PRUNED": 70}``.
        trials: as Optuna has them.

    Example:
        >>> space = {"x": optuna.distributions.FloatDistribution(0, 1)}
        >>> study = optuna.create_study(
        ...     sampler=optuna.samplers.RandomSampler(), pruner=optuna.pruners.NopPruner()
        ... )
        >>> found = tuner.simulate(study, space, lambda params: [(params["x"], 2.0)], n_trials=6, seed=1)
        >>> found.epochs, found.states
        (6, {'COMPLETE': 6})
    """

    seconds: float
    history: tuple[tuple[float, float], ...]
    best: float | None
    utilisation: float
    epochs: int
    repeated: int
    attempts: int
    states: Mapping[str, int]
    trials: tuple[FrozenTrial, ...] = field(repr=False)


def simulate(
    study: optuna.Study,
    space: Any,
    curve: Curve,
    *,
    max_concurrent: int = 64,
    n_trials: int | None = None,
    until: float | None = None,
    faults: Faults | None = None,
    retry: Retry | None = None,
    seed: int = 0,
    charge_sampler: bool = False,
) -> Simulation:
    """Run a study's sampler and pruner on a virtual cluster; the study itself is not touched.

    The simulated study starts without trials. For a seed it is the same to the bit each time, unless
    the sampler's time is charged.

    Args:
        study: whose directions, sampler and pruner are tried; with one objective.
        space: as for ``optimize``: distributions by name, or a function of the trial.
        curve: parameters -> (value, seconds) per step; the value of the last step is the trial's.
        max_concurrent: workers.
        n_trials: finished trials after which nothing new starts.
        until: seconds after which it ends, whatever runs; this or ``n_trials`` is needed.
        faults: losses, stragglers and delays; default: none.
        retry: as for ``optimize``.
        charge_sampler: let the clock run while the sampler thinks, as a real driver has to wait.

    Raises:
        BadInput: an argument is wrong.

    Example:
        >>> import optuna
        >>> space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        >>> def curve(params):
        ...     return [(params["x"] + 1.0 / step, 10.0) for step in range(1, 4)]
        >>> found = simulate(study, space, curve, max_concurrent=4, n_trials=8)
        >>> found.seconds, found.epochs, found.utilisation
        (60.0, 24, 1.0)
    """
    checked = check_space(space)
    directions = [one.name.lower() for one in study.directions]

    def script(trial: FrozenTrial) -> Script:
        steps = enumerate(curve(dict(trial.params)), 1)
        return Script(
            steps=((step, value, seconds) for step, (value, seconds) in steps),
            end=lambda value: classify_return(value, directions),
        )

    return play(
        study,
        checked,
        script,
        max_concurrent=max_concurrent,
        n_trials=n_trials,
        until=until,
        faults=faults,
        retry=retry,
        seed=seed,
        charge_sampler=charge_sampler,
    )


def play(
    study: optuna.Study,
    space: Space,
    script: Callable[[FrozenTrial], Script],
    *,
    max_concurrent: int,
    n_trials: int | None = None,
    until: float | None = None,
    faults: Faults | None = None,
    retry: Retry | None = None,
    seed: int = 0,
    charge_sampler: bool = False,
) -> Simulation:
    """As :func:`simulate`, of trials whose scripts are given, each when its attempt starts."""
    if len(study.directions) != 1:
        raise BadInput(f"study {study.study_name!r} has {len(study.directions)} objectives; a curve has one")
    if n_trials is None and until is None:
        raise BadInput("simulate: give n_trials, until, or both: nothing else ends it")
    if isinstance(max_concurrent, bool) or not isinstance(max_concurrent, int) or max_concurrent < 1:
        raise BadInput(f"max_concurrent={max_concurrent!r}: give a whole number of at least 1")
    if until is not None and not until > 0:
        raise BadInput(f"until={until!r}: give seconds")
    record = StudyRecord(
        name=study.study_name,
        study_id=1,
        directions=(study.direction.name.lower(),),
        uid="simulated",
        seed=seed,
    )
    driven = DrivenStudy(MemoryStudy(record), copy.deepcopy(study.sampler), copy.deepcopy(study.pruner))
    return _Simulator(
        driven,
        space,
        script,
        workers=max_concurrent,
        n_trials=n_trials,
        until=until,
        faults=faults or Faults(),
        policy=retry or Retry(),
        charge_sampler=charge_sampler,
    ).run()


class _NoFiles:
    """The files of simulated checkpoints, of which there are none."""

    def verify(self, shard: object) -> bool:
        return True

    def delete(self, paths: Iterable[str]) -> None:
        """Nothing is there."""

    def sweep(self, root: str, kept: Iterable[str]) -> None:
        """Nothing is there."""


@dataclass(kw_only=True)
class _Work:
    """An attempt on a worker.

    Attributes:
        steps: the rest of its script.
        end: its outcome, of the last value.
        slow: its seconds are longer by this.
        step: the last one reported; ``before``: the last one that an earlier attempt computed.
        value: of that step.
        since: when the step under way began; None before the first.
    """

    running: Running
    steps: Iterator[tuple[int, float, float]]
    end: Callable[[float | None], Outcome]
    slow: float
    step: int
    before: int
    value: float | None
    since: float | None = None


class _Simulator:
    def __init__(
        self,
        study: DrivenStudy,
        space: Space,
        script: Callable[[FrozenTrial], Script],
        *,
        workers: int,
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
        self._attempts = Attempts(study, policy, space, {}, clock=lambda: self._now, files=_NoFiles())
        self._policy = policy
        self._failures: list[Outcome] = []
        self._now = 0.0
        self._asked = 0.0  # until when the sampler is busy
        self._slots = workers
        self._events: list[tuple[float, int, Callable[[], None]]] = []
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
        while not isinstance(self._admit(), scheduler.Done) and self._events:
            moment, _, event = heapq.heappop(self._events)
            if self._until is not None and moment > self._until:
                self._now = self._until
                break
            self._now = moment
            event()
        return self._found()

    def _found(self) -> Simulation:
        image = self._held.image
        total = self._workers * self._now
        return Simulation(
            seconds=self._now,
            history=tuple(self._history),
            best=self._history[-1][1] if self._history else None,
            utilisation=self._busy / total if total else 0.0,
            epochs=self._epochs,
            repeated=self._repeated,
            attempts=self._started,
            states={state.name: count for state, count in sorted(image.counts.items()) if count},
            trials=tuple(image.trials()),
        )

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event))

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
        is_due = bool(self._due) and self._due[0][0] <= self._now
        return scheduler.Counts(
            finished=sum(states[state] for state in _FINISHED),
            running=self._running,
            running_unfinished=self._running,
            retries_due=int(is_due),
            retries_waiting=len(self._due) - is_due,
            enqueued=states[TrialState.WAITING],
            slots=self._slots,
            draining=self._stopped or self._study.stop_requested,
        )

    def _wait(self, due: Due) -> None:
        """An attempt waits for its moment, and a free worker."""
        heapq.heappush(self._due, (due.due, next(self._order), due))
        if due.due > self._now:
            self._at(due.due, lambda: None)  # look again then

    def _start(self, due: Due) -> None:
        begin = perf_counter()
        due = self._attempts.plan(due)
        draw: Mapping[str, Draw] = self._attempts.draw(due)
        if self._charge_sampler:
            self._asked = max(self._asked, self._now) + perf_counter() - begin
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
        )
        self._running += 1
        self._started += 1
        ready = max(self._now, self._asked) + self._faults.start_delay
        self._at(ready, lambda: self._next(work))
        if self._faults.mean_life is not None:
            lost = ready + self._chance.expovariate(1.0 / self._faults.mean_life)
            self._at(lost, lambda: self._lose(work))

    # ------------------------------------------------------------------ what happens

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
        work.since = self._now
        self._at(self._now + seconds * work.slow, lambda: self._report(work, step, float(value)))

    def _report(self, work: _Work, step: int, value: float) -> None:
        """A step is computed: its value is reported, and the pruner asked."""
        running = work.running
        if running.ended:
            return
        assert work.since is not None
        work.step, work.value = step, value
        self._epochs += 1
        self._repeated += step <= work.before
        self._busy += self._now - work.since
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
            self._busy += self._now - work.since
        self._furthest[work.running.trial_id] = max(work.step, work.before)
        self._slots -= 1
        self._at(self._now + self._faults.repair, self._repair)
        self._end(work, Outcome(reason=Reason.NODE_LOST, message="the simulated worker was lost"))

    def _repair(self) -> None:
        self._slots += 1

    def _end(self, work: _Work, outcome: Outcome) -> None:
        work.running.ended = True
        self._running -= 1
        result = self._attempts.end(work.running, outcome)
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
            self._history.append((self._now, value))
