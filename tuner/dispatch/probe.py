"""Whether every node of a cluster reaches the folder or URI of the checkpoints."""

from __future__ import annotations

import socket
import uuid
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuner import checkpoint

__all__ = ["probe"]

PATIENCE = 60.0  # seconds for a node to answer


def probe(folder: str) -> dict[str, str]:
    """What is wrong, by host name; empty where every node reads what this process wrote, and writes.

    Args:
        folder: a folder, or an fsspec URI.
    """
    token = f"{folder}/probe-{uuid.uuid4().hex}"
    why = look(token, None)
    if why:
        return {socket.gethostname(): why}
    try:
        others = [node for node in _alive() if node["NodeID"] != _here()]
        return _ask(token, others)
    finally:
        checkpoint.delete([token])


def _ask(token: str, nodes: list[dict[str, Any]]) -> dict[str, str]:
    """What is wrong on other nodes, all asked at once."""
    task: Any = ray.remote(look)
    asked = {}
    for node in nodes:
        affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        there = task.options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)
        asked[there.remote(f"{token}-{node['NodeID'][:8]}", token)] = node["NodeManagerHostname"]
    wrong: dict[str, str] = {}
    for ref, host in asked.items():
        try:
            why = ray.get(ref, timeout=PATIENCE)
        except ray.exceptions.RayError as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if why:
            wrong[host] = why
    return wrong


def look(mine: str, shared: str | None) -> str:
    """Write a file and read it back, and read one that another node wrote; why not, or "".

    With ``shared`` None the file stays, for others to read.
    """
    try:
        checkpoint.write_text(mine, "tuner")
        if checkpoint.read_text(mine) != "tuner":
            return "what is written there cannot be read"
        if shared is not None:
            checkpoint.delete([mine])
            if checkpoint.read_text(shared) != "tuner":
                return "it is not the same folder as on the driver's node"
    except Exception as error:  # of any file system
        return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    return ""


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _here() -> str:
    return str(ray.get_runtime_context().get_node_id())
