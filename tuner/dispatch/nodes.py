"""What the nodes of a cluster have, now and at most, as Ray counts it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray
from ray._private.state import state

from tuner.dispatch.capacity import Nodes

__all__ = ["alive", "configured", "free", "is_larger"]

_MOST = 1000  # nodes of a kind that are counted: an autoscaler's limit may be a formality


def alive(
    without: Collection[str] = (), devices_aside: Mapping[str, int] | None = None
) -> dict[str, dict[str, float]]:
    """The resources of the nodes that are there, by Ray's id of the node.

    Args:
        without: nodes to leave out.
        devices_aside: how many of a node's GPUs are not to be used.
    """
    found = {}
    for node in _rows():
        name = node["NodeID"]
        if node["Alive"] and name not in without:
            has = dict(node["Resources"])
            aside = (devices_aside or {}).get(name, 0)
            found[name] = {**has, "GPU": max(0, has.get("GPU", 0) - aside)} if aside else has
    return found


def free(nodes: Collection[str]) -> dict[str, dict[str, float]]:
    """What nobody holds now of some nodes, a moment ago."""
    found = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return {name: dict(found[name]) for name in nodes if name in found}


def configured() -> Nodes:
    """The nodes that an autoscaler may make at most; none where there is no autoscaler."""
    config: Any = state.get_cluster_config()
    kinds: Sequence[Any] = config.node_group_configs if config is not None else ()
    most: list[Mapping[str, float]] = []
    for kind in kinds:
        count = min(kind.max_count, _MOST) if kind.max_count >= 0 else _MOST  # -1: no limit
        most += [{name: float(amount) for name, amount in kind.resources.items()}] * count
    return most


def is_larger(nodes: Nodes, others: Nodes) -> bool:
    """Whether nodes have more GPUs than others, or as many and more CPUs."""
    return _size(nodes) > _size(others)


def _size(nodes: Nodes) -> tuple[float, float]:
    return sum(node.get("GPU", 0) for node in nodes), sum(node.get("CPU", 0) for node in nodes)


def _rows() -> list[dict[str, Any]]:
    return ray.nodes()  # type: ignore[no-untyped-call,no-any-return]
