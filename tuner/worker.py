"""Runs one attempt of an objective on one rank, and says how it ended."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optuna

from tuner import objective as objectives
from tuner.agreement import open_store
from tuner.assignment import Assignment
from tuner.channel import Channel, Place
from tuner.errors import BadObjective, Interrupted
from tuner.messages import Finished
from tuner.outcome import Outcome, Reason, classify_return
from tuner.seeds import seed_everything
from tuner.trial import Trial

if TYPE_CHECKING:
    from torch.distributed import Store

__all__ = ["FAREWELL", "run"]

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


def run(assignment: Assignment, place: Place, channel: Channel) -> None:
    """Run the objective in this process and send exactly one ``Finished`` at its end.

    With several ranks, ``torch.distributed`` is initialised before the objective is called and
    torn down after it: after a bounded farewell when it ended well, at once when it raised,
    which frees the peers from a collective.
    """
    store: Store | None = None
    try:
        store = _set_up(assignment, place)
        objective = objectives.load(assignment.objective)
    except BaseException as error:
        channel.send(Finished(outcome=_failed_start(error), collateral=_is_collateral(error, place)))
        return
    trial = Trial(assignment, place, channel, store)
    outcome, collateral = _call(objective, trial, assignment, place)
    complete = outcome.reason is Reason.COMPLETE
    if not complete:
        _leave_group()  # before anything else: a peer may wait in a collective
    channel.send(Finished(outcome=outcome, collateral=collateral))
    if store is not None:
        _farewell(store, place, complete, well=complete or outcome.reason is Reason.PRUNED)
    if complete:
        _leave_group()


def _set_up(assignment: Assignment, place: Place) -> Store | None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(max(1, int(assignment.resources.cpus)))
    seed_everything(assignment.seed)
    if place.world_size == 1:
        return None
    import torch.distributed as dist

    if place.one_node:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.update(RANK=str(place.rank), LOCAL_RANK=str(place.local_rank), WORLD_SIZE=str(place.world_size))
    store = open_store(place)
    dist.init_process_group(
        "nccl" if assignment.gpus and dist.is_nccl_available() else "gloo",
        store=dist.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=dt.timedelta(minutes=30),
    )
    return store


def _call(
    objective: Callable[[Trial], Any], trial: Trial, assignment: Assignment, place: Place
) -> tuple[Outcome, bool]:
    """Call the objective; how it ended, and whether only because a peer went away."""
    try:
        value = objective(trial)
    except optuna.TrialPruned as error:
        return Outcome(reason=Reason.PRUNED, message=str(error)), False
    except Interrupted as error:
        return Outcome(reason=Reason.INTERRUPTED, message=str(error)), False
    except KeyboardInterrupt:
        if trial._channel.stop_requested():
            return Outcome(reason=Reason.INTERRUPTED, message="interrupted"), False
        return Outcome(reason=Reason.EXCEPTION, message="KeyboardInterrupt", exception="KeyboardInterrupt"), False
    except SystemExit as error:
        text = f"the objective called sys.exit({error.code!r})"
        return Outcome(reason=Reason.RANK_LOST, message=text, traceback=_own_traceback(error)), False
    except BaseException as error:
        reason = Reason.OOM if _is_out_of_memory(error) else Reason.EXCEPTION
        return _raised(error, reason), _is_collateral(error, place)
    if trial.told_to_stop:
        text = "the objective returned after should_stop() said True; it goes on from its checkpoint"
        return Outcome(reason=Reason.INTERRUPTED, message=text), False
    if place.rank != 0:
        return Outcome(reason=Reason.COMPLETE), False
    return classify_return(value, assignment.directions), False


def _failed_start(error: BaseException) -> Outcome:
    if isinstance(error, BadObjective):
        return Outcome(
            reason=Reason.IMPORT_ERROR,
            message=str(error),
            exception=_type_name(error.__cause__ or error),
            traceback=_own_traceback(error.__cause__ or error),
        )
    return _raised(error, Reason.EXCEPTION)


def _raised(error: BaseException, reason: Reason) -> Outcome:
    text = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    return Outcome(reason=reason, message=message, traceback=_own_traceback(error), exception=_type_name(error))


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _own_traceback(error: BaseException) -> str:
    """The traceback from the objective's first frame on, without ours above it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None and frame.tb_frame.f_globals.get("__name__") == __name__:
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame))


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _is_collateral(error: BaseException, place: Place) -> bool:
    """Whether an error only says that another rank is gone."""
    if place.world_size == 1:
        return False
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


def _farewell(store: Store, place: Place, complete: bool, *, well: bool) -> None:
    """Wait, bounded, for the other ranks: all for all after a complete trial, since a group that
    is destroyed while a peer still works aborts it; rank 0 for the others after a pruned one,
    since they read their verdict from its store.
    """
    with contextlib.suppress(Exception):
        store.set(f"done/{place.rank}", "1")
        if complete or (well and place.rank == 0):
            store.wait([f"done/{rank}" for rank in range(place.world_size)], dt.timedelta(seconds=FAREWELL))
