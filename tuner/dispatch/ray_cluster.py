"""Attempts on a Ray cluster: groups of shells in placement groups, kept for the next trial.

This module carries messages and deadlines; how the ranks' ends become one outcome is decided in
:mod:`tuner.dispatch.group`. Everything runs in the driver's thread, from :meth:`RayExecutor.poll`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch.base import Cluster, Executor, Sink
from tuner.dispatch.group import RankEnding, decide
from tuner.dispatch.reaper import Reaper
from tuner.dispatch.shell import Batch, Shell
from tuner.errors import ClusterUnavailable, Infeasible
from tuner.messages import Answer, Ended, Envelope, Finished, Message, RankInfo, Released, Started, decode
from tuner.outcome import Outcome, Reason
from tuner.processes import MARK, sweep
from tuner.resources import Resources

__all__ = ["RayExecutor"]

log = logging.getLogger(__name__)

IDLE = 10.0  # seconds that a group without work is kept
LEAVING = 10.0  # seconds that the other ranks get when one has ended
DRAIN = 1.0  # seconds of one long poll
SILENT = 20.0  # seconds without an answer to a drain, after which a shell is taken for dead
_START = 120.0  # seconds that a shell may take to start its child
_GROUP = -1  # the rank of messages that speak for the whole group

_LOCAL_RAY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hide the GPUs from actors that asked for none
    "RAY_memory_monitor_refresh_ms": "0",  # it may end innocent actors with the hog
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


class RayExecutor(Executor):
    """Runs attempts on Ray; see :class:`tuner.dispatch.base.Executor`.

    Args:
        address: of a cluster; None: ``$RAY_ADDRESS``, else the Ray that this process is connected
            to, else a local one that is started and ended here.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._groups: list[_Group] = []
        self._waiting: deque[Assignment] = deque()
        self._refs: dict[Any, Callable[[Any], None]] = {}
        self._started_ray = False
        self._reaper: Reaper | None = None
        self._session = ""
        self._run = ""

    def open(self, run: str, epoch: int, resources: Resources, sink: Sink) -> Cluster:
        self._run, self._epoch, self._resources, self._sink = run, epoch, resources, sink
        self._connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total_gpus = sum(node.get("GPU", 0) for node in nodes)
        gpus = resources.gpus if resources.gpus is not None else (1 if total_gpus else 0)
        self._bundle = resources.bundle(gpus)
        slots = _fitting(nodes, self._bundle) // resources.ranks
        description = _described(nodes)
        if slots < 1:
            raise Infeasible(_shortage(nodes, self._bundle, resources.ranks, description))
        self._hide_gpus = not gpus
        self._slots = slots
        return Cluster(slots=slots, gpus=gpus, description=description)

    def start(self, assignment: Assignment) -> None:
        self._waiting.append(assignment)
        self._match()

    def poll(self, timeout: float) -> None:
        self._keep_time()
        if not self._refs:
            time.sleep(min(timeout, 0.05))
            return
        refs = list(self._refs)
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            handler = self._refs.pop(ref, None)
            if handler is None:
                continue
            try:
                result = ray.get(ref)
            except (ray.exceptions.RayError, RuntimeError) as error:
                result = error
            handler(result)
        self._keep_time()

    def answer(self, number: int, rank: int, answer: Answer) -> None:
        group = self._busy(number)
        if group is not None:
            group.answer(rank, answer)

    def committed(self, number: int, rank: int, seq: int) -> None:
        group = self._busy(number)
        if group is not None and rank >= 0:
            group.acknowledged[rank] = max(seq, group.acknowledged.get(rank, 0))

    def stop(self, number: int, reason: Reason, grace: float) -> None:
        message = f"asked to stop, and ended after {grace:g} s of grace"
        if not self._withdraw(number, Outcome(reason=reason, message="stopped before it began")):
            group = self._busy(number)
            if group is not None:
                group.stop(Outcome(reason=reason, message=message), grace)

    def kill(self, number: int, reason: Reason, message: str) -> None:
        outcome = Outcome(reason=reason, message=message)
        if not self._withdraw(number, outcome):
            group = self._busy(number)
            if group is not None:
                group.kill(outcome)

    def close(self) -> None:
        self._waiting.clear()
        groups, self._groups = self._groups, []
        if ray.is_initialized():
            leaving = [shell.shutdown.remote() for group in groups for shell in group.shells]
            with contextlib.suppress(ray.exceptions.RayError):
                if leaving:
                    ray.wait(leaving, num_returns=len(leaving), timeout=3)
            for group in groups:
                group.dissolve()
        self._refs.clear()
        if self._started_ray:
            self._started_ray = False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.shutdown()
        if self._reaper is not None:
            reaper, self._reaper = self._reaper, None
            sweep(self._run, spare=[reaper.pid])
            if self._session:
                shutil.rmtree(self._session, ignore_errors=True)
            reaper.dismiss()

    # ------------------------------------------------------------------ for groups

    def watch(self, ref: Any, handler: Callable[[Any], None]) -> None:
        """Call ``handler`` with the result of ``ref``, or with its error, from :meth:`poll`."""
        self._refs[ref] = handler

    def deliver(self, assignment: Assignment, rank: int, seq: int, message: Message) -> None:
        """Hand a message to the driver."""
        self._sink(
            Envelope(
                number=assignment.number, attempt=assignment.attempt, rank=rank, seq=seq, message=message
            )
        )

    def forget(self, group: _Group) -> None:
        """A group broke, or has been idle for long: let its resources go."""
        if group in self._groups:
            self._groups.remove(group)
            group.dissolve()
        self._match()

    def match(self) -> None:
        """A group became idle."""
        self._match()

    # ------------------------------------------------------------------ inside

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        address = self._address or os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address not in (None, "local"):
            try:
                ray.init(address=address, **options)
            except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ClusterUnavailable(
                    f"no Ray cluster answers at {address!r} ({line}); start one with 'ray start --head', "
                    "or leave the address out for a local one"
                ) from error
            self._started_ray = True
            return
        self._reaper = Reaper(self._run)
        wanted = {**_LOCAL_RAY, MARK: self._run}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                context = ray.init(address="local", include_dashboard=False, **options)
        except Exception as error:
            self.close()
            raise ClusterUnavailable(f"a local Ray could not be started: {error}") from error
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        self._started_ray = True
        self._session = str(context.address_info.get("session_dir", ""))
        if self._session:
            self._reaper.remove(self._session)

    def _match(self) -> None:
        """Give waiting attempts to idle groups, and start groups for the rest."""
        for group in self._groups:
            if self._waiting and group.idle_since is not None:
                group.begin(self._waiting.popleft())
        starting = sum(1 for group in self._groups if not group.is_ready)
        if len(self._waiting) > starting and len(self._groups) < self._slots:
            preload = self._waiting[0].objective.preload
            group = _Group(self, self._run, self._resources, self._bundle, self._hide_gpus, preload)
            self._groups.append(group)

    def _busy(self, number: int) -> _Group | None:
        for group in self._groups:
            if group.assignment is not None and group.assignment.number == number:
                return group
        return None

    def _withdraw(self, number: int, outcome: Outcome) -> bool:
        """End an attempt that no group has taken yet."""
        for assignment in self._waiting:
            if assignment.number == number:
                self._waiting.remove(assignment)
                self.deliver(assignment, _GROUP, 1, Ended(outcome=outcome))
                self.deliver(assignment, _GROUP, 2, Released())
                return True
        return False

    def _keep_time(self) -> None:
        now = time.monotonic()
        for group in list(self._groups):
            group.keep_time(now)
            if group.idle_since is not None and now - group.idle_since > IDLE:
                self.forget(group)


