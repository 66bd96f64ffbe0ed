"""One group: the shells of a trial's ranks in one placement group, and one attempt at a time on them.

It carries messages and deadlines; how the ranks' ends become one outcome is decided in
:mod:`tuner.dispatch.group`. Everything runs in the driver's thread, from ``RayExecutor.poll``.
On a standing cluster a group is named and detached: it outlives a killed driver, and another
driver may take it over, so this one ends shells only with their consent to its epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from storage import owner as processes
from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch import standing, working_folder
from tuner.dispatch.devices import Held
from tuner.dispatch.exchange import Exchange, Line
from tuner.dispatch.group import RankEnding, decide
from tuner.dispatch.ray_shell import RayShell
from tuner.dispatch.shape import Shape
from tuner.dispatch.shell import PACE, WITHOUT_DRIVER, Batch, Begun, StaleEpoch, Standing
from tuner.messages import Answer, Ended, Finished, Message, RankInfo, Released, Started, Turn, decode_all
from tuner.outcome import Outcome, Reason

__all__ = ["GROUP", "Group", "Owner"]

log = logging.getLogger(__name__)

GROUP = -1
"""The rank of messages that speak for the whole attempt."""

LEAVING = 10.0  # seconds that the other ranks get when one has ended
AGAIN = 1.0  # seconds after which a kill is repeated: the first may have come before the child
DRAIN = 1.0  # seconds of one long poll
LONG = 1.0  # seconds after which those behind an attempt of a series are recalled
AT_ONCE = 0.02  # seconds that the start of a single rank waits for its end
SILENT = 20.0  # seconds without an answer to a drain, after which a shell is taken for dead
MUTE = 8.0  # seconds without one, after which its line is; the same is asked by Ray
ASK = 0.5  # seconds between two questions to Ray whether a group has its place
STARTING = 120.0  # seconds that a shell may take to start its child
MARGIN = 5.0  # seconds by which a shell that nobody reaches may be late to end itself
PARTING = 3.0  # seconds that shells get to clean up
ABSENT = 2.0  # seconds between two looks at the time that count as ours, not as the shells'

_WELL = (Reason.COMPLETE, Reason.PRUNED)


class Owner(Protocol):
    """What a group needs of its executor."""

    exchange: Exchange

    def deliver(self, assignment: Assignment, rank: int, seq: int, message: Message) -> None:
        """Hand a message to the driver."""

    def give_back(self, attempts: Sequence[tuple[Assignment, Ended | None]]) -> None:
        """Attempts of a series that have not begun, each with its end if it is not to begin elsewhere."""

    def became_idle(self, group: Group) -> None:
        """The group can take an attempt."""

    def broke(self, group: Group, why: str) -> None:
        """The group cannot be used again."""

    def ready(self, group: Group) -> bool:
        """All shells have started; whether the group may be used."""

    def device_failed(self, group: Group, rank: int, device: int, why: str) -> None:
        """A device of a rank, by its index there, failed its probe."""

    def superseded(self, error: StaleEpoch) -> None:
        """Another driver has the study, and this one nothing more to say."""


@dataclass(kw_only=True)
class _Attempt:
    """What is known of the attempt that runs; all dicts are by rank.

    Attributes:
        behind: the attempts of its series that follow it, on the same single rank.
        unwanted: by trial, how those of them end that are not to begin any more.
        recalled: the shell was told that none of them is to begin.
        seconds: that the objective took on rank 0.
    """

    assignment: Assignment
    behind: deque[Assignment] = field(default_factory=deque)
    unwanted: dict[int, Outcome] = field(default_factory=dict)
    recalled: bool = False
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    start_by: float
    one_node: bool
    launched: bool = False
    placed: dict[int, RankInfo] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)
    delivered: dict[int, int] = field(default_factory=dict)
    draining_since: dict[int, float] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    cut_off: set[int] = field(default_factory=set)  # ranks that may live where nobody reaches them
    gone: set[int] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)  # of the rank whose batch is being delivered
    delivering: int | None = None
    endings: list[RankEnding] = field(default_factory=list)
    asked: Outcome | None = None  # the end that we ask for
    deadline: float | None = None
    decided: bool = False
    said: int = 0  # messages of the group itself

    def turn(self, turn: Turn) -> None:
        """The next attempt of the series has begun; of the one before it, nothing counts here."""
        self.assignment = self.behind.popleft()
        self.endings, self.asked, self.deadline = [], self.unwanted.get(self.assignment.number), None
        self.decided, self.said, self.seconds, self.began = False, 0, 0.0, time.monotonic()
        self.answers.clear()


class Group:
    """The shells of one shape; an attempt is begun when ``idle_since`` is not None.

    Args:
        epoch: of the driver, which every call carries.
        placement, shells: as Ray knows them.
    """

    def __init__(self, owner: Owner, shape: Shape, epoch: int, placement: Any, shells: list[Any]) -> None:
        self._owner = owner
        self.shape = shape
        self._epoch = epoch
        self._placement = placement
        self._shells = shells
        self._lines = [Line(owner.exchange, shell) for shell in shells]
        self._made_at = self._looked_at = time.monotonic()
        self._broken = self._stale = False
        self._infos: dict[int, dict[str, Any]] = {}
        self._is_placed, self._asked_at = False, 0.0
        self._attempt: _Attempt | None = None
        self._parting: set[int] = set()
        self._part_by: float | None = None
        self.idle_since: float | None = None

    @classmethod
    def make(cls, owner: Owner, shape: Shape, epoch: int) -> Group:
        """Ask Ray for the resources, and for shells that hold them."""
        bundles = [dict(shape.bundle)] * shape.ranks
        strategy = "STRICT_PACK" if shape.filler else "PACK"
        kept: dict[str, Any] = {"name": shape.name, "lifetime": "detached"} if shape.name else {}
        placement = placement_group(
            [*bundles, *([dict(shape.filler)] if shape.filler else [])], strategy=strategy, **kept
        )
        shells = [_actor(shape, placement, rank) for rank in range(shape.ranks)]
        group = cls(owner, shape, epoch, placement, shells)
        for rank, shell in enumerate(shells):
            owner.exchange.watch(shell.ready.remote(), functools.partial(group._on_ready, rank))
        return group

    @classmethod
    def adopt(
        cls, owner: Owner, shape: Shape, epoch: int, found: standing.Found, states: Mapping[int, Standing]
    ) -> Group:
        """Go on with a group of another driver whose every shell has agreed, and runs one attempt."""
        shells = [found.shells[rank] for rank in range(shape.ranks)]
        group = cls(owner, shape, epoch, found.placement, shells)
        group._infos = {rank: state.ready for rank, state in states.items()}
        assignment = states[0].assignment
        assert assignment is not None
        attempt = group._attempt = _Attempt(assignment=assignment, start_by=0.0, one_node=True, launched=True)
        attempt.placed = {rank: state.placed for rank, state in states.items() if state.placed is not None}
        for rank in range(shape.ranks):
            group._drain(attempt, rank)
        group._offer_lines()
        return group

    @property
    def is_ready(self) -> bool:
        """All shells have started."""
        return len(self._infos) == self.shape.ranks

    @property
    def is_placed(self) -> bool:
        """Ray has given it its resources, as far as was known a moment ago."""
        now = time.monotonic()
        if not self._is_placed and now - self._asked_at > ASK:
            self._asked_at = now
            self._is_placed = placement_group_table(self._placement).get("state") == "CREATED"
        return self._is_placed or self.is_ready

    def held(self) -> list[tuple[str, Mapping[str, float]]]:
        """What each rank holds, and on which node: "" where that is not known yet."""
        where = [self._infos.get(rank, {}).get("node", "") for rank in range(self.shape.ranks)]
        held = [(node, self.shape.bundle) for node in where]
        return [*held, (where[0], self.shape.filler)] if self.shape.filler else held

    def devices(self) -> list[Held]:
        """The devices of its ranks."""
        part = min(1.0, self.shape.bundle.get("GPU", 0.0))
        infos = self._infos.values()
        return [
            Held(node=one["node"], device=device, part=part) for one in infos for device in one["devices"]
        ]

    def info(self, rank: int) -> Mapping[str, Any]:
        """What a shell said of itself."""
        return self._infos[rank]

    @property
    def number(self) -> int | None:
        """The trial that runs here."""
        return self._attempt.assignment.number if self._attempt is not None else None

    @property
    def behind(self) -> Collection[Assignment]:
        """Attempts that wait here for the end of the one that runs."""
        return self._attempt.behind if self._attempt is not None else ()

    def begin(self, series: Sequence[Assignment]) -> None:
        """Run an attempt: rank 0 binds a socket, then every rank is started with its address.

        Args:
            series: with one rank, attempts that run here one after the other.
        """
        assignment, behind = series[0], deque(series[1:])
        one_node = len({info["loopback"] for info in self._infos.values()}) == 1
        start_by = time.monotonic() + STARTING
        self._attempt = _Attempt(assignment=assignment, behind=behind, start_by=start_by, one_node=one_node)
        self.idle_since = None
        if self.shape.ranks == 1:
            self._start_ranks(self._attempt, "", 0)
            return
        host = "127.0.0.1" if one_node else self._infos[0]["address"]

        def start(attempt: _Attempt, rank: int, port: int) -> None:
            self._start_ranks(attempt, host, port)

        self._lines[0].call("listen", self._epoch, host, then=self._bound(start, 0))

    def committed(self, rank: int, seq: int) -> None:
        """The next drain of the rank may forget messages up to ``seq``."""
        if self._attempt is not None and rank != GROUP:
            known = self._attempt.acknowledged
            known[rank] = max(seq, known.get(rank, 0))

    def answer(self, rank: int, answer: Answer) -> None:
        """Deliver an answer: with the drain that follows when we are in the rank's batch, else at once."""
        if self._attempt is None or rank in self._attempt.gone:
            return
        if self._attempt.delivering == rank:
            self._attempt.answers.append(answer)
        else:
            self._lines[rank].call("reply", self._epoch, [answer])

    def stop(self, outcome: Outcome, grace: float) -> None:
        """Ask all ranks to stop; end them after the grace."""
        if self._attempt is not None:
            self._attempt.asked = self._attempt.asked or outcome
            self.recall()
            for line in self._lines:
                line.call("stop", self._epoch, self._attempt.assignment.number)
            self._shorten(self._attempt, grace)

    def kill(self, outcome: Outcome) -> None:
        """End all ranks now."""
        if self._attempt is not None:
            self._attempt.asked = outcome
            self._shorten(self._attempt, 0)
            self._end_overdue(self._attempt, time.monotonic())

    def withdraw(self, number: int, outcome: Outcome) -> bool:
        """End an attempt of the series that has not begun, in this way; False where it is not here."""
        attempt = self._attempt
        if attempt is None or all(one.number != number for one in attempt.behind):
            return False
        attempt.unwanted[number] = outcome
        self.recall()
        return True

    def recall(self) -> None:
        """Begin no further attempt of the series: the executor gets back those that have not begun.

        Calls of a shell may pass each other: only once it is known to have this series, which
        :meth:`keep_time` waits for, does its answer speak of this one.
        """
        attempt = self._attempt
        if attempt is not None and attempt.behind and attempt.placed and not attempt.recalled:
            attempt.recalled = True
            self._lines[0].call("recall", self._epoch, then=self._bound(self._on_recalled, 0))

    def keep_time(self, now: float) -> None:
        """End what is past its deadline, and take shells that do not answer for dead.

        Called after all results that had arrived were handled. A long time between two calls is
        a driver that was stopped or busy, and says nothing about the shells.
        """
        absent = now - self._looked_at if now - self._looked_at > ABSENT else 0.0
        self._looked_at = now
        attempt = self._attempt
        if attempt is None:
            return
        attempt.start_by += absent
        if now > attempt.start_by and len(attempt.placed) < self.shape.ranks:
            for rank in set(range(self.shape.ranks)) - set(attempt.placed):
                self._lose(attempt, rank, "did not start its process in time")
        for rank in list(attempt.draining_since):
            attempt.draining_since[rank] += absent
            if now - attempt.draining_since[rank] > MUTE:
                self._lines[rank].drop()
            if now - attempt.draining_since[rank] > SILENT:
                self._lose(attempt, rank, "is lost: its shell does not answer", cut_off=True)
        self._end_overdue(attempt, now)
        is_long = now - attempt.began > LONG  # those behind it had better go elsewhere
        if is_long or attempt.unwanted or attempt.asked is not None or self._broken:
            self.recall()

    def waits_since(self, now: float) -> float:
        """Seconds that it has waited for its resources; 0 once it has them."""
        return 0.0 if self.is_ready else now - self._made_at

    def leave(self) -> None:
        """Take no attempt after the one that runs: its node is to go."""
        self._broken = True
        self.recall()

    @property
    def nodes(self) -> set[str]:
        """Ray's ids of the nodes that its shells are on, as far as they are known."""
        return {info["node"] for info in self._infos.values()}

    def ping(self) -> None:
        """Say that the driver lives, and hear whether Ray knows that a shell does not. Called from a
        thread of its own.
        """
        for rank, shell in enumerate(self._shells):
            handler = functools.partial(self._on_ping, rank)
            self._owner.exchange.watch(shell.ping.remote(self._epoch), handler)

    def part(self) -> None:
        """Let the shells end and clean up; :meth:`finish_parting` then gives the resources back."""
        self._part_by = time.monotonic() + PARTING
        self._attempt, self.idle_since = None, None
        self._parting = set(range(len(self._shells)))
        for rank, shell in enumerate(self._shells):
            self._lines[rank].close()
            handler = functools.partial(self._on_parted, rank)
            self._owner.exchange.watch(shell.shutdown.remote(self._epoch), handler)

    def finish_parting(self) -> bool:
        """Give the resources back, if the shells have ended or had their time; whether it is gone.

        Shells that serve another driver are left alone, and so are their resources.
        """
        if self._part_by is None or (self._parting and time.monotonic() < self._part_by):
            return False
        if not self._stale:
            for shell in self._shells:
                with contextlib.suppress(Exception):
                    ray.kill(shell)
            with contextlib.suppress(Exception):
                remove_placement_group(self._placement)
        return True

    def _on_parted(self, rank: int, result: Any) -> None:
        self._stale = self._stale or isinstance(result, StaleEpoch)
        self._parting.discard(rank)

    # ------------------------------------------------------------------ steps of an attempt

    def _bound(self, method: Callable[[_Attempt, int, Any], None], rank: int) -> Callable[[Any], None]:
        """A handler for the attempt that runs now; results of an earlier one are dropped."""
        attempt = self._attempt

        def handle(result: Any) -> None:
            if attempt is None or self._attempt is not attempt or rank in attempt.gone:
                return
            if isinstance(result, StaleEpoch):
                self._owner.superseded(result)
            elif isinstance(result, Exception):
                self._lose(attempt, rank, f"is lost: {cause(result)}", cut_off=_is_node(result))
            else:
                method(attempt, rank, result)

        return handle

    def _on_ping(self, rank: int, result: Any) -> None:
        if not isinstance(result, Exception) or self._part_by is not None:
            return
        if self._attempt is not None:
            self._bound(lambda attempt, rank, result: None, rank)(result)
        elif self.is_ready and not isinstance(result, StaleEpoch):
            self._owner.broke(self, cause(result))

    def _offer_lines(self) -> None:
        """Have the shells call the driver, so that what follows need not go by Ray."""
        for line, shell in zip(self._lines, self._shells, strict=True):
            if (offer := self._owner.exchange.offer(line)) is not None:
                shell.connect.remote(self._epoch, offer)

    def _on_ready(self, rank: int, result: Any) -> None:
        if self._part_by is not None:
            return
        if isinstance(result, Exception):
            self._owner.broke(self, cause(result))
            return
        self._infos[rank] = result
        if self.is_ready and self._owner.ready(self):
            self._offer_lines()
            self.idle_since = time.monotonic()
            self._owner.became_idle(self)

    def _start_ranks(self, attempt: _Attempt, host: str, port: int) -> None:
        attempt.launched = True
        before: dict[str, int] = {}
        home = attempt.assignment.folder
        folders: dict[str, str] = {}  # by node: of the shell of its first rank
        for rank, line in enumerate(self._lines):
            node = self._infos[rank]["node"]
            local = before.get(node, 0)
            before[node] = local + 1
            folders.setdefault(node, working_folder.folder_of(self._infos[rank]["folder"], home))
            place = Place(
                rank=rank,
                local_rank=local,
                world_size=self.shape.ranks,
                host=host,
                port=port,
                one_node=attempt.one_node,
                devices=self._infos[rank]["devices"],
                folder=folders[node],
            )
            eager = 0.0 if self.shape.ranks > 1 else PACE if attempt.behind else AT_ONCE
            series = (attempt.assignment, *attempt.behind)
            then = self._bound(self._on_started, rank)
            line.call("start", series, place, eager, then=then, again="start_again")

    def _on_started(self, attempt: _Attempt, rank: int, begun: Begun) -> None:
        attempt.placed[rank] = begun.placed
        if attempt.gone:
            self._drain(attempt, rank)
        elif len(attempt.placed) == self.shape.ranks:
            if not attempt.behind:  # else each of the series says so itself
                self._started(attempt)
            self._on_batch(attempt, rank, begun.batch)
            for one in sorted(attempt.placed):  # what the others have said by now comes with these
                self._drain(attempt, one)

    def _started(self, attempt: _Attempt) -> None:
        ranks = tuple(attempt.placed[one] for one in sorted(attempt.placed))
        self._say(attempt, Started(ranks=ranks))

    def _on_recalled(self, attempt: _Attempt, rank: int, count: int) -> None:
        """The last of the series do not begin here."""
        back = [attempt.behind.pop() for _ in range(min(count, len(attempt.behind)))]
        self._owner.give_back([(one, self._end_of(attempt, one)) for one in reversed(back)])

    def _turn(self, attempt: _Attempt, rank: int, turn: Turn) -> None:
        """It is the turn of the next attempt of a series."""
        if turn.at:
            self._close(attempt)
            attempt.turn(turn)
        attempt.placed[rank] = dataclasses.replace(attempt.placed[rank], pid=turn.pid, process=turn.process)
        self._started(attempt)
        if attempt.asked is not None:
            self._shorten(attempt, 0)
            self._end_overdue(attempt, time.monotonic())

    def _close(self, attempt: _Attempt) -> None:
        """Say how the attempt ended, if that was not said."""
        if not attempt.decided:
            attempt.decided = True
            outcome = decide(attempt.endings, attempt.asked)
            ended = Ended(outcome=outcome, may_live=self._may_live(attempt), seconds=attempt.seconds)
            self._say(attempt, ended)
        self._say(attempt, Released())

    def _drain(self, attempt: _Attempt, rank: int) -> None:
        if self._attempt is not attempt or rank in attempt.gone or rank in attempt.draining_since:
            return
        answers, attempt.answers = attempt.answers, []
        after, seen = attempt.acknowledged.get(rank, 0), attempt.delivered.get(rank, 0)
        attempt.draining_since[rank] = time.monotonic()
        then = self._bound(self._on_batch, rank)
        self._lines[rank].call("drain", after, self._epoch, answers, DRAIN, seen, then=then)

    def _on_batch(self, attempt: _Attempt, rank: int, batch: Batch) -> None:
        attempt.draining_since.pop(rank, None)
        attempt.heard[rank] = time.monotonic()
        attempt.delivering = rank
        seen = attempt.delivered.get(rank, 0)
        fresh = [one for one in batch.messages if one[0] > seen]
        numbers = iter([number for number, _ in fresh])
        for count, message in decode_all([line for _, line in fresh]):
            for seq in itertools.islice(numbers, count):
                attempt.delivered[rank] = seq
            if isinstance(message, Turn):
                self._turn(attempt, rank, message)
            elif isinstance(message, Finished):
                attempt.seconds = message.seconds if rank == 0 else attempt.seconds
                ending = RankEnding(rank=rank, outcome=message.outcome, collateral=message.collateral)
                attempt.endings.append(ending)
                if message.device is not None:
                    self._broken = True  # the device is given back, and not used again
                    self.recall()
                    self._owner.device_failed(self, rank, message.device, message.outcome.message)
            elif not attempt.decided:
                self._owner.deliver(attempt.assignment, rank, attempt.delivered[rank], message)
        attempt.delivering = None
        if batch.ended:
            attempt.gone.add(rank)
            attempt.answers.clear()
        else:
            self._drain(attempt, rank)
        self._conclude(attempt)

    def _lose(self, attempt: _Attempt, rank: int, why: str, *, cut_off: bool = False) -> None:
        """A shell is dead, with its child, or cut off: the group cannot be used again."""
        if self._attempt is not attempt or rank in attempt.gone:
            return
        self._broken = True
        attempt.gone.update([rank] if attempt.launched else range(self.shape.ranks))
        attempt.draining_since.pop(rank, None)
        if cut_off:
            attempt.cut_off.add(rank)
        if not self.shape.name:  # a shell that may serve another driver ends itself
            with contextlib.suppress(Exception):
                ray.kill(self._shells[rank])
        outcome = Outcome(reason=Reason.NODE_LOST, message=why)
        attempt.endings.append(RankEnding(rank=rank, outcome=outcome))
        for other in attempt.placed:  # also where not all have started: their ends are awaited
            self._drain(attempt, other)
        self._conclude(attempt)

    def _conclude(self, attempt: _Attempt) -> None:
        """Send the outcome when nothing can follow it, and free the slot when every rank is gone.

        The end of rank 0 is the trial's, but another rank may still save its part of the last
        checkpoint: the outcome waits for its last word too.
        """
        if not attempt.endings or self._attempt is not attempt:
            return
        everyone = len(attempt.gone) == self.shape.ranks
        silent = len({ending.rank for ending in attempt.endings}) == self.shape.ranks
        leader = any(
            ending.rank == 0 and ending.outcome.reason in (*_WELL, Reason.INTERRUPTED)
            for ending in attempt.endings
        )
        failed = any(ending.outcome.reason not in _WELL for ending in attempt.endings)
        if leader or failed:
            self._shorten(attempt, LEAVING)
        if not everyone:
            if not attempt.decided and leader and silent:
                attempt.decided = True
                outcome = decide(attempt.endings, attempt.asked)
                self._say(attempt, Ended(outcome=outcome, seconds=attempt.seconds))
            return
        self._attempt = None
        self.idle_since = None if self._broken else time.monotonic()
        self._owner.give_back([(one, self._end_of(attempt, one)) for one in attempt.behind])
        if not self._broken:  # one that waits begins before this end is recorded
            self._owner.became_idle(self)
        self._close(attempt)
        if self._broken:
            self._owner.broke(self, attempt.endings[-1].outcome.message)

    def _end_of(self, attempt: _Attempt, one: Assignment) -> Ended | None:
        """How an attempt of the series that has not begun here ends; None: it begins elsewhere."""
        last = attempt.endings[-1].outcome if attempt.endings else None
        if attempt.launched and self._broken and last is not None and last.reason is Reason.NODE_LOST:
            return Ended(outcome=last, may_live=self._may_live(attempt))
        unwanted = attempt.unwanted.get(one.number)
        return None if unwanted is None else Ended(outcome=unwanted)

    def _may_live(self, attempt: _Attempt) -> float:
        """For how many seconds a rank that was cut off may live on. On this host it is ended instead."""
        longest, now = 0.0, time.monotonic()
        for rank in attempt.cut_off:
            placed = attempt.placed.get(rank)
            if placed is not None and processes.same_host(placed.process):
                processes.end(placed.process)
            else:
                longest = max(longest, WITHOUT_DRIVER + MARGIN - (now - attempt.heard.get(rank, now)))
        return longest

    def _say(self, attempt: _Attempt, message: Message) -> None:
        attempt.said += 1
        self._owner.deliver(attempt.assignment, GROUP, attempt.said, message)

    def _end_overdue(self, attempt: _Attempt, now: float) -> None:
        if attempt.deadline is not None and now >= attempt.deadline:
            attempt.deadline = now + AGAIN
            for rank, line in enumerate(self._lines):
                if rank not in attempt.gone:
                    line.call("kill", self._epoch, attempt.assignment.number)

    def _shorten(self, attempt: _Attempt, seconds: float) -> None:
        moment = time.monotonic() + seconds
        attempt.deadline = moment if attempt.deadline is None else min(attempt.deadline, moment)


def _actor(shape: Shape, placement: Any, rank: int) -> Any:
    bundle = shape.bundle
    custom = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
    kept = {"name": f"{shape.name}/{rank}", "namespace": standing.NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(RayShell).options(
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        memory=bundle.get("memory"),
        resources=custom or None,
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement, rank),
        max_restarts=0,  # retries are decided in one place, the driver
        max_concurrency=8,
        **(kept if shape.name else {}),
    )
    return actor.remote(shape, rank)


def _is_node(error: Exception) -> bool:
    return isinstance(error, ray.exceptions.NodeDiedError) or "node has died" in str(error)


def cause(error: Exception) -> str:
    """Why a call of a shell failed, in one line."""
    text = str(error).strip()
    if _is_node(error):
        return "its node died"
    if isinstance(error, ray.exceptions.ActorDiedError) and "creation task" not in text:
        return "its shell died"
    return (text.splitlines() or [type(error).__name__])[-1].strip()
