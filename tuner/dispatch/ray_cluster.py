"""Attempts on a Ray cluster: groups of shells in placement groups, kept for the next trial."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
from ray._private.authentication import authentication_token_setup as _tokens

from tuner.assignment import Assignment
from tuner.dispatch import standing
from tuner.dispatch.base import Adopted, Cluster, Executor, Sink
from tuner.dispatch.capacity import Nodes, described, fitting, rest, shortage
from tuner.dispatch.local_ray import LocalRay, quietly
from tuner.dispatch.probe import probe
from tuner.dispatch.ray_group import GROUP, Group, Shape, cause
from tuner.dispatch.shell import StaleEpoch, Standing
from tuner.errors import ClusterUnavailable, Infeasible, StudyHeld
from tuner.messages import Answer, Ended, Envelope, Message, RankInfo, Released
from tuner.outcome import Outcome, Reason
from tuner.processes import are_ended
from tuner.resources import Resources

__all__ = ["RayExecutor", "show_token"]

log = logging.getLogger(__name__)

IDLE = 10.0  # seconds that a group without work is kept
CONNECT = 5.0  # seconds for a cluster's port to answer
HOPELESS = 3  # groups in a row that could not start, with none before, after which the run ends
TAKE_OVER = 10.0  # seconds for shells of another driver to answer, and again to end
PING = 2.0  # seconds between two words that the driver lives, whatever its loop is busy with
LOOK = 1.0  # seconds between two looks at the nodes of a standing cluster
SWEEP = 5.0  # seconds between two looks at what dead drivers of any study have left on it
ALONE = 60.0  # seconds that an attempt waits for a node of its own; then it shares one
WITHOUT_DEADLINE = 60.0  # seconds that attempts get on a node that is to go some time
HURRY = 2.0  # seconds before a node goes, by which its attempts have left


class RayExecutor(Executor):
    """Runs attempts on Ray; see :class:`tuner.dispatch.base.Executor`.

    Args:
        address: of a cluster; None: the Ray that this process is connected to, else
            ``$RAY_ADDRESS``, else a local one that is started and ended here.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._groups: list[Group] = []
        self._parting: list[Group] = []
        self._waiting: deque[Assignment] = deque()
        self._refs: dict[Any, Callable[[Any], None]] = {}
        self._local: LocalRay | None = None
        self._connected = False  # by us
        self._started_one = False
        self._failed_starts = 0
        self._superseded: StaleEpoch | None = None
        self._unsure = False  # a shell of another driver did not answer
        self._looked = self._swept = 0.0
        self._orphans: set[str] = set()
        self._closed = threading.Event()
        self._closed.set()

    def open(self, run: str, epoch: int, resources: Resources, sink: Sink, study: str = "") -> Cluster:
        self._run, self._epoch, self._sink, self._study = run, epoch, sink, study
        self._resources = resources
        self._connect()
        self._nodes = _nodes()
        total_gpus = sum(node.get("GPU", 0) for node in self._nodes)
        self._gpus = resources.gpus if resources.gpus is not None else float(total_gpus > 0)
        bundle = resources.bundle(self._gpus)
        if self.slots() < 1:
            raise Infeasible(shortage(self._nodes, bundle, resources.ranks))
        kind = "local" if self._local is not None else "standing"
        self._home = f"{kind}/{standing.cluster_id()}"
        if self._closed.is_set():
            self._closed.clear()
            threading.Thread(target=self._keep_saying, name="tuner-ping", daemon=True).start()
        return Cluster(
            slots=self.slots(), gpus=self._gpus, description=described(self._nodes), home=self._home
        )

    def probe(self, folder: str) -> dict[str, str]:
        return probe(folder)

    def slots(self) -> int:
        return fitting(self._nodes, self._resources.bundle(self._gpus)) // self._resources.ranks

    def adopt(self, wanted: Callable[[Assignment], bool]) -> list[Adopted]:
        if self._local is not None or not self._study:
            return []
        known = {group.shape.name for group in self._groups}
        found = [one for one in standing.find(self._study) if one.name not in known]
        asked = {
            shell.adopt.remote(self._epoch): (one.name, rank)
            for one in found
            for rank, shell in one.shells.items()
        }
        states: dict[str, dict[int, Standing]] = {one.name: {} for one in found}
        for ref, result in _results(list(asked), TAKE_OVER).items():
            name, rank = asked[ref]
            if isinstance(result, StaleEpoch):
                raise StudyHeld(f"another driver has taken over ({cause(result)}); this one ends")
            if isinstance(result, Standing):
                states[name][rank] = result
        adopted, rejected = [], []
        for one in found:
            assignment = _whole(states[one.name])
            if assignment is None or not wanted(assignment):
                rejected.append(one)
                continue
            shape = self._shape(assignment, name=one.name)
            group = Group.adopt(self, shape, self._epoch, one, states[one.name])
            self._groups.append(group)
            self._started_one = True
            parts = [states[one.name][rank] for rank in range(shape.ranks)]
            ranks = tuple(part.placed for part in parts if part.placed is not None)
            adopted.append(Adopted(assignment=assignment, ranks=ranks, seconds=parts[0].seconds))
        self._end(rejected)
        return adopted

    def is_gone(self, home: str, ranks: Sequence[RankInfo]) -> bool:
        if home == self._home and not self._unsure:
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
            ranks = [rank for rank in ranks if rank.node not in alive]  # of others nothing is left
            return not ranks or are_ended(ranks)
        return bool(ranks) and are_ended(ranks)

    def start(self, assignment: Assignment) -> None:
        bundle, ranks = assignment.resources.bundle(assignment.gpus), assignment.resources.ranks
        self._waiting.append(assignment)
        if assignment.resources != self._resources and fitting(self._nodes, bundle) < ranks:
            why = Outcome(reason=Reason.REFUSED, message=shortage(self._nodes, bundle, ranks))
            self._withdraw(assignment.number, why)
        self._match()

    def poll(self, timeout: float) -> None:
        if self._is_dead:
            raise ClusterUnavailable("the local Ray was killed; what ran goes on when the study is resumed")
        self._handle(timeout)
        if self._superseded is not None:
            raise StudyHeld(f"another driver has taken over ({cause(self._superseded)}); this one ends")
        self._keep_time()

    def _handle(self, timeout: float) -> None:
        """Call the handlers of what has arrived."""
        if not self._refs:
            time.sleep(timeout)
            return
        refs = list(self._refs)
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            handler = self._refs.pop(ref, None)
            if handler is not None:
                handler(_result(ref))

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
        self._closed.set()
        self._waiting.clear()
        self._refs.clear()
        if ray.is_initialized() and not self._is_dead:
            for group in [*self._groups]:
                self._part(group)
            deadline = time.monotonic() + 5
            while self._parting and time.monotonic() < deadline:
                self._handle(0.1)
                self._parting = [group for group in self._parting if not group.finish_parting()]
        self._groups.clear()
        self._parting.clear()
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
        self._part(group)
        if not group.is_ready:
            self._failed_starts += 1
            log.warning("a group could not start: %s", why)
            if not self._started_one and self._failed_starts >= HOPELESS:
                raise ClusterUnavailable(
                    f"Tuner's actors cannot start on the cluster: {why}; "
                    "every node needs the same Tuner and Python as here"
                )
        self._match()

    def superseded(self, error: StaleEpoch) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        self._superseded = error

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
                show_token(address)
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClusterUnavailable(
                f"no Ray cluster answers at {address!r} ({line}); start one with 'ray start --head', "
                "leave the address out for a local one, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
                "if it asks for a token"
            ) from error
        self._connected = True

    @property
    def _is_dead(self) -> bool:
        return self._local is not None and not self._local.is_alive

    def _match(self) -> None:
        """Give waiting attempts to idle groups of their shape, and start groups for the rest.

        An attempt that needs a node for itself goes first: until it has one, groups that become
        idle are let go, and take nothing new.
        """
        shapes = {assignment.number: self._shape(assignment) for assignment in self._waiting}
        waits_alone = any(shapes[one.number].filler for one in self._waiting)
        for group in list(self._groups):
            if group.idle_since is None:
                continue
            fitting_one = next((one for one in self._waiting if shapes[one.number] == group.shape), None)
            if fitting_one is not None and (group.shape.filler or not waits_alone):
                self._waiting.remove(fitting_one)
                group.begin(fitting_one)
            elif waits_alone or group.shape.filler or (self._waiting and fitting_one is None):
                self._part(group)  # it holds what another shape waits for
        starting = [group.shape for group in self._groups if not group.is_ready]
        for assignment in self._waiting:
            shape = shapes[assignment.number]
            if shape in starting:
                starting.remove(shape)
            elif (shape.filler or not waits_alone) and self._has_room(shape):
                self._groups.append(Group.make(self, shape, self._epoch))

    def _has_room(self, shape: Shape) -> bool:
        """Groups of the usual shape are as many as the nodes hold; of others, as many as are asked for."""
        usual = shape.bundle == self._resources.bundle(self._gpus) and not shape.filler
        return not usual or len(self._groups) < self.slots()

    def _shape(self, assignment: Assignment, name: str = "") -> Shape:
        resources, gpus = assignment.resources, assignment.gpus
        bundle = resources.bundle(gpus)
        filler: Mapping[str, float] = {}
        if assignment.alone:
            filler = rest(self._nodes, bundle, resources.ranks)
        if not name and self._local is None and self._study:
            name = standing.group_name(self._study)
        return Shape(
            run=assignment.run,
            ranks=resources.ranks,
            cpus=resources.cpus,
            bundle=bundle,
            hide_gpus=not gpus,
            filler=filler,
            preload=assignment.objective.preload,
            name=name,
        )

    def _part(self, group: Group) -> None:
        self._groups.remove(group)
        self._parting.append(group)
        group.part()

    def _end(self, rejected: Sequence[standing.Found]) -> None:
        """End groups of another driver that nobody wants, before anything else begins."""
        refs = [shell.shutdown.remote(self._epoch) for one in rejected for shell in one.shells.values()]
        ended = _results(refs, TAKE_OVER).values()
        self._unsure = self._unsure or any(
            isinstance(result, ray.exceptions.GetTimeoutError) for result in ended
        )
        for one in rejected:
            for shell in (*one.shells.values(), *one.pending):
                ray.kill(shell)
            standing.remove(one.name)

    def _keep_saying(self) -> None:
        """A thread: the driver lives, also while a callback or a commit keeps its loop."""
        while not self._closed.wait(PING):
            for group in list(self._groups):
                try:
                    group.ping()
                except Exception as error:  # Ray is ending, or has ended
                    log.debug("no word to a group: %s", error)

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
        self._parting = [group for group in self._parting if not group.finish_parting()]
        for group in list(self._groups):
            group.keep_time(now)
            if group.idle_since is not None and now - group.idle_since > IDLE:
                self._part(group)
        if self._local is None and now - self._looked > LOOK:
            self._looked = now
            self._look_at_nodes()
        if self._local is None and now - self._swept > SWEEP:
            self._swept = now
            before, self._orphans = self._orphans, standing.orphans()
            for name in before & self._orphans:
                standing.remove(name)
        self._share_nodes(now)

    def _share_nodes(self, now: float) -> None:
        """Attempts that have waited too long for a node of their own take what there is."""
        late = [group for group in self._groups if group.shape.filler and group.waits_since(now) > ALONE]
        for group in late:
            log.warning("no node is free for a trial alone within %g s: it shares one", ALONE)
            self._part(group)
        if late:
            self._waiting = deque(dataclasses.replace(one, alone=False) for one in self._waiting)
            self._match()

    def _look_at_nodes(self) -> None:
        """Nodes come and go: what is there, and what leaves those that are to go."""
        leaving = standing.draining()
        before, self._nodes = self._nodes, _nodes(without=leaving)
        if len(self._nodes) != len(before):
            log.info("the cluster has %s now", described(self._nodes))
            self._match()
        for group in list(self._groups):
            deadlines = [leaving[node] for node in group.nodes if node in leaving]
            if deadlines:
                self._vacate(group, min(deadlines))

    def _vacate(self, group: Group, deadline: float) -> None:
        group.leave()
        if group.number is None:
            self._part(group)
            return
        left = deadline - time.time() - HURRY if deadline else WITHOUT_DEADLINE
        outcome = Outcome(reason=Reason.PREEMPTED, message="its node is drained, and will go")
        group.stop(outcome, max(0.0, left))