class _Group:
    """The shells of one trial at a time, in one placement group."""

    def __init__(
        self,
        executor: RayExecutor,
        run: str,
        resources: Resources,
        bundle: dict[str, float],
        hide_gpus: bool,
        preload: tuple[str, ...],
    ) -> None:
        self._executor = executor
        self._ranks = resources.ranks
        self._placement = placement_group([bundle or {"CPU": 0.001}] * resources.ranks, strategy="PACK")
        self.shells: list[Any] = []
        actor = ray.remote(Shell)
        custom = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
        for rank in range(resources.ranks):
            strategy = PlacementGroupSchedulingStrategy(self._placement, rank)
            handle = actor.options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                memory=bundle.get("memory"),
                resources=custom or None,
                scheduling_strategy=strategy,
                max_restarts=0,
                max_concurrency=8,
            )
            self.shells.append(handle.remote(run, resources.cpus, hide_gpus, preload))
        self._infos: dict[int, dict[str, Any]] = {}
        self.idle_since: float | None = None
        self.assignment: Assignment | None = None
        self._broken = False
        self._asked_at = time.monotonic()
        self._warned = False
        self._reset()
        for rank, shell in enumerate(self.shells):
            executor.watch(shell.ready.remote(), lambda result, rank=rank: self._on_ready(rank, result))

    @property
    def is_ready(self) -> bool:
        """All shells have started."""
        return len(self._infos) == self._ranks

    def begin(self, assignment: Assignment) -> None:
        """Run an attempt: rank 0 binds a socket, then every rank is started with its address."""
        self.assignment, self.idle_since = assignment, None
        self._reset()
        self._deadline = None
        self._start_by = time.monotonic() + _START
        hosts = {info["host"] for info in self._infos.values()}
        self._one_node = len(hosts) == 1
        if self._ranks == 1:
            self._start_ranks("", 0)
            return
        host = "127.0.0.1" if self._one_node else self._infos[0]["address"]
        ref = self.shells[0].listen.remote(host)
        self._executor.watch(ref, lambda result: self._on_listening(host, result))

    def answer(self, rank: int, answer: Answer) -> None:
        """Deliver an answer: with the drain that follows when we are in the rank's batch, else at once."""
        if self._delivering == rank:
            self._answers.append(answer)
        else:
            self.shells[rank].reply.remote([answer])

    def stop(self, outcome: Outcome, grace: float) -> None:
        """Ask all ranks to stop; end them after the grace."""
        if self._asked is None:
            self._asked = outcome
        for shell in self.shells:
            shell.stop.remote()
        self._shorten(grace)

    def kill(self, outcome: Outcome) -> None:
        """End all ranks now."""
        self._asked = outcome
        self._shorten(0)
        self.keep_time(time.monotonic())

    def keep_time(self, now: float) -> None:
        """End what is past its deadline, and take shells that do not answer for dead."""
        if not self.is_ready:
            if not self._warned and now - self._asked_at > 60:
                self._warned = True
                log.warning("a group waits for resources for 60 s; the cluster is busy with other work")
            return
        if self.assignment is None:
            return
        if self._start_by is not None and now > self._start_by:
            for rank in range(self._ranks):
                if rank not in self._placed:
                    self._lose(rank, "did not start its process in time")
        for rank, since in list(self._draining_since.items()):
            if now - since > SILENT and rank not in self._gone:
                self._lose(rank, "is lost: its shell does not answer")
        if self._deadline is not None and now >= self._deadline:
            self._deadline = now + LEAVING
            for rank, shell in enumerate(self.shells):
                if rank not in self._gone:
                    shell.kill.remote()

    def dissolve(self) -> None:
        """Give the resources back."""
        for shell in self.shells:
            with contextlib.suppress(Exception):
                ray.kill(shell)
        with contextlib.suppress(Exception):
            remove_placement_group(self._placement)

    # ------------------------------------------------------------------ steps of an attempt

    def _reset(self) -> None:
        self.acknowledged: dict[int, int] = {}
        self._delivered: dict[int, int] = {}
        self._draining_since: dict[int, float] = {}
        self._answers: list[Answer] = []
        self._delivering: int | None = None
        self._placed: dict[int, RankInfo] = {}
        self._endings: list[RankEnding] = []
        self._gone: set[int] = set()
        self._asked: Outcome | None = None
        self._decided = False
        self._deadline: float | None = None
        self._start_by: float | None = None
        self._one_node = True

    def _on_ready(self, rank: int, result: Any) -> None:
        if isinstance(result, Exception):
            log.warning("a shell could not start: %s", str(result).strip().splitlines()[0])
            self._executor.forget(self)
            return
        self._infos[rank] = result
        if self.is_ready:
            self.idle_since = time.monotonic()
            self._executor.match()

    def _on_listening(self, host: str, result: Any) -> None:
        if isinstance(result, Exception):
            self._broken = True
            for rank in range(self._ranks):
                self._lose(rank, "is lost: its shell died")
            return
        self._start_ranks(host, result)

    def _start_ranks(self, host: str, port: int) -> None:
        before: dict[str, int] = {}
        for rank, shell in enumerate(self.shells):
            node = self._infos[rank]["host"]
            local = before.get(node, 0)
            before[node] = local + 1
            place = Place(
                rank=rank,
                local_rank=local,
                world_size=self._ranks,
                host=host,
                port=port,
                one_node=self._one_node,
            )
            ref = shell.start.remote(self.assignment, place)
            self._executor.watch(ref, self._bound(self._on_started, rank))

    def _bound(self, method: Callable[[int, Any], None], rank: int) -> Callable[[Any], None]:
        """A handler of this attempt; results of an earlier one are dropped."""
        assignment = self.assignment

        def handle(result: Any) -> None:
            if self.assignment is assignment:
                method(rank, result)

        return handle

    def _on_started(self, rank: int, result: Any) -> None:
        if isinstance(result, Exception):
            self._lose(rank, "is lost: its shell died")
            return
        self._placed[rank] = result
        self._drain(rank)
        if len(self._placed) == self._ranks and self.assignment is not None:
            self._start_by = None
            ranks = tuple(self._placed[one] for one in sorted(self._placed))
            self._executor.deliver(self.assignment, _GROUP, 0, Started(ranks=ranks))

    def _drain(self, rank: int) -> None:
        assert self.assignment is not None
        answers, self._answers = self._answers, []
        after = self.acknowledged.get(rank, 0)
        ref = self.shells[rank].drain.remote(after, self.assignment.epoch, answers, DRAIN)
        self._draining_since[rank] = time.monotonic()
        self._executor.watch(ref, self._bound(self._on_batch, rank))

    def _on_batch(self, rank: int, result: Any) -> None:
        assert self.assignment is not None
        if isinstance(result, Exception):
            self._lose(rank, "is lost: its shell died")
            return
        batch: Batch = result
        assignment, self._delivering = self.assignment, rank
        for seq, line in batch.messages:
            if seq <= self._delivered.get(rank, 0):
                continue
            self._delivered[rank] = seq
            message = decode(line)
            if isinstance(message, Finished):
                self._endings.append(
                    RankEnding(rank=rank, outcome=message.outcome, collateral=message.collateral)
                )
            elif not self._decided:
                self._executor.deliver(assignment, rank, seq, message)
        self._delivering = None
        if batch.ended:
            self._gone.add(rank)
            self._draining_since.pop(rank, None)
            self._answers = []
        else:
            self._drain(rank)
        self._conclude()

    def _lose(self, rank: int, why: str) -> None:
        """A shell is dead, with its child: the group cannot be used again."""
        self._broken = True
        if rank not in self._gone:
            self._gone.add(rank)
            self._draining_since.pop(rank, None)
            with contextlib.suppress(Exception):
                ray.kill(self.shells[rank])
            outcome = Outcome(reason=Reason.NODE_LOST, message=why)
            self._endings.append(RankEnding(rank=rank, outcome=outcome))
            self._conclude()

    def _conclude(self) -> None:
        """Send the outcome when it is certain, and free the slot when every rank is gone."""
        if not self._endings or self.assignment is None:
            return
        everyone = len(self._gone) == self._ranks
        leader = any(
            ending.rank == 0 and ending.outcome.reason in (Reason.COMPLETE, Reason.PRUNED, Reason.INTERRUPTED)
            for ending in self._endings
        )
        failed = any(
            ending.outcome.reason not in (Reason.COMPLETE, Reason.PRUNED) for ending in self._endings
        )
        if leader or failed or self._ranks == 1:
            self._shorten(LEAVING)
        assignment = self.assignment
        if not self._decided and (leader or everyone):
            self._decided = True
            outcome = decide(self._endings, self._asked)
            self._executor.deliver(assignment, _GROUP, 0, Ended(outcome=outcome))
        if everyone:
            self.assignment = None
            if self._broken:
                self._executor.deliver(assignment, _GROUP, 0, Released())
                self._executor.forget(self)
            else:
                self.idle_since = time.monotonic()
                self._executor.deliver(assignment, _GROUP, 0, Released())
                self._executor.match()

    def _shorten(self, seconds: float) -> None:
        moment = time.monotonic() + seconds
        self._deadline = moment if self._deadline is None else min(self._deadline, moment)


def _fitting(nodes: list[dict[str, float]], bundle: dict[str, float]) -> int:
    """How many bundles the nodes hold when they are empty."""
    if not bundle:
        return 1000
    return sum(
        min(int((node.get(name, 0) + 1e-9) / amount) for name, amount in bundle.items()) for node in nodes
    )


def _described(nodes: list[dict[str, float]]) -> str:
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    text = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, {cpus:g} CPUs"
    return f"{text}, {gpus:g} GPUs" if gpus else text


def _shortage(nodes: list[dict[str, float]], bundle: dict[str, float], ranks: int, found: str) -> str:
    """What is missing, in one line."""
    for name, amount in bundle.items():
        total = sum(node.get(name, 0) for node in nodes)
        if amount * ranks > total:
            unit = {"CPU": "CPUs", "GPU": "GPUs", "memory": "bytes of memory"}.get(name, name)
            return (
                f"one trial needs {amount * ranks:g} {unit} (ranks={ranks} of {amount:g}), "
                f"the cluster has {total:g}; ask for less, or add nodes"
            )
    return f"one trial needs {ranks} times {bundle}, which no placement on the cluster ({found}) can hold"
