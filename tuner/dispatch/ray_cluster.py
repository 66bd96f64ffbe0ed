"""Attempts on a Ray cluster: groups of shells in placement groups, kept for the next trial."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions

from tuner.assignment import Assignment, ObjectiveRef
from tuner.dispatch import ahead, nodes, packages, standing
from tuner.dispatch.base import Adopted, Cluster, Executor, Sink
from tuner.dispatch.capacity import Nodes, described, fits, more, remaining, rest, shortage
from tuner.dispatch.connection import Connection
from tuner.dispatch.devices import twice
from tuner.dispatch.exchange import Exchange
from tuner.dispatch.probe import lacking, probe
from tuner.dispatch.ray_group import GROUP, Group, cause
from tuner.dispatch.set_aside import SetAside
from tuner.dispatch.shape import Shape
from tuner.dispatch.shell import StaleEpoch, Standing
from tuner.errors import ClusterUnavailable, Infeasible, StudyHeld
from tuner.messages import Answer, Ended, Envelope, Message, RankInfo, Released
from tuner.outcome import Outcome, Reason
from tuner.processes import are_ended
from tuner.resources import Resources
from tuner.resources import described as in_words

__all__ = ["RayExecutor"]

log = logging.getLogger(__name__)

IDLE = 10.0  # seconds that a group without work is kept
HOPELESS = 3  # groups in a row that could not start, with none before, after which the run ends
TAKE_OVER = 10.0  # seconds for shells of another driver to answer, and again to end
PING = 2.0  # seconds between two words that the driver lives, whatever its loop is busy with
PULSE = 0.1  # seconds between two looks whether a local Ray still lives
LOOK = 1.0  # seconds between two looks at the nodes of a standing cluster
SWEEP = 5.0  # seconds between two looks at what dead drivers of any study have left on it
SERIES = 16  # attempts that a group begins in one go at most
ALONE = 60.0  # seconds that an attempt waits for a node of its own; then it shares one
WITHOUT_DEADLINE = 60.0  # seconds that attempts get on a node that is to go some time
HURRY = 2.0  # seconds before a node goes, by which its attempts have left


class RayExecutor(Executor):
    """Runs attempts on Ray; see :class:`tuner.dispatch.base.Executor`.

    Args:
        address: of a cluster; None: the Ray that this process is connected to, else
            ``$RAY_ADDRESS``, else a local one that is started and ended here.
        runtime_env: what is sent to every node; see :mod:`tuner.runtime_env`.
        preload: of the objective whose attempts are expected.
        at_once: attempts that will be here at most, where that is known.
    """

    def __init__(
        self,
        address: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        preload: Sequence[str] = (),
        at_once: int | None = None,
    ) -> None:
        self._connection = Connection(address, runtime_env)
        self._preload = tuple(preload)
        self._at_once = at_once
        self._usual: tuple[Resources, ...] = ()
        self._ahead: ahead.Ahead | None = None
        self._groups: list[Group] = []
        self._parting: list[Group] = []
        self._waiting: deque[Assignment] = deque()
        self.exchange = Exchange()
        self._aside = SetAside(self.exchange.watch)
        self._nodes: dict[str, dict[str, float]] = {}
        self._configured: Nodes = ()
        self._starting: dict[Group, int] = {}  # for which attempt that waits
        self._held_up = False  # an attempt found no room: nothing else is to be given one
        self._more: int | None = None  # attempts that fit beside those that are here; None: to be counted
        self._started_one = False
        self._failed_starts = 0
        self._superseded: StaleEpoch | None = None
        self._unsure = False  # a shell of another driver did not answer
        self._looked = self._swept = self._felt = 0.0
        self._orphans: set[str] = set()
        self._closed = threading.Event()
        self._closed.set()

    def open(
        self, run: str, epoch: int, resources: Sequence[Resources], sink: Sink, study: str = ""
    ) -> Cluster:
        self._run, self._epoch, self._sink, self._study = run, epoch, sink, study
        if resources and self._connection.starts_ray:
            begun = ahead.taken(run)
            self._ahead = begun or ahead.start_groups(run, resources[0], self._preload, self._at_once)
        self._connection.open(run)
        if (host := self._connection.line_host()) is not None:
            self.exchange.listen(host)
        self._nodes = nodes.alive()
        self._configured = nodes.configured()
        ever = self._ever()
        self._has_gpus = any(node.get("GPU") for node in ever)
        self._usual = tuple(one.resolved(self._has_gpus) for one in resources)
        able = [one for one in self._usual if fits(ever, (one.bundle(), one.count))]
        if self._usual and not able:
            raise Infeasible(self._shortage(self._usual))
        kind = "local" if self._connection.is_local else "standing"
        self._home = f"{kind}/{standing.cluster_id()}"
        if self._closed.is_set():
            self._closed.clear()
            threading.Thread(target=self._keep_saying, name="tuner-ping", daemon=True).start()
        description = described(list(self._nodes.values()))
        return Cluster(slots=max(1, self.slots()), description=description, home=self._home)

    def probe(self, folder: str) -> dict[str, str]:
        return probe(folder)

    def lacking(self, objective: ObjectiveRef) -> dict[str, str]:
        sent = self._connection.sent
        if not objective.file or (self._connection.is_local and not sent):
            return {}
        able = [node for node, has in self._nodes.items() if self._may_run(has)]
        return lacking(objective, sent, able)

    def _may_run(self, node: Mapping[str, float]) -> bool:
        """Whether a node holds one rank of a trial."""
        if not self._usual:
            return bool(node.get("CPU"))
        return any(fits([node], (one.bundle(), 1)) for one in self._usual)

    def slots(self) -> int:
        here = len(self._waiting) + sum(
            1 + len(group.behind) for group in self._groups if group.number is not None
        )
        if self._held_up:
            return here
        if self._more is None:
            room = self._room(at_most=True)
            if self._usual:
                self._more = more(room, [(one.bundle(), one.count) for one in self._usual])
            else:  # what the next trial needs is known when it is there
                self._more = int(any(amount > 0 for node in room for amount in node.values()))
            starting = sum(not group.is_ready for group in self._groups)
            self._more += max(0, starting - len(self._waiting))
        return here + self._more

    def queued(self) -> int:
        behind = sum(len(group.behind) for group in self._groups)
        return behind + max(0, len(self._waiting) - len(self._starting))

    def adopt(self, wanted: Callable[[Assignment], bool]) -> list[Adopted]:
        if self._connection.is_local or not self._study:
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
            shape = self._shape(assignment, assignment.resources, name=one.name)
            told = states[one.name][0].ready.get("packages", "")
            shape = dataclasses.replace(shape, packages=told)
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
        wanted = [one.resolved(self._has_gpus) for one in assignment.alternatives or (assignment.resources,)]
        ever = self._ever()
        usual = all(one in self._usual for one in wanted)
        able = [one for one in wanted if usual or fits(ever, (one.bundle(), one.count))]
        if (may_be := tuple(able or wanted)) != assignment.alternatives:
            assignment = dataclasses.replace(assignment, alternatives=may_be)
        if self._connection.sent:
            assignment = packages.addressed(assignment, self._connection.sent)
        self._waiting.append(assignment)
        if not able:
            self._withdraw(assignment.number, Outcome(reason=Reason.REFUSED, message=self._shortage(wanted)))
        self._match()

    def poll(self, timeout: float) -> None:
        if time.monotonic() - self._felt > PULSE:
            if self._connection.is_dead:
                raise ClusterUnavailable(
                    "the local Ray was killed; what ran goes on when the study is resumed"
                )
            self._felt = time.monotonic()
        self.exchange.wait(timeout)
        if self._superseded is not None:
            raise StudyHeld(f"another driver has taken over ({cause(self._superseded)}); this one ends")
        self._keep_time()

    def answer(self, number: int, rank: int, answer: Answer) -> None:
        for group in self._of(number):
            group.answer(rank, answer)

    def waits(self) -> Mapping[int, str]:
        why = f" ({self._aside.described()})" if self._aside.described() else ""
        placed = {number for group, number in self._starting.items() if group.is_placed}
        wants = {
            one.number: " or ".join(map(in_words, one.alternatives)) + why
            for one in self._waiting
            if one.number not in placed
        }
        none_fits = bool(why) and not self.slots()  # else nothing waits for a device
        return wants or ({-1: f"a device{why}"} if none_fits else {})

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
        if ray.is_initialized() and not self._connection.is_dead:
            self._aside.close()
            for group in [*self._groups]:
                self._part(group)
            deadline = time.monotonic() + 5
            while self._parting and time.monotonic() < deadline:
                self.exchange.wait(0.1)
                self._parting = [group for group in self._parting if not group.finish_parting()]
        self._groups.clear()
        self._parting.clear()
        self.exchange.close()
        self._end_ahead()
        self._connection.close()

    # ------------------------------------------------------------------ for groups

    def deliver(self, assignment: Assignment, rank: int, seq: int, message: Message) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        number, attempt = assignment.number, assignment.attempt
        self._sink(Envelope(number=number, attempt=attempt, rank=rank, seq=seq, message=message))

    def give_back(self, attempts: Sequence[tuple[Assignment, Ended | None]]) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        self._waiting.extendleft(one for one, end in reversed(attempts) if end is None)
        for one, end in attempts:
            if end is not None:
                self._end_unbegun(one, end)
        if attempts:
            self._match()

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

    def ready(self, group: Group) -> bool:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        held = [one for other in self._groups for one in other.devices()]
        again = sorted(set(twice(held)) & {(one.node, one.device) for one in group.devices()})
        if again:
            self.broke(group, f"Ray gave it GPU {again[0][1]}, which another trial holds")
        return not again

    def device_failed(self, group: Group, rank: int, device: int, why: str) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        info = group.info(rank)
        if device < len(info["devices"]):
            self._aside.add(info["node"], info["devices"][device], why)

    def superseded(self, error: StaleEpoch) -> None:
        """See :class:`tuner.dispatch.ray_group.Owner`."""
        self._superseded = error

    # ------------------------------------------------------------------ inside

    def _match(self) -> None:
        """Give waiting attempts, in their order, to idle groups or to new ones.

        Who finds no room holds up those behind it, so that nobody waits for ever; one that needs a node
        for itself goes first, and holds them up until it has it. Idle groups then give back what they hold.
        """
        self._more = None
        self._held_up = False
        claimed: dict[Group, int] = {}
        self._starting = claimed
        for one in sorted(self._waiting, key=lambda waiting: not waiting.alone):
            if not self._serve(one, claimed):
                self._held_up = True
                for group in list(self._groups):
                    if group.idle_since is not None:
                        self._part(group)
                return

    def _serve(self, one: Assignment, claimed: dict[Group, int]) -> bool:
        """Whether an attempt has a group: it is begun there, or waits until that has started."""
        shapes = [(self._shape(one, resources), resources) for resources in one.alternatives]
        for shape, resources in shapes:
            for group in self._groups:
                if group.shape != shape:
                    continue
                if group.idle_since is not None:
                    series = self._series(one) if shape.ranks == 1 else [one]
                    for each in series:
                        self._waiting.remove(each)
                    group.begin(
                        [
                            each
                            if each.resources == resources
                            else dataclasses.replace(each, resources=resources)
                            for each in series
                        ]
                    )
                    return True
                if not group.is_ready and group not in claimed:
                    claimed[group] = one.number
                    return not shape.filler
            if self._has_room(shape) and (len(shapes) == 1 or self._is_free(shape)):
                return self._make(shape, one.number, claimed)
        for shape, _ in shapes:
            if self._ever() is self._configured and self._has_room(shape, at_most=True):
                return self._make(shape, one.number, claimed)  # what waits for a place makes the cluster grow
        return False

    def _series(self, first: Assignment) -> list[Assignment]:
        """An attempt, with its share of those behind it that may begin in one go."""
        if not first.short or first.sent:
            return [first]
        behind = itertools.dropwhile(lambda one: one is not first, self._waiting)
        alike = [one for one in behind if one.short and one.alternatives == first.alternatives]
        share = -(-len(alike) // max(1, len(self._groups)))
        return alike[: min(share, SERIES)]

    def _make(self, shape: Shape, number: int, claimed: dict[Group, int]) -> bool:
        """Start a group, in place of idle ones of other shapes where there is no room beside them."""
        if not fits(self._room(idle=True), (shape.bundle, shape.ranks)):
            for idle in [group for group in self._groups if group.idle_since is not None]:
                self._part(idle)
        group = Group.make(self, self._with_ahead(shape), self._epoch)
        self._groups.append(group)
        claimed[group] = number
        return not shape.filler

    def _with_ahead(self, shape: Shape) -> Shape:
        """What was started ahead goes to the first groups, or ends where the first is of another kind."""
        if self._ahead is None:
            return shape
        if shape.hide_gpus and self._ahead.is_for(shape.cpus, shape.preload):
            return dataclasses.replace(shape, ahead=self._ahead.take(shape.ranks))
        if not self._ahead.is_taken:
            self._end_ahead()
        return shape

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.end()
            self._ahead = None

    def _has_room(self, shape: Shape, at_most: bool = False) -> bool:
        if shape.filler:
            return True  # a node will be empty some time
        if self._aside.is_looking and not shape.hide_gpus:
            return False
        return fits(self._room(at_most=at_most), (shape.bundle, shape.ranks))

    def _is_free(self, shape: Shape) -> bool:
        """Whether nobody on the cluster holds it: asked where there is an alternative."""
        giving = [group for group in self._groups if group.idle_since is not None] + self._parting
        taking = [group for group in self._groups if not group.is_ready and not group.is_placed]
        held: list[tuple[str, Mapping[str, float]]] = []
        for group in giving:
            held += [(node, {name: -one for name, one in bundle.items()}) for node, bundle in group.held()]
        for group in taking:
            held += [("", bundle) for _, bundle in group.held()]
        return fits(remaining(nodes.free(self._nodes), held), (shape.bundle, shape.ranks))

    def _room(self, *, idle: bool = False, at_most: bool = False) -> Nodes:
        """What is left beside our groups, with or without those that are idle; now, or once it has grown."""
        groups = [group for group in self._groups if idle or group.idle_since is None]
        held = [one for group in groups for one in group.held()]
        ever = self._ever()
        if not at_most or ever is not self._configured:
            return remaining(self._nodes, held)
        return remaining(dict(enumerate(ever)), [("", bundle) for _, bundle in held])  # type: ignore[arg-type]

    def _ever(self) -> Nodes:
        """The nodes as they are, or as many as an autoscaler may make of them."""
        now = list(self._nodes.values())
        return self._configured if nodes.is_larger(self._configured, now) else now

    def _shortage(self, wanted: Sequence[Resources]) -> str:
        """Why none of the alternatives fits, for the one that asks for the least."""
        last = wanted[-1]
        text = shortage(self._ever(), last.bundle(), last.count)
        return text if len(wanted) == 1 else f"none of {len(wanted)} alternatives fits; the last: {text}"

    def _shape(self, assignment: Assignment, resources: Resources, name: str = "") -> Shape:
        bundle = resources.bundle()
        filler: Mapping[str, float] = {}
        if assignment.alone:
            filler = rest(list(self._nodes.values()), bundle, resources.count)
        if not name and not self._connection.is_local and self._study:
            name = standing.group_name(self._study)
        return Shape(
            run=assignment.run,
            ranks=resources.count,
            cpus=resources.cpus,
            bundle=bundle,
            hide_gpus=not resources.gpus,
            filler=filler,
            preload=ahead.modules(resources, assignment.objective.preload),
            packages=self._connection.packages,
            name=name,
            study=self._study,
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
                self._end_unbegun(assignment, Ended(outcome=outcome))
                return True
        return any(group.withdraw(number, outcome) for group in self._groups)

    def _end_unbegun(self, assignment: Assignment, end: Ended) -> None:
        self.deliver(assignment, GROUP, 1, end)
        self.deliver(assignment, GROUP, 2, Released())

    def _keep_time(self) -> None:
        now = time.monotonic()
        self._parting = [group for group in self._parting if not group.finish_parting()]
        self._aside.keep_time()
        for group in list(self._groups):
            group.keep_time(now)
            if group.idle_since is not None and now - group.idle_since > IDLE:
                self._part(group)
        if now - self._looked > LOOK:
            self._looked = now
            self._look_at_nodes()
            if self._held_up:
                self._match()  # others on the cluster may have given something back
        if not self._connection.is_local and now - self._swept > SWEEP:
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
        """Nodes come and go, and devices are set aside: what is there; nodes to go are left."""
        aside = self._aside.counts()
        if self._connection.is_local and not aside:
            return
        leaving = standing.draining()
        before, self._nodes = self._nodes, nodes.alive(leaving, aside)
        self._configured = nodes.configured()
        if self._nodes != before:
            log.info("the cluster has %s now", described(list(self._nodes.values())))
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


def _whole(states: Mapping[int, Standing]) -> Assignment | None:
    """The attempt that every rank of a group runs; None where one is missing or runs another."""
    assignments = [state.assignment for state in states.values()]
    first = assignments[0] if assignments else None
    if first is None or set(states) != set(range(first.resources.count)):
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
