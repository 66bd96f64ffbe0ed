"""The shell as a Ray actor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import worker
from ray.util import serialization_addons

from tuner.dispatch import packages, standing
from tuner.dispatch.set_aside import assigned_devices
from tuner.dispatch.shape import Shape
from tuner.dispatch.shell import Shell

__all__ = ["RayShell", "plain"]


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """What Ray first packs or unpacks meanwhile brings no import of pyarrow and pydantic, for things that
    pass between no driver and no shell of ours: a quarter of a second, and memory, in each process.
    """
    apply = getattr(serialization_addons, "apply", None)
    if apply is None:
        yield  # another Ray than was tried: as it likes
        return
    serialization_addons.apply = lambda context: None
    try:
        yield
        with contextlib.suppress(Exception):
            worker.global_worker.get_serialization_context()  # type: ignore[no-untyped-call]
    finally:
        serialization_addons.apply = apply


if worker.global_worker.mode == ray.WORKER_MODE:  # before Ray unpacks the arguments of an actor
    with plain():
        pass


class RayShell(Shell):
    """A shell that knows where Ray placed it, and to which group it belongs."""

    def __init__(self, shape: Shape, rank: int) -> None:
        self._group = shape.name
        self._sent = dict(ray.get_runtime_context().runtime_env)
        package = os.getcwd() if self._sent.get("working_dir") else ""  # where Ray starts its workers then
        folder = shape.ahead[rank] if rank < len(shape.ahead) else ""
        super().__init__(shape.run, shape.cpus, shape.hide_gpus, shape.preload, shape.study, package, folder)
        self._node = ray.get_runtime_context().get_node_id()

    def left(self) -> None:
        if self._group:
            standing.remove(self._group)

    def ready(self) -> dict[str, Any]:
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        found = {"node": self._node, "address": address, "devices": assigned_devices()}
        return {**super().ready(), **found, "packages": packages.told(self._sent)}
