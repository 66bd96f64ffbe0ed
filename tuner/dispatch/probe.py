"""Whether every node of a cluster has what a trial needs: the checkpoints' folder or URI, the objective."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuner import checkpoint
from tuner.assignment import ObjectiveRef
from tuner.dispatch import packages
from tuner.errors import BadInput

__all__ = ["lacking", "probe"]

log = logging.getLogger(__name__)

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
        asked = {node["NodeID"]: (f"{token}-{node['NodeID'][:8]}", token) for node in others}
        found = _ask(look, asked).items()
        return {host: why if isinstance(why, str) else _last_line(why) for host, why in found if why}
    finally:
        checkpoint.delete([token])


def lacking(objective: ObjectiveRef, sent: str, nodes: Sequence[str]) -> dict[str, str]:
    """Which nodes would not run the objective as it is here, by host name: why not.

    One that cannot be asked is not among them: its trials go elsewhere.

    Args:
        sent: the folder of which they have a copy; "" for none.
        nodes: Ray's ids.

    Raises:
        BadInput: what is to be sent cannot be set up there.
    """
    here = _here()
    asked = {node: (objective, sent) for node in nodes if node != here or sent}
    found = _ask(compare, asked)
    for host, error in found.items():
        if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
            raise BadInput(
                f"the runtime environment cannot be set up on {host}: {_last_line(error)}"
            ) from error
        if isinstance(error, Exception):
            log.warning("node %s could not be asked for the objective: %s", host, _last_line(error))
    return {host: why for host, why in found.items() if why and isinstance(why, str)}


def _ask(question: Callable[..., str], asked: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """What nodes answer, all asked at once, by host name; an exception where one could not.

    Args:
        asked: the question's arguments by Ray's id of the node.
    """
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in _alive()}
    task: Any = ray.remote(question)
    refs = {}
    for node, arguments in asked.items():
        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        there = task.options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)
        refs[there.remote(*arguments)] = hosts.get(node, node)
    answers: dict[str, Any] = {}
    deadline = time.monotonic() + PATIENCE
    for ref, host in refs.items():
        try:
            answer = ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.RayError as error:
            answer = error
        answers[host] = answers.get(host) or answer  # several nodes may be on one host
    return answers


def compare(objective: ObjectiveRef, sent: str) -> str:
    """Whether this node's objective is the driver's; why not, or ""."""
    return packages.unlike(packages.moved_ref(sent, os.getcwd(), objective) if sent else objective)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


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
