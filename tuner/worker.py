"""Runs one attempt of an objective on one rank, and says how it ended."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import optuna

from tuner import device, failures
from tuner import objective as objectives
from tuner.agreement import DONE, PeerLost, open_store
from tuner.assignment import Assignment
from tuner.channel import Channel, Place
from tuner.errors import BadObjective, Interrupted
from tuner.messages import Finished
from tuner.outcome import Outcome, Reason, classify_return
from tuner.proxy import frozen_trial, relative_draw
from tuner.seeds import seed_everything
from tuner.trial import Trial

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["FAREWELL", "prepare", "run"]

FAREWELL = 10.0
"""Seconds that rank 0 stays after its end, so that the others can read their verdicts."""

_LOST_PEER = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "socket closed",
    "connection refused",
    "failed to recv",
    "recvvalue failed",
    "sendbytes failed",
    "store is not available",
)


def run(
    assignment: Assignment, place: Place, channel: Channel, objective: Callable[[Trial], Any] | None = None
) -> bool:
    """Run the objective in this process and send exactly one ``Finished`` at its end.

    Returns:
        Whether it ended well: complete, or pruned.

    The objective is imported by its reference; ``objective`` is the function itself where the
    driver runs in this very process, so that closures and breakpoints are its own.

    With several ranks, ``torch.distributed`` is initialised before the objective is called and
    torn down after it: after a bounded farewell when it ended well, at once when it raised,
    which frees the peers from a collective.
    """
    store: Store | None = None
    seconds = 0.0
    try:
        _check_devices(assignment, place, channel)
        store = _set_up(assignment, place)
        objective = objective or objectives.load(assignment.objective)
        trial = Trial(assignment, place, channel, store)
        _seed(assignment)  # again: the import may have brought torch, or drawn numbers
        process = os.getpid()
        began = time.perf_counter()
        ending = _call(objective, trial, assignment, place)
        seconds = time.perf_counter() - began
        if os.getpid() != process:
            _end_fork(ending)
    except _DeviceFailed as error:
        ending = _Ending(outcome=_named(place, error.fault.index, error.fault.why), device=error.fault.index)
    except BaseException as error:
        ending = _Ending(outcome=_failed_start(error), collateral=_is_collateral(error, place))
    channel.send(
        Finished(outcome=ending.outcome, collateral=ending.collateral, device=ending.device, seconds=seconds)
    )
    # Once that is said: it frees a peer that waits in a collective, but nccl waits in it for those that were
    # begun, which a peer may never join. Then the driver ends this process.
    if not ending.returned:
        _leave_group()
    well = ending.outcome.reason in (Reason.COMPLETE, Reason.PRUNED)
    if store is not None:
        _farewell(store, place, ending.returned, ending.returned or well)
    _leave_group()
    return well


def prepare(series: Sequence[Assignment]) -> None:
    """Learn what the processes that make these attempts, each forked from this one, will look up."""
    objectives.ahead(series[0].objective)
    for assignment in series:
        frozen_trial(assignment)
        relative_draw(assignment)


def _seed(assignment: Assignment) -> None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(max(1, int(assignment.resources.cpus)))
    seed_everything(assignment.seed)


class _DeviceFailed(Exception):
    def __init__(self, fault: device.Fault) -> None:
        self.fault = fault


def _check_devices(assignment: Assignment, place: Place, channel: Channel) -> None:
    if not place.devices:
        return

    def give_up() -> None:
        channel.send(Finished(outcome=_named(place, 0, f"no answer within {device.HUNG:g} s"), device=0))
        os._exit(1)

    gpus = assignment.resources.gpus or 0
    with device.within(device.HUNG, give_up):
        look = device.look_of(place.devices)  # the first call of a driver, or a user's import, may hang too
        fault = device.probe(look, len(place.devices), alone=gpus >= 1) if look is not None else None
    if fault is not None:
        raise _DeviceFailed(fault)


def _named(place: Place, index: int, why: str) -> Outcome:
    text = f"GPU {place.devices[index]} of {socket.gethostname()}: {why}; it is set aside"
    return Outcome(reason=Reason.DEVICE_FAILED, message=text)


def _set_up(assignment: Assignment, place: Place) -> Store | None:
    _seed(assignment)
    if place.world_size == 1:
        return None
    import torch.distributed as dist

    if place.one_node:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Libraries that launchers such as torchrun start read these.
    os.environ["RANK"], os.environ["LOCAL_RANK"] = str(place.rank), str(place.local_rank)
    os.environ["WORLD_SIZE"] = str(place.world_size)
    store = open_store(place)
    dist.init_process_group(
        "nccl" if assignment.resources.gpus and dist.is_nccl_available() else "gloo",
        store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
        rank=place.rank,
        world_size=place.world_size,
        timeout=dt.timedelta(minutes=30),
    )
    return store


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How the objective's call ended.

    Attributes:
        collateral: it raised only because a peer went away.
        returned: it returned, so that the peers are about to end too.
        device: which of the rank's GPUs cannot be used, if that is why.
    """

    outcome: Outcome
    collateral: bool = False
    returned: bool = False
    device: int | None = None


