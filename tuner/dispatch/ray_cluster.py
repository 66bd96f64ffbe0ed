"""Attempts on a Ray cluster: groups of shells in placement groups, kept for the next trial."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions

from tuner.assignment import Assignment
from tuner.dispatch.base import Cluster, Executor, Sink
from tuner.dispatch.capacity import described, fitting, shortage
from tuner.dispatch.local_ray import LocalRay, quietly
from tuner.dispatch.ray_group import GROUP, Group, Shape
from tuner.errors import ClusterUnavailable, Infeasible
from tuner.messages import Answer, Ended, Envelope, Message, Released
from tuner.outcome import Outcome, Reason
from tuner.resources import Resources

__all__ = ["RayExecutor"]

log = logging.getLogger(__name__)

IDLE = 10.0  # seconds that a group without work is kept
CONNECT = 5.0  # seconds for a cluster's port to answer
HOPELESS = 3  # groups in a row that could not start, with none before, after which the run ends


class RayExecutor(Executor):
    """Runs attempts on Ray; see :class:`tuner.dispatch.base.Executor`.

    Args:
        address: of a cluster; None: the Ray that this process is connected to, else
            ``$RAY_ADDRESS``, else a local one that is started and ended here.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._groups: list[Group] = []
        self._waiting: deque[Assignment] = deque()
        self._refs: dict[Any, Callable[[Any], None]] = {}
        self._local: LocalRay | None = None
        self._connected = False  # by us
        self._started_one = False
        self._failed_starts = 0

    def open(self, run: str, epoch: int, resources: Resources, sink: Sink) -> Cluster:
        self._run, self._resources, self._sink = run, resources, sink
        self._connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        total_gpus = sum(node.get("GPU", 0) for node in nodes)
        gpus = resources.gpus if resources.gpus is not None else float(total_gpus > 0)
        self._bundle = resources.bundle(gpus)
        self._hide_gpus = not gpus
        self._slots = fitting(nodes, self._bundle) // resources.ranks
        if self._slots < 1:
            raise Infeasible(shortage(nodes, self._bundle, resources.ranks))
        return Cluster(slots=self._slots, gpus=gpus, description=described(nodes))

    def start(self, assignment: Assignment) -> None:
        self._waiting.append(assignment)
        self._match()

    def poll(self, timeout: float) -> None:
        if self._is_dead:
            raise ClusterUnavailable("the local Ray was killed; what ran goes on when the study is resumed")
        if self._refs:
            refs = list(self._refs)
            ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
            if ready and len(refs) > 1:
                ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in ready:
                handler = self._refs.pop(ref, None)
                if handler is not None:
                    handler(_result(ref))
        else:
            time.sleep(timeout)
        self._keep_time()

    def answer(self, number: int, rank: int, answer: Answer) -> None:
        for group in self._of(number):
            group.answer(rank, answer)

    def committed(self, number: int, rank: int, seq: int) -> None:
        for group in self._of(number):
            group.committed(rank, seq)

    def stop(self, number: int, reason: Reason, grace: float) -> None:
        if not self._withdraw(number, Outcome(reason=reason, message="stopped before it began")):
            message = f"asked to stop, and ended after {grace:g} s of grace"
            for group in self._of(number):
                group.stop(Outcome(reason=reason, message=message), grace)

    def kill(self, number: int, reason: Reason, message: str) -> None:
        outcome = Outcome(reason=reason, message=message)
        if not self._withdraw(number, outcome):
            for group in self._of(number):
                group.kill(outcome)

    def close(self) -> None:
        self._waiting.clear()
        groups, self._groups = self._groups, []
        if ray.is_initialized() and not self._is_dead:
            leaving = [ref for group in groups for ref in group.shutdown()]
            with contextlib.suppress(ray.exceptions.RayError):
                if leaving:
                    ray.wait(leaving, num_returns=len(leaving), timeout=3)
            for group in groups:
                group.dissolve()
        self._refs.clear()
        if self._connected:
            self._connected = False
            with quietly():
                ray.shutdown()
        if self._local is not None:
            local, self._local = self._local, None
            local.stop()

    # ------------------------------------------------------------------ for groups

    def watch(self, ref: Any, handler: Callable[[Any], None]) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        self._refs[ref] = handler

    def deliver(self, assignment: Assignment, rank: int, seq: int, message: Message) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        number, attempt = assignment.number, assignment.attempt
        self._sink(Envelope(number=number, attempt=attempt, rank=rank, seq=seq, message=message))

    def became_idle(self, group: Group) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        self._started_one, self._failed_starts = True, 0
        self._match()

    def broke(self, group: Group, why: str) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`.

        Raises:
            ClusterUnavailable: no group has ever started, and this one is not the first that failed.
        """
        if group not in self._groups:
            return
        self._groups.remove(group)
        group.dissolve()
        if not group.is_ready:
            self._failed_starts += 1
            log.warning("a group could not start: %s", why)
            if not self._started_one and self._failed_starts >= HOPELESS:
                raise ClusterUnavailable(
                    f"Tuner's actors cannot start on the cluster: {why}; "
                    "every node needs the same Tuner and Python as here"
                )
        self._match()

    # ------------------------------------------------------------------ inside

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        address = self._address or os.environ.get("RAY_ADDRESS")
        if address in (None, "local"):
            self._local = LocalRay(self._run)
            self._local.start()
            return
        try:
            _knock(address)
            with quietly():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClusterUnavailable(
                f"no Ray cluster answers at {address!r} ({line}); start one with 'ray start --head', "
                "or leave the address out for a local one"
            ) from error
        self._connected = True

    @property
    def _is_dead(self) -> bool:
        return self._local is not None and not self._local.is_alive

    def _match(self) -> None:
        """Give waiting attempts to idle groups, and start groups for the rest."""
        for group in self._groups:
            if self._waiting and group.idle_since is not None:
                group.begin(self._waiting.popleft())
        starting = sum(1 for group in self._groups if not group.is_ready)
        while len(self._waiting) > starting and len(self._groups) < self._slots:
            starting += 1
            shape = Shape(
                run=self._run,
                ranks=self._resources.ranks,
                cpus=self._resources.cpus,
                bundle=self._bundle,
                hide_gpus=self._hide_gpus,
                preload=self._waiting[0].objective.preload,
            )
            self._groups.append(Group(self, shape))

    def _of(self, number: int) -> list[Group]:
        return [group for group in self._groups if group.number == number]

    def _withdraw(self, number: int, outcome: Outcome) -> bool:
        """End an attempt that no group has taken yet."""
        for assignment in self._waiting:
            if assignment.number == number:
                self._waiting.remove(assignment)
                self.deliver(assignment, GROUP, 1, Ended(outcome=outcome))
                self.deliver(assignment, GROUP, 2, Released())
                return True
        return False

    def _keep_time(self) -> None:
        now = time.monotonic()
        for group in list(self._groups):
            group.keep_time(now)
            if group.idle_since is not None and now - group.idle_since > IDLE:
                self._groups.remove(group)
                group.dissolve()


def _result(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except (ray.exceptions.RayError, RuntimeError) as error:
        return error


def _knock(address: str) -> None:
    """Fail soon where nothing listens: Ray itself would try for long.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT).close()
