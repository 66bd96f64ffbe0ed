"""One group: the shells of a trial's ranks in one placement group, and one attempt at a time on them.

It carries messages and deadlines; how the ranks' ends become one outcome is decided in
:mod:`tuner.dispatch.group`. Everything runs in the driver's thread, from ``RayExecutor.poll``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch.group import RankEnding, decide
from tuner.dispatch.shell import Batch, Shell
from tuner.messages import Answer, Ended, Finished, Message, RankInfo, Released, Started, decode
from tuner.outcome import Outcome, Reason

__all__ = ["GROUP", "Group", "Owner", "Shape"]

log = logging.getLogger(__name__)

GROUP = -1
"""The rank of messages that speak for the whole attempt."""

LEAVING = 10.0  # seconds that the other ranks get when one has ended
AGAIN = 1.0  # seconds after which a kill is repeated: the first may have come before the child
DRAIN = 1.0  # seconds of one long poll
SILENT = 20.0  # seconds without an answer to a drain, after which a shell is taken for dead
STARTING = 120.0  # seconds that a shell may take to start its child
BUSY = 60.0  # seconds without resources after which we say so
ABSENT = 2.0  # seconds between two looks at the time that count as ours, not as the shells'

_WELL = (Reason.COMPLETE, Reason.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a group is made of: one bundle of resources for each rank."""

    run: str
    ranks: int
    cpus: float
    bundle: Mapping[str, float]
    hide_gpus: bool
    preload: tuple[str, ...]


class Owner(Protocol):
    """What a group needs of its executor."""

    def watch(self, ref: Any, handler: Callable[[Any], None]) -> None:
        """Call ``handler`` with the result of ``ref``, or with its error."""

    def deliver(self, assignment: Assignment, rank: int, seq: int, message: Message) -> None:
        """Hand a message to the driver."""

    def became_idle(self, group: Group) -> None:
        """The group can take an attempt."""

    def broke(self, group: Group, why: str) -> None:
        """The group cannot be used again."""


class RayShell(Shell):
    """A shell that knows where Ray placed it."""

    def ready(self) -> dict[str, Any]:
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return {**super().ready(), "node": ray.get_runtime_context().get_node_id(), "address": address}

    def start(self, assignment: Assignment, place: Place) -> RankInfo:
        info = super().start(assignment, place)
        return dataclasses.replace(info, node=ray.get_runtime_context().get_node_id())


@dataclass(kw_only=True)
class _Attempt:
    """What is known of the attempt that runs; all dicts are by rank."""

    assignment: Assignment
    start_by: float
    one_node: bool
    launched: bool = False
    placed: dict[int, RankInfo] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)
    delivered: dict[int, int] = field(default_factory=dict)
    draining_since: dict[int, float] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)  # of the rank whose batch is being delivered
    delivering: int | None = None
    endings: list[RankEnding] = field(default_factory=list)
    asked: Outcome | None = None  # the end that we ask for
    deadline: float | None = None
    decided: bool = False
    said: int = 0  # messages of the group itself


