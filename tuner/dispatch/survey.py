"""What the nodes of a cluster run, and what time it is there."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Node", "survey"]

PATIENCE = 60.0  # seconds for a node to answer


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster.

    Attributes:
        why: why it runs nothing of ours, or "".
        packages: versions by name; one that is not installed is not in it.
        ahead: seconds that its clock is ahead of this machine's; ``unsure``: how wrong that may be.
    """

    host: str
    why: str = ""
    python: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    ahead: float = 0.0
    unsure: float = 0.0


def survey(packages: Sequence[str]) -> list[Node]:
    """Every node that is alive, by host name; each is asked twice, since the first task starts a process.

    Args:
        packages: names of those whose versions are wanted.
    """
    rows = [row for row in ray.nodes() if row["Alive"]]  # type: ignore[no-untyped-call]
    task: Any = ray.remote(look)
    first = [_on(task, row).remote(packages) for row in rows]
    ray.wait(first, num_returns=len(first), timeout=PATIENCE)
    found = [_node(row["NodeManagerHostname"], _on(task, row), packages) for row in rows]
    return sorted(found, key=lambda node: node.host)


def look(packages: Sequence[str]) -> tuple[str, dict[str, str], float]:
    """Python's version, the packages' and the time, of the process that calls it."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return platform.python_version(), versions, time.time()


def _on(task: Any, row: Mapping[str, Any]) -> Any:
    affinity = NodeAffinitySchedulingStrategy(row["NodeID"], soft=False)
    return task.options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)


def _node(host: str, task: Any, packages: Sequence[str]) -> Node:
    began = time.time()
    try:
        python, versions, there = ray.get(task.remote(packages), timeout=PATIENCE)
    except ray.exceptions.RayError as error:
        return Node(host=host, why=(str(error).strip().splitlines() or [type(error).__name__])[-1])
    ended = time.time()
    ahead, unsure = there - (began + ended) / 2, (ended - began) / 2
    return Node(host=host, python=python, packages=versions, ahead=ahead, unsure=unsure)
