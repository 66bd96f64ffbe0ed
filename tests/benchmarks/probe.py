"""Says when a rank passed each stage of its start: its zygote imports it, so it is there after the fork.

``stamps`` has, by stage, seconds of the kernel's monotonic clock, which is the same in all processes.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from tuner import objective, worker

__all__ = ["stamps"]

stamps: dict[str, float] = {}


def _stamped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        stamps[f"{name}: begin"] = time.monotonic()
        try:
            return function(*args, **given)
        finally:
            stamps[f"{name}: end"] = time.monotonic()

    return call


os.register_at_fork(after_in_child=lambda: stamps.setdefault("fork", time.monotonic()))
worker.run = _stamped("run", worker.run)
worker.open_store = _stamped("store", worker.open_store)
dist.init_process_group = _stamped("group", dist.init_process_group)
objective.load = _stamped("load", objective.load)