def _nodes(without: Mapping[str, float] | None = None) -> Nodes:
    """The resources of the nodes that are alive, and not to go."""
    found = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"] and node["NodeID"] not in (without or {})]


def _whole(states: Mapping[int, Standing]) -> Assignment | None:
    """The attempt that every rank of a group runs; None where one is missing or runs another."""
    assignments = [state.assignment for state in states.values()]
    first = assignments[0] if assignments else None
    if first is None or set(states) != set(range(first.resources.ranks)):
        return None
    key = (first.number, first.attempt, first.epoch)
    for state in states.values():
        one = state.assignment
        if one is None or state.placed is None or (one.number, one.attempt, one.epoch) != key:
            return None
    return first


def _result(ref: Any, timeout: float | None = None) -> Any:
    try:
        return ray.get(ref, timeout=timeout)
    except (ray.exceptions.RayError, RuntimeError) as error:
        return error


def _results(refs: Sequence[Any], seconds: float) -> dict[Any, Any]:
    """What has come within so many seconds of all of them; GetTimeoutError for the others."""
    if refs:
        ray.wait(list(refs), num_returns=len(refs), timeout=seconds)
    return {ref: _result(ref, 0.001) for ref in refs}


def show_token(address: str) -> None:
    """To a cluster of this host, the token that Ray has made here: ``ray start`` asks for it once there
    is one, and ``ray.init`` does not show it by itself to an address that was named.
    """
    host = address.removeprefix("ray://").rpartition(":")[0]
    try:
        socket.create_server((host, 0)).close()
    except OSError:
        return  # another host's: who sends a secret there has to say so
    level = _tokens.logger.level
    _tokens.logger.setLevel(logging.ERROR)
    try:
        _tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    finally:
        _tokens.logger.setLevel(level)


def _knock(address: str) -> None:
    """Fail soon where nothing listens: Ray itself would try for long.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT).close()
