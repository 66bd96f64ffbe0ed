"""Devices that failed their probe: held for the rest of the run, so that Ray gives them to no trial.

Ray has no way to exclude a device. Once the group that had it has given it back, one actor for each
free GPU of the node is started; those that Ray gives a failed device keep it, the others end.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.exceptions
from ray._private.state import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["SetAside", "assigned_devices"]

log = logging.getLogger(__name__)

SEARCH = 15.0  # seconds for the actors of one search to answer
AGAIN = 0.5  # seconds between two looks for free devices
HELD_UP = 10.0  # seconds for which new work on devices waits for a search

Watch = Callable[[Any, Callable[[Any], None]], None]


class _Holder:
    """An actor that holds a device."""

    def devices(self) -> tuple[str, ...]:
        return assigned_devices()


def assigned_devices() -> tuple[str, ...]:
    """The physical ids of the GPUs that Ray gave to this worker."""
    return tuple(map(str, ray.get_runtime_context().get_accelerator_ids().get("GPU", ())))


class SetAside:
    """The failed devices of one run.

    Args:
        watch: calls a handler with the result of a Ray call, or its error; see
            :class:`tuner.dispatch.ray_group.Owner`.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._why: dict[tuple[str, str], str] = {}
        self._held: dict[tuple[str, str], Any] = {}
        self._searching: dict[str, dict[int, Any]] = {}  # by node; below 0: those that have answered
        self._search_by = self._look_at = self._since = 0.0

    def add(self, node: str, device: str, why: str) -> None:
        """A device failed its probe; ``why`` names it."""
        if (node, device) not in self._why:
            log.warning("%s", why)
            self._since = time.monotonic()
        self._why[node, device] = why

    def counts(self) -> Mapping[str, int]:
        """How many devices of each node are set aside."""
        return Counter(node for node, _ in self._why)

    @property
    def is_looking(self) -> bool:
        """A failed device is still free for Ray to give: new work on devices waits a moment."""
        return len(self._held) < len(self._why) and time.monotonic() - self._since < HELD_UP

    def described(self) -> str:
        """Which, where and why, in one line; "" for none."""
        return "; ".join(self._why.values())

    def keep_time(self) -> None:
        """Look for failed devices that nobody holds."""
        now = time.monotonic()
        if self._searching and now > self._search_by:
            for node in list(self._searching):
                for holder in self._searching.pop(node).values():
                    _end(holder)
        if self._searching or now < self._look_at or len(self._held) == len(self._why):
            return
        self._look_at = now + AGAIN
        free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
        for node in {node for node, device in self._why if (node, device) not in self._held}:
            self._search(node, math.floor(free.get(node, {}).get("GPU", 0) + 1e-6))

    def close(self) -> None:
        """Give them back."""
        for holder in [
            *self._held.values(),
            *(one for each in self._searching.values() for one in each.values()),
        ]:
            _end(holder)
        self._held.clear()
        self._searching.clear()

    def _search(self, node: str, count: int) -> None:
        if not count:
            return
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        actor: Any = ray.remote(_Holder).options(
            num_cpus=0, num_gpus=1, max_restarts=0, scheduling_strategy=strategy
        )
        holders = {index: actor.remote() for index in range(count)}
        self._searching[node] = holders
        self._search_by = time.monotonic() + SEARCH
        for index, holder in dict(holders).items():
            self._watch(holder.devices.remote(), functools.partial(self._found, node, index))

    def _found(self, node: str, index: int, result: Any) -> None:
        """All answer before the others end: one that ended early could give its device to the next."""
        searching = self._searching.get(node)
        if searching is None or index not in searching:
            return  # its time was up
        if isinstance(result, Exception) or (node, result[0]) not in self._why:
            searching[-1 - index] = searching.pop(index)  # it has answered, and is of no use
        else:
            self._held[node, result[0]] = searching.pop(index)
        if all(key < 0 for key in searching):
            for healthy in self._searching.pop(node).values():
                _end(healthy)


def _end(actor: Any) -> None:
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        ray.kill(actor)