class Group:
    """The shells of one shape; an attempt is begun when ``idle_since`` is not None."""

    def __init__(self, owner: Owner, shape: Shape) -> None:
        self._owner = owner
        self._shape = shape
        self._made_at = self._looked_at = time.monotonic()
        self._warned = self._broken = False
        self._infos: dict[int, dict[str, Any]] = {}
        self._attempt: _Attempt | None = None
        self.idle_since: float | None = None
        bundles = [dict(shape.bundle) or {"CPU": 0.001}] * shape.ranks
        self._placement = placement_group(bundles, strategy="PACK")
        self._shells = [self._shell(rank) for rank in range(shape.ranks)]
        for rank, shell in enumerate(self._shells):
            owner.watch(shell.ready.remote(), functools.partial(self._on_ready, rank))

    @property
    def is_ready(self) -> bool:
        """All shells have started."""
        return len(self._infos) == self._shape.ranks

    @property
    def number(self) -> int | None:
        """The trial that runs here."""
        return self._attempt.assignment.number if self._attempt is not None else None

    def begin(self, assignment: Assignment) -> None:
        """Run an attempt: rank 0 binds a socket, then every rank is started with its address."""
        one_node = len({info["loopback"] for info in self._infos.values()}) == 1
        start_by = time.monotonic() + STARTING
        self._attempt = _Attempt(assignment=assignment, start_by=start_by, one_node=one_node)
        self.idle_since = None
        if self._shape.ranks == 1:
            self._start_ranks(self._attempt, "", 0)
            return
        host = "127.0.0.1" if one_node else self._infos[0]["address"]

        def start(attempt: _Attempt, rank: int, port: int) -> None:
            self._start_ranks(attempt, host, port)

        self._owner.watch(self._shells[0].listen.remote(host), self._bound(start, 0))

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
            self._shells[rank].reply.remote([answer])

    def stop(self, outcome: Outcome, grace: float) -> None:
        """Ask all ranks to stop; end them after the grace."""
        if self._attempt is not None:
            self._attempt.asked = self._attempt.asked or outcome
            for shell in self._shells:
                shell.stop.remote()
            self._shorten(self._attempt, grace)

    def kill(self, outcome: Outcome) -> None:
        """End all ranks now."""
        if self._attempt is not None:
            self._attempt.asked = outcome
            self._shorten(self._attempt, 0)
            self._end_overdue(self._attempt, time.monotonic())

    def keep_time(self, now: float) -> None:
        """End what is past its deadline, and take shells that do not answer for dead.

        Called after all results that had arrived were handled. A long time between two calls is
        a driver that was stopped or busy, and says nothing about the shells.
        """
        absent = now - self._looked_at if now - self._looked_at > ABSENT else 0.0
        self._looked_at = now
        if not self.is_ready and not self._warned and now - self._made_at > BUSY:
            self._warned = True
            log.warning(
                "no room for a trial for %d s: other work on the cluster holds what it needs (%s); it waits",
                BUSY,
                dict(self._shape.bundle),
            )
        attempt = self._attempt
        if attempt is None:
            return
        attempt.start_by += absent
        if now > attempt.start_by and len(attempt.placed) < self._shape.ranks:
            for rank in set(range(self._shape.ranks)) - set(attempt.placed):
                self._lose(attempt, rank, "did not start its process in time")
        for rank in list(attempt.draining_since):
            attempt.draining_since[rank] += absent
            if now - attempt.draining_since[rank] > SILENT:
                self._lose(attempt, rank, "is lost: its shell does not answer")
        self._end_overdue(attempt, now)

    def dissolve(self) -> None:
        """Give the resources back; the zygotes end what runs when their shells go."""
        for shell in self._shells:
            with contextlib.suppress(Exception):
                ray.kill(shell)
        with contextlib.suppress(Exception):
            remove_placement_group(self._placement)

    def shutdown(self) -> list[Any]:
        """Let the shells clean up; what to wait for before :meth:`dissolve`."""
        return [shell.shutdown.remote() for shell in self._shells] if self.is_ready else []

    # ------------------------------------------------------------------ steps of an attempt

    def _shell(self, rank: int) -> Any:
        bundle = self._shape.bundle
        custom = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
        actor = ray.remote(RayShell).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            memory=bundle.get("memory"),
            resources=custom or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, rank),
            max_restarts=0,  # retries are decided in one place, the driver
            max_concurrency=8,
        )
        return actor.remote(self._shape.run, self._shape.cpus, self._shape.hide_gpus, self._shape.preload)

    def _bound(self, method: Callable[[_Attempt, int, Any], None], rank: int) -> Callable[[Any], None]:
        """A handler for the attempt that runs now; results of an earlier one are dropped."""
        attempt = self._attempt

        def handle(result: Any) -> None:
            if attempt is None or self._attempt is not attempt or rank in attempt.gone:
                return
            if isinstance(result, Exception):
                self._lose(attempt, rank, f"is lost: {cause(result)}")
            else:
                method(attempt, rank, result)

        return handle

    def _on_ready(self, rank: int, result: Any) -> None:
        if isinstance(result, Exception):
            self._owner.broke(self, cause(result))
            return
        self._infos[rank] = result
        if self.is_ready:
            self.idle_since = time.monotonic()
            self._owner.became_idle(self)

    def _start_ranks(self, attempt: _Attempt, host: str, port: int) -> None:
        attempt.launched = True
        before: dict[str, int] = {}
        for rank, shell in enumerate(self._shells):
            node = self._infos[rank]["node"]
            local = before.get(node, 0)
            before[node] = local + 1
            place = Place(
                rank=rank,
                local_rank=local,
                world_size=self._shape.ranks,
                host=host,
                port=port,
                one_node=attempt.one_node,
            )
            ref = shell.start.remote(attempt.assignment, place)
            self._owner.watch(ref, self._bound(self._on_started, rank))

    def _on_started(self, attempt: _Attempt, rank: int, info: RankInfo) -> None:
        attempt.placed[rank] = info
        if attempt.gone:
            self._drain(attempt, rank)
        elif len(attempt.placed) == self._shape.ranks:
            self._say(attempt, Started(ranks=tuple(attempt.placed[one] for one in sorted(attempt.placed))))
            for one in sorted(attempt.placed):
                self._drain(attempt, one)

    def _drain(self, attempt: _Attempt, rank: int) -> None:
        if self._attempt is not attempt or rank in attempt.gone or rank in attempt.draining_since:
            return
        answers, attempt.answers = attempt.answers, []
        after, seen = attempt.acknowledged.get(rank, 0), attempt.delivered.get(rank, 0)
        ref = self._shells[rank].drain.remote(after, attempt.assignment.epoch, answers, DRAIN, seen)
        attempt.draining_since[rank] = time.monotonic()
        self._owner.watch(ref, self._bound(self._on_batch, rank))

    def _on_batch(self, attempt: _Attempt, rank: int, batch: Batch) -> None:
        attempt.draining_since.pop(rank, None)
        attempt.delivering = rank
        for seq, line in batch.messages:
            if seq <= attempt.delivered.get(rank, 0):
                continue
            attempt.delivered[rank] = seq
            message = decode(line)
            if isinstance(message, Finished):
                ending = RankEnding(rank=rank, outcome=message.outcome, collateral=message.collateral)
                attempt.endings.append(ending)
            elif not attempt.decided:
                self._owner.deliver(attempt.assignment, rank, seq, message)
        attempt.delivering = None
        if batch.ended:
            attempt.gone.add(rank)
            attempt.answers.clear()
        else:
            self._drain(attempt, rank)
        self._conclude(attempt)

    def _lose(self, attempt: _Attempt, rank: int, why: str) -> None:
        """A shell is dead, with its child: the group cannot be used again."""
        if self._attempt is not attempt or rank in attempt.gone:
            return
        self._broken = True
        attempt.gone.update([rank] if attempt.launched else range(self._shape.ranks))
        attempt.draining_since.pop(rank, None)
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
        everyone = len(attempt.gone) == self._shape.ranks
        silent = len({ending.rank for ending in attempt.endings}) == self._shape.ranks
        leader = any(
            ending.rank == 0 and ending.outcome.reason in (*_WELL, Reason.INTERRUPTED)
            for ending in attempt.endings
        )
        failed = any(ending.outcome.reason not in _WELL for ending in attempt.endings)
        if leader or failed:
            self._shorten(attempt, LEAVING)
        if not attempt.decided and (everyone or (leader and silent)):
            attempt.decided = True
            self._say(attempt, Ended(outcome=decide(attempt.endings, attempt.asked)))
        if everyone:
            self._attempt = None
            self.idle_since = None if self._broken else time.monotonic()
            self._say(attempt, Released())
            if self._broken:
                self._owner.broke(self, attempt.endings[-1].outcome.message)
            else:
                self._owner.became_idle(self)

    def _say(self, attempt: _Attempt, message: Message) -> None:
        attempt.said += 1
        self._owner.deliver(attempt.assignment, GROUP, attempt.said, message)

    def _end_overdue(self, attempt: _Attempt, now: float) -> None:
        if attempt.deadline is not None and now >= attempt.deadline:
            attempt.deadline = now + AGAIN
            for rank, shell in enumerate(self._shells):
                if rank not in attempt.gone:
                    shell.kill.remote()

    def _shorten(self, attempt: _Attempt, seconds: float) -> None:
        moment = time.monotonic() + seconds
        attempt.deadline = moment if attempt.deadline is None else min(attempt.deadline, moment)


def cause(error: Exception) -> str:
    """Why a call of a shell failed, in one line."""
    text = str(error).strip()
    if isinstance(error, ray.exceptions.NodeDiedError) or "node has died" in text:
        return "its node died"
    if isinstance(error, ray.exceptions.ActorDiedError) and "creation task" not in text:
        return "its shell died"
    return (text.splitlines() or [type(error).__name__])[-1].strip()