def _call(objective: Callable[[Trial], Any], trial: Trial, assignment: Assignment, place: Place) -> _Ending:
    try:
        value = objective(trial)
        # Within the try: the value's own __float__ may raise.
        outcome = classify_return(value, assignment.directions) if place.rank == 0 else _DONE
    except optuna.TrialPruned as error:
        return _Ending(outcome=failures.stopped(Reason.PRUNED, str(error)))
    except Interrupted as error:
        return _Ending(outcome=failures.stopped(Reason.INTERRUPTED, str(error)))
    except KeyboardInterrupt as error:
        if not trial._channel.stop_requested():  # the objective's own
            return _Ending(outcome=failures.raised(error))
        return _Ending(outcome=failures.stopped(Reason.INTERRUPTED, "interrupted"))
    except SystemExit as error:
        text = f"the objective called sys.exit({error.code!r})"
        return _Ending(outcome=failures.raised(error, Reason.RANK_LOST, text))
    except BaseException as error:
        outcome = failures.raised(error)
        broke = outcome.reason is Reason.DEVICE_FAILED and len(place.devices) == 1
        collateral = _is_collateral(error, place)
        return _Ending(outcome=outcome, collateral=collateral, device=0 if broke else None)
    if trial.told_to_stop:
        text = "the objective returned after should_stop() said True; it goes on from its checkpoint"
        outcome = failures.stopped(Reason.INTERRUPTED, text)
    return _Ending(outcome=outcome, returned=True)


def _end_fork(ending: _Ending) -> NoReturn:
    """Of a process that the objective forked and that came to its end too: it speaks for no trial."""
    sys.stdout.flush()
    sys.stderr.write(ending.outcome.traceback)
    sys.stderr.flush()
    os._exit(0 if ending.returned else 1)


_DONE = Outcome(reason=Reason.COMPLETE)  # what another rank returns does not count


def _failed_start(error: BaseException) -> Outcome:
    if isinstance(error, BadObjective):
        return failures.raised(error.__cause__ or error, Reason.IMPORT_ERROR, str(error))
    return failures.raised(error, Reason.EXCEPTION)


def _is_collateral(error: BaseException, place: Place) -> bool:
    """Whether an error only says that another rank is gone."""
    if place.world_size == 1:
        return False
    if isinstance(error, PeerLost):
        return True
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _LOST_PEER)


def _leave_group() -> None:
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    with contextlib.suppress(Exception):
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _farewell(store: Store, place: Place, returned: bool, well: bool) -> None:
    """Wait, bounded, for the other ranks: all for all after a return, since a group that is
    destroyed while a peer still works aborts it; rank 0 for the others after a pruned trial
    too, since they read their verdict from its store, which ends with it.
    """
    deadline = time.monotonic() + FAREWELL
    with contextlib.suppress(Exception):
        store.set(f"{DONE}/{place.rank}", "1")
        if returned:
            _await(store, DONE, place, deadline)
            _leave_group()
        # A second word: who waits at a store that ends gets C++ stacks on its stderr.
        store.set(f"gone/{place.rank}", "1")
        if well and place.rank == 0:
            _await(store, "gone", place, deadline)


def _await(store: Store, word: str, place: Place, deadline: float) -> None:
    keys = [f"{word}/{rank}" for rank in range(place.world_size)]
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(0.002)
